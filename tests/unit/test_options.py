"""The key=value parser: what it reads, and what it refuses in whose words."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.errors import ConfigError
from pyvm.options import (
    Group,
    escape,
    is_identifier,
    parse,
    parse_boolean,
    parse_json_object,
    parse_number,
    parse_size,
)

FREE = Group("free", "first")
STRICT = Group("strict", "first", strict=True)
TYPED = Group(
    "typed",
    "path",
    {"path": "string", "server": "boolean", "wait": "boolean", "count": "number", "room": "size"},
    aliases={"size": "room"},
)

KEYS = st.text(string.ascii_letters + string.digits + "-_.", min_size=1, max_size=10).filter(lambda key: key != "id")


def test_parameters_keep_their_order_and_the_last_of_a_key_counts() -> None:
    options = parse(FREE, "a,x=1,y=2,x=3")
    assert options.pairs == [("first", "a"), ("x", "1"), ("y", "2"), ("x", "3")]
    assert options.get("x") == "3"
    assert options.values("x") == ["1", "3"]
    assert options.get("z") is None
    assert "y" in options
    assert "z" not in options


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a", [("first", "a")]),
        ("a,,b", [("first", "a,b")]),
        ("a,,,x=1", [("first", "a,"), ("x", "1")]),
        ("x=a,,b,,,,c", [("x", "a,b,,c")]),
        ("x=,y=", [("x", ""), ("y", "")]),
        ("x=1=2", [("x", "1=2")]),
        ("=5", [("", "5")]),
        ("a,", [("first", "a")]),
        ("x=1,first=b", [("x", "1"), ("first", "b")]),
    ],
)
def test_commas_and_equal_signs(text: str, pairs: list[tuple[str, str]]) -> None:
    assert parse(FREE, text).pairs == pairs


def test_a_key_alone_is_a_boolean_and_deprecated(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse(TYPED, "/tmp/s,server,nowait", "-chardev X")
    assert options.boolean("server") is True
    assert options.boolean("wait", True) is False
    assert capsys.readouterr().err.splitlines() == [
        "pyvm: -chardev X: warning: short-form boolean option 'server' deprecated; please use server=on instead",
        "pyvm: -chardev X: warning: short-form boolean option 'nowait' deprecated; please use wait=off instead",
    ]


def test_strict_options_have_no_keys_alone() -> None:
    with pytest.raises(ConfigError, match=r"^-M pc,usb: Expected '=' after parameter 'usb'$"):
        parse(STRICT, "pc,usb", "-M pc,usb")


def test_help_is_a_word_anywhere() -> None:
    assert parse(TYPED, "/x,help").asks_for_help
    assert parse(STRICT, "pc,?").asks_for_help
    assert not parse(TYPED, "/x").asks_for_help


def test_names_and_kinds_are_checked() -> None:
    for text, complaint in {
        "/x,foo=1": "Invalid parameter 'foo'",
        "/x,server=maybe": "Parameter 'server' expects 'on' or 'off'",
        "/x,count=-1": "Parameter 'count' expects a number",
        "/x,count=99999999999999999999999": ("Value '99999999999999999999999' is too large for parameter 'count'"),
        "/x,room=1x": (
            "Parameter 'room' expects a non-negative number below 2^64 (optional suffix k, M, G, T, P or E)"
        ),
        "/x,id=1a": "Parameter 'id' expects an identifier (letters, digits, '-', '.', '_', starting with a letter)",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parse(TYPED, text, "-o X")
        assert str(caught.value) == f"-o X: {complaint}"


def test_aliases_are_other_names_of_the_same_parameter() -> None:
    assert parse(TYPED, "/x,size=2k").size("room") == 2048


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [
        ("0", "B", 0),
        ("512", "M", 512 << 20),
        ("1k", "B", 1024),
        ("1K", "M", 1024),
        ("1.5G", "B", 3 << 29),
        ("0x10", "B", 16),
        ("0x10M", "B", 16 << 20),
        ("0x1E", "B", 0x1E),
        ("0x1B", "B", 0x1B),
        ("7B", "M", 7),
        ("16777215T", "B", 16777215 << 40),
        ("15E", "B", 15 << 60),
        ("0.5k", "B", 512),
        ("+1", "B", 1),
        ("1.k", "B", 1024),
    ],
)
def test_sizes(text: str, unit: str, size: int) -> None:
    assert parse_size("x", text, unit) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1 k", "1kk", "1.5", ".5", "1.5.5", "0x", "1e3", "٣", "0x1.8"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="expects a non-negative number"):
        parse_size("x", text)


def test_sizes_end_at_two_to_the_64() -> None:
    assert parse_size("x", str((1 << 64) - 1)) == (1 << 64) - 1
    for text in (str(1 << 64), "16E", "99999999999T"):
        with pytest.raises(ConfigError, match="out of range"):
            parse_size("x", text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("12", 12), ("0x1f", 31), ("0XFF", 255), ("18446744073709551615", (1 << 64) - 1), ("010", 8), (" 1", 1)],
)
def test_numbers(text: str, number: int) -> None:
    assert parse_number("x", text) == number


@pytest.mark.parametrize("text", ["", "-1", "x", "1x", "0x", "1_000", "0x1_0", "1 ", "08", "\u0661"])
def test_bad_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^Parameter 'x' expects a number$"):
        parse_number("x", text)


def test_booleans() -> None:
    assert [parse_boolean("x", text) for text in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_boolean("x", text) for text in ("off", "no", "false", "n")] == [False] * 4
    for text in ("", "ON", "1"):
        with pytest.raises(ConfigError, match=r"^Parameter 'x' expects 'on' or 'off'$"):
            parse_boolean("x", text)


def test_json_has_types_of_its_own() -> None:
    options = parse(TYPED, '{"path": "a,b", "server": true, "count": 3}')
    assert options.typed
    assert options.string("path") == "a,b"
    assert options.boolean("server") is True
    assert options.number("count") == 3
    for text, name, kind in (
        ('{"server": "on"}', "server", "boolean"),
        ('{"count": "3"}', "count", "integer"),
        ('{"count": true}', "count", "integer"),
        ('{"path": 5}', "path", "string"),
    ):
        with pytest.raises(ConfigError, match=f"^Invalid parameter type for '{name}', expected: {kind}$"):
            parse(TYPED, text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{driver", "JSON parse error"),
        ('{"a": 1} x', "at most one JSON value"),
        ('{"a": 1, "a": 2}', "duplicate key"),
        ("[" * 100_000, "JSON parse error"),
        ("[1]", "Expecting a JSON object"),
    ],
)
def test_bad_json(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_json_object(text)


def test_dotted_keys_make_structures() -> None:
    options = parse(STRICT, "raw,cache.direct=on,cache.no-flush=off,list.0=a,list.1.x=b,a.0.1=c")
    assert options.nested() == {
        "first": "raw",
        "cache": {"direct": "on", "no-flush": "off"},
        "list": ["a", {"x": "b"}],
        "a": [{"1": "c"}],
    }


@pytest.mark.parametrize("text", ["a.b=1,a=2", "a=1,a.b=2", "a..b=1", ".a=1", "a.=1", "=1", "a" * 200 + "=1"])
def test_inconsistent_dotted_keys(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(STRICT, text).nested()


def test_json_members_are_not_taken_apart() -> None:
    assert parse(STRICT, '{"a.b": 1, "c": {"0": "x"}}').nested() == {"a.b": 1, "c": {"0": "x"}}


def test_set_changes_a_parameter_and_is_checked() -> None:
    options = parse(TYPED, "/x,count=1", "-o /x,count=1")
    options.set("count", "7")
    assert options.number("count") == 7
    with pytest.raises(ConfigError, match="Invalid parameter 'foo'"):
        options.set("foo", "1")


def test_merge_lets_the_later_option_win_and_be_blamed() -> None:
    options = parse(TYPED, "/x,count=1", "-o first")
    options.merge(parse(TYPED, "count=2", "-o second"))
    assert (options.string("path"), options.number("count")) == ("/x", 2)
    assert str(options.error("wrong")) == "-o second: wrong"


@pytest.mark.parametrize(
    ("text", "valid"), [("a", True), ("a.b-c_9", True), ("1a", False), ("", False), ("a b", False), ("é", False)]
)
def test_identifiers(text: str, valid: bool) -> None:
    assert is_identifier(text) is valid


@given(st.lists(st.tuples(KEYS, st.text(max_size=20)), max_size=6))
@settings(max_examples=200)
def test_what_is_escaped_comes_back(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={escape(value)}" for key, value in pairs)
    assert parse(FREE, text).pairs == pairs


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    for group in (FREE, STRICT, TYPED):
        message = ""
        try:
            parse(group, text, "-o").nested()
        except ConfigError as error:
            message = str(error)
        assert "\n" not in message or "\n" in text


@given(st.text("0123456789abcdefxXkKmMgGtTpPeEbB.+-_ ", max_size=30))
@settings(max_examples=300)
def test_any_scalar_is_read_or_refused(text: str) -> None:
    for convert in (parse_size, parse_number, parse_boolean):
        try:
            value = convert("x", text)
        except ConfigError:
            continue
        assert 0 <= value < 1 << 64
