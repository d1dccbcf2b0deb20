"""virtio-vsock: connections both ways, credit, shutdown and saved states."""

from __future__ import annotations

import pytest

from pyvm.clock import ManualClock
from pyvm.devices.virtio import vsock_packets as p
from pyvm.devices.virtio.vsock import VirtioVsock, VsockState
from pyvm.devices.virtio.vsock_connection import ROOM
from pyvm.state import StateError
from tests.unit.virtio_driver import start
from tests.unit.vsock_rig import CID, EVENT, PORT, Guest, Stream


@pytest.mark.parametrize("cid", [0, 2, 0xFFFFFFFF, 1 << 40])
def test_impossible_guests(cid: int) -> None:
    with pytest.raises(ValueError, match="guest-cid property must be"):
        VirtioVsock(ManualClock(), cid, lambda port: None)


def test_configuration_space() -> None:
    guest = Guest()
    assert guest.device.config_read(0, 4) == CID
    assert guest.device.config_read(4, 4) == 0
    assert guest.device.config_size == 8


@pytest.mark.parametrize("packed", [False, True])
def test_guest_connects_and_talks(packed: bool) -> None:
    guest = Guest(packed=packed, buffers=8)
    guest.send(p.OP_REQUEST)
    ((header, data),) = guest.packets()
    assert header == (p.HOST_CID, CID, 80, PORT, 0, p.TYPE_STREAM, p.OP_RESPONSE, 0, ROOM, 0)
    assert data == b""
    (stream,) = guest.streams
    guest.send(p.OP_RW, b"hello")
    assert stream.taken == b"hello"
    stream.output += b"x" * 5000
    assert guest.readable(stream)
    found = guest.packets()
    assert b"".join(data for _, data in found) == b"x" * 5000
    assert all(header[:4] == (p.HOST_CID, CID, 80, PORT) and header.op == p.OP_RW for header, _ in found)
    assert found[-1][0].fwd_cnt == 5


def test_nobody_serves_the_port() -> None:
    guest = Guest(buffers=4)
    guest.send(p.OP_REQUEST, to=81)
    ((header, _),) = guest.packets()
    assert (header.op, header.src_port, header.dst_port) == (p.OP_RST, 81, PORT)
    assert not guest.device.connections


def test_host_connects() -> None:
    guest = Guest(buffers=4)
    stream = guest.called(5)
    assert stream.port is not None
    assert stream.waiting
    guest.send(p.OP_RW, b"ready", port=5, to=stream.port)
    assert stream.taken == b"ready"
    other = guest.called(5)
    assert other.port not in (None, stream.port)


def test_guest_refuses() -> None:
    guest = Guest(buffers=4)
    stream = Stream()
    connection = guest.device.connect(stream, 5)
    assert connection is not None
    guest.send(p.OP_RST, port=5, to=connection.host_port)
    assert stream.closed
    assert stream.port is None
    assert guest.ops() == [p.OP_REQUEST]


def test_no_driver_no_connection() -> None:
    guest = Guest()
    guest.device.set_status(0)
    assert guest.device.connect(Stream(), 5) is None


def test_guest_that_takes_nothing_is_not_asked_for_ever() -> None:
    guest = Guest()
    made = 0
    while (connection := guest.device.connect(Stream(), 5)) is not None:
        guest.device.abort(connection)
        made += 1
        assert made < 1000
    heard: list[int] = []
    while len(heard) < 2 * made:
        guest.offer(50)
        heard += guest.ops()
    assert heard == [p.OP_REQUEST, p.OP_RST] * made
    assert guest.device.connect(Stream(), 5) is not None


def test_host_sends_no_more_than_the_guest_has_room_for() -> None:
    guest = Guest(buffers=64)
    guest.room = 10_000
    stream = guest.connected()
    stream.output += bytes(range(256)) * 100
    assert not guest.readable(stream)
    got = b"".join(data for _, data in guest.packets())
    assert len(got) == 10_000
    guest.forwarded = 6000
    guest.send(p.OP_CREDIT_UPDATE)
    got += b"".join(data for _, data in guest.packets())
    assert len(got) == 16_000
    guest.forwarded = 16_000
    guest.room = 1 << 20
    guest.send(p.OP_CREDIT_UPDATE)
    got += b"".join(data for _, data in guest.packets())
    assert got == bytes(range(256)) * 100
    assert stream.waiting


