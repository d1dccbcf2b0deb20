"""What a CD-ROM or DVD-ROM drive says about itself and its medium (MMC-5, INF-8090): parameter data, without state.

A medium is one session of one data track: block addresses from 0, blocks of 2048 bytes.
"""

from __future__ import annotations

import struct

BLOCK = 2048
CD_MAX_BLOCKS = 80 * 60 * 75
"""Blocks of an 80-minute CD; a longer medium is a DVD."""
FRAMES = 75
PREGAP = 150
"""Frames before block 0."""
_LEAD_OUT = 0xAA
_ADR_DATA_TRACK = 0x14

# Profiles (MMC-5, 5.3.1)
PROFILE_NONE = 0x0000
PROFILE_CD_ROM = 0x0008
PROFILE_DVD_ROM = 0x0010

# Features (5.3): code, version, persistent
_CORE = 0x0001
_MORPHING = 0x0002
_REMOVABLE = 0x0003
_RANDOM_READABLE = 0x0010
_CD_READ = 0x001E
_DVD_READ = 0x001F
_POWER = 0x0100
_TIMEOUT = 0x0105
_PERSISTENT = 0x01
_CURRENT = 0x01
_PHYSICAL_SCSI = 1
_PHYSICAL_ATAPI = 2
_TRAY_EJECT_LOCK = 0x29
"""Loading mechanism: tray; can eject; can lock."""

# GET EVENT STATUS NOTIFICATION (6.6)
EVENT_CLASS_MEDIA = 4
EVENT_NONE_AVAILABLE = 0x80
EVENT_NO_CHANGE = 0
EVENT_EJECT_REQUEST = 1
EVENT_NEW_MEDIA = 2
STATUS_TRAY_OPEN = 1
STATUS_PRESENT = 2

# READ DVD STRUCTURE (6.27)
DVD_PHYSICAL = 0x00
DVD_COPYRIGHT = 0x01
DVD_MANUFACTURING = 0x04
DVD_LIST = 0xFF
_DVD_DATA = 2048


def profile(blocks: int) -> int:
    """Return the current profile for a medium of so many blocks; 0: no medium."""
    if not blocks:
        return PROFILE_NONE
    return PROFILE_DVD_ROM if blocks > CD_MAX_BLOCKS else PROFILE_CD_ROM


