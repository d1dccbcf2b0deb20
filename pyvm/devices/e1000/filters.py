"""Which frames an 8254x takes (8254x manual, 3.2.1 and 13.5): addresses, the multicast table, VLANs."""

from __future__ import annotations

from collections.abc import Mapping

from pyvm.devices.e1000 import registers as r
from pyvm.net.client import Frame

_MAC = 6
_ETHERTYPE, _TAG_END = 12, 16
_BROADCAST = b"\xff" * _MAC
_CFI = 0x1000
_VLAN = 0x0FFF


class Filters:
    """The three tables; `registers` are those of the card."""

    def __init__(self, registers: Mapping[int, int]) -> None:
        self._registers = registers
        self.multicast = [0] * r.MTA_WORDS
        self.vlans = [0] * r.VFTA_WORDS
        self.addresses = [0] * (2 * r.RA_ENTRIES)
        """Low and high words of the receive addresses."""
        self._known: frozenset[bytes] = frozenset()

    def reset(self, mac: bytes) -> None:
        """Empty the tables, but for the card's own address."""
        self.multicast[:] = [0] * r.MTA_WORDS
        self.vlans[:] = [0] * r.VFTA_WORDS
        high = int.from_bytes(mac[4:], "little") | r.RAH_AV
        self.addresses[:] = [int.from_bytes(mac[:4], "little"), high, *[0] * (2 * r.RA_ENTRIES - 2)]
        self.addresses_changed()

    def addresses_changed(self) -> None:
        """Follow a change of the receive addresses."""
        pairs = zip(self.addresses[::2], self.addresses[1::2], strict=True)
        self._known = frozenset(
            low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little") for low, high in pairs if high & r.RAH_AV
        )

    @property
    def mac(self) -> bytes:
        """The first receive address."""
        low, high = self.addresses[:2]
        return low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little")

    def is_tagged(self, frame: Frame) -> bool:
        """Whether a frame has a VLAN tag of the kind that the card knows."""
        kind = self._registers[r.VET] & 0xFFFF
        return len(frame) >= _TAG_END + 2 and frame[_ETHERTYPE] << 8 | frame[_ETHERTYPE + 1] == kind

    def accepts(self, frame: Frame) -> bool:
        """Whether a frame is for the guest."""
        control = self._registers[r.RCTL]
        if control & r.RCTL_VFE and self.is_tagged(frame) and not self._accepts_tag(frame, control):
            return False
        target = bytes(frame[:_MAC])
        if target in self._known:
            return True
        if not target[0] & 1:
            return bool(control & r.RCTL_UPE)
        if target == _BROADCAST and control & r.RCTL_BAM:
            return True
        if control & r.RCTL_MPE:
            return True
        place = (target[5] << 8 | target[4]) >> r.MULTICAST_SHIFTS[control >> r.RCTL_MO & 3] & 0xFFF
        return bool(self.multicast[place >> 5] >> (place & 31) & 1)

    def _accepts_tag(self, frame: Frame, control: int) -> bool:
        tag = frame[_ETHERTYPE + 2] << 8 | frame[_ETHERTYPE + 3]
        if control & r.RCTL_CFIEN and bool(tag & _CFI) != bool(control & r.RCTL_CFI):
            return False
        number = tag & _VLAN
        return bool(self.vlans[number >> 5] >> (number & 31) & 1)
