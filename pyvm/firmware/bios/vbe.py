"""Int 10h AH=4F: VESA BIOS extensions, on the Bochs display interface.

VESA BIOS Extension (VBE) Core Functions Standard 3.0; VESA VBE/DDC Standard 1.1 for AL=15; VBE/PM 1.0 for AL=10.  The
protected mode interface of AL=0A is not there, as VBE 3.0 allows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import vga as regs
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.pci import Pci
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.video_modes import modes
from pyvm.records import record

ADAPTER: Final = 0x1111_1234
FRAME_BUFFER_BAR: Final = 0x10
REGISTER_BAR: Final = 0x18
EDID_BLOCK: Final = 128
EDID_HEADER: Final = 0x00FFFFFFFFFFFF00

# Bochs display interface
INDEX_PORT: Final = 0x1CE
DATA_PORT: Final = 0x1CF
(DISPI_ID, DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_ENABLE, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_VIRT_HEIGHT,
 DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_MEMORY_64K) = range(11)  # fmt: skip
DISPI_ID_MASK: Final = 0xFFF0
DISPI_ID_BASE: Final = 0xB0C0
ENABLED, DAC_8_BIT, LINEAR, NO_CLEAR = 0x01, 0x20, 0x40, 0x80
_SAVED: Final = (
    DISPI_XRES, DISPI_YRES, DISPI_BPP, DISPI_BANK, DISPI_VIRT_WIDTH, DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_ENABLE,
)  # fmt: skip

SUPPORTED: Final = 0x4F
FAILED: Final = 0x014F
INVALID_NOW: Final = 0x034F
NO_MODE: Final = 0xFFFF
MODE_LINEAR: Final = 1 << 14
MODE_KEEP: Final = 1 << 15
MODE_CUSTOM_CRTC: Final = 1 << 11
_MODE_NUMBER: Final = 0x1FF
_VGA_MODES: Final = 0x100

CAPABILITY_DAC_WIDTH: Final = 1 << 0
_VERSION_3: Final = 0x0300
_OEM: Final = b"pyvm VBE\0"
_VENDOR: Final = b"pyvm\0"
_PRODUCT: Final = b"pyvm VBE adapter\0"
_REVISION: Final = b"3.0\0"
_INFO_SIZE, _INFO_SIZE_2 = 256, 512
_INFO_RESERVED: Final = 34
_STRINGS: Final = 0x100
_MODE_INFO_SIZE: Final = 256
_BANK_KIB: Final = 64
_WINDOW_SEGMENT: Final = 0xA000
_MODEL_PACKED, _MODEL_DIRECT = 4, 6
_ATTRIBUTES: Final = 0x3B  # supported, optional information, colour, graphics, not a mode of a VGA
_ATTRIBUTE_LINEAR: Final = 0x80
_WINDOW_USE: Final = 0x07  # relocatable, readable, writable
_PIXEL_CLOCK: Final = 230_000_000

# Red, green, blue and reserved: size and position, by bits of a pixel
_MASKS: Final = {
    8: bytes(8),
    15: bytes((5, 10, 5, 5, 5, 0, 1, 15)),
    16: bytes((5, 11, 6, 5, 5, 0, 0, 0)),
    24: bytes((8, 16, 8, 8, 8, 0, 0, 0)),
    32: bytes((8, 16, 8, 8, 8, 0, 8, 24)),
}


@record(frozen=True)
class VbeMode:
    """A mode of the display interface."""

    width: int
    height: int
    bits: int

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return (self.bits + 7) // 8

    @property
    def pitch(self) -> int:
        """Bytes from one line to the next."""
        return self.width * self.pixel_bytes

    @property
    def size(self) -> int:
        """Bytes of a screen."""
        return self.pitch * self.height


# The numbers are those of VESA up to 11b, and then those that Bochs' and QEMU's video BIOSes gave theirs.
_SIZES: Final = (
    (640, 400, {8: 0x100, 32: 0x141}),
    (640, 480, {8: 0x101, 15: 0x110, 16: 0x111, 24: 0x112, 32: 0x142}),
    (800, 600, {8: 0x103, 15: 0x113, 16: 0x114, 24: 0x115, 32: 0x143}),
    (1024, 768, {8: 0x105, 15: 0x116, 16: 0x117, 24: 0x118, 32: 0x144}),
    (1280, 1024, {8: 0x107, 15: 0x119, 16: 0x11A, 24: 0x11B, 32: 0x145}),
    (1600, 1200, {8: 0x11C, 15: 0x11D, 16: 0x11E, 24: 0x11F, 32: 0x147}),
    (320, 200, {8: 0x146, 15: 0x10D, 16: 0x10E, 24: 0x10F, 32: 0x140}),
    (1152, 864, {8: 0x148, 15: 0x149, 16: 0x14A, 24: 0x14B, 32: 0x14C}),
    (1280, 768, {16: 0x175, 24: 0x176, 32: 0x177}),
    (1280, 800, {16: 0x178, 24: 0x179, 32: 0x17A}),
    (1280, 960, {16: 0x17B, 24: 0x17C, 32: 0x17D}),
    (1440, 900, {16: 0x17E, 24: 0x17F, 32: 0x180}),
    (1400, 1050, {16: 0x181, 24: 0x182, 32: 0x183}),
    (1680, 1050, {16: 0x184, 24: 0x185, 32: 0x186}),
    (1920, 1200, {16: 0x187, 24: 0x188, 32: 0x189}),
    (2560, 1600, {16: 0x18A, 24: 0x18B, 32: 0x18C}),
    (1280, 720, {16: 0x18D, 24: 0x18E, 32: 0x18F}),
    (1920, 1080, {16: 0x190, 24: 0x191, 32: 0x192}),
)


@cache
def vbe_modes() -> dict[int, VbeMode]:
    """Return all modes by number."""
    found = {number: VbeMode(width, height, bits) for width, height, row in _SIZES for bits, number in row.items()}
    return dict(sorted(found.items()))


class Vbe:
    """The functions, by AL."""

    def __init__(self, core: Core, pci: Pci, vga: regs.Vga) -> None:
        self._core = core
        self._pci = pci
        self._vga = vga
        self._address: int | None = None
        self._has_dispi = False
        self._functions: dict[int, Callable[[Registers], int]] = {
            0x00: self._information,
            0x01: self._mode_information,
            0x03: self._get_mode,
            0x04: self._save_restore,
            0x05: self._window,
            0x06: self._line_length,
            0x07: self._display_start,
            0x08: self._dac_format,
            0x09: self._palette,
            0x10: self._power,
            0x15: self._ddc,
        }
        self.state_size: Callable[[int], int] = lambda what: 0
        self.save_state: Callable[[int], bytes] = lambda what: b""
        self.restore_state: Callable[[int, bytes], None] = lambda what, data: None

    # -- the adapter ------------------------------------------------------------------------------------------------

    def find_adapter(self) -> bool:
        """Look for a VGA; note whether it has the display interface, and whether it is a PCI function."""
        self._address = self._pci.find(0x00, 4, ADAPTER)
        self._has_dispi = self.read(DISPI_ID) & DISPI_ID_MASK == DISPI_ID_BASE
        if self._has_dispi or self._address is not None:
            return True
        self._core.outb(regs.SEQUENCER, regs.SEQUENCER_MAP_MASK)
        return self._core.inb(regs.SEQUENCER) == regs.SEQUENCER_MAP_MASK

    def read(self, index: int) -> int:
        """Read a register of the display interface."""
        self._core.outp(INDEX_PORT, 2, index)
        return self._core.inp(DATA_PORT, 2)

    def write(self, index: int, value: int) -> None:
        """Write a register of the display interface."""
        self._core.outp(INDEX_PORT, 2, index)
        self._core.outp(DATA_PORT, 2, value & 0xFFFF)

    def _bar(self, register: int) -> int:
        if self._address is None:
            return 0
        return self._pci.read(self._address, register, 4) & ~0xF

    @property
    def active(self) -> bool:
        """Whether the display interface shows a mode of its own."""
        return self._has_dispi and bool(self.read(DISPI_ENABLE) & ENABLED)

    def leave(self) -> None:
        """Give the screen back to the VGA; a mode of the VGA is about to be set."""
        self._core.ebda.set_word(area.VBE_MODE, NO_MODE)
        if self._has_dispi:
            self.write(DISPI_ENABLE, 0)
            self.write(DISPI_BANK, 0)

    def _memory(self) -> int:
        return self.read(DISPI_MEMORY_64K)

    def _fits(self, mode: VbeMode) -> bool:
        return mode.size <= self._memory() << 16

    # -- dispatch ---------------------------------------------------------------------------------------------------

    def call(self, registers: Registers, set_vga_mode: Callable[..., None]) -> None:
        """Serve int 10h AH=4F."""
        if not self._has_dispi:
            return
        if registers.al == 0x02:
            registers.ax = self._set_mode(registers, set_vga_mode)
            return
        function = self._functions.get(registers.al)
        registers.ax = FAILED if function is None else function(registers)

    # -- information ------------------------------------------------------------------------------------------------

    def _information(self, registers: Registers) -> int:
        place = linear(registers.es, registers.di)
        extended = self._core.read(place, 4) == b"VBE2"
        numbers = [number for number, mode in vbe_modes().items() if self._fits(mode)]
        listed = struct.pack(f"<{len(numbers) + 1}H", *numbers, NO_MODE)

        def pointer(offset: int) -> int:
            return registers.es << 16 | (registers.di + offset) & 0xFFFF

        # Without room for more, the list of modes and the first string are in the reserved part.
        strings = (_OEM, _VENDOR, _PRODUCT, _REVISION)
        places = [_STRINGS + sum(map(len, strings[:index])) for index in range(len(strings))]
        if not extended:
            places = [_INFO_RESERVED + len(listed)] * len(strings)
        data = b"VESA" + struct.pack(
            "<HIIIH", _VERSION_3, pointer(places[0]), CAPABILITY_DAC_WIDTH, pointer(_INFO_RESERVED), self._memory()
        )
        if extended:
            data += struct.pack("<HIII", _VERSION_3, *map(pointer, places[1:]))
        data = data.ljust(_INFO_RESERVED, b"\0") + listed
        if extended:
            data = data.ljust(_STRINGS, b"\0") + b"".join(strings)
        else:
            data += _OEM
        self._core.write(place, data.ljust(_INFO_SIZE_2 if extended else _INFO_SIZE, b"\0"))
        return SUPPORTED

    def _mode_information(self, registers: Registers) -> int:
        mode = vbe_modes().get(registers.cx & _MODE_NUMBER)
        if mode is None or not self._fits(mode):
            return FAILED
        frame_buffer = self._bar(FRAME_BUFFER_BAR)
        planes, model = 1, _MODEL_PACKED if mode.bits == 8 else _MODEL_DIRECT
        pages = max((self._memory() << 16) // mode.size - 1, 0) & 0xFF
        attributes = _ATTRIBUTES | (_ATTRIBUTE_LINEAR if frame_buffer else 0)
        data = struct.pack(
            "<HBBHHHHIH", attributes, _WINDOW_USE, 0, _BANK_KIB, _BANK_KIB, _WINDOW_SEGMENT, 0, 0, mode.pitch
        )
        data += struct.pack("<HHBBBBBBBBB", mode.width, mode.height, 8, 16, planes, mode.bits, 1, model, 0, pages, 1)
        direct = 0x02 if mode.bits == 32 else 0
        data += _MASKS[mode.bits] + struct.pack("<BIIH", direct, frame_buffer, 0, 0)
        data += struct.pack("<HBB", mode.pitch, pages, pages) + _MASKS[mode.bits] + struct.pack("<I", _PIXEL_CLOCK)
        self._core.write_at(registers.es, registers.di, data.ljust(_MODE_INFO_SIZE, b"\0"))
        return SUPPORTED

    # -- modes ------------------------------------------------------------------------------------------------------

    def _set_mode(self, registers: Registers, set_vga_mode: Callable[..., None]) -> int:
        wanted = registers.bx
        number = wanted & _MODE_NUMBER
        if number < _VGA_MODES:
            if number & 0x7F not in modes():
                return FAILED
            set_vga_mode(number & 0x7F, clear=not wanted & MODE_KEEP)
            return SUPPORTED
        mode = vbe_modes().get(number)
        if mode is None or not self._fits(mode) or wanted & MODE_CUSTOM_CRTC:
            return FAILED
        if wanted & MODE_LINEAR and not self._bar(FRAME_BUFFER_BAR):
            return FAILED
        self.write(DISPI_ENABLE, 0)
        for index, value in ((DISPI_XRES, mode.width), (DISPI_YRES, mode.height), (DISPI_BPP, mode.bits)):
            self.write(index, value)
        flags = ENABLED | (LINEAR if wanted & MODE_LINEAR else 0) | (NO_CLEAR if wanted & MODE_KEEP else 0)
        self.write(DISPI_ENABLE, flags)
        for index, value in ((DISPI_BANK, 0), (DISPI_VIRT_WIDTH, mode.width), (DISPI_X_OFFSET, 0), (DISPI_Y_OFFSET, 0)):
            self.write(index, value)
        self._note_mode(wanted, mode)
        return SUPPORTED

    def _note_mode(self, wanted: int, mode: VbeMode) -> None:
        bda = self._core.bda
        self._core.ebda.set_word(area.VBE_MODE, wanted & (_MODE_NUMBER | MODE_LINEAR | MODE_KEEP))
        bda.set_byte(area.VIDEO_MODE, 0x6F)  # no mode of a VGA
        bda.set_word(area.VIDEO_COLUMNS, mode.width // 8)
        bda.set_byte(area.VIDEO_LAST_ROW, mode.height // 16 - 1)
        bda.set_word(area.CHARACTER_HEIGHT, 16)
        bda.set_byte(area.VIDEO_PAGE, 0)
        bda.set_block(area.CURSOR_POSITIONS, bytes(2 * area.VIDEO_PAGES))

    def _get_mode(self, registers: Registers) -> int:
        noted = self._core.ebda.word(area.VBE_MODE)
        registers.bx = noted if noted != NO_MODE else self._core.bda.byte(area.VIDEO_MODE)
        return SUPPORTED

    def _current(self) -> VbeMode | None:
        """Return the mode that is shown, its width that of a line in memory."""
        return vbe_modes().get(self._core.ebda.word(area.VBE_MODE) & _MODE_NUMBER) if self.active else None

    # -- windows, lines and start -----------------------------------------------------------------------------------

    def _window(self, registers: Registers) -> int:
        """AL=05: the bank in the window at 0xa0000."""
        if registers.bh > 1 or registers.bl != 0:
            return FAILED
        if self._current() is None or self._core.ebda.word(area.VBE_MODE) & MODE_LINEAR:
            return INVALID_NOW
        if registers.bh == 1:
            registers.dx = self.read(DISPI_BANK)
            return SUPPORTED
        if registers.dx >= self._memory():
            return FAILED
        self.write(DISPI_BANK, registers.dx)
        return SUPPORTED

    def _line_length(self, registers: Registers) -> int:
        """AL=06: the length of lines in memory, in pixels (BL=0, 2 sets bytes; 1 gets it, 3 the longest)."""
        mode = self._current()
        if registers.bl > 3:
            return FAILED
        if mode is None:
            return INVALID_NOW
        longest = min((self._memory() << 16) // mode.height // mode.pixel_bytes, 0xFFFF // mode.pixel_bytes) & ~7
        width = self.read(DISPI_VIRT_WIDTH)
        if registers.bl in (0, 2):
            width = registers.cx if registers.bl == 0 else -(-registers.cx // mode.pixel_bytes)
            width = max((width + 7) & ~7, mode.width)
            if width > longest:
                return 0x024F
            self.write(DISPI_VIRT_WIDTH, width)
            width = self.read(DISPI_VIRT_WIDTH)
        elif registers.bl == 3:
            width = longest
        registers.bx, registers.cx = width * mode.pixel_bytes, width
        registers.dx = min((self._memory() << 16) // max(width * mode.pixel_bytes, 1), 0xFFFF)
        return SUPPORTED

    def _display_start(self, registers: Registers) -> int:
        """AL=07: the first pixel that is shown."""
        function = registers.bl & 0x7F
        if function > 1:
            return FAILED
        mode = self._current()
        if mode is None:
            return INVALID_NOW
        if function == 1:
            registers.bh = 0
            registers.cx, registers.dx = self.read(DISPI_X_OFFSET), self.read(DISPI_Y_OFFSET)
            return SUPPORTED
        pitch = self.read(DISPI_VIRT_WIDTH) * mode.pixel_bytes
        if (registers.dx + mode.height) * pitch + registers.cx * mode.pixel_bytes > self._memory() << 16:
            return FAILED
        self.write(DISPI_X_OFFSET, registers.cx)
        self.write(DISPI_Y_OFFSET, registers.dx)
        return SUPPORTED

    # -- colours ----------------------------------------------------------------------------------------------------

    def _dac_format(self, registers: Registers) -> int:
        """AL=08: 6 or 8 bits for each component of a colour."""
        mode = self._current()
        if registers.bl > 1:
            return FAILED
        if mode is None or mode.bits != 8:
            return INVALID_NOW
        flags = self.read(DISPI_ENABLE)
        if registers.bl == 0:
            wide = registers.bh >= 8
            self.write(DISPI_ENABLE, (flags | DAC_8_BIT if wide else flags & ~DAC_8_BIT) | NO_CLEAR)
            flags = self.read(DISPI_ENABLE)
        registers.bh = 8 if flags & DAC_8_BIT else 6
        return SUPPORTED

    def _palette(self, registers: Registers) -> int:
        """AL=09: colours as blue, green, red and a byte that does not matter."""
        count, first = registers.cx, registers.dx
        if count > regs.DAC_SIZE or first + count > regs.DAC_SIZE:
            return FAILED
        place = linear(registers.es, registers.di)
        if registers.bl & 0x7F == 0:
            data = self._core.read(place, 4 * count)
            colours = b"".join(data[index : index + 3][::-1] for index in range(0, len(data), 4))
            self._vga.write_colours(first, colours)
        elif registers.bl == 1:
            data = self._vga.read_colours(first, count)
            entries = (data[index : index + 3][::-1] + b"\0" for index in range(0, len(data), 3))
            self._core.write(place, b"".join(entries))
        else:
            return FAILED
        return SUPPORTED

    # -- power, state and the monitor -------------------------------------------------------------------------------

    def _power(self, registers: Registers) -> int:
        """AL=10: what states of the monitor there are (none but on), and choosing one."""
        if registers.bl == 0:
            registers.bl, registers.bh = 0x10, 0
        elif registers.bl == 1:
            return SUPPORTED if registers.bh == 0 else FAILED
        elif registers.bl == 2:
            registers.bh = 0
        else:
            return FAILED
        return SUPPORTED

    def _save_restore(self, registers: Registers) -> int:
        """AL=04: as AH=1C, with a part for the display interface; the state is at es:bx."""
        what = registers.cx & 0x0F
        if registers.dl == 0:
            registers.bx = -(-self.state_size(what) // 64)
        elif registers.dl == 1:
            self._core.write_at(registers.es, registers.bx, self.save_state(what))
        elif registers.dl == 2:
            self.restore_state(what, self._core.read_at(registers.es, registers.bx, self.state_size(what)))
        else:
            return FAILED
        return SUPPORTED

    def save(self) -> bytes:
        """Return the display interface's part of a saved state."""
        values = [self._core.ebda.word(area.VBE_MODE), *(self.read(index) for index in _SAVED)]
        return struct.pack(f"<{len(values)}H", *values)

    def restore(self, data: bytes) -> None:
        """Take it over; the display interface corrects what does not go together."""
        mode, *values = struct.unpack_from(f"<{1 + len(_SAVED)}H", data)
        self._core.ebda.set_word(area.VBE_MODE, mode)
        self.write(DISPI_ENABLE, 0)
        registers = dict(zip(_SAVED, values, strict=True))
        if registers[DISPI_ENABLE] & ENABLED:
            for index in (DISPI_XRES, DISPI_YRES, DISPI_BPP):
                self.write(index, registers[index])
            self.write(DISPI_ENABLE, registers[DISPI_ENABLE] | NO_CLEAR)
            for index in (DISPI_VIRT_WIDTH, DISPI_X_OFFSET, DISPI_Y_OFFSET, DISPI_BANK):
                self.write(index, registers[index])

    def _ddc(self, registers: Registers) -> int:
        """AL=15: what the monitor says about itself."""
        base = self._bar(REGISTER_BAR)
        if not base or self._core.machine.mmio.read(base, 8) != EDID_HEADER:
            return FAILED
        if registers.bl == 0:
            registers.bx = 0x0103  # a second for a block; DDC1 and DDC2
            return SUPPORTED
        read = self._core.machine.mmio.read
        blocks = 1 + read(base + EDID_BLOCK - 2, 1)
        if registers.bl != 1 or registers.dx >= min(blocks, 2):
            return FAILED
        start = base + registers.dx * EDID_BLOCK
        data = bytes(read(start + index, 1) for index in range(EDID_BLOCK))
        self._core.write_at(registers.es, registers.di, data)
        return SUPPORTED
