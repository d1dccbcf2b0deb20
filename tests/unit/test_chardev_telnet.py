"""The telnet translator."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.telnet import BINARY, DO, DONT, ECHO, IAC, SB, SE, SUPPRESS_GO_AHEAD, WILL, WONT, Telnet


def plain(meaning: list[bytes | None]) -> bytes:
    return b"".join(part for part in meaning if part is not None)


def test_a_client_agrees_to_what_the_server_offers() -> None:
    server, client = Telnet(server=True), Telnet(server=False)
    assert client.greeting() == b""
    meaning, answer = client.decode(server.greeting())
    assert plain(meaning) == b""
    assert answer == bytes(
        [IAC, DO, ECHO, IAC, DO, SUPPRESS_GO_AHEAD, IAC, DO, BINARY, IAC, WILL, BINARY],
    )
    assert server.decode(answer) == ([], b""), "consent is not answered"


def test_what_a_client_refuses_is_given_up_once() -> None:
    server = Telnet(server=True)
    refusal = bytes([IAC, DONT, ECHO])
    assert server.decode(refusal) == ([], bytes([IAC, WONT, ECHO]))
    assert server.decode(refusal) == ([], b"")
    assert server.decode(bytes([IAC, WONT, BINARY])) == ([], bytes([IAC, DONT, BINARY]))


def test_unknown_options_are_refused() -> None:
    server = Telnet(server=True)
    assert server.decode(bytes([IAC, WILL, 31, IAC, DO, 24]))[1] == bytes([IAC, DONT, 31, IAC, WONT, 24])


def test_interrupt_and_break() -> None:
    assert Telnet(server=True).decode(b"a\xff\xf4b\xff\xf3\xff\xf3c") == ([b"a\x03b", None, None, b"c"], b"")


def test_sub_negotiations_mean_nothing() -> None:
    wire = b"a" + bytes([IAC, SB, 31, 0, IAC, IAC, 80, IAC, SE]) + b"b"
    assert Telnet(server=True).decode(wire) == ([b"ab"], b"")


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=50)), st.booleans())
def test_any_bytes_arrive_in_any_pieces(pieces: list[bytes], server: bool) -> None:
    text = b"".join(pieces)
    wire = bytes(Telnet.encode(text))
    decoder = Telnet(server=server)
    got = bytearray()
    for start in range(0, len(wire), 3):
        meaning, answer = decoder.decode(wire[start : start + 3])
        assert answer == b""
        got += plain(meaning)
    assert got == text


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from([255, 254, 253, 252, 251, 250, 243, 240, 0, 1, 3, 65]), max_size=20)))
def test_hostile_bytes(pieces: list[list[int]]) -> None:
    decoder = Telnet(server=True)
    for piece in pieces:
        meaning, answer = decoder.decode(bytes(piece))
        assert len(plain(meaning)) <= len(piece)
        assert len(answer) <= len(piece) + 2


@settings(max_examples=200)
@given(st.lists(st.sampled_from([65, 255]), max_size=30).map(bytes), st.data())
def test_short_counts(text: bytes, data: st.DataObject) -> None:
    """Whatever part of the wire bytes the kernel takes, what counts as taken plus half a pair is just that part."""
    wire = bytes(Telnet.encode(text))
    sent = data.draw(st.integers(0, len(wire)))
    taken, cut = Telnet.taken(wire, sent)
    assert wire[:sent] == bytes(Telnet.encode(text[:taken]))[: -1 if cut else None]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from([WILL, WONT, DO, DONT]), st.integers(0, 5)), max_size=20))
def test_two_sides_never_argue_for_ever(opening: list[tuple[int, int]]) -> None:
    server, client = Telnet(server=True), Telnet(server=False)
    to_client = bytes(byte for verb, option in opening for byte in (IAC, verb, option))
    for _ in range(20):
        to_server = client.decode(to_client)[1]
        to_client = server.decode(to_server)[1]
        if not to_client:
            return
    raise AssertionError("they still argue")
