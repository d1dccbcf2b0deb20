"""Tables in the ROM that programs read directly.

IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference: int 15h AH=C0 (system configuration),
int 1Eh (diskette parameters), int 1Dh (video parameters), int 10h AH=1B (functionality state).
"""

from __future__ import annotations

import struct
from typing import Final

MODEL: Final = 0xFC  # AT
SUBMODEL: Final = 0x00
REVISION: Final = 1
DATE: Final = b"06/23/99"

# Feature byte 1 of the system configuration
FEATURE_SLAVE_PIC: Final = 1 << 6
FEATURE_RTC: Final = 1 << 5
FEATURE_INTERCEPT: Final = 1 << 4  # int 09h calls int 15h AH=4F
FEATURE_EBDA: Final = 1 << 2
# Feature byte 2
FEATURE_KEYBOARD_FUNCTIONS: Final = 1 << 6  # int 16h AH=09

CONFIGURATION: Final = struct.pack(
    "<HBBBBBBBB",
    8,
    MODEL,
    SUBMODEL,
    REVISION,
    FEATURE_SLAVE_PIC | FEATURE_RTC | FEATURE_INTERCEPT | FEATURE_EBDA,
    FEATURE_KEYBOARD_FUNCTIONS,
    0,
    0,
    0,
)

SERIAL_CLOCK: Final = 115_200
SERIAL_RATES: Final = (110, 150, 300, 600, 1200, 2400, 4800, 9600)
BAUD_RATES: Final = struct.pack("<8H", *(SERIAL_CLOCK // rate for rate in SERIAL_RATES))

# 1.44 MB: step rate and head unload, head load and DMA, motor off ticks, 512-byte sectors, sectors a track, gap, data
# length, gap when formatting, fill byte, head settle in ms, motor start in 1/8 s.
DISKETTE: Final = bytes((0xAF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08))
DISKETTE_FILL_BYTE: Final = 8
DISKETTE_SECTORS: Final = 4
DISKETTE_MOTOR_TICKS: Final = 2

# 6845 registers for 40 x 25, 80 x 25, graphics and monochrome text; then page sizes, columns and mode bytes.
CGA_PARAMETERS: Final = bytes.fromhex(
    "38 28 2d 0a 1f 06 19 1c 02 07 06 07 00 00 00 00"
    "71 50 5a 0a 1f 06 19 1c 02 07 06 07 00 00 00 00"
    "38 28 2d 0a 7f 06 64 70 02 01 06 07 00 00 00 00"
    "61 50 52 0f 19 06 19 19 02 0d 0b 0c 00 00 00 00"
    "0008 0010 0040 0040 2828 5050 2828 5050 2c28 2d29 2a2e 1e29"
)

# What every mode, font and function of int 10h there is, as int 10h AH=1B points to it.
VIDEO_ABILITIES: Final = bytes.fromhex("ff e0 0f 00 00 00 00 07 08 02 ff 0e 00 00 00 00")

PNP_UNSUPPORTED: Final = 0x82
_PNP: Final = struct.Struct("<4sBBHBIHHHIIHI")
_PNP_VERSION: Final = 0x10
_PNP_CHECKSUM: Final = 8


def plug_and_play(segment: int, entry: int) -> bytes:
    """Return the installation check structure of a Plug and Play BIOS, whose only function says what it lacks.

    Plug and Play BIOS Specification 1.0A, section 4.4.  Option ROMs take its address for a sign that they may boot.
    """
    base = segment << 4
    fields = (_PNP_VERSION, _PNP.size, 0, 0, 0, entry, segment, entry, base, 0, segment, base)
    data = bytearray(_PNP.pack(b"$PnP", *fields))
    data[_PNP_CHECKSUM] = -sum(data) & 0xFF
    return bytes(data)
