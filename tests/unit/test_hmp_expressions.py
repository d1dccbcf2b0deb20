"""Expressions and arguments of human monitor commands.  Expected values and messages are QEMU 7.2's."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.monitor.hmp.arguments import ArgumentError, ArgumentReader, Format, declare
from pyvm.monitor.hmp.expressions import ExpressionError, evaluate, wrap


def registers(name: str) -> int | None:
    return {"pc": 0xFFFFFFF0, "rax": 0xFFFFFFFFFFFFFFFF}.get(name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("0x1F", 31),
        ("010", 8),
        ("0", 0),
        ("'a'", 97),
        ("-1", -1),
        ("~1", -2),
        ("- -3", 3),
        ("+3", 3),
        ("1 - 1 - 1", -1),
        ("100 / 7 * 7", 98),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("(1+2)*3", 9),
        ("5^3|8&12", 12),
        ("1+2&2", 2),
        ("$pc", 0xFFFFFFF0),
        ("$rax", -1),
        ("0xffffffffffffffff", -1),
        ("0x7fffffffffffffff + 1", -(1 << 63)),
        ("0x8000000000000000 / -1", -(1 << 63)),
    ],
)
def test_values(text: str, value: int) -> None:
    assert evaluate(text, 0, registers) == (value, len(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unexpected end of expression"),
        ("1+", "unexpected end of expression"),
        ("(1", "')' expected"),
        ("x", "invalid char 'x' in expression"),
        (")", "invalid char ')' in expression"),
        ("''", "missing terminating ' character"),
        ("'ab'", "missing terminating ' character"),
        ("'", "character constant expected"),
        ("$", "unknown register"),
        ("$nosuch", "unknown register"),
        ("7/0", "division by zero"),
        ("7%0", "division by zero"),
        ("99999999999999999999", "number too large"),
        ("0x10000000000000000", "number too large"),
        ("9" * 5000, "number too large"),
        ("(" * 5000, "expression too complex"),
        ("-" * 5000 + "1", "expression too complex"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ExpressionError) as error:
        evaluate(text, 0, registers)
    assert str(error.value) == message


@pytest.mark.parametrize(("text", "rest"), [("1 2", "2"), ("08", "8"), ("0x", "x"), ("1<<2", "<<2"), ("10M", "M")])
def test_the_rest_is_left(text: str, rest: str) -> None:
    _, position = evaluate(text, 0, registers)
    assert text[position:] == rest


@settings(max_examples=200)
@given(st.text(alphabet="0123456789abcxM+-*/%&|^~()' $pc\t", max_size=40))
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    try:
        value, position = evaluate(text, 0, registers)
    except ExpressionError:
        return
    assert -(1 << 63) <= value < 1 << 63
    assert 0 < position <= len(text)


_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "&": operator.and_, "|": operator.or_}


@settings(max_examples=100)
@given(st.integers(0, (1 << 64) - 1), st.sampled_from(sorted(_OPERATORS)), st.integers(0, (1 << 64) - 1))
def test_arithmetic_wraps(left: int, name: str, right: int) -> None:
    expected = wrap(_OPERATORS[name](left, right))
    assert evaluate(f"{left:#x} {name} {right}", 0, registers)[0] == expected


def read(declaration: str, text: str) -> dict[str, object]:
    return ArgumentReader(text, 0, "name|n", registers, Format("o", 8)).read(declare(declaration))


@pytest.mark.parametrize(
    ("declaration", "text", "values"),
    [
        ("", "  ", {}),
        ("x:uint32", " 0xffffffff ", {"x": 0xFFFFFFFF}),
        ("x:uint32?", "  ", {"x": None}),
        ("x:int64", "-1", {"x": -1}),
        ("x:megabytes", "3", {"x": 3 << 20}),
        ("x:text?", " a  b ", {"x": "a  b "}),
        ("x:text?", "", {"x": None}),
        ("-a -b x:uint32?", "-b 1", {"a": False, "b": True, "x": 1}),
        ("-a -b", "-a -b", {"a": True, "b": True}),
        ("-a", "", {"a": False}),
        ("f:format x:int64", "1", {"f": Format("o", 8), "x": 1}),
        ("f:format x:int64", "/x 1", {"f": Format("x", 8), "x": 1}),
        ("f:format x:int64", "/12hd 1", {"f": Format("d", 2, 12), "x": 1}),
        ("f:format x:int64", "/ 1", {"f": Format("o", 8), "x": 1}),
    ],
)
def test_arguments(declaration: str, text: str, values: dict[str, object]) -> None:
    assert read(declaration, text) == values


@pytest.mark.parametrize(
    ("declaration", "text", "message"),
    [
        ("", "x", "name|n: extraneous characters at the end of line"),
        ("x:uint32", "1 2", "name|n: extraneous characters at the end of line"),
        ("x:uint32", "-1", "'name|n' has failed: integer is for 32-bit values"),
        ("x:uint32", "0x100000000", "'name|n' has failed: integer is for 32-bit values"),
        ("x:megabytes", "-5", "enter a positive value"),
        ("-a", "-z", "name|n: unsupported option -z"),
        ("-a", "-", "name|n: unsupported option -"),
        ("-a", "-ab", "name|n: extraneous characters at the end of line"),
        ("f:format x:int64", "/q 1", "invalid char in format: 'q'"),
    ],
)
def test_wrong_arguments(declaration: str, text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        read(declaration, text)
    assert str(error.value) == message


@settings(max_examples=200)
@given(st.text(alphabet="-ab/xdw1 (+'$", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        values = read("-a -b f:format x:int64 y:uint32?", text)
    except (ArgumentError, ExpressionError):
        return
    assert values.keys() == {"a", "b", "f", "x", "y"}


@pytest.mark.parametrize("text", ["x", "x:nothing", "--a", "x:uint32??"])
def test_wrong_declarations(text: str) -> None:
    with pytest.raises(ValueError, match=r"declaration|Kind"):
        declare(text)
