"""The transmitter of an 8254x (8254x manual, 3.3 to 3.6): descriptors from the ring into frames."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from pyvm.devices.e1000 import registers as r
from pyvm.devices.e1000.interrupts import Delay
from pyvm.devices.e1000.segments import Context, finish, put_checksum, segments, whole
from pyvm.memory import GuestMemoryError
from pyvm.net.client import ETHERNET_HEADER, Offload
from pyvm.state import State, array, blob, flag, optional, uint

if TYPE_CHECKING:
    from pyvm.devices.e1000.card import E1000

_PER_TURN = 2048
"""After so many descriptors others get a turn at the machine lock."""
_SMALLEST_FRAME = 60
_LONGEST = 128 << 10
"""Most bytes that one frame is gathered from: an IP packet of full length and its headers are half of it."""
_LONGEST_PLAIN = 16288
"""Longest frame that is sent as it is."""
_MAC_PAIR = 12
_CONTEXT_FIELDS = 10


class TransmitState(State):
    """Migratable state, but for the registers."""

    segmenting: list[int] = array(uint(32), _CONTEXT_FIELDS)
    checking: list[int] = array(uint(32), _CONTEXT_FIELDS)
    data: bytes = blob(_LONGEST)
    first: list[int] = array(uint(32), 2)
    dropping: bool = flag()
    deadline: int | None = optional(uint(64))
    limit: int | None = optional(uint(64))


def _fields(context: Context) -> list[int]:
    return [getattr(context, name) for name in _NAMES]


_NAMES = ("ip_start", "ip_offset", "ip_end", "start", "offset", "end", "command", "header", "mss", "payload")


class Transmitter:
    """The transmitter of one card."""

    def __init__(self, card: E1000) -> None:
        self._card = card
        self._turn = card.clock.timer(self.run)
        self._delay = Delay(card.clock, self._written)
        self._waiting: deque[tuple[bytearray, Offload | None]] = deque()
        """Frames that the peer has no room for."""
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._turn.cancel()
        self._delay.cancel()
        self._waiting.clear()
        self._segmenting = Context()
        self._checking = Context()
        self._start_frame()

    def _start_frame(self) -> None:
        self._data = bytearray()
        self._first: tuple[int, int] | None = None
        """Command and options of the frame's first data descriptor, which hold for all of it."""
        self._dropping = False

    def _written(self) -> None:
        self._card.interrupts.raise_causes(r.CAUSE_TXDW)

    # ---- The ring

    def run(self) -> None:
        """Send what the driver has put in the ring."""
        card, regs = self._card, self._card.registers
        if not self._send_waiting() or not card.running or not regs[r.TCTL] & r.TCTL_EN:
            return
        size = regs[r.TDLEN] // r.DESCRIPTOR
        head, tail = regs[r.TDH], regs[r.TDT]
        if head >= size or head == tail:
            return
        causes = 0
        for _ in range(min(_PER_TURN, size)):
            if head == tail or self._waiting:
                break
            try:
                causes |= self._descriptor(card.ring_address(r.TDBAL) + head * r.DESCRIPTOR)
            except GuestMemoryError:
                self._start_frame()  # what it points to is nowhere
            head = regs[r.TDH] = (head + 1) % size
        else:
            if head != tail:
                self._turn.arm(card.clock.now())
        if head == tail:
            causes |= r.CAUSE_TXQE
        left = (tail - head) % size
        if left <= 8 * (regs[r.TXDCTL] >> r.TXDCTL_LWTHRESH):
            causes |= r.CAUSE_TXD_LOW
        card.client.send_end()
        if causes:
            card.interrupts.raise_causes(causes)

    def _descriptor(self, address: int) -> int:
        """Work on one descriptor; return the causes of interrupts."""
        memory = self._card.memory
        raw = memory.read(address, r.DESCRIPTOR)
        command = raw[11]
        if not command & r.TX_DEXT:
            self._legacy(raw)
        elif raw[10] >> 4 == r.TX_TYPE_CONTEXT:
            self._context(raw)
        else:
            self._extended(raw)
        if not command & r.TX_RS:
            return 0
        memory.write(address + r.TX_STATUS_OFFSET, bytes((raw[r.TX_STATUS_OFFSET] & 0xF0 | r.TX_DONE,)))
        delay = self._card.registers[r.TIDV]
        if command & r.TX_IDE and delay and self._card.mitigation:
            self._delay.put_off(delay, self._card.registers[r.TADV])
            return 0
        self._delay.cancel()
        return r.CAUSE_TXDW

    def _context(self, raw: bytes) -> None:
        ip_start, ip_offset, ip_end, start, offset, end, command, _, header, mss = r.TX_CONTEXT.unpack(raw)
        made = Context(
            *(ip_start, ip_offset, ip_end, start, offset, end),
            command=command >> 24,
            header=header,
            mss=mss,
            payload=command & r.TX_LENGTH,
        )
        if made.command & r.TX_TSE:
            self._segmenting = made
        else:
            self._checking = made

    def _legacy(self, raw: bytes) -> None:
        address, length, offset, command, _, start, special = r.TX_LEGACY.unpack(raw)
        self._gather(address, length)
        if not command & r.TX_EOP:
            return
        frame, dropping = self._data, self._dropping
        self._start_frame()
        if dropping:
            return
        if command & r.TX_IC:
            put_checksum(frame, start, offset, 0)
        self._emit(frame, self._tag(command, special))

    def _extended(self, raw: bytes) -> None:
        address, word, _, options, special = r.TX_DATA.unpack(raw)
        command = word >> 24
        if self._first is None:
            self._first = command, options
        self._gather(address, word & r.TX_LENGTH)
        if not command & r.TX_EOP:
            return
        frame, (first, options), dropping = self._data, self._first, self._dropping
        self._start_frame()
        if dropping:
            return
        tag = self._tag(command, special)
        if first & r.TX_TSE:
            self._emit_long(frame, options, tag)
        else:
            self._emit(finish(frame, self._checking, options), tag)

    def _gather(self, address: int, length: int) -> None:
        if len(self._data) + length > _LONGEST:
            self._dropping = True
        if length and not self._dropping:
            self._data += self._card.memory.view(address, length)

    # ---- Frames

    def _tag(self, command: int, special: int) -> bytes:
        """Return the VLAN tag that a frame gets."""
        regs = self._card.registers
        if not command & r.TX_VLE or not regs[r.CTRL] & r.CTRL_VME:
            return b""
        return (regs[r.VET] & 0xFFFF).to_bytes(2, "big") + special.to_bytes(2, "big")

    def _emit_long(self, frame: bytearray, options: int, tag: bytes) -> None:
        context = self._segmenting
        client = self._card.client
        if client.peer is not None and client.peer.offloads and not tag and not self._card.phy.loopback:
            offload = whole(frame, context, options)
            if offload is not None:
                self._card.statistics.count(r.TSCTC)
                self._put(frame, offload)
                return
        self._card.statistics.count(r.TSCTC)
        for segment in segments(frame, context, options):
            self._emit(segment, tag)

    def _emit(self, frame: bytearray, tag: bytes) -> None:
        if not ETHERNET_HEADER <= len(frame) <= _LONGEST_PLAIN:
            return
        if tag:
            frame[_MAC_PAIR:_MAC_PAIR] = tag
        if len(frame) < _SMALLEST_FRAME and self._card.registers[r.TCTL] & r.TCTL_PSP:
            frame += bytes(_SMALLEST_FRAME - len(frame))
        self._put(frame, None)

    def _put(self, frame: bytearray, offload: Offload | None) -> None:
        card = self._card
        card.statistics.sent(frame)
        if card.phy.loopback:
            card.receiver.receive(frame, None)
        elif self._waiting or not card.client.send(frame, offload):
            self._waiting.append((frame, offload))

    def _send_waiting(self) -> bool:
        """Send what the peer had no room for; return whether it has taken all."""
        while self._waiting:
            if not self._card.client.send(*self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    # ---- State

    def save(self) -> TransmitState:
        """Return contexts, and what has come of a frame."""
        first = (1 << 8 | self._first[0], self._first[1]) if self._first is not None else (0, 0)
        return TransmitState(
            segmenting=_fields(self._segmenting),
            checking=_fields(self._checking),
            data=bytes(self._data),
            first=list(first),
            dropping=self._dropping,
            deadline=self._delay.deadline,
            limit=self._delay.limit,
        )

    def load(self, state: TransmitState) -> None:
        """Take over a checked state; frames that the peer had no room for are lost, as on a cable."""
        self.reset()
        self._segmenting = _context(state.segmenting)
        self._checking = _context(state.checking)
        self._data = bytearray(state.data)
        marked, options = state.first
        self._first = (marked & 0xFF, options & 0xFF) if marked else None
        self._dropping = state.dropping
        self._delay.load(state.deadline, state.limit)


_WIDE: dict[str, Any] = {"payload": r.TX_LENGTH, "ip_end": 0xFFFF, "end": 0xFFFF, "mss": 0xFFFF}


def _context(fields: list[int]) -> Context:
    return Context(**{name: value & _WIDE.get(name, 0xFF) for name, value in zip(_NAMES, fields, strict=True)})
