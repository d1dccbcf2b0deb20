"""The numbers and records of the Remote Framebuffer Protocol.

RFC 6143, "The Remote Framebuffer Protocol": section 7.1 handshake, 7.2 security, 7.3 initialisation, 7.4 pixel format,
7.5 client messages, 7.6 server messages, 7.7 encodings, 7.8 pseudo-encodings.  What came later is in the protocol's
community edition (rfbproto): ExtendedDesktopSize and SetDesktopSize, the xvp extension, QEMU's extended key event,
pointer motion change and LED state.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

VERSION: Final = b"RFB 003.008\n"
"""What the server says first: the newest version that it speaks."""
VERSION_SIZE: Final = 12
REFUSED: Final = bytes(4)
"""The answer to a version that the server does not speak."""
CHALLENGE_SIZE: Final = 16
RESULT_OK: Final = 0
RESULT_FAILED: Final = 1


class Security(IntEnum):
    """How a client shows that it may connect (7.2)."""

    NONE = 1
    VNC = 2


class ClientMessage(IntEnum):
    """What a client says (7.5)."""

    SET_PIXEL_FORMAT = 0
    SET_ENCODINGS = 2
    UPDATE_REQUEST = 3
    KEY_EVENT = 4
    POINTER_EVENT = 5
    CUT_TEXT = 6
    XVP = 250
    SET_DESKTOP_SIZE = 251
    QEMU = 255


class Encoding(IntEnum):
    """How the contents of a rectangle are written, or what else it tells (7.7, 7.8)."""

    RAW = 0
    HEXTILE = 5
    ZLIB = 6
    ZRLE = 16
    DESKTOP_SIZE = -223
    POINTER_MOTION_CHANGE = -257
    EXTENDED_KEY_EVENT = -258
    LED_STATE = -261
    EXTENDED_DESKTOP_SIZE = -308
    XVP = -309


COMPRESS_LEVEL_0: Final = -256
"""The pseudo-encoding for compression level 0; the nine behind it are levels 1 to 9."""

# What a client sends, without the byte that says which message it is.
SET_PIXEL_FORMAT: Final = struct.Struct(">3x16s")
SET_ENCODINGS: Final = struct.Struct(">xH")  # and as many numbers
UPDATE_REQUEST: Final = struct.Struct(">BHHHH")  # incremental, x, y, width, height
KEY_EVENT: Final = struct.Struct(">B2xI")  # down, keysym
POINTER_EVENT: Final = struct.Struct(">BHH")  # buttons, x, y
CUT_TEXT: Final = struct.Struct(">3xi")  # length; negative for an extension that is never offered
XVP: Final = struct.Struct(">xBB")  # version, action
SET_DESKTOP_SIZE: Final = struct.Struct(">xHHBx")  # width, height, number of screens; and as many screens
SCREEN_SIZE: Final = 16
EXTENDED_KEY_EVENT: Final = struct.Struct(">BHII")  # 0, down, keysym, number of the key
QEMU_KEY_EVENT: Final = 0

CUT_TEXT_LIMIT: Final = 1 << 20
"""Longest text that a client may put on the clipboard, which there is none of."""

# What the server sends.
SERVER_INIT: Final = struct.Struct(">HH16sI")  # width, height, pixel format, length of the name
PIXEL_FORMAT: Final = struct.Struct(">BBBBHHHBBB3x")
UPDATE: Final = struct.Struct(">BxH")  # 0, number of rectangles
RECTANGLE: Final = struct.Struct(">HHHHi")  # x, y, width, height, encoding
COLOUR_MAP: Final = struct.Struct(">BxHH")  # 1, first colour, number of colours
COLOUR: Final = struct.Struct(">HHH")
LENGTH: Final = struct.Struct(">I")
SCREEN_LAYOUT: Final = struct.Struct(">B3xIHHHHI")  # number of screens, then of the one: id, x, y, width, height, flags
XVP_REPLY: Final = struct.Struct(">BxBB")  # 250, version, code
SET_COLOUR_MAP: Final = 1
XVP_VERSION: Final = 1
XVP_FAIL: Final = 0
XVP_INIT: Final = 1
XVP_SHUTDOWN: Final = 2
XVP_REBOOT: Final = 3
XVP_RESET: Final = 4

RESIZE_BY_CLIENT: Final = 1
"""In ExtendedDesktopSize: the rectangle answers this client's request."""
RESIZE_INVALID_LAYOUT: Final = 3

RELATIVE_CENTRE: Final = 0x7FFF
"""What a client adds to movements once it was told that they are wanted in place of positions."""


class ProtocolError(Exception):
    """A client said what it must not; its connection ends."""


def rectangle(x: int, y: int, width: int, height: int, encoding: Encoding) -> bytes:
    """Return the header of a rectangle."""
    return RECTANGLE.pack(x, y, width, height, encoding)


def update(count: int) -> bytes:
    """Return the header of an update of `count` rectangles."""
    return UPDATE.pack(0, count)


def version_of(text: bytes) -> int:
    """Return the minor version that a client chose: 3, 7 or 8.  Raises ProtocolError."""
    if not (text.startswith(b"RFB ") and text[7:8] == b"." and text.endswith(b"\n")):
        raise ProtocolError("not a version")
    major, minor = text[4:7], text[8:11]
    if not (major.isdigit() and minor.isdigit()):
        raise ProtocolError("not a version")
    chosen = int(minor)
    if int(major) != 3 or chosen not in (3, 4, 5, 7, 8):
        return 0
    return 3 if chosen < 7 else chosen
