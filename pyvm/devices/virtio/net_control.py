"""The control queue of a virtio network card (virtio 1.2, section 5.1.6.5): filter, address, offloads, queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.devices.virtio import net_registers as r
from pyvm.devices.virtio.net_filter import MAC_LENGTH, VLANS

if TYPE_CHECKING:
    from pyvm.devices.virtio.net import VirtioNet
    from pyvm.devices.virtio.queue import VirtQueue

_LARGEST = 64 << 10
"""Longest command; a table of ten thousand addresses."""
_COUNT = 4

_RX_SWITCHES = {
    r.RX_PROMISC: "promiscuous",
    r.RX_ALLMULTI: "all_multicast",
    r.RX_ALLUNI: "all_unicast",
    r.RX_NOMULTI: "no_multicast",
    r.RX_NOUNI: "no_unicast",
    r.RX_NOBCAST: "no_broadcast",
}
_EXTRA_FROM = r.RX_ALLUNI
"""From here on switches need VIRTIO_NET_F_CTRL_RX_EXTRA."""


class NetControl:
    """Carries out commands for one card."""

    def __init__(self, card: VirtioNet) -> None:
        self._card = card

    def handle(self, queue: VirtQueue) -> None:
        """Carry out all commands that wait."""
        for _ in range(queue.size):
            chain = queue.pop()
            if chain is None:
                break
            if chain.readable_bytes < r.CTRL_HEADER or not chain.writable_bytes:
                self._card.fail("virtio-net ctrl missing headers")
                return
            done = chain.readable_bytes <= _LARGEST and self._carry_out(chain.gather(_LARGEST))
            written = chain.scatter(bytes((r.CTRL_OK if done else r.CTRL_ERROR,)))
            queue.push(chain, written)
        queue.flush()

    def _carry_out(self, command: bytes) -> bool:
        """Carry out one command; return whether it could be."""
        kind, number, data = command[0], command[1], command[r.CTRL_HEADER :]
        if kind == r.CTRL_RX:
            done = self._switch(number, data)
        elif kind == r.CTRL_MAC:
            done = self._addresses(number, data)
        elif kind == r.CTRL_VLAN:
            done = self._vlan(number, data)
        elif kind == r.CTRL_ANNOUNCE:
            return self._announced(number)
        elif kind == r.CTRL_MQ:
            return self._pairs(number, data)
        elif kind == r.CTRL_GUEST_OFFLOADS:
            return self._offloads(number, data)
        else:
            return False
        if done:
            self._card.on_filter_change()
        return done

    def _switch(self, number: int, data: bytes) -> bool:
        needed = r.F_CTRL_RX if number < _EXTRA_FROM else r.F_CTRL_RX_EXTRA
        if number not in _RX_SWITCHES or not data or not self._card.has(needed):
            return False
        setattr(self._card.filter, _RX_SWITCHES[number], bool(data[0]))
        return True

    def _addresses(self, number: int, data: bytes) -> bool:
        card = self._card
        if number == r.MAC_ADDR_SET:
            if len(data) != MAC_LENGTH or not card.has(r.F_CTRL_MAC_ADDR):
                return False
            card.set_mac(data)
            return True
        if number != r.MAC_TABLE_SET:
            return False
        tables = []
        for _ in range(2):
            count = int.from_bytes(data[:_COUNT], "little")
            end = _COUNT + count * MAC_LENGTH
            if len(data) < _COUNT or end > len(data):
                return False
            tables.append([data[start : start + MAC_LENGTH] for start in range(_COUNT, end, MAC_LENGTH)])
            data = data[end:]
        if data:
            return False
        card.filter.set_tables(*tables)
        return True

    def _vlan(self, number: int, data: bytes) -> bool:
        tag = int.from_bytes(data[:2], "little")
        if len(data) < 2 or tag >= VLANS or number not in (r.VLAN_ADD, r.VLAN_DEL):
            return False
        if not self._card.has(r.F_CTRL_VLAN):
            return False
        self._card.filter.vlans[tag] = 1 if number == r.VLAN_ADD else 0
        return True

    def _announced(self, number: int) -> bool:
        if number != r.ANNOUNCE_ACK or not self._card.announcing:
            return False
        self._card.announcing = False
        return True

    def _pairs(self, number: int, data: bytes) -> bool:
        card = self._card
        wanted = int.from_bytes(data[:2], "little")
        if number != r.MQ_VQ_PAIRS_SET or len(data) != 2 or not card.has(r.F_MQ):
            return False
        if not 1 <= wanted <= card.most_pairs:
            return False
        card.use_pairs(wanted)
        return True

    def _offloads(self, number: int, data: bytes) -> bool:
        card = self._card
        wanted = int.from_bytes(data, "little")
        if number != r.GUEST_OFFLOADS_SET or len(data) != 8 or not card.has(r.F_CTRL_GUEST_OFFLOADS):
            return False
        if wanted & ~(card.features & r.GUEST_OFFLOADS):
            return False
        card.set_guest_offloads(wanted)
        return True
