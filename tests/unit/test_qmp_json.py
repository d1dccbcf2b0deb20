"""QEMU's JSON dialect.  The expected errors are what QEMU 7.2 answers to the same bytes."""

from __future__ import annotations

import json as standard
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.json import lexer, reader
from pyvm.json.reader import INCOMPLETE, JsonError, MessageParser, loads
from pyvm.json.text import decode_lossy, modified_utf8
from pyvm.json.writer import encode
from pyvm.wire_order import wire_order

ERROR = "JSON parse error, "


def take(parser: MessageParser) -> list[Any]:
    """Return the values that are complete, errors as their description."""
    results: list[Any] = []
    while True:
        try:
            value = parser.next()
        except JsonError as error:
            results.append(str(error))
            continue
        if value is INCOMPLETE:
            return results
        results.append(value)


def parse(data: bytes, piece: int = 1 << 30) -> list[Any]:
    parser = MessageParser()
    results: list[Any] = []
    for start in range(0, len(data), piece):
        parser.feed(data[start : start + piece])
        results += take(parser)
    return results


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b'{"a": 1}', [{"a": 1}]),
        (b'{"a":1}{"b":[1,2,{"c":null}]}\n5\n', [{"a": 1}, {"b": [1, 2, {"c": None}]}, 5]),
        (b"{'a': 'b\"c', \"d\": \"it's\"}", [{"a": 'b"c', "d": "it's"}]),
        (b"'it\\'s'", ["it's"]),
        (b"[true,false,null]", [[True, False, None]]),
        (b'{\n "a"\n:\t"b"\r\n}', [{"a": "b"}]),
        (b"[9223372036854775807,-9223372036854775808]", [[2**63 - 1, -(2**63)]]),
        (b"[18446744073709551615]", [[2**64 - 1]]),
        (b"[18446744073709551616,-9223372036854775809]", [[float(2**64), float(-(2**63) - 1)]]),
        (b"[1e3,1.25E-2,-0,0.5]", [[1000.0, 0.0125, 0, 0.5]]),
        (b'"\\u00e9\\uD83D\\uDE00\\/\\b\\f\\n\\r\\t\\\\\\""', ['é😀/\b\f\n\r\t\\"']),
        ('"é€😀\x7f"'.encode(), ["é€😀\x7f"]),
        (b'"a\\u0000b\xc0\x80"', ["a\0b\0"]),
        (b"1 ", [1]),
        (b"1", []),
        (b"[1", []),
        (b",", [f"{ERROR}expecting value"]),
        (b"\n\r\t \n", []),
    ],
)
def test_values(data: bytes, values: list[Any]) -> None:
    assert parse(data) == values


@pytest.mark.parametrize(
    ("data", "results"),
    [
        (b"}", ["expecting value"]),
        (b"]", ["expecting value"]),
        (b"[}", ["expecting value"]),
        (b'{"a":[}', []),
        (b'{"a":[}]', ["expecting value"]),
        (b"{]", ["expecting value"]),
        (b"[,]", ["expecting value"]),
        (b"[1,]", ["expecting value"]),
        (b'{"a":1,}', ["expecting value"]),
        (b'{"a":}', ["expecting value"]),
        (b"[1 2]", ["expected separator in list"]),
        (b'{"a":1 2}', ["expected separator in dict"]),
        (b'{"id":0e1}', ["expected separator in dict"]),
        (b'{"a" "b"}', ["missing : in object pair"]),
        (b'{"a"}', ["missing : in object pair"]),
        (b"{1:2}", ["key is not a string in object"]),
        (b"{[]:2}", ["key is not a string in object"]),
        (b'{"a":1,"a":2}', ["duplicate key"]),
        (b'{"a":1,"a":}', ["expecting value"]),
        (b'{"a":{"b":1,"b":2},"c":x}', ["duplicate key"]),
        (b"[fals,nul]", ["invalid keyword 'fals'"]),
        (b"nullx ", ["invalid keyword 'nullx'"]),
        (b'"\\q"', ["invalid escape sequence in string"]),
        (b'"\\u12g4"', ["\\u12g4 is not a valid Unicode character"]),
        (b'"\\u12"', ['\\u12" is not a valid Unicode character']),
        (b'"\\ud800"', ["\\ud800 is not a valid Unicode character"]),
        (b'"\\ud83d\\u0041"', ["\\ud83d is not a valid Unicode character"]),
        (b'"\\udc00"', ["\\udc00 is not a valid Unicode character"]),
        (b'"\\uffff"', ["\\uffff is not a valid Unicode character"]),
        (b'"\\ud83f\\udfff"', ["\\ud83f\\udfff is not a valid Unicode character"]),
        (b'"\xc3("', ["invalid UTF-8 sequence in string"]),
        (b'"\xc0\xaf"', ["invalid UTF-8 sequence in string"]),
        (b'"\xef\xbf\xbf"', ["invalid UTF-8 sequence in string"]),
        (b'"\xed\xa0\x80"', ["invalid UTF-8 sequence in string"]),
        (b"\xff", ["stray '\ufffd'"]),
        (b"\0", ["stray ''"]),
        (b"-\n", ["stray '-\n'"]),
        (b"[5.]", ["stray '5.]'"]),
        (b"[1e+]", ["stray '1e+]'"]),
        (b'"a\nb"\n', ["stray '\"a\n'"]),
        (b'"a\\\nb"\n', ["stray '\"a\\\n'"]),
        (b'{"a":01}', ["stray '01'", "expecting value"]),
        (b'{"a":NaN}', ["stray 'N'", "expecting value"]),
        (b'{"a":+1}', ["stray '+'", "expecting value"]),
        (b'{"a":%d}', ["stray '%'", "expecting value"]),
        (b'{"a":"\xff"}', ["stray '\"\ufffd'", "expecting value"]),
        (b"\xe2\x82\n", ["stray '\ufffd'"]),
    ],
)
def test_errors(data: bytes, results: list[str]) -> None:
    assert parse(data) == [ERROR + result for result in results]


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (b'{"execute":"query-st\xff{"a":1}', [{"a": 1}]),
        (b"\xff\xff{}", [{}]),
        (b'/* x */ {"a":1}', [{"a": 1}]),
        (b'\xef\xbb\xbf{"a":1}', [{"a": 1}]),
        (b'@abc"\tdef\n5 ', [5]),
        (b"{{{{{[[[[\xff7 [8]", [[8]]),
    ],
)
def test_resynchronisation(data: bytes, values: list[Any]) -> None:
    results = parse(data)
    assert all(str(result).startswith(ERROR + "stray") for result in results[: -len(values)])
    assert results[-len(values) :] == values


