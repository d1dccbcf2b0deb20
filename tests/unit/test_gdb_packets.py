"""Packets of GDB's remote serial protocol."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.monitor.gdb.packets import PACKET_SIZE, PacketReader, Signal, escaped, frame, from_hex, unescaped, unsigned

_PLAIN = st.binary(max_size=60).map(lambda data: data.replace(b"$", b"").replace(b"#", b""))


def test_a_packet_carries_the_sum_of_its_bytes() -> None:
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"") == b"$#00"
    assert PacketReader().feed(b"$OK#9a") == [b"OK"]
    assert PacketReader().feed(b"$OK#9A$#00") == [b"OK", b""]


def test_what_is_between_packets_are_signals_or_nothing() -> None:
    assert PacketReader().feed(b"+-\x03xyz\n$#00") == [Signal.ACK, Signal.NACK, Signal.INTERRUPT, b""]


def test_an_interrupt_in_a_packet_is_data() -> None:
    assert PacketReader().feed(frame(b"X0,1:\x03+-")) == [b"X0,1:\x03+-"]


def test_damaged_packets_are_told_and_the_next_is_read() -> None:
    assert PacketReader().feed(b"$OK#9b$OK#zz$OK#9a") == [Signal.DAMAGED, Signal.DAMAGED, b"OK"]


def test_a_packet_that_begins_anew_forgets_what_was_before() -> None:
    assert PacketReader().feed(b"$abc$OK#9a") == [b"OK"]


def test_a_packet_may_be_as_long_as_agreed() -> None:
    longest = b"a" * PACKET_SIZE
    assert PacketReader().feed(frame(longest)) == [longest]
    assert PacketReader().feed(frame(longest + b"a") + frame(b"?")) == [Signal.TOO_LONG, b"?"]


@settings(max_examples=60)
@given(st.lists(st.one_of(_PLAIN.map(frame), st.sampled_from([b"+", b"-", b"\x03"]))), st.integers(1, 9))
def test_however_a_stream_is_cut_the_same_comes_out(parts: list[bytes], size: int) -> None:
    stream = b"".join(parts)
    whole = PacketReader().feed(stream)
    reader = PacketReader()
    pieces = [item for at in range(0, len(stream), size) for item in reader.feed(stream[at : at + size])]
    assert pieces == whole
    assert len(whole) == len(parts)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_bytes_can_come(pieces: list[bytes]) -> None:
    reader = PacketReader()
    for piece in pieces:
        for item in reader.feed(piece):
            assert isinstance(item, Signal) or len(item) <= PACKET_SIZE
    assert reader.feed(b"#00" + frame(b"?"))[-1] == b"?"


@settings(max_examples=60)
@given(st.binary(max_size=100))
def test_binary_data_goes_through(data: bytes) -> None:
    carried = escaped(data)
    assert not set(carried) & set(b"$#*")
    assert unescaped(carried) == data
    assert PacketReader().feed(frame(carried)) == [carried]


def test_an_escape_needs_a_byte() -> None:
    assert unescaped(b"a}") is None
    assert unescaped(b"}]}") is None
    assert unescaped(b"}]a") == b"}a"


def test_numbers_are_digits_and_fit() -> None:
    assert unsigned(b"ffffFFFFffffFFFF") == (1 << 64) - 1
    assert unsigned(b"1f", 8) == 31
    for wrong in (b"", b"-1", b"+1", b"0x1", b"1_0", b" 1", b"g", b"1" * 17, b"\xb2"):
        assert unsigned(wrong) is None, wrong


def test_hexadecimal_data_are_pairs_of_digits() -> None:
    assert from_hex(b"") == b""
    assert from_hex(b"00fF") == b"\x00\xff"
    for wrong in (b"0", b"0x", b"0 0 ", b"zz"):
        assert from_hex(wrong) is None, wrong
