"""Exports as vhost-user-blk devices: front ends good and bad, message by message."""

from __future__ import annotations

import array
import mmap
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.export.exports import ExportOptions
from pyvm.block.export.starting import open_listener
from pyvm.block.export.vhost_user_blk import VhostUserBlkExport
from pyvm.chardev.address import UnixAddress
from tests.unit.nbd_server_rig import PATIENCE, SIZE, Serving

GPA, ADDRESS = 0x100000, 0x7F00_0000_0000
RAM = 1 << 20
ENTRIES = 8
_ALL_IN_USE = 8
"""So many descriptors this process has in any case."""
TABLE, AVAILABLE, USED, HEADER, STATUS, DATA = 0, 0x1000, 0x2000, 0x3000, 0x3800, 0x4000
PROTOCOL, VERSION_1 = 1 << 30, 1 << 32
IN, OUT, FLUSH, GET_ID, DISCARD = 0, 1, 4, 8, 11


class FrontEnd:
    """A front end with a guest's RAM, and a driver for the disk."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self.memory = os.memfd_create("ram")
        os.ftruncate(self.memory, RAM)
        self.ram = mmap.mmap(self.memory, RAM)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0)
        self.next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.socket.close()
        self.ram.close()
        for fd in (self.memory, self.kick, self.call):
            os.close(fd)

    def send(self, request: int, payload: bytes = b"", *fds: int, flags: int = 1) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([struct.pack("<III", request, flags, len(payload)) + payload], rights)

    def ask(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        return self.reply(request)

    def reply(self, request: int) -> bytes:
        header = self.socket.recv(12, socket.MSG_WAITALL)
        answered, flags, length = struct.unpack("<III", header)
        assert (answered, flags) == (request, 5)
        return self.socket.recv(length, socket.MSG_WAITALL)

    def is_closed(self) -> bool:
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True

    def share_memory(self, offset: int = 0) -> None:
        region = struct.pack("<QQQQ", GPA, RAM - offset, ADDRESS, offset)
        self.send(5, struct.pack("<II", 1, 0) + region, self.memory)

    def start(self, features: int = VERSION_1 | PROTOCOL) -> None:
        """Bring the disk to where a driver can use it."""
        self.send(3)
        self.send(2, struct.pack("<Q", features))
        self.send(16, struct.pack("<Q", 1 << 9 | 1 << 3 | 1))
        self.share_memory()
        self.start_ring()

    def start_ring(self, base: int = 0) -> None:
        self.send(8, struct.pack("<II", 0, ENTRIES))
        self.send(10, struct.pack("<II", 0, base))
        place = [ADDRESS + it for it in (TABLE, USED, AVAILABLE)]
        self.send(9, struct.pack("<IIQQQQ", 0, 0, *place, 0))
        self.send(13, struct.pack("<Q", 0), self.call)
        self.send(12, struct.pack("<Q", 0), self.kick)
        self.send(18, struct.pack("<II", 0, 1), flags=9)
        assert self.reply(18) == bytes(8)

    def request(self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0) -> tuple[int, bytes]:
        """Make a request; return its status, and what was read."""
        self.ram[HEADER : HEADER + 16] = struct.pack("<IIQ", kind, 0, sector)
        self.ram[DATA : DATA + len(out)] = out
        descriptors = [(GPA + HEADER, 16, 0)]
        if out:
            descriptors.append((GPA + DATA, len(out), 0))
        if room:
            descriptors.append((GPA + DATA, room, 2))
        descriptors.append((GPA + STATUS, 1, 2))
        last = len(descriptors) - 1
        for index, (gpa, length, flags) in enumerate(descriptors):
            more = 0 if index == last else 1
            self.ram[TABLE + 16 * index : TABLE + 16 * index + 16] = struct.pack(
                "<QIHH", gpa, length, flags | more, index + 1 if more else 0
            )
        place = AVAILABLE + 4 + 2 * (self.next % ENTRIES)
        self.ram[place : place + 2] = b"\0\0"
        self.next += 1
        self.ram[AVAILABLE + 2 : AVAILABLE + 4] = struct.pack("<H", self.next)
        os.eventfd_write(self.kick, 1)
        assert select.select([self.call], [], [], PATIENCE)[0]
        os.eventfd_read(self.call)
        assert self.ram[USED + 2 : USED + 4] == struct.pack("<H", self.next)
        return self.ram[STATUS], self.ram[DATA : DATA + room]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    made.disk("a", tmp_path, b"data" * 1024)
    yield made
    made.close()


@pytest.fixture
def path(serving: Serving, tmp_path: Path) -> Path:
    place = tmp_path / "vhost"
    with serving.lock:
        export = VhostUserBlkExport(
            serving.exports, ExportOptions("v", "a", True), lambda: open_listener(UnixAddress(str(place)))
        )
        serving.exports.add(export)
    return place


def test_what_the_disk_is(path: Path) -> None:
    with FrontEnd(path) as end:
        (features,) = struct.unpack("<Q", end.ask(1))
        assert features & (VERSION_1 | PROTOCOL | 1 << 9 | 1 << 13 | 1 << 14) == (
            VERSION_1 | PROTOCOL | 1 << 9 | 1 << 13 | 1 << 14
        )
        assert not features & 1 << 5
        assert end.ask(15) == struct.pack("<Q", 1 << 9 | 1 << 3 | 1)
        assert end.ask(17) == struct.pack("<Q", 1)
        config = end.ask(24, struct.pack("<III", 0, 60, 0) + bytes(60))
        assert config[:12] == struct.pack("<III", 0, 60, 0)
        assert struct.unpack_from("<Q", config, 12) == (SIZE // 512,)


def test_requests(path: Path, tmp_path: Path) -> None:
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=1024) == (0, b"data" * 256)
        assert end.request(OUT, 8, b"hello!!!" * 64) == (0, b"")
        assert end.request(FLUSH) == (0, b"")
        assert end.request(GET_ID, room=20) == (0, b"vhost_user_blk\0\0\0\0\0\0")
        assert end.request(IN, SIZE // 512, room=512)[0] == 1
        assert end.request(99)[0] == 2
        assert end.request(IN, 8, room=8)[0] == 1
    assert (tmp_path / "a.raw").read_bytes()[4096:4104] == b"hello!!!"


def test_a_ring_that_stops_and_goes_on(path: Path) -> None:
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=512)[0] == 0
        # The guest's RAM may come again, somewhere else.
        end.share_memory()
        assert end.request(IN, 0, room=512)[0] == 0
        assert end.ask(11, struct.pack("<II", 0, 0)) == struct.pack("<II", 0, 2)
        end.start_ring(2)
        assert end.request(IN, 1, room=512) == (0, b"data" * 128)
    with FrontEnd(path) as end:
        end.start(PROTOCOL)
        assert end.request(IN, 0, room=512) == (0, b"data" * 128)


def test_an_export_that_goes(serving: Serving, path: Path) -> None:
    with FrontEnd(path) as end:
        end.start()
        with serving.lock:
            serving.exports.remove("v", hard=True)
        assert end.is_closed()
    serving.wait(lambda: not list(serving.exports))
    assert serving.events == [("BLOCK_EXPORT_DELETED", {"id": "v"})]


def test_rings_and_memory_that_are_nowhere(path: Path) -> None:
    for address, size in ((ADDRESS + RAM, ENTRIES), (ADDRESS + RAM - 8, ENTRIES), (ADDRESS, 0), (ADDRESS, 5000)):
        with FrontEnd(path) as end:
            end.send(2, struct.pack("<Q", VERSION_1 | PROTOCOL))
            end.share_memory()
            end.send(8, struct.pack("<II", 0, size))
            end.send(9, struct.pack("<IIQQQQ", 0, 0, address, address, address, 0))
            end.send(12, struct.pack("<Q", 0), end.kick)
            end.send(18, struct.pack("<II", 0, 1))
            end.socket.shutdown(socket.SHUT_WR)
            assert end.is_closed()
    for region in ((GPA, 2 * RAM, ADDRESS, 0), (GPA, 0, ADDRESS, 0), (GPA, RAM, ADDRESS, 4096), (1 << 63, RAM, 0, 0)):
        with FrontEnd(path) as end:
            end.send(5, struct.pack("<II", 1, 0) + struct.pack("<QQQQ", *region), end.memory)
            assert end.is_closed()
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=512)[0] == 0


def test_more_memory_than_there_are_addresses_for(path: Path) -> None:
    with FrontEnd(path) as end:
        os.ftruncate(end.memory, 1 << 62)
        regions = struct.pack("<QQQQ", GPA, 1 << 61, ADDRESS, 0) * 8
        end.send(5, struct.pack("<II", 8, 0) + regions, *[end.memory] * 8)
        assert end.is_closed()
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=512)[0] == 0


def test_no_descriptor_is_left_for_a_front_end(path: Path) -> None:
    with FrontEnd(path) as first, socket.socket(socket.AF_UNIX) as second:
        first.start()
        second.connect(str(path))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_ALL_IN_USE, limits[1]))
        try:
            first.socket.shutdown(socket.SHUT_WR)
            assert first.is_closed()
            started = time.process_time()
            time.sleep(0.2)
            assert time.process_time() - started < 0.15, "it does not try all the time"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=512)[0] == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=48), st.booleans(), st.integers(0, 15)), max_size=8))
def test_whatever_a_stranger_says_the_next_one_is_served(path: Path, said: list[tuple[int, bytes, bool, int]]) -> None:
    with FrontEnd(path) as stranger:
        try:
            stranger.start()
            for request, payload, with_fd, flags in said:
                stranger.send(request, payload, *([stranger.memory] if with_fd else []), flags=flags | 1)
        except ConnectionError:
            pass
    with FrontEnd(path) as end:
        end.start()
        assert end.request(IN, 0, room=512) == (0, b"data" * 128)