def test_after_an_error_that_took_the_line_end_the_next_line_is_skipped() -> None:
    assert parse(b'-\nabc\n{"a":1}') == [f"{ERROR}stray '-\n'", {"a": 1}]


def test_nesting_limit() -> None:
    deep = b"[" * 1024 + b"]" * 1024
    (value,) = parse(deep)
    assert encode(value) == deep + b"\r\n"
    assert parse(b"[" * 1025 + b"\xff")[0] == "JSON nesting depth limit exceeded"
    objects = b'{"a":' * 1024 + b"1" + b"}" * 1024
    assert encode(parse(objects)[0]).replace(b" ", b"") == objects + b"\r\n"


def test_token_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lexer.MAX_TOKEN_SIZE == reader.MAX_TOKEN_SIZE == 64 << 20
    limit = 1 << 16
    monkeypatch.setattr(lexer, "MAX_TOKEN_SIZE", limit)
    monkeypatch.setattr(reader, "MAX_TOKEN_SIZE", limit)
    assert len(parse(b'"' + b"a" * (limit - 3) + b'" ')[0]) == limit - 3
    for filling in (b"a", b"\\\\", b"\xc3\xa9"):
        data = b'"' + filling * (limit // len(filling) + 8) + b"\xff{}"
        for piece in (1 << 30, 4096, 1000):
            results = parse(data, piece)
            assert results[0] == "JSON token size limit exceeded"
            assert results[-1] == {}
    assert parse(b"1" * (limit + 5) + b"\n") == ["JSON token size limit exceeded", 1111]


def test_a_token_of_the_real_limit_is_taken_in_pieces() -> None:
    parser = MessageParser()
    piece = b"a" * (1 << 20)
    parser.feed(b'"')
    for _ in range(64):
        assert take(parser) == []
        parser.feed(piece)
    assert take(parser) == ["JSON token size limit exceeded"]


def test_message_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TOKEN_SIZE", 20)
    assert parse(b"['aaaa','bbbb',1]") == [["aaaa", "bbbb", 1]]
    assert parse(b"['aaaa','bbbb',1234]")[0] == "JSON token size limit exceeded"


def test_token_count_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TOKEN_COUNT", 9)
    assert parse(b"[1,2,3,4]") == [[1, 2, 3, 4]]
    assert parse(b"[1,2,3,4,5,6]\xff{}")[0] == "JSON token count limit exceeded"
    assert parse(b"[1,2,3,4,5,6]\xff{}")[-1] == {}


def test_huge_integers_become_floats() -> None:
    assert parse(b"[" + b"9" * 5000 + b"]") == [[math.inf]]
    assert parse(b"[-" + b"9" * 30 + b"]") == [[-1e30]]


def test_a_value_is_there_as_soon_as_its_last_byte() -> None:
    parser = MessageParser()
    parser.feed(b'{"a"')
    assert take(parser) == []
    parser.feed(b":1")
    assert take(parser) == []
    parser.feed(b"}")
    assert take(parser) == [{"a": 1}]


def test_unread_input_is_counted() -> None:
    parser = MessageParser()
    parser.feed(b'{"a":1}{"b":2}')
    assert parser.next() == {"a": 1}
    assert parser.buffered == 7
    assert take(parser) == [{"b": 2}]
    assert parser.buffered == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Expecting a JSON value"),
        ('{"driver":', f"{ERROR}premature EOI"),
        ("{", f"{ERROR}premature EOI"),
        ('{"a":1,', f"{ERROR}premature EOI"),
        ('{"a":1}x', "Expecting at most one JSON value"),
        ("{}{}", "Expecting at most one JSON value"),
        ('{"a":1,"a":2}', f"{ERROR}duplicate key"),
        ('"a', f"{ERROR}stray '\"a'"),
        ("{%d}", f"{ERROR}stray '%'"),
    ],
)
def test_text_that_is_not_one_value(text: str, error: str) -> None:
    with pytest.raises(JsonError) as caught:
        loads(text)
    assert str(caught.value) == error


