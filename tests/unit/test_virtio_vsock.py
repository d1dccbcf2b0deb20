"""virtio-vsock: connections both ways, credit, shutdown, hostile guests, and the unix sockets on the host."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import ChardevError
from pyvm.clock import ManualClock
from pyvm.devices.virtio import vsock_packets as p
from pyvm.devices.virtio.pci import VirtioPci
from pyvm.devices.virtio.vsock import VirtioVsock, VsockState
from pyvm.devices.virtio.vsock_connection import ROOM, VsockConnection
from pyvm.mainloop import MainLoop
from pyvm.native import Vector
from pyvm.net.vsock import VsockHost
from pyvm.runstate import ShutdownCause
from pyvm.state import StateError
from tests.unit.chardev_support import is_quiet, run_until, running_loop, settle
from tests.unit.machine_rig import Machine, shared
from tests.unit.virtio_driver import Harness, SplitDriver, make_memory, start

CID = 7
RX, TX, EVENT = range(3)
PORT = 1000
"""The guest's, in connections that it makes."""


class Stream:
    """The host program's end: what it wrote waits in `output`; of what the guest writes it takes `room` bytes."""

    def __init__(self) -> None:
        self.broken = False
        self.room = 1 << 40
        self.taken = bytearray()
        self.output = bytearray()
        self.ended = False
        self.gone = False
        self.waiting = False
        self.port: int | None = None
        self.finished = False
        self.closed = False
        self.connection: VsockConnection | None = None

    def attach(self, connection: VsockConnection) -> None:
        self.connection = connection

    def write(self, data: Vector) -> int:
        return self.write_bytes(b"".join(data))

    def write_bytes(self, data: bytes) -> int:
        done = min(self.room, len(data))
        self.taken += data[:done]
        self.room -= done
        return done

    def read_into(self, buffers: Vector) -> int | None:
        if not self.output:
            return 0 if self.ended else None
        count = min(len(self.output), buffers.nbytes)
        done = 0
        for segment in buffers.span(0, count):
            segment[:] = self.output[done : done + len(segment)]
            done += len(segment)
        del self.output[:count]
        return count

    def wait_readable(self) -> None:
        self.waiting = True

    def hung_up(self) -> bool:
        return self.gone

    def accepted(self, host_port: int) -> None:
        self.port = host_port

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True


class Guest:
    """A driver of the device, and programs on the host: port 80 is served, others are not."""

    def __init__(self, *, packed: bool = False, buffers: int = 0) -> None:
        self.clock = ManualClock()
        self.streams: list[Stream] = []
        self.device = VirtioVsock(self.clock, CID, self._serve)
        self.h: Harness = start(self.device, p.F_STREAM, packed=packed, memory=make_memory(16 << 20))
        self.forwarded = 0
        self.room = ROOM
        self.offer(buffers)

    def _serve(self, port: int) -> Stream | None:
        if port != 80:
            return None
        self.streams.append(Stream())
        return self.streams[-1]

    def offer(self, count: int, size: int = 4096) -> None:
        for _ in range(count):
            self.h.rings[RX].add(writable=[p.HEADER.size, size])
        if count:
            self.h.kick(RX)

    def send(
        self, op: int, data: bytes = b"", *, port: int = PORT, to: int = 80, flags: int = 0, length: int | None = None,
        kind: int = p.TYPE_STREAM, source: int = CID, target: int = p.HOST_CID,
    ) -> None:  # fmt: skip
        size = len(data) if length is None else length
        head = p.HEADER.pack(source, target, port, to, size, kind, op, flags, self.room, self.forwarded)
        self.raw(head, data)

    def raw(self, *parts: bytes) -> None:
        self.h.rings[TX].add([part for part in parts if part])
        self.h.kick(TX)
        self.h.rings[TX].collect()

    def packets(self) -> list[tuple[p.Header, bytes]]:
        """Return what the device has sent since the last time."""
        found = []
        for buffer in self.h.rings[RX].collect():
            data = buffer.data(self.h.memory)
            header = p.Header(*p.HEADER.unpack_from(data))
            assert len(data) == p.HEADER.size + header.length
            found.append((header, data[p.HEADER.size :]))
        return found

    def ops(self) -> list[int]:
        return [header.op for header, _ in self.packets()]

    def connected(self) -> Stream:
        """Connect to port 80 of the host."""
        self.send(p.OP_REQUEST)
        assert self.ops() == [p.OP_RESPONSE]
        return self.streams[-1]

    def called(self, port: int = 5) -> Stream:
        """Let a program on the host connect to a port of the guest, which accepts."""
        stream = Stream()
        assert self.device.connect(stream, port) is not None
        ((header, _),) = self.packets()
        assert header.op == p.OP_REQUEST
        self.send(p.OP_RESPONSE, port=port, to=header.src_port)
        return stream

    def readable(self, stream: Stream) -> bool:
        assert stream.connection is not None
        stream.waiting = self.device.host_readable(stream.connection)
        return stream.waiting


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


