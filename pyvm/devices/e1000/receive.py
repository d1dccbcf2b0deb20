"""The receiver of an 8254x (8254x manual, 3.2): frames into the buffers that the driver's ring names."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from pyvm.devices.e1000 import registers as r
from pyvm.devices.e1000.interrupts import Delay
from pyvm.memory import GuestMemoryError
from pyvm.net import packets as p
from pyvm.net.client import ETHERNET_HEADER, NEEDS_CSUM, Frame, Offload
from pyvm.state import State, optional, uint

if TYPE_CHECKING:
    from pyvm.devices.e1000.card import E1000

_SMALLEST_FRAME = 60
_LONGEST = 16384 - 4
_LONGEST_PLAIN = 1518
"""Longest frame without RCTL.LPE, with a tag and without its check sequence."""
_MAC_PAIR = 12
_CHECK_SEQUENCE = 4


class ReceiveState(State):
    """Migratable state, but for the registers."""

    deadline: int | None = optional(uint(64))
    limit: int | None = optional(uint(64))


class Receiver:
    """The receiver of one card."""

    def __init__(self, card: E1000) -> None:
        self._card = card
        self.delay = Delay(card.clock, lambda: card.interrupts.raise_causes(r.CAUSE_RXT0))
        self.refused = False
        """Whether the peer waits for room in the ring."""

    def reset(self) -> None:
        """Forget all."""
        self.delay.cancel()
        self.go_on()

    def go_on(self) -> None:
        """Let the peer try again what was refused."""
        if self.refused:
            self.refused = False
            self._card.client.room()

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Put a frame into the driver's buffers; return False where there is no room for it now."""
        card = self._card
        regs = card.registers
        if card.paused:
            self.refused = True
            return False
        if not card.running or not regs[r.RCTL] & r.RCTL_EN or not (card.phy.link or card.phy.loopback):
            return True
        if not ETHERNET_HEADER <= len(frame) <= _LONGEST or (offload is not None and offload.flags & NEEDS_CSUM):
            card.statistics.count(r.ROC if len(frame) > _LONGEST else r.RUC)
            return True
        if len(frame) > _LONGEST_PLAIN and not regs[r.RCTL] & r.RCTL_LPE:
            card.statistics.count(r.ROC)
            return True
        if not card.filters.accepts(frame):
            return True
        try:
            stored = self._store(bytes(frame).ljust(_SMALLEST_FRAME, b"\0"))
        except GuestMemoryError:
            return True  # the ring or a buffer is nowhere
        if not stored:
            self.refused = not card.phy.loopback
            card.statistics.count(r.RNBC)
            card.interrupts.raise_causes(r.CAUSE_RXO)
            return card.phy.loopback
        card.statistics.received(frame)
        self._tell()
        return True

    def _tell(self) -> None:
        """Interrupt for a frame, now or later; and when few descriptors are left."""
        card = self._card
        regs = card.registers
        size = regs[r.RDLEN] // r.DESCRIPTOR
        causes = 0
        left = (regs[r.RDT] - regs[r.RDH]) % size
        if left <= size >> ((regs[r.RCTL] >> r.RCTL_RDMTS & 3) + 1):
            causes |= r.CAUSE_RXDMT0
        if regs[r.RDTR] and card.mitigation:
            self.delay.put_off(regs[r.RDTR], regs[r.RADV])
        else:
            causes |= r.CAUSE_RXT0
        if causes:
            card.interrupts.raise_causes(causes)

    # ---- Into RAM

    def _buffer_size(self) -> int:
        control = self._card.registers[r.RCTL]
        code = control >> r.RCTL_BSIZE & 3
        if control & r.RCTL_BSEX and code:
            return r.BUFFER_SIZES[code] * 16
        return r.BUFFER_SIZES[code]

    def _store(self, frame: bytes) -> bool:
        """Write a frame and its descriptors; return whether there were enough."""
        card = self._card
        regs, memory = card.registers, card.memory
        flags, errors, special = self._checks(frame), 0, 0
        flags, errors = flags & 0xFF, flags >> 8
        if regs[r.CTRL] & r.CTRL_VME and card.filters.is_tagged(frame):
            flags |= r.RX_VP
            special = int.from_bytes(frame[_MAC_PAIR + 2 : _MAC_PAIR + 4], "big")
            frame = frame[:_MAC_PAIR] + frame[_MAC_PAIR + 4 :]
        checksum = self._packet_checksum(frame)
        if not regs[r.RCTL] & r.RCTL_SECRC:
            frame += zlib.crc32(frame).to_bytes(_CHECK_SEQUENCE, "little")
        size = regs[r.RDLEN] // r.DESCRIPTOR
        room = self._buffer_size()
        head = regs[r.RDH]
        needed = -(-len(frame) // room)
        if head >= size or (regs[r.RDT] - head) % size < needed:
            return False
        ring = card.ring_address(r.RDBAL)
        for at in range(0, len(frame), room):
            place = ring + head * r.DESCRIPTOR
            piece = frame[at : at + room]
            last = at + room >= len(frame)
            address = memory.read_u64(place)
            if address:
                memory.write(address, piece)
            status = r.RX_DD | (flags | r.RX_EOP if last else 0)
            memory.write(place, r.RX.pack(address, len(piece), checksum, status, errors if last else 0, special))
            head = regs[r.RDH] = (head + 1) % size
        return True

    def _packet_checksum(self, frame: bytes) -> int:
        """Return the checksum from RXCSUM.PCSS on, which drivers may use for protocols that the card does not know."""
        start = self._card.registers[r.RXCSUM] & r.RXCSUM_PCSS
        total = p.words_sum(memoryview(frame)[start:])
        return total >> 8 | (total & 0xFF) << 8

    def _checks(self, frame: bytes) -> int:
        """Verify the checksums of an IPv4 packet; return status bits, and above them errors."""
        control = self._card.registers[r.RXCSUM]
        start = ETHERNET_HEADER + (4 if self._card.filters.is_tagged(frame) else 0)
        packet = memoryview(frame)[start:]
        if frame[start - 2 : start] != b"\x08\x00" or len(packet) < p.IPV4.size:
            return r.RX_IXSM
        version, _, total, _, fragment, _, protocol, _, source, destination = p.IPV4.unpack_from(packet)
        header = (version & 0x0F) * 4
        if version >> 4 != 4 or not p.IPV4.size <= header <= total <= len(packet):
            return r.RX_IXSM
        found = 0
        if control & r.RXCSUM_IPOFL:
            found |= r.RX_IPCS | (r.RX_IPE << 8 if p.words_sum(packet[:header]) else 0)
        fragmented = fragment & (p.IP_MORE_FRAGMENTS | p.IP_OFFSET_MASK)
        if control & r.RXCSUM_TUOFL and protocol in (p.PROTO_TCP, p.PROTO_UDP) and not fragmented:
            body = packet[header:total]
            unchecked = protocol == p.PROTO_UDP and not any(body[6:8])
            if not unchecked:
                summed = p.pseudo_sum(source, destination, protocol, len(body)) + p.words_sum(body)
                found |= r.RX_TCPCS | (r.RX_TCPE << 8 if summed % 0xFFFF else 0)
        return found or r.RX_IXSM

    # ---- State

    def save(self) -> ReceiveState:
        """Return what is put off."""
        return ReceiveState(self.delay.deadline, self.delay.limit)

    def load(self, state: ReceiveState) -> None:
        """Take over a checked state."""
        self.refused = False
        self.delay.load(state.deadline, state.limit)
