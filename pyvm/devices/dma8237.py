"""The two 8237 DMA controllers of a PC and their page registers.

Intel 8237A High Performance Programmable DMA Controller datasheet (order number 231466); the pairing and the page
registers as in the IBM Personal Computer AT Technical Reference.  Channels 0 to 3 move bytes, 5 to 7 words; channel 4
connects the first controller to the second.  Devices such as a floppy controller move their data through
:meth:`DmaPair.to_memory` and :meth:`DmaPair.from_memory`.
"""

from __future__ import annotations

from typing import Final

from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.state import State, array, flag, record, uint

# Registers of one controller; 0 to 7 are address and count of the four channels, 16 bits through a flip-flop.
COMMAND_STATUS: Final = 0x8  # read: status; write: command
REQUEST: Final = 0x9  # write-only
SINGLE_MASK: Final = 0xA  # write-only
MODE: Final = 0xB  # write-only
CLEAR_FLIP_FLOP: Final = 0xC  # write-only
MASTER_CLEAR: Final = 0xD  # read: temporary register
CLEAR_MASK: Final = 0xE  # write-only
ALL_MASK: Final = 0xF

COMMAND_DISABLE: Final = 1 << 2
MODE_TRANSFER: Final = 0x0C
MODE_VERIFY: Final = 0x00
MODE_WRITE: Final = 0x04  # to memory
MODE_READ: Final = 0x08  # from memory
MODE_AUTO_INIT: Final = 1 << 4
MODE_DECREMENT: Final = 1 << 5
CHANNEL_BITS: Final = 0x3
SET_BIT: Final = 1 << 2  # of single mask and request
ALL_CHANNELS: Final = 0x0F

CHANNELS: Final = 4
PAGE_PORTS: Final = 16
PAGE_OF_CHANNEL: Final = (0x7, 0x3, 0x1, 0x2, 0xF, 0xB, 0x9, 0xA)
"""Offsets of the page registers from port 0x80, by channel."""


class DmaChannelState(State):
    """One channel: programmed and current address and count, and mode."""

    base_address: int = uint(16)
    base_count: int = uint(16)
    address: int = uint(16)
    count: int = uint(16)
    mode: int = uint(8)


class DmaControllerState(State):
    """One controller; `flip_flop` says that the upper byte is next."""

    channels: list[DmaChannelState] = array(record(DmaChannelState), CHANNELS)
    command: int = uint(8)
    terminal: int = uint(4)
    requests: int = uint(4)
    mask: int = uint(4, ALL_CHANNELS)
    flip_flop: bool = flag()


class DmaPairState(State):
    """Both controllers and the page registers."""

    low: DmaControllerState = record(DmaControllerState)
    high: DmaControllerState = record(DmaControllerState)
    pages: list[int] = array(uint(8), PAGE_PORTS)


class DmaController:
    """One 8237.  Its 16 registers lie `1 << shift` ports apart."""

    def __init__(self, shift: int) -> None:
        self._shift = shift
        self.state = DmaControllerState()

    def read(self, offset: int, size: int) -> int:
        """Read a register; accesses of one byte."""
        register = offset >> self._shift
        state = self.state
        if register < COMMAND_STATUS:
            channel = state.channels[register >> 1]
            value = channel.count if register & 1 else channel.address
            state.flip_flop = not state.flip_flop
            return value & 0xFF if state.flip_flop else value >> 8
        if register == COMMAND_STATUS:
            value = state.terminal | state.requests << 4
            state.terminal = 0
            return value
        if register == ALL_MASK:
            return state.mask | 0xF0
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; accesses of one byte."""
        register = offset >> self._shift
        value &= 0xFF
        state = self.state
        bit = 1 << (value & CHANNEL_BITS)
        if register < COMMAND_STATUS:
            self._program(register, value)
        elif register == COMMAND_STATUS:
            state.command = value
        elif register == REQUEST:
            state.requests = state.requests | bit if value & SET_BIT else state.requests & ~bit
        elif register == SINGLE_MASK:
            state.mask = state.mask | bit if value & SET_BIT else state.mask & ~bit
        elif register == MODE:
            state.channels[value & CHANNEL_BITS].mode = value & ~CHANNEL_BITS
        elif register == CLEAR_FLIP_FLOP:
            state.flip_flop = False
        elif register == MASTER_CLEAR:
            self.clear()
        elif register == CLEAR_MASK:
            state.mask = 0
        else:
            state.mask = value & ALL_CHANNELS

    def _program(self, register: int, value: int) -> None:
        """Store half of an address or count, as base and as current value."""
        state = self.state
        channel = state.channels[register >> 1]
        shift, keep = (8, 0x00FF) if state.flip_flop else (0, 0xFF00)
        if register & 1:
            channel.base_count = channel.count = channel.base_count & keep | value << shift
        else:
            channel.base_address = channel.address = channel.base_address & keep | value << shift
        state.flip_flop = not state.flip_flop

    def clear(self) -> None:
        """Master clear: all channels masked; addresses, counts and modes stay."""
        state = self.state
        state.command = state.terminal = state.requests = 0
        state.flip_flop = False
        state.mask = ALL_CHANNELS

    def ready(self, channel: int) -> bool:
        """Whether `channel` (0 to 3) would answer a device's request."""
        return not self.state.mask >> channel & 1 and not self.state.command & COMMAND_DISABLE

    def advance(self, channel: int, units: int) -> None:
        """Account for `units` bytes or words moved; at the end of the count, terminal count."""
        state = self.state
        it = state.channels[channel]
        step = -units if it.mode & MODE_DECREMENT else units
        it.address = (it.address + step) & 0xFFFF
        if units <= it.count:
            it.count -= units
            return
        it.count = 0xFFFF
        state.terminal |= 1 << channel
        state.requests &= ~(1 << channel)
        if it.mode & MODE_AUTO_INIT:
            it.address, it.count = it.base_address, it.base_count
        else:
            state.mask |= 1 << channel


