"""Characters in QEMU's JSON dialect: modified UTF-8 in, ASCII with UTF-16 escapes out.

Modified UTF-8 is UTF-8 with NUL written as the two bytes C0 80.  Surrogates and noncharacters are invalid in it.
Where invalid text has to be shown, U+FFFD stands for each invalid sequence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from json import decoder
from json.encoder import encode_basestring_ascii as _quote_ascii

LONG = 1 << 16
"""Bytes or characters beyond which exactness that nobody relies on is given up for speed."""

REPLACEMENT = "\ufffd"
_PAIR, _QUOTE = b"\x01", b"\x02"
_UNICODE_ESCAPE, _LONGEST_ESCAPE = 6, 12
"""Bytes of an escape for a character, and of one for a surrogate pair."""
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_NUL = b"\xc0\x80"

_SHORT_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "/": "/"}


class TextError(ValueError):
    """A string is not valid; the message completes "JSON parse error, ..."."""


@functools.cache
def _invalid() -> re.Pattern[str]:
    """Return an expression for surrogates and noncharacters."""
    planes = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    return re.compile("[\ud800-\udfff\ufdd0-\ufdef" + planes + "]")


@functools.cache
def _escapes() -> re.Pattern[str]:
    """Return an expression for what the standard encoder writes otherwise than QEMU does, and for pairs to skip."""
    return re.compile(r"\\\\|\\u([0-9a-f]{4})|\x7f")


def modified_utf8(text: str) -> bytes:
    """Return the bytes that QEMU keeps for `text`."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", _NUL)


def decode(data: bytes) -> str:
    """Return the text of valid modified UTF-8; raise :class:`TextError` for anything else."""
    if data.isascii():
        return data.decode("ascii")
    try:
        text = "\0".join(part.decode("utf-8") for part in data.split(_NUL))
    except UnicodeDecodeError:
        raise TextError("invalid UTF-8 sequence in string") from None
    if _invalid().search(text):
        raise TextError("invalid UTF-8 sequence in string")
    return text


def decode_lossy(data: bytes) -> str:
    """Return the text up to the first NUL byte, with U+FFFD for each invalid sequence."""
    data = data.partition(b"\0")[0]
    if data.isascii():
        return data.decode("ascii")
    if len(data) > LONG:
        return _invalid().sub(REPLACEMENT, data.decode("utf-8", "replace"))
    parts = []
    position = 0
    while position < len(data):
        length = _sequence_length(data, position)
        try:
            parts.append(decode(data[position : position + length]))
        except TextError:
            parts.append(REPLACEMENT)
        position += length
    return "".join(parts)


def _sequence_length(data: bytes, position: int) -> int:
    """Return how many bytes a sequence has: a leading byte and the continuation bytes that it announces."""
    lead = data[position]
    announced = 1 if lead < 0xC0 or lead >= 0xFE else 8 - (lead ^ 0xFF).bit_length()
    length = 1
    while length < announced and position + length < len(data) and data[position + length] & 0xC0 == 0x80:
        length += 1
    return length


def unescape(token: bytes) -> str:
    """Return the text of a string token, given with its quotes; raise :class:`TextError` where it is invalid."""
    end = len(token) - 1
    escape = token.find(b"\\", 1, end)
    if escape < 0:
        return decode(token[1:end])
    if len(token) > LONG:
        return "".join(pieces(token))
    return _unescape_exactly(token, escape)


def pieces(token: bytes | bytearray) -> Iterator[str]:
    """Return the text of a long string token piece by piece; raise :class:`TextError` where it is invalid."""
    start, end = 1, len(token) - 1
    while start < end:
        cut = _cut(token, start, end)
        yield _unescape_piece(bytes(token[start:cut]))
        start = cut


