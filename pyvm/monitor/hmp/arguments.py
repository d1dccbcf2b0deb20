"""Arguments of commands: how a command declares them, and how they are read from a line.

A command declares its arguments in one text, in their order:

    -x              an option of one letter; the handler gets a bool under this letter
    -x:string       an option of one letter with a string; the handler gets the string, or None
    name:KIND       an argument
    name:KIND?      one that may be left out; the handler gets None for it

KIND is one of :class:`Kind`.  A number is an expression (:mod:`pyvm.monitor.hmp.expressions`).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, NamedTuple

from pyvm.monitor.hmp.expressions import Registers, evaluate, skip_space
from pyvm.records import record

_DECLARATION = re.compile(
    r"-(?P<flag>[a-zA-Z])(?P<valued>:string)?|(?P<name>[a-z_]+):(?P<kind>[a-z0-9]+)(?P<optional>\??)"
)
_MIB_SHIFT = 20
_SUFFIXES = "BKMGTPE"
_SIZE = re.compile(r"(?P<number>[0-9]{1,20}(?:\.[0-9]{1,20})?)(?P<suffix>[bBkKmMgGtTpPeE]?)")
_COUNT_DIGITS = 12
"""How many digits of a count are looked at: more are too many in any case."""
_ESCAPES = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}

FORMATS = "xduoci"
"""How a value is shown: hexadecimal, signed or unsigned decimal, octal, character, and disassembled."""
SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
"""Bytes of a value."""


class ArgumentError(Exception):
    """The arguments of a command are wrong; the message is one line for the person at the prompt."""


class Kind(Enum):
    """What an argument may be."""

    TEXT = "text"
    """The rest of the line."""
    STRING = "string"
    """A word, or what is in double quotes."""
    FILENAME = "filename"
    """Likewise."""
    BLOCK = "block"
    """Likewise: a drive, a device or a node."""
    SIZE = "size"
    """A size with a suffix, in MiB without one; the handler gets bytes."""
    UINT32 = "uint32"
    INT64 = "int64"
    MEGABYTES = "megabytes"
    """A size in MiB; the handler gets bytes."""
    SWITCH = "switch"
    """``on`` or ``off``; the handler gets a bool."""
    FORMAT = "format"
    """``/`` and letters: how values are shown, and their size; always optional."""


@record(frozen=True)
class Format:
    """How to show values, and how many bytes each has."""

    letter: str = "x"
    size: int = 4
    count: int = 1
    """How many values; commands that show one take no notice."""


class Argument(NamedTuple):
    """One declared argument."""

    name: str
    kind: Kind | None
    """None for an option of one letter."""
    optional: bool = False
    valued: bool = False
    """Whether an option has a string."""


def declare(text: str) -> tuple[Argument, ...]:
    """Return the arguments that `text` declares; raises ValueError where that is no declaration."""
    arguments = []
    for word in text.split():
        found = _DECLARATION.fullmatch(word)
        if found is None:
            raise ValueError(f"no declaration of an argument: {word}")
        if found["flag"]:
            arguments.append(Argument(found["flag"], None, True, bool(found["valued"])))
        else:
            arguments.append(Argument(found["name"], Kind(found["kind"]), bool(found["optional"])))
    return tuple(arguments)


class ArgumentReader:
    """Reads the arguments of one command from its line."""

    def __init__(self, line: str, position: int, command: str, registers: Registers, default: Format) -> None:
        """`command` is the name for messages; `default` holds where the line has no format."""
        self._line = line
        self._position = position
        self._command = command
        self._registers = registers
        self._default = default

    def read(self, arguments: tuple[Argument, ...]) -> dict[str, Any]:
        """Return the values by name.  Raises ArgumentError, and ExpressionError for a number that is none."""
        options = frozenset(argument.name for argument in arguments if argument.kind is None)
        values: dict[str, Any] = {}
        for argument in arguments:
            self._position = skip_space(self._line, self._position)
            if argument.kind is None:
                given = self._option(argument.name, options)
                values[argument.name] = self._option_value(given, argument.name) if argument.valued else given
            elif argument.kind is Kind.FORMAT:
                values[argument.name] = self._format()
            elif argument.optional and self._position == len(self._line):
                values[argument.name] = None
            else:
                values[argument.name] = self._value(argument.kind)
        if skip_space(self._line, self._position) != len(self._line):
            raise ArgumentError(f"{self._command}: extraneous characters at the end of line")
        return values

    def _option(self, letter: str, known: frozenset[str]) -> bool:
        if not self._line.startswith("-", self._position):
            return False
        given = self._line[self._position + 1 : self._position + 2]
        if given not in known:
            raise ArgumentError(f"{self._command}: unsupported option -{given}")
        if given == letter:
            self._position += 2
        return given == letter

    def _option_value(self, given: bool, letter: str) -> str | None:
        if not given:
            return None
        text = self._string()
        if text is None:
            raise ArgumentError(f"{self._command}: value expected for -{letter}")
        return text

    def _string(self) -> str | None:
        """Return the word or the quoted text that comes next; None where there is none, or not a whole one."""
        position = skip_space(self._line, self._position)
        if not self._line.startswith('"', position):
            end = position
            while end < len(self._line) and not self._line[end].isspace():
                end += 1
            self._position = end
            return self._line[position:end] or None
        text = []
        while (character := self._line[position + 1 : position + 2]) != '"':
            position += 1
            if character == "\\":
                position += 1
                character = _ESCAPES.get(self._line[position : position + 1], "")
            if not character:
                return None
            text.append(character)
        self._position = position + 2
        return "".join(text)

    def _value(self, kind: Kind) -> str | int:
        if kind is Kind.TEXT:
            text, self._position = self._line[self._position :], len(self._line)
            return text
        if kind is Kind.SIZE:
            return self._size()
        if kind in (Kind.STRING, Kind.FILENAME, Kind.BLOCK):
            string = self._string()
            if string is None:
                what = "block device name" if kind is Kind.BLOCK else kind.value
                raise ArgumentError(f"{self._command}: {what} expected")
            return string
        if kind is Kind.SWITCH:
            return self._switch()
        value, self._position = evaluate(self._line, self._position, self._registers)
        if kind is Kind.UINT32 and value >> 32:
            raise ArgumentError(f"'{self._command}' has failed: integer is for 32-bit values")
        if kind is Kind.MEGABYTES:
            if value < 0:
                raise ArgumentError("enter a positive value")
            value <<= _MIB_SHIFT
        return value

    def _switch(self) -> bool:
        word = self._string()
        if word not in ("on", "off"):
            raise ArgumentError("Expected 'on' or 'off'")
        return word == "on"

    def _size(self) -> int:
        found = _SIZE.match(self._line, self._position)
        if found is None:
            raise ArgumentError("invalid size")
        self._position = found.end()
        shift = 10 * _SUFFIXES.index(found["suffix"].upper()) if found["suffix"] else _MIB_SHIFT
        from fractions import Fraction

        size = int(Fraction(found["number"]) * (1 << shift))
        if size >> 63 or ("." in found["number"] and not shift):
            raise ArgumentError("invalid size")
        return size

    def _format(self) -> Format:
        if not self._line.startswith("/", self._position):
            return Format(self._default.letter, self._default.size)
        letter, size = self._default.letter, self._default.size
        position = start = self._position + 1
        while "0" <= (character := self._line[position : position + 1]) <= "9":
            position += 1
        count = int(self._line[start : min(position, start + _COUNT_DIGITS)] or "1")
        while character and not character.isspace():
            if character in FORMATS:
                letter = character
            elif character in SIZES:
                size = SIZES[character]
            else:
                raise ArgumentError(f"invalid char in format: '{character}'")
            position += 1
            character = self._line[position : position + 1]
        self._position = position
        return Format(letter, size, count)