def msf(block: int) -> bytes:
    """Return minute, second and frame of a block."""
    frames = block + PREGAP
    return bytes((frames // (FRAMES * 60) & 0xFF, frames // FRAMES % 60, frames % FRAMES))


def from_msf(address: bytes) -> int:
    """Return the block at minute, second and frame; negative in front of block 0."""
    minute, second, frame = address
    return (minute * 60 + second) * FRAMES + frame - PREGAP


def _address(block: int, *, in_msf: bool) -> bytes:
    return b"\0" + msf(block) if in_msf else block.to_bytes(4, "big")


def _with_length(body: bytes) -> bytes:
    """Return `body` behind its length in 16 bits."""
    return len(body).to_bytes(2, "big") + body


def toc(blocks: int, first_track: int, *, in_msf: bool) -> bytes | None:
    """Return the table of contents (READ TOC format 0); None where there is no such track."""
    if first_track > 1 and first_track != _LEAD_OUT:
        return None
    body = bytes((1, 1))
    if first_track <= 1:
        body += bytes((0, _ADR_DATA_TRACK, 1, 0)) + _address(0, in_msf=in_msf)
    body += bytes((0, _ADR_DATA_TRACK, _LEAD_OUT, 0)) + _address(blocks, in_msf=in_msf)
    return _with_length(body)


def sessions(*, in_msf: bool) -> bytes:
    """Return the first track of the last session (format 1)."""
    return _with_length(bytes((1, 1, 0, _ADR_DATA_TRACK, 1, 0)) + _address(0, in_msf=in_msf))


def full_toc(blocks: int) -> bytes:
    """Return what the lead-in says (format 2); addresses are always minutes, seconds and frames."""

    def entry(point: int, address: bytes) -> bytes:
        return bytes((1, _ADR_DATA_TRACK, 0, point, 0, 0, 0, 0)) + address

    body = bytes((1, 1))
    body += entry(0xA0, bytes((1, 0, 0))) + entry(0xA1, bytes((1, 0, 0))) + entry(0xA2, msf(blocks))
    return _with_length(body + entry(1, msf(0)))


def sub_channel(data_format: int, *, in_msf: bool, with_data: bool) -> bytes:
    """Return what READ SUB-CHANNEL gives while nothing plays: the position is that of the first track."""
    header = bytes((0, 0x15))  # no current audio status
    body = b""
    if with_data and data_format == 1:
        body = bytes((1, _ADR_DATA_TRACK, 1, 1)) + _address(0, in_msf=in_msf) * 2
    elif with_data and data_format == 2:
        body = bytes((2,)) + bytes(19)  # no media catalogue number
    elif with_data:
        body = bytes((3, _ADR_DATA_TRACK, 1)) + bytes(17)  # no ISRC
    return header + _with_length(body)


def configuration(blocks: int, requested: int, start: int, *, atapi: bool) -> bytes:
    """Return the answer to GET CONFIGURATION: 0 all features, 1 the current ones, 2 the one called `start`."""
    current = profile(blocks)
    body = b""
    for code, flags, is_current, data in _features(current, atapi=atapi):
        if code < start or (requested == 2 and code != start) or (requested == 1 and not is_current):
            continue
        body += struct.pack(">HBB", code, flags | (_CURRENT if is_current else 0), len(data)) + data
    return (len(body) + 4).to_bytes(4, "big") + bytes(2) + current.to_bytes(2, "big") + body


def _features(current: int, *, atapi: bool) -> list[tuple[int, int, bool, bytes]]:
    """Return code, version and persistent bit, whether it is current, and data of each feature."""
    profiles = b"".join(
        struct.pack(">HBB", number, number == current, 0) for number in (PROFILE_DVD_ROM, PROFILE_CD_ROM)
    )
    loaded = current != PROFILE_NONE
    interface = _PHYSICAL_ATAPI if atapi else _PHYSICAL_SCSI
    return [
        (0x0000, 0x02 | _PERSISTENT << 1, True, profiles),
        (_CORE, 0x0A, True, struct.pack(">IB3x", interface, 1)),
        (_MORPHING, 0x06, True, bytes((2, 0, 0, 0))),
        (_REMOVABLE, 0x02, True, bytes((_TRAY_EJECT_LOCK, 0, 0, 0))),
        (_RANDOM_READABLE, 0, loaded, struct.pack(">IHBB", BLOCK, 16, 0, 0)),
        (_CD_READ, 0x08, current == PROFILE_CD_ROM, bytes(4)),
        (_DVD_READ, 0, current == PROFILE_DVD_ROM, b""),
        (_POWER, 0x02, True, b""),
        (_TIMEOUT, 0x06, True, bytes(4)),
    ]


def disc_information() -> bytes:
    """Return standard disc information (6.22): one complete session, unrestricted use."""
    body = bytearray(32)
    body[0] = 0x0E  # last session complete, disc finalised
    body[1:5] = (1, 1, 1, 1)  # first track, sessions, first and last track of the last session
    body[5] = 0x20  # unrestricted use
    body[14:22] = b"\xff" * 8  # nowhere to write: no last possible lead-in and lead-out
    return _with_length(bytes(body))


def dvd_structure(data_format: int, blocks: int) -> bytes | None:
    """Return a structure of a one-layer DVD; None where there is no such structure."""
    if data_format == DVD_PHYSICAL:
        # DVD-ROM, part version 1; 120 mm, no rate; one layer, embossed
        body = struct.pack(">BBBBIII", 1, 0x0F, 1, 0, 0x30000, 0x30000 + blocks - 1, 0).ljust(_DVD_DATA, b"\0")
    elif data_format == DVD_COPYRIGHT:
        body = bytes(4)
    elif data_format == DVD_MANUFACTURING:
        body = bytes(_DVD_DATA)
    elif data_format == DVD_LIST:
        body = b"".join(
            struct.pack(">BBH", number, 0x40, size + 4)
            for number, size in ((DVD_PHYSICAL, _DVD_DATA), (DVD_COPYRIGHT, 4), (DVD_MANUFACTURING, _DVD_DATA))
        )
    else:
        return None
    return _with_length(bytes(2) + body)


def event_status(classes: int, event: int, status: int) -> bytes:
    """Return the answer to GET EVENT STATUS NOTIFICATION; the only class there is is media."""
    supported = 1 << EVENT_CLASS_MEDIA
    if classes & supported:
        return bytes((0, 4, EVENT_CLASS_MEDIA, supported, event, status, 0, 0))
    return bytes((0, 0, EVENT_NONE_AVAILABLE, supported))


def mechanism_status(*, tray_open: bool) -> bytes:
    """Return the answer to MECHANISM STATUS (6.9): a drive without a changer."""
    return bytes((0, 0x10 if tray_open else 0, 0, 0, 0, 1, 0, 0))


def capabilities(*, locked: bool, with_medium: bool) -> bytes:
    """Return the body of mode page 2Ah (MMC-3, 5.5.10): what kinds of media and commands there are."""
    body = bytearray(24)
    body[0] = 0x0B | 0x30  # reads CD-R, CD-RW, method 2; DVD-ROM, DVD-R
    body[2] = 0x70  # mode 2 form 1 and 2, multisession
    body[3] = 0x01  # READ CD
    body[4] = 0x2D | (0x02 if locked else 0)  # tray, ejects, starts locked or not, locks
    body[6:8] = (50 * 176).to_bytes(2, "big")  # fastest, kB/s
    body[8:10] = (2).to_bytes(2, "big")  # volume levels
    body[10:12] = (2048).to_bytes(2, "big")  # buffer, KiB
    body[12:14] = (50 * 176 if with_medium else 16 * 176).to_bytes(2, "big")  # current speed
    return bytes(body)
