"""Where a BIOS keeps its state: the BIOS data area at 0040:0000 and the extended one below 640 KiB.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference, section 3 "Data areas"; Ralf Brown's
Interrupt List, MEMORY.LST.  The layout of the first part is public: programs read and write it.  The rest of the
extended area, from :data:`EBDA_PRIVATE` on, is this BIOS's own.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.e820 import EBDA_START
from pyvm.memory import GuestMemory

BDA: Final = 0x400
BDA_SIZE: Final = 0x100
EBDA: Final = EBDA_START
EBDA_SEGMENT: Final = EBDA_START >> 4
EBDA_KIB: Final = 1
EBDA_SIZE: Final = EBDA_KIB << 10

# BIOS data area, offsets from 0x400; one byte unless noted.
COM_PORTS: Final = 0x00  # 4 words
LPT_PORTS: Final = 0x08  # 3 words
EBDA_POINTER: Final = 0x0E  # word: segment
EQUIPMENT: Final = 0x10  # word
MEMORY_KIB: Final = 0x13  # word
SHIFT_FLAGS: Final = 0x17
SHIFT_FLAGS_2: Final = 0x18
ALT_KEYPAD: Final = 0x19  # the code being typed with Alt and the keypad
KEY_HEAD: Final = 0x1A  # word: offset from 0040:0000
KEY_TAIL: Final = 0x1C  # word
KEY_BUFFER: Final = 0x1E  # 16 words
FLOPPY_RECALIBRATED: Final = 0x3E
FLOPPY_MOTORS: Final = 0x3F
FLOPPY_MOTOR_TICKS: Final = 0x40
FLOPPY_STATUS: Final = 0x41
VIDEO_MODE: Final = 0x49
VIDEO_COLUMNS: Final = 0x4A  # word
VIDEO_PAGE_SIZE: Final = 0x4C  # word
VIDEO_PAGE_START: Final = 0x4E  # word
CURSOR_POSITIONS: Final = 0x50  # 8 words: row << 8 | column
CURSOR_SHAPE: Final = 0x60  # word: first line << 8 | last line
VIDEO_PAGE: Final = 0x62
CRTC_PORT: Final = 0x63  # word
CGA_MODE: Final = 0x65
CGA_PALETTE: Final = 0x66
RESET_VECTOR: Final = 0x67  # far pointer
TICKS: Final = 0x6C  # dword
MIDNIGHT: Final = 0x70
BREAK_FLAG: Final = 0x71
RESET_FLAG: Final = 0x72  # word
DISK_STATUS: Final = 0x74
DISK_COUNT: Final = 0x75
LPT_TIMEOUTS: Final = 0x78  # 4 bytes, seconds
COM_TIMEOUTS: Final = 0x7C  # 4 bytes, seconds
KEY_BUFFER_START: Final = 0x80  # word
KEY_BUFFER_END: Final = 0x82  # word
VIDEO_LAST_ROW: Final = 0x84
CHARACTER_HEIGHT: Final = 0x85  # word
VIDEO_CONTROL: Final = 0x87
VIDEO_SWITCHES: Final = 0x88
VIDEO_OPTIONS: Final = 0x89
DISPLAY_COMBINATION: Final = 0x8A
KEYBOARD_MODE: Final = 0x96
KEYBOARD_LEDS: Final = 0x97
WAIT_FLAG_POINTER: Final = 0x98  # far pointer
WAIT_TIME: Final = 0x9C  # dword: microseconds
WAIT_ACTIVE: Final = 0xA0
VIDEO_SAVE_POINTER: Final = 0xA8  # far pointer

# Bits
EQUIPMENT_FLOPPY: Final = 1 << 0
EQUIPMENT_FPU: Final = 1 << 1
EQUIPMENT_MOUSE: Final = 1 << 2
EQUIPMENT_VIDEO: Final = 3 << 4
EQUIPMENT_VIDEO_COLOUR: Final = 2 << 4
EQUIPMENT_VIDEO_MONO: Final = 3 << 4
EQUIPMENT_FLOPPIES_SHIFT: Final = 6  # number less one
EQUIPMENT_SERIAL_SHIFT: Final = 9
EQUIPMENT_PARALLEL_SHIFT: Final = 14
VIDEO_KEEP_MEMORY: Final = 1 << 7  # of VIDEO_CONTROL: the mode was set without clearing
VIDEO_NO_CURSOR_EMULATION: Final = 1 << 0
WARM_START: Final = 0x1234
WAIT_PENDING: Final = 1 << 0
WAIT_DONE: Final = 1 << 7

KEY_BUFFER_FIRST: Final = KEY_BUFFER
KEY_BUFFER_LAST: Final = KEY_BUFFER + 32
VIDEO_PAGES: Final = 8

# Extended BIOS data area, offsets from its start.
EBDA_LENGTH: Final = 0x00  # KiB
MOUSE_HANDLER: Final = 0x22  # far pointer
MOUSE_FLAGS_1: Final = 0x26  # bits 0-2: bytes received of the packet
MOUSE_FLAGS_2: Final = 0x27  # bit 7: a handler is set; bits 0-2: size of a packet less one
MOUSE_PACKET: Final = 0x28  # 8 bytes
DISK_TABLE_0: Final = 0x3D  # 16 bytes: parameters of drive 80h, where int 41h points
DISK_TABLE_1: Final = 0x4D  # 16 bytes: parameters of drive 81h, where int 46h points
EBDA_PRIVATE: Final = 0x80
BOOT_NEXT: Final = 0x80  # which entry of the boot list int 18h tries next
BOOT_CHOICE: Final = 0x81  # the entry of the boot list that the menu put first, or 0xff
CDEMU_ACTIVE: Final = 0x82  # what kind of boot from a CD there was: 0 none
CDEMU_DRIVE: Final = 0x83  # the index of the CD-ROM drive
CDEMU_PACKET: Final = 0x84  # 19 bytes: the specification packet of El Torito
CONSOLE_ROW: Final = 0xA0  # where the terminal's cursor is; 0xff: not known
CONSOLE_COLUMN: Final = 0xA1
CONSOLE_ATTRIBUTE: Final = 0xA2
CONSOLE_ESCAPE_LENGTH: Final = 0xA3  # bytes of an escape sequence that came in so far
CONSOLE_ESCAPE: Final = 0xA4  # 8 bytes
CONSOLE_ESCAPE_TICK: Final = 0xAC  # low byte of the tick count at its first byte
VBE_MODE: Final = 0xAE  # word: the VBE mode with its flags, 0xffff where none is set
DRIVE_PARAMETERS: Final = 0xC0  # 16 bytes: the device parameter table extension of the last int 13h AH=48
APM_CONNECTED: Final = 0xD0
FIRST_DISK_INDEX: Final = 0xD1  # which of the hard disks in their usual order is drive 80h
ROM_NEXT: Final = 0xD2  # how many of the option ROMs have had their turn
ROM_CONNECT: Final = 0xD3  # how many of the drives and ROMs with drives have got their numbers
ROM_END: Final = 0xD4  # word: the segment behind the option ROMs
DISK_SHIFTS: Final = 0xE0  # 16 bytes: how many drives of ROMs come before each hard disk, 0xff for one without number
PMM_BLOCKS: Final = 0x140  # 20 times 12 bytes: memory that option ROMs have: start, size, handle
ROM_SEGMENTS: Final = 0x100  # 32 words: where each of the option ROMs is, 0 where it is not there


class DataArea:
    """One of the two areas, by offset.  All of it is RAM: nothing here fails."""

    def __init__(self, memory: GuestMemory, base: int, size: int) -> None:
        self._memory = memory
        self.base = base
        self.size = size

    def byte(self, offset: int) -> int:
        """Return a byte."""
        return self._memory.read(self.base + offset, 1)[0]

    def word(self, offset: int) -> int:
        """Return a 16-bit word."""
        return self._memory.read_u16(self.base + offset)

    def dword(self, offset: int) -> int:
        """Return a 32-bit word."""
        return self._memory.read_u32(self.base + offset)

    def block(self, offset: int, length: int) -> bytes:
        """Return a copy of some bytes."""
        return self._memory.read(self.base + offset, length)

    def set_byte(self, offset: int, value: int) -> None:
        """Store a byte."""
        self._memory.write(self.base + offset, bytes((value & 0xFF,)))

    def set_word(self, offset: int, value: int) -> None:
        """Store a 16-bit word."""
        self._memory.write_u16(self.base + offset, value & 0xFFFF)

    def set_dword(self, offset: int, value: int) -> None:
        """Store a 32-bit word."""
        self._memory.write_u32(self.base + offset, value & 0xFFFFFFFF)

    def set_block(self, offset: int, data: bytes) -> None:
        """Store some bytes."""
        self._memory.write(self.base + offset, data)

    def set_far(self, offset: int, segment: int, address: int) -> None:
        """Store a far pointer."""
        self.set_dword(offset, (segment & 0xFFFF) << 16 | address & 0xFFFF)

    def clear(self) -> None:
        """Set the whole area to zero."""
        self.set_block(0, bytes(self.size))
