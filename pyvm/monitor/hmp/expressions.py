"""Integer expressions, as people type them where a command takes a number.

    sum:     product (("+" | "-") product)...
    logical: sum (("&" | "|" | "^") sum)...        the whole expression is one of these
    product: unary (("*" | "/" | "%") unary)...
    unary:   ("+" | "-" | "~") unary | "(" logical ")" | "'" character "'" | "$" register | number

Numbers are decimal, octal (0...) or hexadecimal (0x...), and all arithmetic is on signed 64-bit integers that wrap
around.  An expression ends where nothing more of it follows; the rest of the line is left to the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DEPTH = 100
"""Most parentheses and signs inside one another."""

_BITS = 64
_SPACE = re.compile(r"[ \t\n\v\f\r]*")
_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)", re.ASCII)
_REGISTER = re.compile(r"\$([A-Za-z0-9_.]*)", re.ASCII)


class ExpressionError(Exception):
    """The text is no expression, or has no value; the message is one line for the person at the prompt."""


Registers = Callable[[str], int | None]
"""The name of a CPU register -> its value, or None where there is no such register."""


def wrap(value: int) -> int:
    """Return `value` as a signed 64-bit integer has it."""
    value &= (1 << _BITS) - 1
    return value - (1 << _BITS) if value >> (_BITS - 1) else value


def skip_space(text: str, position: int) -> int:
    """Return the position behind white space."""
    found = _SPACE.match(text, position)
    return found.end() if found is not None else position


class _Parser:
    def __init__(self, text: str, position: int, registers: Registers) -> None:
        self.text = text
        self.position = skip_space(text, position)
        self._registers = registers
        self._depth = 0

    @property
    def _next(self) -> str:
        return self.text[self.position : self.position + 1]

    def _advance(self, end: int) -> None:
        self.position = skip_space(self.text, end)

    def logical(self) -> int:
        value = self._sum()
        while (operator := self._next) and operator in "&|^":
            self._advance(self.position + 1)
            other = self._sum()
            value = {"&": value & other, "|": value | other, "^": value ^ other}[operator]
        return value

    def _sum(self) -> int:
        value = self._product()
        while (operator := self._next) and operator in "+-":
            self._advance(self.position + 1)
            other = self._product()
            value = wrap(value + other if operator == "+" else value - other)
        return value

    def _product(self) -> int:
        value = self._unary()
        while (operator := self._next) and operator in "*/%":
            self._advance(self.position + 1)
            other = self._unary()
            value = wrap(value * other) if operator == "*" else self._divide(value, other, operator)
        return value

    def _divide(self, value: int, divisor: int, operator: str) -> int:
        """Divide as C does: the quotient is rounded towards zero."""
        if not divisor:
            raise ExpressionError("division by zero")
        quotient = abs(value) // abs(divisor)
        if (value < 0) != (divisor < 0):
            quotient = -quotient
        return wrap(quotient if operator == "/" else value - quotient * divisor)

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError("expression too complex")
        try:
            return self._operand()
        finally:
            self._depth -= 1

    def _operand(self) -> int:
        match self._next:
            case "":
                raise ExpressionError("unexpected end of expression")
            case "+":
                self._advance(self.position + 1)
                return self._unary()
            case "-":
                self._advance(self.position + 1)
                return wrap(-self._unary())
            case "~":
                self._advance(self.position + 1)
                return ~self._unary()
            case "(":
                return self._parenthesised()
            case "'":
                return self._character()
            case "$":
                return self._register()
            case _:
                return self._number()

    def _parenthesised(self) -> int:
        self._advance(self.position + 1)
        value = self.logical()
        if self._next != ")":
            raise ExpressionError("')' expected")
        self._advance(self.position + 1)
        return value

    def _character(self) -> int:
        character, quote = self.text[self.position + 1 : self.position + 2], self.text[self.position + 2 :][:1]
        if not character:
            raise ExpressionError("character constant expected")
        if quote != "'":
            raise ExpressionError("missing terminating ' character")
        self._advance(self.position + 3)
        return ord(character)

    def _register(self) -> int:
        found = _REGISTER.match(self.text, self.position)
        value = self._registers(found[1]) if found is not None else None
        if found is None or value is None:
            raise ExpressionError("unknown register")
        self._advance(found.end())
        return wrap(value)

    def _number(self) -> int:
        found = _NUMBER.match(self.text, self.position)
        if found is None:
            raise ExpressionError(f"invalid char '{self._next}' in expression")
        hexadecimal, octal, decimal = found.groups()
        digits, base = (hexadecimal, 16) if hexadecimal else (octal, 8) if octal else (decimal, 10)
        digits = digits.lstrip("0") or "0"
        if len(digits) > _BITS or int(digits, base) >> _BITS:
            raise ExpressionError("number too large")
        self._advance(found.end())
        return wrap(int(digits, base))


def evaluate(text: str, position: int, registers: Registers) -> tuple[int, int]:
    """Evaluate the expression at `position` in `text`; return its value and the position behind it and white space.

    Raises :class:`ExpressionError`.
    """
    parser = _Parser(text, position, registers)
    return parser.logical(), parser.position
