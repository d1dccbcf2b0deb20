"""Registers of the VGA and of the Bochs display interface.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem" (sections "VGA Function" and
"Registers"); the Bochs VBE display API, version 5 (`DISPI`), for what is beyond the VGA.  Ports are absolute; registers
behind an index port are given by index.
"""

from __future__ import annotations

from typing import Final

# -- ports ----------------------------------------------------------------------------------------------------------
PORT_BASE: Final = 0x3B0
PORT_COUNT: Final = 0x30  # 0x3b0-0x3df; most of 0x3b0-0x3bf belongs to the monochrome set
CRTC_INDEX_MONO: Final = 0x3B4
CRTC_DATA_MONO: Final = 0x3B5
STATUS1_MONO: Final = 0x3BA  # read; written it is feature control
COMMON_PORT_COUNT: Final = 0x10  # 0x3c0-0x3cf are in both sets
ATC_INDEX: Final = 0x3C0  # index and data in turns when written, index when read
ATC_DATA: Final = 0x3C1  # read-only
MISC_WRITE: Final = 0x3C2  # read: input status 0
VIDEO_ENABLE: Final = 0x3C3  # bit 0: the adapter answers at all
SEQ_INDEX: Final = 0x3C4
SEQ_DATA: Final = 0x3C5
PEL_MASK: Final = 0x3C6
PEL_READ_INDEX: Final = 0x3C7  # write-only; read: DAC state
PEL_WRITE_INDEX: Final = 0x3C8
PEL_DATA: Final = 0x3C9
FEATURE_READ: Final = 0x3CA  # read-only
MISC_READ: Final = 0x3CC  # read-only
GC_INDEX: Final = 0x3CE
GC_DATA: Final = 0x3CF
CRTC_INDEX_COLOUR: Final = 0x3D4
CRTC_DATA_COLOUR: Final = 0x3D5
STATUS1_COLOUR: Final = 0x3DA  # read; written it is feature control

# -- miscellaneous output (reset 0) ---------------------------------------------------------------------------------
MISC_COLOUR: Final = 1 << 0  # CRTC and status 1 at 0x3dx, not at 0x3bx
MISC_RAM: Final = 1 << 1  # display memory answers
MISC_CLOCK: Final = 3 << 2
MISC_CLOCK_28: Final = 1 << 2  # 28.322 MHz for 9-dot characters; others: 25.175 MHz

FEATURE_MASK: Final = 0x10  # the one bit of feature control that is kept

# -- input status 1, read-only; reading it makes the next write of 0x3c0 an index ------------------------------------
STATUS1_NO_DISPLAY: Final = 1 << 0  # horizontal or vertical blanking
STATUS1_RETRACE: Final = 1 << 3  # vertical retrace

# -- sequencer ------------------------------------------------------------------------------------------------------
SEQ_COUNT: Final = 8
SEQ_RESET: Final = 0
SEQ_CLOCK: Final = 1
SEQ_MAP_MASK: Final = 2
SEQ_CHAR_MAP: Final = 3  # font B (attribute bit 3 clear) in bits 4, 1, 0; font A in 5, 3, 2
SEQ_MEMORY: Final = 4
SEQ_MASKS: Final = (0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0x00, 0x00, 0xFF)  # bits that are kept, by index
CLOCK_8_DOT: Final = 1 << 0
CLOCK_HALF: Final = 1 << 3
CLOCK_SCREEN_OFF: Final = 1 << 5
MEMORY_SEQUENTIAL: Final = 1 << 2  # clear: even addresses are in planes 0 and 2, odd ones in 1 and 3
MEMORY_CHAIN4: Final = 1 << 3

# -- graphics controller --------------------------------------------------------------------------------------------
GC_COUNT: Final = 16
GC_SET_RESET: Final = 0
GC_ENABLE_SET_RESET: Final = 1
GC_COLOUR_COMPARE: Final = 2
GC_ROTATE: Final = 3  # count in 2:0, function in 4:3
GC_READ_MAP: Final = 4
GC_MODE: Final = 5
GC_MISC: Final = 6
GC_COLOUR_CARE: Final = 7
GC_BIT_MASK: Final = 8
GC_MASKS: Final = (0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF, 0, 0, 0, 0, 0, 0, 0)
MODE_WRITE: Final = 3 << 0
MODE_READ_COMPARE: Final = 1 << 3
MODE_ODD_EVEN: Final = 1 << 4
MODE_SHIFT: Final = 3 << 5  # how planes become pixels:
SHIFT_PLANAR: Final = 0
SHIFT_CGA: Final = 1
SHIFT_256: Final = 2  # and 3
MISC_GRAPHICS: Final = 1 << 0
MISC_MAP: Final = 3 << 2
FUNCTION_AND: Final = 1
FUNCTION_OR: Final = 2
FUNCTION_XOR: Final = 3

