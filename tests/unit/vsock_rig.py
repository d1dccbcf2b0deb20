"""A driver of the virtio socket device, and programs on the host."""

from __future__ import annotations

from pyvm.clock import ManualClock
from pyvm.devices.virtio import vsock_packets as p
from pyvm.devices.virtio.vsock import VirtioVsock
from pyvm.devices.virtio.vsock_connection import ROOM, VsockConnection
from pyvm.native import Vector
from tests.unit.virtio_driver import Harness, make_memory, start

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