def test_text_of_one_value() -> None:
    assert loads('{"driver": "null-co", "size": 5}') == {"driver": "null-co", "size": 5}
    assert loads("5") == 5
    assert loads(" 'é' ") == "é"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cn"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-é\0", max_size=4), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150)
@given(JSON_VALUES, st.booleans())
def test_what_is_written_reads_back(value: Any, pretty: bool) -> None:
    text = encode(value, pretty)
    assert text.endswith(b"\r\n")
    assert text.isascii()
    assert standard.loads(text) == value
    assert parse(text) == [value]
    if not pretty:
        assert text.count(b"\n") == 1


PIECES = [b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b":", b",", b"0", b"1", b"-", b".", b"e", b"E+", b"\xff", b"\xfe"]
PIECES += [b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b"\x01", b"\t", b"\n", b" ", b"\x7f", b"true", b"nul", b"a"]
PIECES += [b"\\ud83d", b"\\ude00", b"\\u0000", b"%", b'"a":', b'{"a":1}', b'{"id":[1.5e3,"x",{}]}\n', b"'b'", b"00"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map(b"".join) | st.binary(max_size=60), st.integers(1, 7))
def test_any_input_gives_the_same_however_it_is_cut(data: bytes, piece: int) -> None:
    """Whole pieces may take the quick path, single bytes never do: so this compares the two parsers as well."""
    data += b"\xff{}"
    whole = repr(parse(data))
    assert whole.endswith("{}]")
    assert whole == repr(parse(data, piece)) == repr(parse(data, 1))


@settings(max_examples=100)
@given(st.binary(max_size=20))
def test_lossy_text_is_valid_text(data: bytes) -> None:
    text = decode_lossy(data)
    assert decode_lossy(modified_utf8(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        ([1, [2], {}], "[1, [2], {}]"),
        ({"return": {}, "id": 1}, '{"return": {}, "id": 1}'),
        ({"id": 1, "return": {}}, '{"return": {}, "id": 1}'),
        ({"error": {"desc": "d", "class": "c"}, "id": 1}, '{"id": 1, "error": {"class": "c", "desc": "d"}}'),
        (
            {"data": {}, "event": "E", "timestamp": {"microseconds": 1, "seconds": 2}},
            '{"timestamp": {"seconds": 2, "microseconds": 1}, "event": "E", "data": {}}',
        ),
        ([0.1, 1.5, -0.0, 1e22, math.inf, -math.inf], "[0.10000000000000001, 1.5, -0, 1e+22, inf, -inf]"),
        ('é€😀\x7f\x1f/<"\\\n', '"\\u00E9\\u20AC\\uD83D\\uDE00\\u007F\\u001F/<\\"\\\\\\n"'),
        ("\\u00e9", '"\\\\u00e9"'),
        ("\udc80x\uffff", '"\\uFFFDx\\uFFFD"'),
        ([True, False, None, 2**64 - 1], "[true, false, null, 18446744073709551615]"),
    ],
)
def test_the_written_form(value: Any, text: str) -> None:
    assert encode(value) == (text + "\r\n").encode()


def test_the_order_of_members() -> None:
    keys = ["zz", "a", "b", "guest", "reason", "x", "y"]
    assert wire_order(keys) == ["x", "guest", "a", "y", "zz", "b", "reason"]
    assert wire_order(reversed(keys)) == wire_order(keys)
    assert wire_order(["running", "singlestep", "status"]) == ["status", "singlestep", "running"]
    assert wire_order(["major", "minor", "micro"]) == ["micro", "minor", "major"]


def test_the_pretty_form() -> None:
    text = encode({"return": [1, {}, [], {"a": [2]}], "id": "x"}, pretty=True).decode()
    assert text.split("\r\n") == [
        "{",
        '    "return": [',
        "        1,",
        "        {",
        "        },",
        "        [",
        "        ],",
        "        {",
        '            "a": [',
        "                2",
        "            ]",
        "        }",
        "    ],",
        '    "id": "x"',
        "}",
        "",
    ]


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        encode({"a": b"b"})