# -- attribute controller -------------------------------------------------------------------------------------------
ATC_COUNT: Final = 21
ATC_PALETTE_SIZE: Final = 16
ATC_MODE: Final = 0x10
ATC_OVERSCAN: Final = 0x11
ATC_PLANES: Final = 0x12
ATC_PANNING: Final = 0x13
ATC_COLOUR_SELECT: Final = 0x14
ATC_MASKS: Final = (*(0x3F,) * ATC_PALETTE_SIZE, 0xEF, 0xFF, 0x3F, 0x0F, 0x0F)
ATC_INDEX_MASK: Final = 0x3F
ATC_PAS: Final = 1 << 5  # of the index: the palette belongs to the display; clear: the screen is blank
ATC_MODE_MONO: Final = 1 << 1
ATC_MODE_LINE_GRAPHICS: Final = 1 << 2
ATC_MODE_PAN_COMPARE: Final = 1 << 5  # no panning below the line compare
ATC_MODE_SELECT_5_4: Final = 1 << 7  # palette bits 5:4 come from colour select

# -- CRT controller -------------------------------------------------------------------------------------------------
CRTC_COUNT: Final = 25
CRTC_H_TOTAL: Final = 0x00
CRTC_H_DISPLAY: Final = 0x01
CRTC_V_TOTAL: Final = 0x06
CRTC_OVERFLOW: Final = 0x07
CRTC_PRESET_ROW: Final = 0x08
CRTC_MAX_SCAN: Final = 0x09
CRTC_CURSOR_START: Final = 0x0A
CRTC_CURSOR_END: Final = 0x0B
CRTC_START_HIGH: Final = 0x0C
CRTC_START_LOW: Final = 0x0D
CRTC_CURSOR_HIGH: Final = 0x0E
CRTC_CURSOR_LOW: Final = 0x0F
CRTC_V_RETRACE_START: Final = 0x10
CRTC_V_RETRACE_END: Final = 0x11
CRTC_V_DISPLAY: Final = 0x12
CRTC_OFFSET: Final = 0x13
CRTC_UNDERLINE: Final = 0x14
CRTC_MODE: Final = 0x17
CRTC_LINE_COMPARE: Final = 0x18
CRTC_PROTECTED: Final = 8  # registers below are read-only while ...
V_RETRACE_END_PROTECT: Final = 1 << 7  # ... this is set, but for ...
OVERFLOW_LINE_COMPARE: Final = 1 << 4  # ... this bit
MAX_SCAN_ROWS: Final = 0x1F
MAX_SCAN_LINE_COMPARE: Final = 1 << 6
MAX_SCAN_DOUBLE: Final = 1 << 7
CURSOR_OFF: Final = 1 << 5
CRTC_MODE_A13: Final = 1 << 0  # clear: address bit 13 is bit 0 of the row scan counter
CRTC_MODE_A14: Final = 1 << 1  # clear: address bit 14 is bit 1 of it
CRTC_MODE_BYTE: Final = 1 << 6

# -- DISPI ----------------------------------------------------------------------------------------------------------
DISPI_INDEX_PORT: Final = 0x1CE  # 16 bits, as are the data ports
DISPI_PORT_COUNT: Final = 4  # data at 0x1cf (unaligned, as first made) and 0x1d0
DISPI_ID: Final = 0
DISPI_XRES: Final = 1
DISPI_YRES: Final = 2
DISPI_BPP: Final = 3
DISPI_ENABLE: Final = 4
DISPI_BANK: Final = 5
DISPI_VIRT_WIDTH: Final = 6
DISPI_VIRT_HEIGHT: Final = 7  # read-only
DISPI_X_OFFSET: Final = 8
DISPI_Y_OFFSET: Final = 9
DISPI_COUNT: Final = 10
DISPI_MEMORY_64K: Final = 10  # read-only
DISPI_ID0: Final = 0xB0C0
DISPI_ID5: Final = 0xB0C5
DISPI_ENABLED: Final = 1 << 0
DISPI_GETCAPS: Final = 1 << 1
DISPI_8BIT_DAC: Final = 1 << 5
DISPI_LFB: Final = 1 << 6
DISPI_NO_CLEAR: Final = 1 << 7
DISPI_MAX_XRES: Final = 16000
DISPI_MAX_YRES: Final = 12000
DISPI_MAX_BPP: Final = 32
BANK_SIZE: Final = 1 << 16

# -- BAR 2 ----------------------------------------------------------------------------------------------------------
MMIO_SIZE: Final = 0x1000
MMIO_EDID_SIZE: Final = 0x400
MMIO_VGA: Final = 0x400  # ports 0x3c0-0x3df
MMIO_VGA_SIZE: Final = 0x20
MMIO_DISPI: Final = 0x500  # DISPI registers, 16 bits each
MMIO_DISPI_SIZE: Final = 0x16
MMIO_QEXT: Final = 0x600
MMIO_QEXT_LENGTH: Final = 0x600  # 32 bits, read-only: bytes in this block
MMIO_QEXT_ENDIAN: Final = 0x604  # 32 bits: byte order of the frame buffer
MMIO_QEXT_SIZE: Final = 8
ENDIAN_LITTLE: Final = 0x1E1E1E1E
ENDIAN_BIG: Final = 0xBEBEBEBE

# -- the legacy window 0xa0000-0xbffff --------------------------------------------------------------------------------
WINDOW_BASE: Final = 0xA0000
WINDOW_SIZE: Final = 0x20000
WINDOW_MAPS: Final = ((0x00000, 0x20000), (0x00000, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000))  # offset, size
MAP_BANKED: Final = 1
MAP_COLOUR_TEXT: Final = 3
TEXT_RAM_SIZE: Final = 0x8000
