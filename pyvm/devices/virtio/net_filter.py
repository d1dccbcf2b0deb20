"""The receive filter of a virtio network card (virtio 1.2, section 5.1.6.5): which frames the guest wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAC_LENGTH = 6
TABLE_LIMIT = 64
"""Most addresses of each kind; with more, all are let through."""
VLANS = 4096
_ETHERTYPE = 12
_VLAN_TAG = b"\x81\x00"
_BROADCAST = b"\xff" * MAC_LENGTH


class RxFilter:
    """What the driver asked for."""

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.reset()

    def reset(self) -> None:
        """Let everything through, as before a driver has said anything."""
        self.promiscuous = True
        self.all_multicast = False
        self.all_unicast = False
        self.no_multicast = False
        self.no_unicast = False
        self.no_broadcast = False
        self.unicast: list[bytes] = []
        self.multicast: list[bytes] = []
        self.unicast_overflow = False
        self.multicast_overflow = False
        self.vlans = bytearray(b"\1" * VLANS)
        """A byte for each VLAN, 1 where it is let through."""

    def set_vlans(self, all_of_them: bool) -> None:
        """Begin with all VLANs, or with none."""
        self.vlans = bytearray((b"\1" if all_of_them else b"\0") * VLANS)

    def set_tables(self, unicast: Sequence[bytes], multicast: Sequence[bytes]) -> None:
        """Take the driver's addresses."""
        self.unicast_overflow = len(unicast) > TABLE_LIMIT
        self.unicast = [] if self.unicast_overflow else list(unicast)
        self.multicast_overflow = len(unicast) + len(multicast) > TABLE_LIMIT and bool(multicast)
        self.multicast = [] if self.multicast_overflow else list(multicast)

    def accepts(self, frame: bytes | bytearray | memoryview) -> bool:
        """Whether a frame is for the guest."""
        if self.promiscuous:
            return True
        if frame[_ETHERTYPE : _ETHERTYPE + 2] == _VLAN_TAG and len(frame) >= _ETHERTYPE + 4:
            number = (frame[_ETHERTYPE + 2] << 8 | frame[_ETHERTYPE + 3]) & (VLANS - 1)
            if not self.vlans[number]:
                return False
        target = bytes(frame[:MAC_LENGTH])
        if target[0] & 1:
            if target == _BROADCAST:
                return not self.no_broadcast
            if self.no_multicast:
                return False
            return self.all_multicast or self.multicast_overflow or target in self.multicast
        if self.no_unicast:
            return False
        return self.all_unicast or self.unicast_overflow or target == self.mac or target in self.unicast

    def info(self, *, filters_vlans: bool) -> dict[str, Any]:
        """Return an RxFilterInfo without its name, tables in QEMU's order; `filters_vlans`: the driver does that."""
        tags = [number for number in range(VLANS - 1, -1, -1) if self.vlans[number]]
        return {
            "promiscuous": self.promiscuous,
            "multicast": "none" if self.no_multicast else "all" if self.all_multicast else "normal",
            "unicast": "none" if self.no_unicast else "all" if self.all_unicast else "normal",
            "vlan": "all" if not filters_vlans else "normal" if tags else "none",
            # Clients know this as QEMU fills it in: set where broadcasts are not let through.
            "broadcast-allowed": self.no_broadcast,
            "multicast-overflow": self.multicast_overflow,
            "unicast-overflow": self.unicast_overflow,
            "main-mac": _text(self.mac),
            "vlan-table": tags,
            "unicast-table": [_text(mac) for mac in reversed(self.unicast)],
            "multicast-table": [_text(mac) for mac in reversed(self.multicast)],
        }


def _text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)