class DmaPair:
    """Both controllers: `low` at port 0x00 (16 ports), `high` at 0xc0 (32 ports), page registers at 0x80 (16 ports)."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.low = DmaController(0)
        self.high = DmaController(1)
        self._pages = bytearray(PAGE_PORTS)

    def page_read(self, offset: int, size: int) -> int:
        """Read a page register; those of no channel are scratch bytes."""
        return self._pages[offset]

    def page_write(self, offset: int, size: int, value: int) -> None:
        """Write a page register."""
        self._pages[offset] = value & 0xFF

    # -- for devices ------------------------------------------------------------------------------------------------

    def ready(self, channel: int) -> bool:
        """Whether the guest has opened `channel` (0 to 7), through the cascade where it is one of the first four."""
        if channel >= CHANNELS:
            return self.high.ready(channel - CHANNELS)
        return self.low.ready(channel) and not self.high.state.command & COMMAND_DISABLE

    def remaining(self, channel: int) -> int:
        """Return how many bytes `channel` moves before terminal count."""
        return (self._channel(channel).count + 1) << (channel >= CHANNELS)

    def terminal_count(self, channel: int) -> bool:
        """Whether `channel` has reached terminal count and the guest has not read that from the status yet."""
        controller = self.high if channel >= CHANNELS else self.low
        return bool(controller.state.terminal >> (channel % CHANNELS) & 1)

    def to_memory(self, channel: int, data: bytes) -> int:
        """Move bytes from a device; return how many the channel took before terminal count or because it is closed.

        Bytes for addresses without RAM vanish.  A channel in verify mode counts and stores nothing.
        """
        direction = self._channel(channel).mode & MODE_TRANSFER
        if not self.ready(channel) or direction not in (MODE_WRITE, MODE_VERIFY):
            return 0
        done = 0
        for address, count, backwards in self._runs(channel, len(data)):
            piece = data[done : done + count]
            done += count
            if direction == MODE_WRITE:
                try:
                    self._memory.write(address, piece[::-1] if backwards else piece)
                except GuestMemoryError:
                    continue
        return done

    def from_memory(self, channel: int, length: int) -> bytes:
        """Move up to `length` bytes to a device; addresses without RAM read ones."""
        direction = self._channel(channel).mode & MODE_TRANSFER
        if not self.ready(channel) or direction not in (MODE_READ, MODE_VERIFY):
            return b""
        pieces = []
        for address, count, backwards in self._runs(channel, length):
            try:
                piece = self._memory.read(address, count) if direction == MODE_READ else bytes(count)
            except GuestMemoryError:
                piece = b"\xff" * count
            pieces.append(piece[::-1] if backwards else piece)
        return b"".join(pieces)

    def _channel(self, channel: int) -> DmaChannelState:
        controller = self.high if channel >= CHANNELS else self.low
        return controller.state.channels[channel % CHANNELS]

    def _runs(self, channel: int, length: int) -> list[tuple[int, int, bool]]:
        """Advance the channel by up to `length` bytes; return the (GPA, bytes, backwards) of each contiguous run."""
        wide = channel >= CHANNELS
        controller = self.high if wide else self.low
        index = channel % CHANNELS
        page = self._pages[PAGE_OF_CHANNEL[channel]]
        units = min(length >> wide, self._channel(channel).count + 1)
        runs = []
        while units:
            it = controller.state.channels[index]
            backwards = bool(it.mode & MODE_DECREMENT)
            count = min(units, it.address + 1 if backwards else 0x10000 - it.address)
            first = it.address - count + 1 if backwards else it.address
            base = (page & 0xFE) << 16 | first << 1 if wide else page << 16 | first
            runs.append((base, count << wide, backwards))
            controller.advance(index, count)
            units -= count
        return runs

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.low.state = DmaControllerState()
        self.high.state = DmaControllerState()
        self._pages[:] = bytes(PAGE_PORTS)

    def save(self) -> DmaPairState:
        """Return all registers."""
        return DmaPairState(self.low.state.copy(), self.high.state.copy(), list(self._pages))

    def load(self, state: DmaPairState) -> None:
        """Take over all registers."""
        state.check()
        self.low.state = state.low.copy()
        self.high.state = state.high.copy()
        self._pages[:] = bytes(state.pages)
