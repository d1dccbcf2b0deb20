"""The EEPROM of an 8254x: 64 words behind a Microwire interface (chapter 5; the chip is of the 93C46 kind).

The driver moves the three pins through EECD.  A command is a start bit, two bits of operation and six of address; what
is read comes out bit by bit after a zero, the next word behind it, for as long as the clock ticks.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.devices.e1000 import registers as r
from pyvm.state import State, StateError, array, flag, integer, uint

WORDS = 64
_CHECKSUM = 0xBABA
_COMMAND_BITS = 9
"""Start bit, operation and address."""
_WORD_BITS = 16
_READ, _WRITE, _ERASE, _EXTENDED = 2, 1, 3, 0
_WRITE_DISABLE, _WRITE_ALL, _ERASE_ALL, _WRITE_ENABLE = range(4)
_BLANK = 0xFFFF

# Words (5.6)
_MAC_WORDS = 3
_COMPATIBILITY, _CONTROL1, _SUBSYSTEM, _SUBSYSTEM_VENDOR = 0x03, 0x0A, 0x0B, 0x0C
_DEVICE, _VENDOR, _CONTROL2 = 0x0D, 0x0E, 0x0F
_CONTROL1_VALUE = 0x4408
_CONTROL2_VALUE = 0x3040
"""Flow control in both directions is advertised."""
_INTEL = 0x8086
_CHECKSUM_WORD = 0x3F


class EepromState(State):
    """Migratable state."""

    words: list[int] = array(uint(16, _BLANK), WORDS)
    pins: int = uint(3)
    shift: int = uint(25)
    bits: int = integer(0, _COMMAND_BITS + _WORD_BITS)
    address: int = integer(0, WORDS - 1)
    out: int = uint(17)
    reading: bool = flag()
    writable: bool = flag()


def contents(mac: bytes, device: int) -> list[int]:
    """Return the words as they leave the factory, for a card with that address."""
    words = [_BLANK] * WORDS
    words[:_MAC_WORDS] = [mac[n] | mac[n + 1] << 8 for n in range(0, 2 * _MAC_WORDS, 2)]
    words[_COMPATIBILITY] = 0
    words[_CONTROL1], words[_CONTROL2] = _CONTROL1_VALUE, _CONTROL2_VALUE
    words[_SUBSYSTEM], words[_SUBSYSTEM_VENDOR] = device, _INTEL
    words[_DEVICE], words[_VENDOR] = device, _INTEL
    words[_CHECKSUM_WORD] = (_CHECKSUM - sum(words[:_CHECKSUM_WORD])) & 0xFFFF
    return words


class Eeprom:
    """The chip."""

    def __init__(self, words: Sequence[int]) -> None:
        self.words = list(words)
        self.reset()
        self._writable = False

    def reset(self) -> None:
        """Let go of the pins; the words stay."""
        self._pins = 0
        self._begin()

    def _begin(self) -> None:
        self._shift = self._bits = self._address = self._out = 0
        self._reading = False

    @property
    def mac(self) -> bytes:
        """The address that the words say."""
        return b"".join(word.to_bytes(2, "little") for word in self.words[:_MAC_WORDS])

    @property
    def pins(self) -> int:
        """The pins as EECD shows them."""
        ready = not self._reading  # a write is done at once
        out = self._out >> _WORD_BITS if self._reading else ready
        return self._pins | (r.EECD_DO if out else 0)

    def set_pins(self, value: int) -> None:
        """Follow the pins in a value for EECD."""
        before, self._pins = self._pins, value & r.EECD_PINS
        if not value & r.EECD_CS:
            self._begin()
        elif value & r.EECD_SK and not before & r.EECD_SK and before & r.EECD_CS:
            self._clock(bool(value & r.EECD_DI))

    def _clock(self, bit: bool) -> None:
        if self._reading:
            self._out = self._out << 1 & 0x1FFFF
            self._bits += 1
            if self._bits == _WORD_BITS:
                self._address = (self._address + 1) % WORDS
                self._bits = 0
                self._out |= self.words[self._address]
            return
        if not self._bits and not bit:
            return  # no start bit yet
        self._shift = (self._shift << 1 | bit) & 0x1FFFFFF
        self._bits += 1
        if self._bits == _COMMAND_BITS:
            self._command()
        elif self._bits == _COMMAND_BITS + _WORD_BITS:
            self._store()

    def _operation(self, command: int) -> tuple[int, int]:
        return command >> 6 & 3, command % WORDS

    def _command(self) -> None:
        operation, self._address = self._operation(self._shift)
        if operation == _READ:
            self._reading = True
            self._out = self.words[self._address]
            self._bits = 0
        elif operation == _ERASE:
            self._put(self._address, _BLANK)
        elif operation == _EXTENDED:
            kind = self._address >> 4
            if kind == _ERASE_ALL:
                for address in range(WORDS):
                    self._put(address, _BLANK)
            elif kind in (_WRITE_DISABLE, _WRITE_ENABLE):
                self._writable = kind == _WRITE_ENABLE

    def _store(self) -> None:
        """A command with a word behind it is complete."""
        operation, address = self._operation(self._shift >> _WORD_BITS)
        word = self._shift & 0xFFFF
        if operation == _WRITE:
            self._put(address, word)
        elif operation == _EXTENDED and address >> 4 == _WRITE_ALL:
            for place in range(WORDS):
                self._put(place, word)
        self._bits = 0
        self._shift = 0

    def _put(self, address: int, word: int) -> None:
        if self._writable:
            self.words[address] = word

    def save(self) -> EepromState:
        """Return words, pins and the command that is under way."""
        return EepromState(
            list(self.words),
            self._pins,
            self._shift,
            self._bits,
            self._address,
            self._out,
            self._reading,
            self._writable,
        )

    def load(self, state: EepromState) -> None:
        """Take over a checked state.  Raises StateError where a command is longer than any is."""
        if state.bits >= (_WORD_BITS if state.reading else _COMMAND_BITS + _WORD_BITS):
            raise StateError(f"EepromState.bits: {state.bits} are more than a command has")
        self.words = list(state.words)
        self._pins, self._shift, self._bits = state.pins, state.shift, state.bits
        self._address, self._out = state.address, state.out
        self._reading, self._writable = state.reading, state.writable
