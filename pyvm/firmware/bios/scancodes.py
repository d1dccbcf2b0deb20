"""What keys mean: scan codes of set 1 to the codes that int 16h returns, scan code << 8 | character.

Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 16h "Keystroke codes" (US keyboard).
"""

from __future__ import annotations

from typing import Final

from pyvm.records import record


@record(frozen=True)
class Key:
    """The codes of one key alone and with a modifier; None where it gives nothing."""

    plain: int | None
    shift: int | None
    ctrl: int | None
    alt: int | None
    letter: bool = False
    """Whether Caps Lock works on it."""
    keypad: bool = False
    """Whether Num Lock swaps it with its shifted code."""


_ROWS: Final = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
_ALT_DIGITS: Final = 0x78  # Alt-1 has this scan code, the others follow
_CTRL_SYMBOLS: Final = {
    "2": 0x0300, "6": 0x071E, "-": 0x0C1F, "[": 0x1A1B, "]": 0x1B1D, "\\": 0x2B1C,
}  # fmt: skip


def _typewriter() -> dict[int, Key]:
    keys = {}
    for first, plain, shifted in _ROWS:
        for index, (lower, upper) in enumerate(zip(plain, shifted, strict=True)):
            scan = first + index
            code = scan << 8
            ctrl = code | ord(lower) & 0x1F if lower.isalpha() else _CTRL_SYMBOLS.get(lower)
            alt = (_ALT_DIGITS + index) << 8 if first == 0x02 else code
            keys[scan] = Key(code | ord(lower), code | ord(upper), ctrl, alt, letter=lower.isalpha())
    return keys


def _function_keys() -> dict[int, Key]:
    keys = {}
    for index in range(10):
        keys[0x3B + index] = Key((0x3B + index) << 8, (0x54 + index) << 8, (0x5E + index) << 8, (0x68 + index) << 8)
    for index in range(2):
        keys[0x57 + index] = Key((0x85 + index) << 8, (0x87 + index) << 8, (0x89 + index) << 8, (0x8B + index) << 8)
    return keys


_KEYPAD: Final = {  # with Ctrl; with Num Lock the character
    0x47: (0x7700, "7"), 0x48: (0x8D00, "8"), 0x49: (0x8400, "9"), 0x4B: (0x7300, "4"), 0x4C: (0x8F00, "5"),
    0x4D: (0x7400, "6"), 0x4F: (0x7500, "1"), 0x50: (0x9100, "2"), 0x51: (0x7600, "3"), 0x52: (0x9200, "0"),
    0x53: (0x9300, "."),
}  # fmt: skip
_ALT_GREY: Final = {
    0x47: 0x9700, 0x48: 0x9800, 0x49: 0x9900, 0x4B: 0x9B00, 0x4D: 0x9D00, 0x4F: 0x9F00, 0x50: 0xA000, 0x51: 0xA100,
    0x52: 0xA200, 0x53: 0xA300,
}  # fmt: skip
_SINGLE: Final = {
    0x01: Key(0x011B, 0x011B, 0x011B, 0x0100),  # Esc
    0x0E: Key(0x0E08, 0x0E08, 0x0E7F, 0x0E00),  # Backspace
    0x0F: Key(0x0F09, 0x0F00, 0x9400, 0xA500),  # Tab
    0x1C: Key(0x1C0D, 0x1C0D, 0x1C0A, 0x1C00),  # Enter
    0x37: Key(0x372A, 0x372A, 0x9600, 0x3700),  # keypad *
    0x39: Key(0x3920, 0x3920, 0x3920, 0x3920),  # space
    0x4A: Key(0x4A2D, 0x4A2D, 0x8E00, 0x4A00),  # keypad -
    0x4E: Key(0x4E2B, 0x4E2B, 0x9000, 0x4E00),  # keypad +
    0x56: Key(0x565C, 0x567C, None, None),  # the key that 102-key keyboards have beside the left Shift
}


def _keypad() -> dict[int, Key]:
    return {
        scan: Key(scan << 8, scan << 8 | ord(digit), ctrl, None, keypad=True) for scan, (ctrl, digit) in _KEYPAD.items()
    }


def _grey() -> dict[int, Key]:
    """Return the keys whose codes have the prefix E0."""
    keys = {
        scan: Key(scan << 8 | 0xE0, scan << 8 | 0xE0, _KEYPAD[scan][0] | 0xE0, alt) for scan, alt in _ALT_GREY.items()
    }
    keys[0x1C] = Key(0xE00D, 0xE00D, 0xE00A, 0xA600)  # keypad Enter
    keys[0x35] = Key(0xE02F, 0xE02F, 0x9500, 0xA400)  # keypad /
    return keys


KEYS: Final = {**_typewriter(), **_function_keys(), **_keypad(), **_SINGLE}
GREY_KEYS: Final = _grey()

KEYPAD_DIGITS: Final = {scan: int(digit) for scan, (_, digit) in _KEYPAD.items() if digit.isdigit()}


def _characters() -> dict[int, int]:
    codes: dict[int, int] = {}
    for scan in (*range(0x01, 0x37), 0x39):
        key = KEYS.get(scan)
        for code in () if key is None else (key.plain, key.shift, key.ctrl):
            if code is not None and code & 0xFF:
                codes.setdefault(code & 0xFF, code)
    return codes


CHARACTERS: Final = _characters()
"""The code of the key that types a character."""
