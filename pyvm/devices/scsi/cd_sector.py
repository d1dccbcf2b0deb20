"""Whole CD-ROM sectors, as READ CD may ask for them (ECMA-130, sections 14 to 18): 2352 bytes around 2048 of data.

Sector, mode 1: sync 12, header 4 (minute, second, frame in BCD; mode), data 2048, EDC 4, zeros 8, ECC 276.
"""

from __future__ import annotations

from functools import cache

from pyvm.devices.scsi import mmc

SECTOR = 2352
_SYNC = b"\0" + b"\xff" * 10 + b"\0"
_MODE_1 = b"\x01"
_EDC_POLYNOMIAL = 0xD8018001
"""(x^16 + x^15 + x^2 + 1) (x^16 + x^2 + x + 1), bits reversed."""
_FIELD_POLYNOMIAL = 0x11D
_P_COLUMNS, _P_ROWS, _Q_DIAGONALS, _Q_LENGTH = 86, 24, 52, 43

# Main channel selection of READ CD (MMC-5, 6.19): CDB byte 9
SELECT_SYNC = 0x80
SELECT_HEADER = 0x20
SELECT_SUBHEADER = 0x40
SELECT_DATA = 0x10
SELECT_EDC_ECC = 0x08
SELECT_ERRORS = 0x06

_PARTS = ((SELECT_SYNC, 0, 12), (SELECT_HEADER, 12, 16), (SELECT_DATA, 16, 2064), (SELECT_EDC_ECC, 2064, SECTOR))


def selected_length(selection: int) -> int:
    """Return how many bytes of each sector are asked for."""
    return sum(end - start for bit, start, end in _PARTS if selection & bit)


def select(sector: bytes, selection: int) -> bytes:
    """Return the parts of a whole sector that are asked for."""
    return b"".join(sector[start:end] for bit, start, end in _PARTS if selection & bit)


def whole(block: int, data: bytes | memoryview) -> bytes:
    """Return the sector that holds the 2048 bytes `data` of block number `block`."""
    address = bytes(value // 10 << 4 | value % 10 for value in mmc.msf(block))
    sector = bytearray(_SYNC + address + _MODE_1)
    sector += data
    sector += _edc(sector).to_bytes(4, "little")
    sector += bytes(8)
    sector += _parity(sector[12:], _P_COLUMNS, _P_ROWS, column_step=1, row_step=_P_COLUMNS)
    sector += _parity_q(sector[12:])
    return bytes(sector)


@cache
def _edc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_EDC_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _edc(data: bytearray) -> int:
    table, value = _edc_table(), 0
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value


@cache
def _field_tables() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return multiplication by 2, and division by 3, in the field of 256 elements."""
    double = tuple(value << 1 ^ (_FIELD_POLYNOMIAL if value & 0x80 else 0) for value in range(256))
    third = [0] * 256
    for value in range(256):
        third[value ^ double[value]] = value
    return double, tuple(third)


def _check_bytes(values: list[int]) -> tuple[int, int]:
    """Return the two parity bytes of a code word: its sum is 0, plain and weighted with powers of 2."""
    double, third = _field_tables()
    weighted = plain = 0
    for value in values:
        weighted = double[weighted ^ value]
        plain ^= value
    first = third[double[weighted] ^ plain]
    return first, first ^ plain


def _parity(data: bytearray, columns: int, rows: int, *, column_step: int, row_step: int) -> bytes:
    pairs = [
        _check_bytes([data[column * column_step + row * row_step] for row in range(rows)]) for column in range(columns)
    ]
    return bytes(pair[0] for pair in pairs) + bytes(pair[1] for pair in pairs)


def _parity_q(data: bytearray) -> bytes:
    """Return the parity along the diagonals, which run through data and P parity."""
    length = _P_COLUMNS * (_P_ROWS + 2)
    pairs = []
    for diagonal in range(_Q_DIAGONALS):
        start = (diagonal >> 1) * _P_COLUMNS + (diagonal & 1)
        pairs.append(_check_bytes([data[(start + step * (_P_COLUMNS + 2)) % length] for step in range(_Q_LENGTH)]))
    return bytes(pair[0] for pair in pairs) + bytes(pair[1] for pair in pairs)
