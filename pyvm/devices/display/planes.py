"""Display memory as the CPU sees it in the legacy window: four planes behind latches and a small ALU.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem", sections "Display Memory" and
"Graphics Controller".  Memory is an array of 32-bit words, one byte of each in every plane, as the display reads it;
chain-4 addresses run through the bytes of a word, odd/even addresses through the two lower or upper ones.  So the words
follow each other without gaps in every addressing mode, and packed pixels lie in memory as in the linear frame buffer.
"""

from __future__ import annotations

from typing import Final

from pyvm.devices.display import registers as r

_ALL_BYTES: Final = 0x01010101
_EVEN_PLANES: Final = 0x00FF00FF
_ODD_PLANES: Final = 0xFF00FF00
_SPREAD: Final = tuple(sum(0xFF << 8 * plane for plane in range(4) if value >> plane & 1) for value in range(16))
"""For each value of four bits, bit n in all bits of byte n."""
_FOUR_TIMES: Final = tuple(bytes((value,)) * 4 for value in range(256))


class PlaneWindow:
    """The window 0xa0000-0xbffff onto `view`, as the sequencer's and graphics controller's registers shape it.

    Both sets of registers are shared with their owner, who calls :meth:`configure` after each change of them.
    """

    def __init__(self, view: memoryview, sequencer: bytearray, graphics: bytearray) -> None:
        self._view = view
        self._words = view.cast("I")
        self._count = len(self._words)
        self._sequencer = sequencer
        self._graphics = graphics
        self.latch = 0
        """What the last read found in the four planes."""
        self.configure(answers=False, packed=False, display_interface=False, bank=0)

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()

    def configure(self, *, answers: bool, packed: bool, display_interface: bool, bank: int) -> None:
        """Take account of changed registers.

        `answers`: the memory is decoded at all; `packed`: it is one array of bytes, whatever the registers say;
        `display_interface`: the VGA does not drive the screen; `bank`: where the window begins, in bytes.
        """
        graphics, memory = self._graphics, self._sequencer[r.SEQ_MEMORY]
        mode = graphics[r.GC_MODE]
        select = (graphics[r.GC_MISC] & r.MISC_MAP) >> 2
        self._offset, self._size = r.WINDOW_MAPS[select] if answers else (0, 0)
        self._bank = bank if select == r.MAP_BANKED else 0
        self._chain4 = bool(memory & r.MEMORY_CHAIN4)
        self._write_odd_even = not memory & r.MEMORY_SEQUENTIAL
        self._read_odd_even = bool(mode & r.MODE_ODD_EVEN)
        self._compares = bool(mode & r.MODE_READ_COMPARE)
        self._write_mode = mode & r.MODE_WRITE
        map_mask = self._sequencer[r.SEQ_MAP_MASK]
        self._planes = _SPREAD[map_mask]
        self._plain = (
            not self._write_mode
            and not graphics[r.GC_ENABLE_SET_RESET]
            and not graphics[r.GC_ROTATE]
            and graphics[r.GC_BIT_MASK] == 0xFF
        )
        trivial = self._plain and not self._compares
        self._uniform = (
            self._plain and not self._chain4 and not self._write_odd_even and self._planes == _ALL_BYTES * 0xFF
        )
        """Whether what the CPU writes goes into all four planes alike."""
        self._linear = packed or (trivial and self._chain4 and map_mask == 0xF)
        self.text = (
            trivial
            and answers
            and not display_interface
            and select == r.MAP_COLOUR_TEXT
            and not self._chain4
            and self._write_odd_even
            and self._read_odd_even
            and map_mask == 3
            and not graphics[r.GC_READ_MAP] & 2
        )
        """Whether 0xb8000-0xbffff is a plain buffer of characters and attributes in turns."""

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes at `offset` from 0xa0000."""
        place = offset - self._offset
        if self._linear and 0 <= place <= self._size - size:
            place += self._bank
            return int.from_bytes(self._view[place : place + size], "little")
        if size == 1:
            return self._read_byte(place)
        return sum(self._read_byte(place + index) << 8 * index for index in range(size))

    def _read_byte(self, place: int) -> int:
        if not 0 <= place < self._size:
            return 0xFF
        address = place + self._bank
        graphics = self._graphics
        if self._chain4:
            plane, address = address & 3, address >> 2
        elif self._read_odd_even:
            plane, address = graphics[r.GC_READ_MAP] & 2 | address & 1, address >> 1
        else:
            plane = graphics[r.GC_READ_MAP]
        if address >= self._count:
            return 0xFF
        self.latch = latch = self._words[address]
        if self._compares:
            wrong = (latch ^ _SPREAD[graphics[r.GC_COLOUR_COMPARE]]) & _SPREAD[graphics[r.GC_COLOUR_CARE]]
            wrong |= wrong >> 16
            return ~(wrong | wrong >> 8) & 0xFF
        return latch >> 8 * plane & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset` from 0xa0000."""
        place = offset - self._offset
        if self._linear and 0 <= place <= self._size - size:
            place += self._bank
            self._view[place : place + size] = value.to_bytes(size, "little")
            return
        if self._uniform and size > 1 and 0 <= place <= self._size - size:
            first = place + self._bank
            if first + size <= self._count:
                data = b"".join([_FOUR_TIMES[byte] for byte in value.to_bytes(size, "little")])
                self._view[4 * first : 4 * (first + size)] = data
                return
        for index in range(size):
            self._write_byte(place + index, value >> 8 * index & 0xFF)

    def _write_byte(self, place: int, value: int) -> None:
        if not 0 <= place < self._size:
            return
        address = place + self._bank
        planes = self._planes
        if self._chain4:
            planes &= 0xFF << 8 * (address & 3)
            address >>= 2
        elif self._write_odd_even:
            planes &= _ODD_PLANES if address & 1 else _EVEN_PLANES
            address >>= 1
        if address >= self._count:
            return
        data = value * _ALL_BYTES if self._plain else self._combine(value)
        words = self._words
        old = words[address]
        words[address] = old ^ (old ^ data) & planes

    def _combine(self, value: int) -> int:
        """Return what the ALU makes of a byte from the CPU and of the latches, for all four planes."""
        mode, latch, graphics = self._write_mode, self.latch, self._graphics
        if mode == 1:
            return latch
        bits = graphics[r.GC_BIT_MASK]
        if mode == 2:
            data = _SPREAD[value & 0xF]
        else:
            count = graphics[r.GC_ROTATE] & 7
            value = (value >> count | value << 8 - count) & 0xFF
            fixed = _SPREAD[graphics[r.GC_SET_RESET]]
            if mode == 3:
                bits &= value
                data = fixed
            else:
                enabled = _SPREAD[graphics[r.GC_ENABLE_SET_RESET]]
                data = value * _ALL_BYTES & ~enabled | fixed & enabled
        function = graphics[r.GC_ROTATE] >> 3
        if function == r.FUNCTION_AND:
            data &= latch
        elif function == r.FUNCTION_OR:
            data |= latch
        elif function == r.FUNCTION_XOR:
            data ^= latch
        return latch ^ (latch ^ data) & bits * _ALL_BYTES
