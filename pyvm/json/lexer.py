"""Tokens of QEMU's JSON dialect, from bytes that arrive piecemeal.

The dialect is RFC 8259 with strings in single quotes as well, and with rules of its own for what is wrong: the first
byte that no token can have ends an erroneous token, and the lexer then skips input until a structural character, an
ASCII control character other than tab, or one of the bytes 0xFE and 0xFF, which occur nowhere in UTF-8.  So a client
that lost its place sends 0xFF and starts afresh.

The lexer is a table-driven automaton whose state survives between pieces; runs of bytes that stay in a state are
skipped with one regular expression.
"""

from __future__ import annotations

import functools
import re
from enum import IntEnum

from pyvm.json.text import LONG

MAX_TOKEN_SIZE = 64 << 20
"""Most bytes of one token, and of all tokens of one message together."""


class Token(IntEnum):
    """Kinds of tokens that the lexer reports."""

    ERROR = 0
    LEFT_BRACE = 1
    RIGHT_BRACE = 2
    LEFT_BRACKET = 3
    RIGHT_BRACKET = 4
    COLON = 5
    COMMA = 6
    INTEGER = 7
    FLOAT = 8
    KEYWORD = 9
    STRING = 10
    OVERSIZE = 11
    """A token that outgrew :data:`MAX_TOKEN_SIZE`; its text is what came so far."""


# States of the automaton.  They share one number space with the tokens that end them.
_START = 32
_RECOVERY = 33
_DOUBLE = 34
_DOUBLE_ESCAPE = 35
_SINGLE = 36
_SINGLE_ESCAPE = 37
_SIGN = 38
_ZERO = 39
_DIGITS = 40
_POINT = 41
_FRACTION = 42
_EXPONENT = 43
_EXPONENT_SIGN = 44
_EXPONENT_DIGITS = 45
_KEYWORD = 46

_LOOKAHEAD = 128
"""Added to a transition that leaves its byte to the next state."""

_DIGIT = b"0123456789"
_LOWER = bytes(range(ord("a"), ord("z") + 1))
_TEXT = bytes(range(0x20, 0xFE))
_CONTROL = bytes(range(0x20))
_NOT_UTF8 = b"\xfe\xff"
_STRUCTURE = {
    b"{": Token.LEFT_BRACE,
    b"}": Token.RIGHT_BRACE,
    b"[": Token.LEFT_BRACKET,
    b"]": Token.RIGHT_BRACKET,
    b":": Token.COLON,
    b",": Token.COMMA,
}

# State -> (what bytes that are not named lead to, {bytes: where each of them leads}).
_RULES: dict[int, tuple[int, dict[bytes, int]]] = {
    _START: (
        Token.ERROR,
        {
            b" \t\r\n": _START,
            b'"': _DOUBLE,
            b"'": _SINGLE,
            b"-": _SIGN,
            b"0": _ZERO,
            b"123456789": _DIGITS,
            _LOWER: _KEYWORD,
            **_STRUCTURE,
        },
    ),
    _RECOVERY: (
        _RECOVERY,
        {_CONTROL + _NOT_UTF8 + b"{}[]:,": _START | _LOOKAHEAD, b"\t": _RECOVERY},
    ),
    _DOUBLE: (Token.ERROR, {_TEXT: _DOUBLE, b"\\": _DOUBLE_ESCAPE, b'"': Token.STRING}),
    _DOUBLE_ESCAPE: (Token.ERROR, {_TEXT: _DOUBLE}),
    _SINGLE: (Token.ERROR, {_TEXT: _SINGLE, b"\\": _SINGLE_ESCAPE, b"'": Token.STRING}),
    _SINGLE_ESCAPE: (Token.ERROR, {_TEXT: _SINGLE}),
    _SIGN: (Token.ERROR, {b"0": _ZERO, b"123456789": _DIGITS}),
    _ZERO: (Token.INTEGER | _LOOKAHEAD, {_DIGIT: Token.ERROR, b".": _POINT}),
    _DIGITS: (Token.INTEGER | _LOOKAHEAD, {_DIGIT: _DIGITS, b".": _POINT, b"eE": _EXPONENT}),
    _POINT: (Token.ERROR, {_DIGIT: _FRACTION}),
    _FRACTION: (Token.FLOAT | _LOOKAHEAD, {_DIGIT: _FRACTION, b"eE": _EXPONENT}),
    _EXPONENT: (Token.ERROR, {_DIGIT: _EXPONENT_DIGITS, b"+-": _EXPONENT_SIGN}),
    _EXPONENT_SIGN: (Token.ERROR, {_DIGIT: _EXPONENT_DIGITS}),
    _EXPONENT_DIGITS: (Token.FLOAT | _LOOKAHEAD, {_DIGIT: _EXPONENT_DIGITS}),
    _KEYWORD: (Token.KEYWORD | _LOOKAHEAD, {_LOWER: _KEYWORD}),
}


