"""The EDID block of the display that the adapter says is connected.

VESA Enhanced Extended Display Identification Data Standard, release A, revision 2 (EDID 1.4), section 3; the timing of
the preferred mode is CVT with reduced blanking.
"""

from __future__ import annotations

import struct
from typing import Final

_HEADER: Final = bytes.fromhex("00ffffffffffff00")
_MANUFACTURER: Final = "RHT"
_PRODUCT: Final = 0x1234
_YEAR: Final = 2022
_DIGITAL_8_BITS: Final = 0xA5  # digital, 8 bits a colour, DisplayPort
_SIZE_CM: Final = (33, 21)
_GAMMA_2_2: Final = 120
_FEATURES: Final = 0x06  # sRGB is the default, the first timing is the native one
_SRGB: Final = bytes.fromhex("ee91a3544c99260f5054")
_ESTABLISHED: Final = bytes.fromhex("210800")  # 640x480, 800x600 and 1024x768, at 60 Hz
_STANDARD: Final = (
    (1920, 3),
    (1600, 3),
    (1280, 3),
    (1680, 0),
    (1440, 0),
    (1280, 2),
    (1600, 1),
    (1400, 1),
)  # width, shape (0: 16:10, 1: 4:3, 2: 5:4, 3: 16:9), all at 60 Hz
_PIXEL_CLOCK: Final = 7100  # in 10 kHz
_HORIZONTAL: Final = (1280, 160, 48, 32)  # active, blank, front porch, sync
_VERTICAL: Final = (800, 23, 3, 6)
_SEPARATE_SYNC: Final = 0x1A  # digital, horizontal positive, vertical negative
_NAME: Final = "pyvm Monitor"
_RANGE: Final = bytes((50, 125, 30, 160, 60, 1)) + b"\n" + b" " * 6  # Hz, Hz, kHz, kHz, 10 MHz, no secondary formula
_TAG_RANGE: Final = 0xFD
_TAG_NAME: Final = 0xFC
_TAG_DUMMY: Final = 0x10
EDID_SIZE: Final = 128


def edid() -> bytes:
    """Return the block, of 128 bytes."""
    letters = [ord(letter) - ord("A") + 1 for letter in _MANUFACTURER]
    block = _HEADER + struct.pack(">H", letters[0] << 10 | letters[1] << 5 | letters[2])
    block += struct.pack("<HIBBBB", _PRODUCT, 0, 0, _YEAR - 1990, 1, 4)
    block += bytes((_DIGITAL_8_BITS, *_SIZE_CM, _GAMMA_2_2, _FEATURES)) + _SRGB + _ESTABLISHED
    block += b"".join(bytes((width // 8 - 31, shape << 6)) for width, shape in _STANDARD)
    block += _timing() + _descriptor(_TAG_RANGE, _RANGE)
    block += _descriptor(_TAG_NAME, _NAME.encode("ascii").ljust(13, b"\n")[:13])
    block += _descriptor(_TAG_DUMMY, bytes(13)) + bytes(1)  # no extension blocks
    return block + bytes((-sum(block) & 0xFF,))


def _timing() -> bytes:
    """Return the detailed timing of the preferred mode."""
    width, h_blank, h_front, h_sync = _HORIZONTAL
    height, v_blank, v_front, v_sync = _VERTICAL
    millimetres = tuple(10 * size for size in _SIZE_CM)
    return struct.pack("<H", _PIXEL_CLOCK) + bytes(
        (
            width & 0xFF,
            h_blank & 0xFF,
            width >> 8 << 4 | h_blank >> 8,
            height & 0xFF,
            v_blank & 0xFF,
            height >> 8 << 4 | v_blank >> 8,
            h_front & 0xFF,
            h_sync & 0xFF,
            (v_front & 0xF) << 4 | v_sync & 0xF,
            h_front >> 8 << 6 | h_sync >> 8 << 4 | v_front >> 4 << 2 | v_sync >> 4,
            millimetres[0] & 0xFF,
            millimetres[1] & 0xFF,
            millimetres[0] >> 8 << 4 | millimetres[1] >> 8,
            0,
            0,
            _SEPARATE_SYNC,
        )
    )


def _descriptor(tag: int, body: bytes) -> bytes:
    return bytes((0, 0, 0, tag, 0)) + body
