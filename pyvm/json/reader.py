"""QEMU's JSON dialect: a parser for a stream of messages, and for one value as an option has it.

:class:`MessageParser` takes bytes as they arrive and gives back one value after another, as soon as the last byte of
each is there; errors come out in their place between the values.  A message that is plain JSON, complete and in ASCII
goes through the standard library's scanner; everything else through the exact lexer and a builder of values, which know
the limits and the errors.
"""

from __future__ import annotations

from enum import Enum
from json.decoder import JSONDecoder
from typing import Any

from pyvm.json.lexer import MAX_TOKEN_SIZE, JsonLexer, Token
from pyvm.json.text import LONG, TextError, decode_lossy, pieces, unescape

MAX_TOKEN_COUNT = 2 << 20
"""Most tokens of one message."""
MAX_NESTING = 1 << 10
"""Most objects and arrays that are open at once."""

INT64_MIN, UINT64_MAX = -(1 << 63), (1 << 64) - 1


class JsonError(Exception):
    """Input is no JSON text, or exceeds a limit."""


class _Incomplete:
    """Type of :data:`INCOMPLETE`."""


INCOMPLETE = _Incomplete()
"""What :meth:`MessageParser.next` returns while a message is not complete."""
BUSY = _Incomplete()
"""What it returns, where it was asked to work in slices, while there is more to do without further input."""
_SLICE = 8
"""Pieces of a long string that are one slice of work."""


def _integer(text: str) -> int | float:
    """Return an integer token's value: an integer where 64 bits hold it, else a float."""
    if len(text) < 20:
        return int(text)
    if len(text) <= 40:
        value = int(text)
        if INT64_MIN <= value <= UINT64_MAX:
            return value
    return float(text)


def _float(text: str) -> float:
    if text[:2] in ("0e", "0E") or text[:3] in ("-0e", "-0E"):
        raise ValueError("not a number in QEMU's dialect")
    return float(text)


def _constant(text: str) -> Any:
    raise ValueError("not a keyword in QEMU's dialect")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


def _standard_decoder() -> JSONDecoder:
    return JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _error(message: str) -> JsonError:
    return JsonError(f"JSON parse error, {message}")


class _Expect(Enum):
    """What the next token of a message may be."""

    VALUE = 0
    VALUE_OR_END = 1
    """The container has just been opened, and may be empty."""
    COLON = 2
    SEPARATOR = 3


class _Builder:
    """Makes the value of one message of its tokens, as they come.

    The first error is kept until the message ends.  Nothing recurses, as the nesting may be deep.
    """

    def __init__(self) -> None:
        self._expect = _Expect.VALUE
        self._open: list[tuple[list[Any] | dict[str, Any], str | None]] = []
        self._value: Any = INCOMPLETE
        self._error: JsonError | None = None

    def add(self, kind: int, text: bytes | bytearray, literal: str | JsonError | None = None) -> None:
        """Take the next token; `literal` is the value of a string, or what is wrong with it, where that is known."""
        if self._error is None:
            try:
                self._step(kind, text, literal)
            except JsonError as error:
                self._error = error
                self._open.clear()

    def result(self) -> Any:
        """Return the value; raise :class:`JsonError` where the tokens were no JSON text."""
        if self._error is not None:
            raise self._error
        if self._value is INCOMPLETE:
            raise _error("premature EOI")
        return self._value

    def _step(self, kind: int, text: bytes | bytearray, literal: str | JsonError | None) -> None:
        expect = self._expect
        if expect is _Expect.SEPARATOR:
            self._separate(kind)
        elif expect is _Expect.COLON:
            if kind != Token.COLON:
                raise _error("missing : in object pair")
            self._expect = _Expect.VALUE
        elif kind in (Token.LEFT_BRACE, Token.LEFT_BRACKET):
            self._open.append(({} if kind == Token.LEFT_BRACE else [], None))
            self._expect = _Expect.VALUE_OR_END
        elif kind >= Token.INTEGER:
            if isinstance(literal, JsonError):
                raise literal
            self._complete(_literal(kind, text) if literal is None else literal)
        elif expect is _Expect.VALUE_OR_END and kind == self._closing():
            self._complete(self._open.pop()[0])
        else:
            raise _error("expecting value")

    def _closing(self) -> int:
        return Token.RIGHT_BRACKET if isinstance(self._open[-1][0], list) else Token.RIGHT_BRACE

    def _separate(self, kind: int) -> None:
        if kind == self._closing():
            self._complete(self._open.pop()[0])
        elif kind == Token.COMMA:
            self._expect = _Expect.VALUE
        else:
            raise _error(f"expected separator in {type(self._open[-1][0]).__name__}")

    def _complete(self, value: Any) -> None:
        """A value is complete: give it to the container around it."""
        if not self._open:
            self._value = value
            return
        container, key = self._open[-1]
        self._expect = _Expect.SEPARATOR
        if isinstance(container, list):
            container.append(value)
        elif key is not None:
            if key in container:
                raise _error("duplicate key")
            container[key] = value
            self._open[-1] = (container, None)
        elif isinstance(value, str):
            self._open[-1] = (container, value)
            self._expect = _Expect.COLON
        else:
            raise _error("key is not a string in object")


