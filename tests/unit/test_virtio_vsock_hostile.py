"""virtio-vsock: guests that do not keep to the rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.virtio import vsock_packets as p
from tests.unit.virtio_driver import SplitDriver
from tests.unit.vsock_rig import CID, PORT, RX, TX, Guest, Stream


class TestHostileGuests:
    def test_packets_of_nobody(self) -> None:
        guest = Guest(buffers=8)
        guest.raw(b"short")
        guest.send(p.OP_REQUEST, source=CID + 1)
        guest.send(p.OP_REQUEST, target=9)
        guest.send(p.OP_RST)
        assert guest.ops() == []
        assert not guest.streams
        for op in (p.OP_RESPONSE, p.OP_RW, p.OP_SHUTDOWN, p.OP_CREDIT_UPDATE, p.OP_CREDIT_REQUEST, p.OP_INVALID, 99):
            guest.send(op)
            assert guest.ops() == [p.OP_RST], op
        guest.send(p.OP_REQUEST, kind=p.TYPE_SEQPACKET)
        assert guest.ops() == [p.OP_RST]

    @pytest.mark.parametrize("op", [p.OP_INVALID, p.OP_REQUEST, p.OP_RESPONSE, 8, 0xFFFF])
    def test_operation_at_the_wrong_time(self, op: int) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        guest.send(op)
        assert stream.closed
        assert guest.ops() == [p.OP_RST]

    def test_length_beyond_the_packet(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        guest.send(p.OP_RW, b"abc", length=1 << 30)
        assert stream.closed
        assert stream.taken == b""

    def test_buffer_that_is_too_small_breaks_the_device(self) -> None:
        guest = Guest()
        guest.h.rings[RX].add(writable=[10])
        guest.send(p.OP_REQUEST, to=81)
        assert guest.device.broken
        assert guest.h.errors == ["virtio-vsock: a buffer is too small for a packet"]

    def test_answers_do_not_pile_up(self) -> None:
        guest = Guest()
        sent = 0
        while isinstance(ring := guest.h.rings[TX], SplitDriver) and len(ring.free) > 1:
            guest.send(p.OP_RW, port=sent)
            sent += 1
        assert len(guest.device._replies) == 256
        refused = 0
        while refused < sent:
            guest.offer(60)
            guest.clock.advance(1)
            found = guest.ops()
            assert found
            refused += len(found)

    def test_connections_do_not_pile_up(self) -> None:
        guest = Guest()
        found = []
        for port in range(600):
            guest.offer(1)
            guest.send(p.OP_REQUEST, port=port)
            found += guest.ops()
        assert found.count(p.OP_RESPONSE) == len(guest.device.connections) == 512
        assert found.count(p.OP_RST) == 88
        assert guest.device.connect(Stream(), 1) is None

    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("raw"), st.binary(max_size=80), st.just(0), st.just(0)),
                st.tuples(st.just("op"), st.binary(max_size=30), st.integers(0, 9), st.integers(0, 3)),
                st.tuples(st.just("room"), st.just(b""), st.integers(0, 1 << 32), st.integers(0, 1 << 32)),
                st.tuples(st.just("host"), st.binary(max_size=9000), st.integers(0, 3), st.integers(0, 9)),
                st.tuples(st.just("offer"), st.just(b""), st.integers(1, 4), st.integers(1, 5000)),
                st.tuples(st.just("save"), st.just(b""), st.just(0), st.just(0)),
            ),
            max_size=30,
        )
    )
    def test_nothing_gets_out_of_hand(self, steps: list[tuple[str, bytes, int, int]]) -> None:
        guest = Guest(buffers=2)
        guest.send(p.OP_REQUEST)
        for kind, data, one, two in steps:
            if kind == "raw":
                guest.raw(data or b"?")
            elif kind == "op":
                guest.send(one, data, flags=two, port=PORT + (two & 1))
            elif kind == "room":
                guest.room, guest.forwarded = one & 0xFFFFFFFF, two & 0xFFFFFFFF
            elif kind == "offer":
                guest.offer(one, two)
            elif kind == "save":
                guest.device.load(guest.device.save())
            else:
                self.host_step(guest, data, one, two)
            guest.clock.advance(1)
            guest.packets()
        assert guest.device.running
        assert len(guest.device.connections) <= 2 + sum(kind == "host" for kind, *_ in steps)

    @staticmethod
    def host_step(guest: Guest, data: bytes, one: int, two: int) -> None:
        if one == 0:
            guest.device.connect(Stream(), two)
        for stream in [stream for stream in guest.streams if not stream.closed]:
            assert stream.connection is not None
            stream.output += data
            stream.ended = two == 9
            stream.room = one * 100
            guest.device.host_writable(stream.connection)
            guest.readable(stream)