def _cut(token: bytes | bytearray, start: int, end: int) -> int:
    """Return where a piece that begins at `start` may end: between characters and escapes, and not in a pair."""
    cut = start + LONG
    if cut >= end:
        return end
    slash = token.rfind(b"\\", cut - _LONGEST_ESCAPE, cut)
    if slash >= 0 and _begins_escape(token, start, slash):
        before = slash - _UNICODE_ESCAPE
        paired = _HIGH_SURROGATE.match(token, before) and _begins_escape(token, start, before)
        return before if paired else slash
    while token[cut] & 0xC0 == 0x80 and cut > start + LONG - _LONGEST_ESCAPE:
        cut -= 1
    return cut


def _begins_escape(token: bytes | bytearray, start: int, slash: int) -> bool:
    """Return whether the backslash begins an escape; `start` is between escapes."""
    run = token[start : slash + 1]
    return bool((len(run) - len(run.rstrip(b"\\"))) & 1)


def _unescape_piece(piece: bytes) -> str:
    """Return the text of a piece by the standard scanner, which is fast; what is wrong is told by the exact one."""
    # No control character is in a string: they can stand for what must not be mistaken.
    marked = piece.replace(b"\\\\", _PAIR).replace(b'\\"', _QUOTE).replace(b'"', _QUOTE).replace(b"\\'", b"'")
    plain = marked.replace(_PAIR, b"\\\\").replace(_QUOTE, b'\\"')
    try:
        text: str = decoder.scanstring(f'"{decode(plain)}"', 1)[0]  # type: ignore[attr-defined]
        if not _invalid().search(text):
            return text
    except ValueError:
        pass
    return _unescape_exactly(b'"' + piece + b'"', 0)


def _unescape_exactly(token: bytes, escape: int) -> str:
    """Do the work of :func:`unescape`, one escape after another; `escape` is the first one's place, 0 where unknown."""
    end = len(token) - 1
    escape = escape or token.find(b"\\", 1, end)
    parts: list[str] = []
    position = 1
    while escape >= 0:
        parts.append(decode(token[position:escape]))
        letter = chr(token[escape + 1])
        if letter == "u":
            character, position = _unicode_escape(token, escape)
            parts.append(character)
        elif letter in _SHORT_ESCAPES:
            parts.append(_SHORT_ESCAPES[letter])
            position = escape + 2
        else:
            raise TextError("invalid escape sequence in string")
        escape = token.find(b"\\", position, end)
    parts.append(decode(token[position:end]))
    return "".join(parts)


def _hex4(token: bytes, position: int) -> int:
    digits = token[position : position + 4]
    return int(digits, 16) if re.fullmatch(rb"[0-9a-fA-F]{4}", digits) else -1


def _unicode_escape(token: bytes, position: int) -> tuple[str, int]:
    """Return the character that the escape at `position` stands for, a surrogate pair's included, and where it ends."""
    code = _hex4(token, position + 2)
    end = position + 6
    if 0xD800 <= code <= 0xDBFF and token[end : end + 2] == b"\\u":
        trail = _hex4(token, end + 2)
        if 0xDC00 <= trail <= 0xDFFF:
            return _checked(0x10000 + ((code & 0x3FF) << 10 | trail & 0x3FF), token[position : end + 6]), end + 6
        code = -1
    return _checked(code, token[position:end]), end


def _checked(code: int, escape: bytes) -> str:
    if code < 0 or _invalid().match(chr(code)):
        raise TextError(f"{decode_lossy(escape)} is not a valid Unicode character")
    return chr(code)


def _rewrite(match: re.Match[str]) -> str:
    found = match.group()
    if found == "\x7f":
        return "\\u007F"
    return found if match.group(1) is None else "\\u" + match.group(1).upper()


def quote(text: str) -> str:
    """Return `text` as a JSON string of ASCII characters, quotes included; invalid characters become U+FFFD."""
    if len(text) > LONG:
        # The letters in escapes are small here: to make them capitals takes long.
        return _quote_ascii(text if text.isascii() else _invalid().sub(REPLACEMENT, text))
    quoted = _quote_ascii(text)
    if "\\u" in quoted or "\x7f" in quoted:
        if not text.isascii():
            quoted = _quote_ascii(_invalid().sub(REPLACEMENT, text))
        return _escapes().sub(_rewrite, quoted)
    return quoted