class Device:
    """Stands in for the device: remembers what programs on the host ask for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.streams: list[object] = []
        self.aborted = 0
        self.readable = 0

    def connect(self, stream: object, guest_port: int) -> VsockConnection | None:
        self.asked.append(guest_port)
        if guest_port == 99:
            return None
        self.streams.append(stream)
        connection = VsockConnection(guest_port, 1 << 30, stream, "requested")  # type: ignore[arg-type]
        stream.attach(connection)  # type: ignore[attr-defined]
        return connection

    def abort(self, connection: VsockConnection) -> None:
        self.aborted += 1

    def host_readable(self, connection: VsockConnection) -> bool:
        self.readable += 1
        return False

    def host_writable(self, connection: VsockConnection) -> None:
        pass


class TestHostSide:
    @pytest.fixture
    def loop(self) -> Iterator[MainLoop]:
        with running_loop() as loop:
            yield loop

    @pytest.fixture
    def device(self) -> Device:
        return Device()

    @pytest.fixture
    def host(self, loop: MainLoop, device: Device, tmp_path: Path) -> Iterator[VsockHost]:
        host = VsockHost(loop, str(tmp_path / "v.sock"), device)
        yield host
        host.close()
        assert os.listdir(tmp_path) in ([], ["v.sock_80"])

    @staticmethod
    def program(tmp_path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(str(tmp_path / "v.sock"))
        return connection

    def test_program_is_connected(self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path) -> None:
        with self.program(tmp_path) as program:
            program.sendall(b"CONN")
            settle(loop)
            assert is_quiet(loop)
            program.sendall(b"ECT 1234\nearly data")
            run_until(loop, lambda: bool(device.asked))
            assert device.asked == [1234]
            (stream,) = device.streams
            stream.accepted(77)  # type: ignore[attr-defined]
            assert program.recv(100) == b"OK 77\n"
            buffers = Vector(memoryview(bytearray(100)), [(0, 0, 100)])
            assert stream.read_into(buffers) == 10  # type: ignore[attr-defined]
            assert bytes(buffers[0][:10]) == b"early data"
            assert stream.read_into(buffers) is None  # type: ignore[attr-defined]
            stream.wait_readable()  # type: ignore[attr-defined]
            program.sendall(b"x")
            run_until(loop, lambda: device.readable == 1)
            assert is_quiet(loop), "the device has not asked for more"

    @pytest.mark.parametrize(
        "line", [b"\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"HELLO 5\n", b"x" * 40, b"CONNECT 99\n"]
    )
    def test_program_is_turned_away(
        self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path, line: bytes
    ) -> None:
        with self.program(tmp_path) as program:
            program.sendall(line)
            run_until(loop, lambda: not host.greetings and not host.streams and bool(loop))
            settle(loop)
            if not host.greetings:
                try:
                    assert program.recv(100) == b""
                except ConnectionResetError:
                    pass
        assert device.asked in ([], [99])

    def test_end_of_the_program_is_told_from_the_end_of_its_output(
        self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path
    ) -> None:
        program = self.program(tmp_path)
        program.sendall(b"CONNECT 1\n")
        run_until(loop, lambda: bool(device.asked))
        (stream,) = device.streams
        program.shutdown(socket.SHUT_WR)
        buffers = Vector(memoryview(bytearray(100)), [(0, 0, 100)])
        assert stream.read_into(buffers) == 0  # type: ignore[attr-defined]
        assert not stream.hung_up()  # type: ignore[attr-defined]
        program.close()
        assert stream.hung_up()  # type: ignore[attr-defined]
        assert stream.write(buffers) == 100  # type: ignore[attr-defined]
        assert stream.broken  # type: ignore[attr-defined]

    def test_guest_reaches_what_serves_a_port(self, host: VsockHost, loop: MainLoop, tmp_path: Path) -> None:
        assert host.connect(80) is None
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            stream = host.connect(80)
            assert stream is not None
            program, _ = server.accept()
            with program:
                assert stream.write_bytes(b"from the guest") == 14
                assert program.recv(100) == b"from the guest"
                stream.finish()
                assert program.recv(100) == b""
                stream.close()
            settle(loop)
            assert not host.streams

    def test_no_descriptor_is_left_for_the_guest(self, host: VsockHost, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            try:
                assert host.connect(80) is None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_slow_program(self, host: VsockHost, loop: MainLoop, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            stream = host.connect(80)
            assert stream is not None
            program, _ = server.accept()
            with program:
                data = memoryview(bytearray(1 << 20))
                done = stream.write(Vector(data, [(0, 0, 1 << 20)]))
                assert 0 < done < 1 << 20
                told: list[int] = []
                host.device.host_writable = told.append  # type: ignore[method-assign, assignment]
                stream.attach(object())  # type: ignore[arg-type]
                assert is_quiet(loop)
                left = done
                while left:
                    left -= len(program.recv(1 << 20))
                run_until(loop, lambda: bool(told))
                assert is_quiet(loop)
            stream.close()

    def test_path_in_use(self, host: VsockHost, loop: MainLoop, device: Device, tmp_path: Path) -> None:
        with pytest.raises(ChardevError, match="Address already in use"):
            VsockHost(loop, str(tmp_path / "v.sock"), device)


class TestMachine:
    """The device on a board."""

    def test_it_comes_and_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sock"
        with Machine("-device", f"virtio-vsock-pci,guest-cid=3,uds={path},id=v0") as machine:
            assert path.is_socket()
            status = machine.execute("x-query-virtio-status", path="/machine/peripheral/v0/virtio-backend")
            assert (status["name"], status["device-id"], status["num-vqs"]) == ("virtio-vsock", 19, 3)
            offered = status["host-features"]["dev-features"]
            assert offered == ["VIRTIO_VSOCK_F_STREAM: SOCK_STREAM supported"]
            assert machine.get("/machine/peripheral/v0", "guest-cid") == 3
            (function,) = (
                device.made
                for device in machine.pc.plugger.plugged.devices
                if device.config.driver == "virtio-vsock-pci"
            )
            assert isinstance(function, VirtioPci)
            assert function.config_read(2, 2) == 0x1040 + 19, "modern only"
            machine.execute("device_del", id="v0")
            with machine.pc.lock:
                machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
                machine.pc.mainloop.loop.run_until_complete(asyncio.sleep(0))
            assert not path.exists()
            assert not machine.pc.plugger.plugged.vsock_hosts
            machine.execute("device_add", **{"driver": "virtio-vsock-pci", "guest-cid": 4, "uds": str(path)})
            assert path.is_socket()
        assert not path.exists()

    @pytest.mark.parametrize(
        ("properties", "error"),
        [
            ({"uds": "x"}, "guest-cid property must be greater than 2"),
            ({"guest-cid": 1 << 32, "uds": "x"}, "guest-cid property must be a 32-bit number"),
            ({"guest-cid": 3}, "uds property must be the path of a socket for programs on the host"),
            ({"guest-cid": 3, "uds": "/no/dir/s"}, "Failed to bind socket to /no/dir/s: No such file or directory"),
        ],
    )
    def test_what_it_needs(self, properties: dict[str, Any], error: str) -> None:
        assert shared().error("device_add", driver="virtio-vsock-pci", **properties) == error

    def test_place_that_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sock"
        properties = {"guest-cid": 3, "uds": str(path), "addr": "1"}
        assert "in use" in shared().error("device_add", driver="virtio-vsock-pci", **properties)
        assert not path.exists(), "nothing is left of a device that could not be plugged in"