def _table(rules: tuple[int, dict[bytes, int]]) -> bytes:
    row = bytearray([rules[0]]) * 256
    for values, target in rules[1].items():
        for value in values:
            row[value] = target
    return bytes(row)


def _run(state: int, row: bytes) -> re.Pattern[bytes] | None:
    """Return an expression for a run of bytes that stay in `state`."""
    staying = bytes(value for value in range(256) if row[value] == state)
    return re.compile(b"[" + re.escape(staying) + b"]+") if staying else None


@functools.cache
def _automaton() -> tuple[dict[int, bytes], dict[int, re.Pattern[bytes] | None]]:
    """Return the transition rows and the run expressions by state; made when the first lexer needs them."""
    rows = {state: _table(rules) for state, rules in _RULES.items()}
    runs = {state: _run(state, row) for state, row in rows.items()}
    for state, quote in ((_DOUBLE, b'"'), (_SINGLE, b"'")):
        # Escapes belong to the run, or a string of nothing but escapes would be walked byte by byte.
        runs[state] = re.compile(rb"(?:[^\x00-\x1f\xfe\xff\\" + quote + rb"]+|\\[\x20-\xfd])+")
    return rows, runs


class JsonLexer:
    """Cuts a stream of bytes into tokens; keeps an unfinished token between pieces."""

    def __init__(self) -> None:
        self._rows, self._runs = _automaton()
        self._state = _START
        self._text = bytearray()

    @property
    def idle(self) -> bool:
        """Whether the lexer is between tokens and not skipping."""
        return self._state == _START

    def next(self, data: bytes, position: int) -> tuple[tuple[int, bytes | bytearray], int] | None:
        """Scan `data` from `position`; return a token (kind, text) and where to go on.

        None: all of `data` was used and no token ended in it.
        """
        rows, runs = self._rows, self._runs
        state, start, end = self._state, position, len(data)
        room = MAX_TOKEN_SIZE - len(self._text)
        while position < end:
            run = runs[state]
            if run is not None and (match := run.match(data, position)) is not None:
                position = match.end()
            else:
                target = rows[state][data[position]]
                if not target & _LOOKAHEAD:
                    position += 1
                state = target & ~_LOOKAHEAD
                if state < _START:
                    return self._token(state, data[start:position], _START if state else _RECOVERY), position
            if state <= _RECOVERY:
                start = position
            elif position - start > room:
                position = start + room + 1
                return self._token(Token.OVERSIZE, data[start:position], _START), position
        self._text += data[start:]
        self._state = state
        return None

    def _token(self, kind: int, text: bytes | bytearray, state: int) -> tuple[int, bytes | bytearray]:
        if self._text:
            self._text += text
            # A long token is handed over as it is: to copy it would hold everybody up.
            text = self._text if len(self._text) > LONG else bytes(self._text)
            self._text = bytearray()
        self._state = state
        return kind, text

    def finish(self) -> tuple[int, bytes] | None:
        """The input ends here: return the last token where one was unfinished."""
        state, text = self._state, bytes(self._text)
        self._state = _START
        self._text = bytearray()
        if state <= _RECOVERY:
            return None
        return self._rows[state][0] & ~_LOOKAHEAD, text
