"""DES for VNC authentication: RFC 6143, section 7.2.2, on the cipher of FIPS 46-3.

Only what that needs: independent blocks are encrypted, with a key whose bytes have their bits in reverse order.  The
cipher is broken, and is here because viewers speak it; whoever needs secrecy puts the connection into a tunnel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BLOCK: Final = 8
KEY: Final = 8

# The tables of the standard.  Bits are counted from 1, at the most significant end.
_INITIAL: Final = tuple(start - 8 * step for start in (58, 60, 62, 64, 57, 59, 61, 63) for step in range(8))
_FINAL: Final = tuple(_INITIAL.index(bit) + 1 for bit in range(1, 65))
_EXPANSION: Final = tuple((4 * group + step - 1) % 32 + 1 for group in range(8) for step in range(6))
_PERMUTATION: Final = (
    *(16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10),
    *(2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25),
)
_CHOICE_1: Final = (
    *(57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36),
    *(63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4),
)
_CHOICE_2: Final = (
    *(14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2),
    *(41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32),
)
_SHIFTS: Final = (1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1)
_BOXES: Final = (  # for each box four rows of sixteen digits
    "e4d12fb83a6c59070f74e2d1a6cb953841e8d62bfc973a50fc8249175b3ea06d",
    "f18e6b34972dc05a3d47f28ec01a69b50e7ba4d158c6932fd8a13f42b67c05e9",
    "a09e63f51dc7b428d709346a285ecbf1d6498f30b12c5ae71ad069874fe3b52c",
    "7de3069a1285bc4fd8b56f03472c1ae9a690cb7df13e52843f06a1d8945bc72e",
    "2c417ab6853fd0e9eb2c47d150fa3986421bad78f9c5630eb8c71e2d6f09a453",
    "c1af92680d34e75baf427c9561de0b389ef528c3704a1db6432c95fabe17608d",
    "4b2ef08d3c975a61d0b7491ae35c2f8614bdc37eaf6805926bd814a7950fe23c",
    "d2846fb1a93e50c71fd8a374c56b0e927b419ce206adf35821e74a8dfc90356b",
)


def _permute(value: int, width: int, table: Sequence[int]) -> int:
    """Return the bits of `value`, which has `width` of them, in the order of `table`."""
    result = 0
    for bit in table:
        result = result << 1 | value >> width - bit & 1
    return result


def _round_keys(key: bytes) -> list[int]:
    chosen = _permute(int.from_bytes(key), 64, _CHOICE_1)
    high, low = chosen >> 28, chosen & 0xFFFFFFF
    keys = []
    for shift in _SHIFTS:
        high = (high << shift | high >> 28 - shift) & 0xFFFFFFF
        low = (low << shift | low >> 28 - shift) & 0xFFFFFFF
        keys.append(_permute(high << 28 | low, 56, _CHOICE_2))
    return keys


def _mix(half: int, key: int) -> int:
    """Return the cipher function of the standard."""
    mixed = _permute(half, 32, _EXPANSION) ^ key
    result = 0
    for number, box in enumerate(_BOXES):
        bits = mixed >> 42 - 6 * number & 0x3F
        row = bits >> 4 & 2 | bits & 1
        result = result << 4 | int(box[16 * row + (bits >> 1 & 0xF)], 16)
    return _permute(result, 32, _PERMUTATION)


def encrypt(key: bytes, data: bytes) -> bytes:
    """Encrypt `data`, whole blocks of 8 bytes, each by itself, with a key of 8 bytes."""
    keys = _round_keys(key)
    result = b""
    for start in range(0, len(data), BLOCK):
        block = _permute(int.from_bytes(data[start : start + BLOCK]), 64, _INITIAL)
        left, right = block >> 32, block & 0xFFFFFFFF
        for round_key in keys:
            left, right = right, left ^ _mix(right, round_key)
        result += _permute(right << 32 | left, 64, _FINAL).to_bytes(BLOCK)
    return result


def respond(password: bytes, challenge: bytes) -> bytes:
    """Return the answer of somebody who knows the password to a challenge; only its first 8 bytes count."""
    key = password[:KEY].ljust(KEY, b"\0")
    return encrypt(bytes(int(f"{byte:08b}"[::-1], 2) for byte in key), challenge)
