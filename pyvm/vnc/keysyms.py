"""Keysyms, the names of symbols that viewers send, and the keys of a US keyboard that they are on.

RFC 6143, section 7.5.4; the numbers are those of the X Window System, xlib keysymdef.
"""

from __future__ import annotations

from functools import cache
from typing import Final

_UNSHIFTED: Final = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./ "
_SHIFTED: Final = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>? '
_KEYS: Final = (
    "grave_accent 1 2 3 4 5 6 7 8 9 0 minus equal q w e r t y u i o p bracket_left bracket_right backslash"
    " a s d f g h j k l semicolon apostrophe z x c v b n m comma dot slash spc"
)
_NAMED: Final = {
    0xFF08: "backspace",
    0xFF09: "tab",
    0xFE20: "tab",  # with shift
    0xFF0D: "ret",
    0xFF13: "pause",
    0xFF6B: "pause",  # Break
    0xFF14: "scroll_lock",
    0xFF15: "sysrq",
    0xFF61: "print",
    0xFF1B: "esc",
    0xFF20: "compose",
    0xFF22: "muhenkan",
    0xFF23: "henkan",
    0xFF27: "katakanahiragana",
    0xFF50: "home",
    0xFF51: "left",
    0xFF52: "up",
    0xFF53: "right",
    0xFF54: "down",
    0xFF55: "pgup",
    0xFF56: "pgdn",
    0xFF57: "end",
    0xFF63: "insert",
    0xFF67: "compose",  # Menu, the key beside the right control key
    0xFF6A: "help",
    0xFF7E: "alt_r",  # Mode_switch
    0xFF7F: "num_lock",
    0xFF8D: "kp_enter",
    0xFF95: "kp_7",
    0xFF96: "kp_4",
    0xFF97: "kp_8",
    0xFF98: "kp_6",
    0xFF99: "kp_2",
    0xFF9A: "kp_9",
    0xFF9B: "kp_3",
    0xFF9C: "kp_1",
    0xFF9D: "kp_5",
    0xFF9E: "kp_0",
    0xFF9F: "kp_decimal",
    0xFFAA: "kp_multiply",
    0xFFAB: "kp_add",
    0xFFAC: "kp_comma",
    0xFFAD: "kp_subtract",
    0xFFAE: "kp_decimal",
    0xFFAF: "kp_divide",
    0xFFBD: "kp_equals",
    0xFFE1: "shift",
    0xFFE2: "shift_r",
    0xFFE3: "ctrl",
    0xFFE4: "ctrl_r",
    0xFFE5: "caps_lock",
    0xFFE7: "meta_l",
    0xFFE8: "meta_r",
    0xFFE9: "alt",
    0xFFEA: "alt_r",
    0xFFEB: "meta_l",
    0xFFEC: "meta_r",
    0xFE03: "alt_r",  # AltGr
    0xFFFF: "delete",
}
_FUNCTION_1: Final = 0xFFBE
_FUNCTIONS: Final = 12
_KEYPAD_0: Final = 0xFFB0
_DIGITS: Final = 10

NUMERIC_KEYPAD: Final = frozenset({*range(_KEYPAD_0, _KEYPAD_0 + _DIGITS), 0xFFAC, 0xFFAE})
"""Symbols of keypad keys that these have while Num Lock is on."""
CURSOR_KEYPAD: Final = frozenset(range(0xFF95, 0xFFA0))
"""Symbols that the same keys have while it is off."""


@cache
def _keys() -> dict[int, str]:
    names = _KEYS.split()
    keys = {ord(symbol): name for symbol, name in zip(_UNSHIFTED + _SHIFTED, names * 2, strict=True)}
    keys |= {_FUNCTION_1 + number: f"f{number + 1}" for number in range(_FUNCTIONS)}
    keys |= {_KEYPAD_0 + digit: f"kp_{digit}" for digit in range(_DIGITS)}
    return keys | _NAMED


def key_of(keysym: int) -> str | None:
    """Return the QKeyCode of the key that a symbol is on; None where a US keyboard does not have it."""
    return _keys().get(keysym)
