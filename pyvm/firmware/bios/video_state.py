"""Int 10h AH=12, 1A, 1B and 1C: what the adapter is, choices for modes to come, and saving all of it.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 10h; the layout of a saved state is
this BIOS's own, as everywhere.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import vga as regs
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.rom import SEGMENT
from pyvm.firmware.bios.vbe import Vbe
from pyvm.firmware.bios.video_modes import modes

_SERVED: Final = 0x12
_MEMORY_256K: Final = 0x03
_SWITCHES: Final = 0x09
_OPTION_400_LINES: Final = 0x10
_OPTION_200_LINES: Final = 0x80
_OPTION_NO_PALETTE: Final = 0x08
_OPTION_GREY: Final = 0x02
_SCREEN_OFF: Final = 1 << 5  # of the sequencer's clocking mode

SAVE_HARDWARE, SAVE_DATA, SAVE_COLOURS, SAVE_VBE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_BLOCK: Final = 64
_HARDWARE_SIZE: Final = 5 + 4 + regs.CRTC_REGISTERS + regs.ATTRIBUTE_REGISTERS + regs.GRAPHICS_REGISTERS + 1
_DATA_RANGES: Final = ((area.VIDEO_MODE, 0x1E), (area.VIDEO_LAST_ROW, 7), (area.VIDEO_SAVE_POINTER, 4))
_VECTORS: Final = (4 * 0x1F, 4 * 0x43)
_DATA_SIZE: Final = sum(length for _, length in _DATA_RANGES) + 4 * len(_VECTORS)
_COLOURS_SIZE: Final = 1 + 3 * regs.DAC_SIZE
_VBE_SIZE: Final = 32


class StateFunctions:
    """The functions."""

    def __init__(self, core: Core, vga: regs.Vga, vbe: Vbe) -> None:
        self._core = core
        self._bda = core.bda
        self._vga = vga
        self._vbe = vbe
        vbe.state_size, vbe.save_state, vbe.restore_state = self.size, self.save, self.restore

    # -- AH=12 ------------------------------------------------------------------------------------------------------

    def alternate(self, registers: Registers) -> None:
        """AH=12: the alternate functions, by BL."""
        function, choice = registers.bl, registers.al
        if function == 0x10:
            mono = self._bda.word(area.CRTC_PORT) == regs.CRTC_MONO
            registers.bh, registers.bl = int(mono), _MEMORY_256K
            registers.ch, registers.cl = 0, _SWITCHES
            return
        if function == 0x20:
            return  # the print-screen routine of this BIOS knows all sizes of screens
        done = {
            0x30: self._scan_lines,
            0x31: lambda value: self._option(_OPTION_NO_PALETTE, value == 1),
            0x32: self._enable_video,
            0x33: lambda value: self._option(_OPTION_GREY, value == 0),
            0x34: self._cursor_emulation,
            0x36: self._refresh,
        }.get(function)
        if done is not None and choice <= (2 if function == 0x30 else 1):
            done(choice)
            registers.al = _SERVED

    def _option(self, bit: int, level: bool) -> None:
        options = self._bda.byte(area.VIDEO_OPTIONS)
        self._bda.set_byte(area.VIDEO_OPTIONS, options | bit if level else options & ~bit)

    def _scan_lines(self, choice: int) -> None:
        """Note 200, 350 or 400 lines for the next text mode; this adapter's text always has 400."""
        self._option(_OPTION_200_LINES, choice == 0)
        self._option(_OPTION_400_LINES, choice == 2)

    def _enable_video(self, choice: int) -> None:
        self._core.outb(regs.VIDEO_ENABLE, choice ^ 1)

    def _cursor_emulation(self, choice: int) -> None:
        control = self._bda.byte(area.VIDEO_CONTROL) & ~area.VIDEO_NO_CURSOR_EMULATION
        self._bda.set_byte(area.VIDEO_CONTROL, control | choice)

    def _refresh(self, choice: int) -> None:
        value = self._vga.read_indexed(regs.SEQUENCER, 1) & ~_SCREEN_OFF
        self._vga.write_indexed(regs.SEQUENCER, 1, value | (_SCREEN_OFF if choice else 0))

    # -- AH=1A and 1B -----------------------------------------------------------------------------------------------

    def display_combination(self, registers: Registers) -> None:
        """AH=1A: the active display, and the other one, of which there is none."""
        if registers.al == 0:
            registers.bl, registers.bh = self._bda.byte(area.DISPLAY_COMBINATION), 0
        elif registers.al == 1:
            self._bda.set_byte(area.DISPLAY_COMBINATION, registers.bl)
        else:
            return
        registers.al = 0x1A

    def information(self, registers: Registers) -> None:
        """AH=1B: 64 bytes about the present mode at es:di."""
        if registers.bx != 0:
            return
        bda = self._bda
        mode = modes().get(bda.byte(area.VIDEO_MODE)) or modes()[3]
        data = struct.pack("<HH", self._core.rom.labels["video_abilities"], SEGMENT)
        data += bda.block(area.VIDEO_MODE, 0x1E)
        data += bytes((bda.byte(area.VIDEO_LAST_ROW) + 1 & 0xFF,)) + bda.block(area.CHARACTER_HEIGHT, 2)
        data += bytes((bda.byte(area.DISPLAY_COMBINATION), 0))
        data += struct.pack("<HB", 1 << mode.bits if mode.bits < 16 else 0, mode.pages)
        lines = {200: 0, 350: 1, 400: 2, 480: 3}.get(mode.rows * mode.character_height, 2)
        options = bda.byte(area.VIDEO_OPTIONS)
        flags = 0x01 | (0x02 if options & _OPTION_GREY else 0) | (0x08 if options & _OPTION_NO_PALETTE else 0) | 0x10
        data += bytes((lines, 0, 0, flags, 0, 0, 0, _MEMORY_256K, 0))
        self._core.write_at(registers.es, registers.di, data.ljust(64, b"\0"))
        registers.al = 0x1B

    # -- AH=1C, and VBE's AX=4F04 -----------------------------------------------------------------------------------

    def save_restore(self, registers: Registers) -> None:
        """AH=1C: the room that a saved state needs (AL=0), save it (1) or restore it (2) at es:bx."""
        what = registers.cx & 0x07
        if registers.al == 0:
            registers.bx = self.blocks(what)
        elif registers.al == 1:
            self._core.write_at(registers.es, registers.bx, self.save(what))
        elif registers.al == 2:
            self.restore(what, self._core.read(linear(registers.es, registers.bx), self.size(what)))
        else:
            return
        registers.al = 0x1C

    def size(self, what: int) -> int:
        """Return how long a saved state is, in bytes."""
        sizes = (_HARDWARE_SIZE, _DATA_SIZE, _COLOURS_SIZE, _VBE_SIZE)
        return sum(size for bit, size in enumerate(sizes) if what >> bit & 1)

    def blocks(self, what: int) -> int:
        """Return the same in blocks of 64 bytes."""
        return -(-self.size(what) // _BLOCK)

    def save(self, what: int) -> bytes:
        """Return the parts of the adapter's state that the bits of `what` name."""
        data = b""
        if what & SAVE_HARDWARE:
            data += self._save_hardware()
        if what & SAVE_DATA:
            data += b"".join(self._bda.block(start, length) for start, length in _DATA_RANGES)
            data += b"".join(self._core.memory.read(vector, 4) for vector in _VECTORS)
        if what & SAVE_COLOURS:
            data += bytes((self._core.inb(regs.DAC_MASK),)) + self._vga.read_colours(0, regs.DAC_SIZE)
        if what & SAVE_VBE:
            data += self._vbe.save().ljust(_VBE_SIZE, b"\0")
        return data

    def restore(self, what: int, data: bytes) -> None:
        """Take over what :meth:`save` returned, or whatever the caller says was that."""
        position = 0

        def take(length: int) -> bytes:
            nonlocal position
            position += length
            return data[position - length : position]

        vbe = data[self.size(what & ~SAVE_VBE) :]
        if what & SAVE_VBE:
            self._vbe.restore(vbe)
        if what & SAVE_HARDWARE:
            self._restore_hardware(take(_HARDWARE_SIZE))
        if what & SAVE_DATA:
            for start, length in _DATA_RANGES:
                self._bda.set_block(start, take(length))
            for vector in _VECTORS:
                self._core.memory.write(vector, take(4))
        if what & SAVE_COLOURS:
            self._core.outb(regs.DAC_MASK, take(1)[0])
            self._vga.write_colours(0, take(3 * regs.DAC_SIZE))

    def _save_hardware(self) -> bytes:
        vga = self._vga
        crtc = vga.crtc
        indexes = bytes(self._core.inb(port) for port in (regs.SEQUENCER, crtc, regs.GRAPHICS))
        values = [self._core.inb(regs.MISCELLANEOUS_READ), self._core.inb(regs.VIDEO_ENABLE)]
        values += [vga.read_indexed(regs.SEQUENCER, index) for index in range(1, 5)]
        values += [vga.read_indexed(crtc, index) for index in range(regs.CRTC_REGISTERS)]
        values += [vga.read_attribute(index) for index in range(regs.ATTRIBUTE_REGISTERS)]
        values += [vga.read_indexed(regs.GRAPHICS, index) for index in range(regs.GRAPHICS_REGISTERS)]
        return indexes + bytes(values) + b"\0"

    def _restore_hardware(self, data: bytes) -> None:
        vga, core = self._vga, self._core
        values = iter(data[3:])
        core.outb(regs.MISCELLANEOUS_WRITE, next(values))
        core.outb(regs.VIDEO_ENABLE, next(values) | 1)
        for index in range(1, 5):
            vga.write_indexed(regs.SEQUENCER, index, next(values))
        crtc = vga.crtc
        registers = bytes(next(values) for _ in range(regs.CRTC_REGISTERS))
        vga.write_indexed(crtc, regs.CRTC_SYNC_END, registers[regs.CRTC_SYNC_END] & ~regs.CRTC_WRITE_PROTECT)
        for index, value in enumerate(registers):
            vga.write_indexed(crtc, index, value)
        for index in range(regs.ATTRIBUTE_REGISTERS):
            vga.write_attribute(index, next(values))
        for index in range(regs.GRAPHICS_REGISTERS):
            vga.write_indexed(regs.GRAPHICS, index, next(values))
        for port, value in zip((regs.SEQUENCER, crtc, regs.GRAPHICS), data, strict=False):
            core.outb(port, value)