def _literal(kind: int, text: bytes | bytearray) -> Any:
    if kind == Token.STRING:
        try:
            return unescape(bytes(text))
        except TextError as error:
            raise _error(str(error)) from None
    if kind == Token.INTEGER:
        return _integer(text.decode("ascii"))
    if kind == Token.FLOAT:
        return float(text)
    try:
        return {b"true": True, b"false": False, b"null": None}[bytes(text)]
    except KeyError:
        raise _error(f"invalid keyword '{text.decode('ascii')}'") from None


class _LongString:
    """A long string token whose text is made in slices."""

    def __init__(self, token: bytes | bytearray) -> None:
        self.token = token
        self._pieces = pieces(token)
        self._parts: list[str] = []
        self._error: JsonError | None = None

    def work(self) -> bool:
        """Do a slice of work; return whether that was the last."""
        try:
            for _ in range(_SLICE):
                part = next(self._pieces, None)
                if part is None:
                    return True
                self._parts.append(part)
        except TextError as error:
            self._error = _error(str(error))
            return True
        return False

    def result(self) -> str | JsonError:
        """Return the text, or what is wrong with it."""
        return self._error or "".join(self._parts)


class MessageParser:
    """Turns a stream of bytes into values; what it holds is bounded by the limits above."""

    def __init__(self, *, sliced: bool = False) -> None:
        """`sliced` has :meth:`next` return BUSY now and then while it is at work on something long."""
        self._sliced = sliced
        self._long: _LongString | None = None
        self._lexer = JsonLexer()
        self._decoder = _standard_decoder()
        self._input = b""
        self._position = 0
        self._try_fast = True
        self._clear()

    def _clear(self) -> None:
        """Forget the tokens of the message; the lexer's state stays."""
        self._builder = _Builder()
        self._count = 0
        self._size = 0
        self._braces = 0
        self._brackets = 0

    @property
    def buffered(self) -> int:
        """How many bytes were fed and not looked at yet."""
        return len(self._input) - self._position

    def feed(self, data: bytes) -> None:
        """Append bytes to the input."""
        self._input = self._input[self._position :] + data if self.buffered else bytes(data)
        self._position = 0
        self._try_fast = True

    def next(self) -> Any:
        """Return the next value, or INCOMPLETE where more input is needed for it.

        Raises :class:`JsonError` in the place of a message that is wrong; the parser goes on after it.
        """
        if self._long is not None:
            return self._go_on(self._long)
        if self._lexer.idle and not self._count and self._try_fast:
            value = self._plain()
            if value is not INCOMPLETE:
                return value
        return self._exact()

    def _go_on(self, long: _LongString) -> Any:
        """Do a slice of work on a long string; go on behind it once that is done."""
        if not long.work():
            return BUSY
        self._long = None
        complete = self._add(Token.STRING, long.token, long.result())
        return self._emit() if complete else self._exact()

    def _plain(self) -> Any:
        """Try the standard scanner on an object at the input's position."""
        data, start = self._input, self._position
        while data[start : start + 1] in (b"\n", b"\r", b" "):
            start += 1
        if data[start : start + 1] != b"{":
            return INCOMPLETE
        newline = data.find(b"\n", start)
        piece = data[start : newline if newline >= 0 else len(data)]
        if b"\\" in piece or not piece.isascii():
            return INCOMPLETE
        try:
            value, length = self._decoder.raw_decode(piece.decode("ascii"))
        except (ValueError, RecursionError):
            # Whatever is wrong, the exact parser says so; it is not asked to try again in the midst of this input.
            self._try_fast = newline >= 0
            return INCOMPLETE
        if length > MAX_NESTING and piece.count(b"[", 0, length) + piece.count(b"{", 0, length) > MAX_NESTING:
            return INCOMPLETE
        self._position = start + length
        return value

    def _exact(self) -> Any:
        lexed = self._lexer.next(self._input, self._position)
        while lexed is not None:
            (kind, text), self._position = lexed
            if self._sliced and kind == Token.STRING and len(text) > LONG:
                self._long = _LongString(text)
                return self._go_on(self._long)
            if self._add(kind, text):
                return self._emit()
            lexed = self._lexer.next(self._input, self._position)
        self._input = b""
        self._position = 0
        return INCOMPLETE

    def _add(self, kind: int, text: bytes | bytearray, literal: str | JsonError | None = None) -> bool:
        """Take a token into the message; return whether that completes it.  Raises for errors and limits."""
        if kind in (Token.LEFT_BRACE, Token.RIGHT_BRACE):
            self._braces += 1 if kind == Token.LEFT_BRACE else -1
        elif kind in (Token.LEFT_BRACKET, Token.RIGHT_BRACKET):
            self._brackets += 1 if kind == Token.LEFT_BRACKET else -1
        elif kind == Token.ERROR:
            self._clear()
            raise _error(f"stray '{decode_lossy(bytes(text))}'")
        self._size += len(text)
        self._count += 1
        if self._size + 1 > MAX_TOKEN_SIZE:
            raise self._exceeded("token size")
        if self._count > MAX_TOKEN_COUNT:
            raise self._exceeded("token count")
        if self._braces + self._brackets > MAX_NESTING:
            raise self._exceeded("nesting depth")
        self._builder.add(kind, text, literal)
        return self._braces < 0 or self._brackets < 0 or not (self._braces or self._brackets)

    def _exceeded(self, what: str) -> JsonError:
        self._clear()
        return JsonError(f"JSON {what} limit exceeded")

    def _emit(self) -> Any:
        builder = self._builder
        self._clear()
        return builder.result()

    def finish(self) -> Any:
        """The input ends: return the value that was unfinished, or INCOMPLETE where nothing was."""
        last = self._lexer.finish()
        if last is not None:
            self._add(*last)
        return self._emit() if self._count else INCOMPLETE


def loads(text: str) -> Any:
    """Return the one value of a JSON text, as an option of the command line gives it.

    Raises :class:`JsonError`, also where there is no value or more than one.
    """
    parser = MessageParser()
    parser.feed(text.encode("utf-8", "surrogateescape"))
    value = _next_or_last(parser)
    if value is INCOMPLETE:
        raise JsonError("Expecting a JSON value")
    try:
        alone = _next_or_last(parser) is INCOMPLETE
    except JsonError:
        alone = False
    if not alone:
        raise JsonError("Expecting at most one JSON value")
    return value


def _next_or_last(parser: MessageParser) -> Any:
    value = parser.next()
    return parser.finish() if value is INCOMPLETE else value