def test_credit_counters_wrap_around() -> None:
    guest = Guest(buffers=4)
    stream = guest.connected()
    assert stream.connection is not None
    stream.connection._sent = (1 << 32) - 2
    guest.forwarded = (1 << 32) - 2
    guest.send(p.OP_CREDIT_UPDATE)
    stream.output += b"abcd"
    guest.readable(stream)
    assert [data for _, data in guest.packets()] == [b"abcd"]
    assert stream.connection.credit == ROOM - 4


def test_guest_without_buffers_is_waited_for() -> None:
    guest = Guest(buffers=1)
    stream = guest.connected()
    stream.output += b"later"
    assert not guest.readable(stream)
    guest.offer(1)
    assert [data for _, data in guest.packets()] == [b"later"]
    assert stream.waiting


def test_slow_host_program_keeps_the_guest_waiting() -> None:
    guest = Guest(buffers=32)
    stream = guest.connected()
    stream.room = 1000
    for _ in range(ROOM // 65536):
        guest.send(p.OP_RW, b"y" * 65536)
    assert len(stream.taken) == 1000
    guest.ops()
    stream.room = 1 << 40
    assert stream.connection is not None
    guest.device.host_writable(stream.connection)
    assert stream.taken == b"y" * ROOM
    ((header, _),) = guest.packets()
    assert (header.op, header.fwd_cnt) == (p.OP_CREDIT_UPDATE, ROOM)


def test_guest_that_sends_more_than_there_is_room_for() -> None:
    guest = Guest(buffers=8)
    stream = guest.connected()
    stream.room = 0
    for _ in range(ROOM // 65536):
        guest.send(p.OP_RW, b"y" * 65536)
    assert not stream.closed
    guest.send(p.OP_RW, b"z")
    assert stream.closed
    assert guest.ops()[-1] == p.OP_RST
    assert not guest.device.connections


def test_guest_is_told_of_room_in_time() -> None:
    guest = Guest(buffers=64)
    guest.connected()
    told = 0
    for count in range(1, 40):
        guest.send(p.OP_RW, b"y" * 32768)
        for header, _ in guest.packets():
            told = header.fwd_cnt
        assert count * 32768 - told < ROOM, "the guest would wait for ever"


def test_credit_is_told_when_asked_for() -> None:
    guest = Guest(buffers=8)
    guest.connected()
    guest.send(p.OP_RW, b"abc")
    assert guest.ops() == []
    guest.send(p.OP_CREDIT_REQUEST)
    ((header, _),) = guest.packets()
    assert (header.op, header.buf_alloc, header.fwd_cnt) == (p.OP_CREDIT_UPDATE, ROOM, 3)


class TestTheEnd:
    def test_guest_closes(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        guest.send(p.OP_RW, b"bye")
        guest.send(p.OP_SHUTDOWN, flags=p.SHUTDOWN_BOTH)
        assert (stream.taken, stream.closed) == (b"bye", True)
        assert guest.ops() == [p.OP_RST]
        assert not guest.device.connections

    def test_what_the_guest_sent_before_arrives(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        stream.room = 0
        guest.send(p.OP_RW, b"last words")
        guest.send(p.OP_SHUTDOWN, flags=p.SHUTDOWN_BOTH)
        guest.send(p.OP_RST)
        assert not stream.closed
        stream.room = 100
        assert stream.connection is not None
        guest.device.host_writable(stream.connection)
        assert (stream.taken, stream.closed) == (b"last words", True)

    def test_half_closed_by_the_guest(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        guest.send(p.OP_SHUTDOWN, flags=p.SHUTDOWN_SEND)
        assert stream.finished
        assert not stream.closed
        stream.output += b"answer"
        guest.readable(stream)
        assert [data for _, data in guest.packets()] == [b"answer"]
        guest.send(p.OP_RW, b"no more")
        assert guest.ops() == [p.OP_RST]

    @pytest.mark.parametrize("gone", [False, True])
    def test_host_program_ends(self, gone: bool) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        stream.output += b"result"
        stream.ended, stream.gone = True, gone
        guest.readable(stream)
        guest.readable(stream)
        (data, end) = guest.packets()
        assert data[1] == b"result"
        assert end[0].op == p.OP_SHUTDOWN
        assert end[0].flags == (p.SHUTDOWN_BOTH if gone else p.SHUTDOWN_SEND)
        guest.send(p.OP_RST)
        assert stream.closed

    def test_host_program_goes_after_its_output_ended(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        stream.ended = True
        guest.readable(stream)
        assert guest.ops() == [p.OP_SHUTDOWN]
        stream.broken = True
        guest.send(p.OP_RW, b"lost")
        ((header, _),) = guest.packets()
        assert (header.op, header.flags) == (p.OP_SHUTDOWN, p.SHUTDOWN_BOTH)

    def test_device_reset(self) -> None:
        guest = Guest(buffers=8)
        stream = guest.connected()
        guest.device.set_status(0)
        assert stream.closed
        assert not guest.device.connections


class TestRestore:
    @staticmethod
    def restore(guest: Guest, saved: VsockState) -> None:
        guest.device.pause()
        guest.device.load(saved)
        guest.device.resume()

    def test_connections_are_reset(self) -> None:
        guest = Guest(buffers=8)
        guest.h.rings[EVENT].add(writable=[4])
        guest.h.kick(EVENT)
        streams = [guest.connected(), guest.called(5)]
        guest.ops()
        saved = guest.device.save()
        assert not any(stream.closed for stream in streams)
        assert VsockState.from_dict(saved.to_dict()) == saved
        self.restore(guest, saved)
        assert all(stream.closed for stream in streams)
        found = {(header.op, header.dst_port, header.src_port) for header, _ in guest.packets()}
        assert found == {(p.OP_RST, PORT, 80), (p.OP_RST, 5, streams[1].port)}
        assert guest.h.rings[EVENT].collect() == []
        guest.send(p.OP_RW, b"old")
        assert guest.ops() == [p.OP_RST]
        assert guest.connected() not in streams

    def test_answers_that_waited(self) -> None:
        guest = Guest()
        guest.send(p.OP_REQUEST, to=81)
        self.restore(guest, guest.device.save())
        guest.offer(2)
        assert guest.ops() == [p.OP_RST]

    def test_guest_with_another_number(self) -> None:
        guest = Guest()
        saved = guest.device.save()
        saved.guest_cid = 99
        self.restore(guest, saved)
        saved = guest.device.save()
        assert saved.guest_cid == CID
        assert saved.reset_due
        self.restore(guest, saved)
        guest.h.rings[EVENT].add(writable=[8])
        guest.h.kick(EVENT)
        (event,) = guest.h.rings[EVENT].collect()
        assert event.data(guest.h.memory) == bytes(4)
        guest.h.rings[EVENT].add(writable=[8])
        guest.h.kick(EVENT)
        assert guest.h.rings[EVENT].collect() == []

    def test_no_driver_no_event(self) -> None:
        device = VirtioVsock(ManualClock(), CID, lambda port: None)
        h = start(device, driver_ok=False)
        saved = device.save()
        saved.guest_cid = 99
        device.load(saved)
        h.rings[EVENT].add(writable=[4])
        h.kick(EVENT)
        assert h.rings[EVENT].collect() == []

    def test_wrong_state(self) -> None:
        for change in ({"features": 1 << 5}, {"connections": [[1, 1 << 32]]}, {"connections": [[1]]}):
            state = Guest().device.save()
            for name, value in change.items():
                setattr(state, name, value)
            with pytest.raises(StateError):
                Guest().device.load(state)
