"""Long strings: what takes the fast path must be what the exact path says."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.json import text as json_text
from pyvm.json.text import TextError, decode_lossy, quote, unescape

PIECES = st.sampled_from(
    [
        *(b"a", b"bcdefghij", b"\\\\", b"\\n", b"\\/", b"\\'", b'\\"', b"\\u0041", b"\\u00e9", b"\\u0000"),
        *(
            b"\\uD834\\uDD1E",
            b"\\ud834\\udd1e",
            "é".encode(),
            "€".encode(),
            "\U0001d11e".encode(),
            b"\xc0\x80",
            b"\x7f",
        ),
    ]
)
WRONG = st.sampled_from([b"\\uD834", b"\\uDD1E", b"\\x", b"\\u12G4", b"\\uFFFE", b"\xff", b"\xc3", "\ufdd0".encode()])


def outcome(token: bytes) -> str:
    try:
        return unescape(token)
    except TextError as error:
        return f"error: {error}"


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60), st.lists(WRONG, max_size=1), st.integers(0, 60), st.sampled_from([b'"', b"'"]))
def test_fast_is_exact(parts: list[bytes], wrong: list[bytes], place: int, mark: bytes) -> None:
    parts[place:place] = wrong
    token = mark + b"".join(parts) + mark
    exact = outcome(token)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "LONG", 24)
        fast = outcome(token)
    assert fast == exact


@settings(max_examples=100)
@given(st.text(max_size=80))
def test_long_text_out_is_the_same_to_a_reader(text: str) -> None:
    short = quote(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "LONG", 1)
        long = quote(text)
    assert json.loads(long) == json.loads(short)
    assert long.isascii()


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_long_text_that_is_none(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "LONG", 1)
        long = decode_lossy(data)
    assert long.encode("utf-8").decode("utf-8") == long
    assert "\0" not in long


@pytest.mark.parametrize("unit", [b"\\u00e9", b"\\n", b"\\'", b"\\\\", "é".encode(), b"\x7f", b"a\\u0000"])
def test_no_long_string_takes_long(unit: bytes) -> None:
    token = b'"' + unit * ((4 << 20) // len(unit)) + b'"'
    start = time.thread_time()
    quote(unescape(token))
    assert time.thread_time() - start < 2, "some seconds a mebibyte is what this is to rule out"
