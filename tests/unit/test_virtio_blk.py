"""virtio-blk on a raw file."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.backend import BlockBackend
from pyvm.block.drivers.file import FileNode as RawFile
from pyvm.devices.properties import DeviceModel, set_properties
from pyvm.devices.virtio.blk import (
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    BlkState,
    VirtioBlk,
)
from pyvm.devices.virtio.blk_options import (
    F_CONFIG_WCE,
    F_DISCARD,
    F_FLUSH,
    F_MQ,
    F_RO,
    F_WRITE_ZEROES,
    keywords,
)
from pyvm.state import StateError
from tests.unit.disk_support import SECTORS, Disk, LateContext
from tests.unit.virtio_driver import ALL_COMMON, Buffer, Harness, start

FEATURES = F_FLUSH | F_CONFIG_WCE | F_DISCARD | F_WRITE_ZEROES


class Guest:
    """A driver that makes requests."""

    def __init__(
        self, disk: Disk | None = None, features: int = FEATURES, *, packed: bool = False, **options: int
    ) -> None:
        self.disk = disk or Disk()
        self.device = VirtioBlk(self.disk, **options)  # type: ignore[arg-type]
        self.h: Harness = start(self.device, features & self.device.offered_features, packed=packed)

    def send(self, kind: int, sector: int, data: Sequence[bytes] = (), room: Sequence[int] = ()) -> Buffer:
        header = struct.pack("<IIQ", kind, 0, sector)
        buffer = self.h.rings[0].add([header, *data], [*room, 1], indirect=True)
        self.h.kick(0)
        assert self.h.rings[0].collect() == [buffer]
        return buffer

    def request(
        self, kind: int, sector: int, data: Sequence[bytes] = (), room: Sequence[int] = ()
    ) -> tuple[int, bytes]:
        answer = self.send(kind, sector, data, room).data(self.h.memory)
        return answer[-1], answer[:-1]

    def status(self, kind: int, sector: int = 0, data: Sequence[bytes] = (), room: Sequence[int] = ()) -> int:
        return self.request(kind, sector, data, room)[0]


def sectors_range(sector: int, count: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, count, flags)


@pytest.mark.parametrize("packed", [False, True])
def test_read_and_write(packed: bool) -> None:
    guest = Guest(packed=packed)
    data = os.urandom(2048)
    assert guest.status(T_OUT, 3, [data[:100], data[100:]]) == S_OK
    assert guest.disk.data[3 * 512 : 3 * 512 + 2048] == data
    assert guest.request(T_IN, 3, room=[1024, 1000, 24]) == (S_OK, data)
    assert guest.h.interrupts == [0, 0]


def test_request_may_be_split_anywhere() -> None:
    guest = Guest()
    ring = guest.h.rings[0]
    header = struct.pack("<IIQ", T_OUT, 0, 1) + b"w" * 512
    write = ring.add([header[:1], header[1:10], header[10:40], header[40:]], [1])
    read = ring.add([struct.pack("<IIQ", T_IN, 0, 1)], [513])
    guest.h.kick(0)
    assert ring.collect() == [write, read]
    assert write.data(guest.h.memory) == b"\0"
    assert read.data(guest.h.memory) == b"w" * 512 + b"\0"


@pytest.mark.parametrize(
    ("kind", "sector", "length", "status"),
    [
        (T_IN, SECTORS - 1, 512, S_OK),
        (T_IN, SECTORS, 512, S_IOERR),
        (T_IN, SECTORS - 1, 1024, S_IOERR),
        (T_IN, 0, 100, S_IOERR),
        (T_IN, (1 << 64) - 1, 512, S_IOERR),
        (T_OUT, SECTORS, 512, S_IOERR),
        (T_OUT, 0, 513, S_IOERR),
        (T_OUT, 1 << 55, 512, S_IOERR),
        (99, 0, 512, S_UNSUPP),
        (2, 0, 512, S_UNSUPP),
    ],
)
def test_bounds(kind: int, sector: int, length: int, status: int) -> None:
    guest = Guest()
    if kind == T_OUT:
        assert guest.status(kind, sector, [bytes(length)]) == status
    else:
        assert guest.status(kind, sector, room=[length]) == status
    assert guest.device.running


@pytest.mark.parametrize("kind", [T_IN, T_OUT, T_FLUSH, T_DISCARD, T_WRITE_ZEROES])
def test_failure_of_the_back_end_is_an_io_error(kind: int) -> None:
    guest = Guest()
    guest.disk.error = OSError(5, "Input/output error")
    data = [] if kind in (T_IN, T_FLUSH) else [sectors_range(0, 1) if kind != T_OUT else bytes(512)]
    assert guest.status(kind, 0, data, [512] if kind == T_IN else []) == S_IOERR


def test_read_only_disk() -> None:
    guest = Guest(Disk(read_only=True))
    assert guest.device.offered_features & F_RO
    for kind, data in ((T_OUT, bytes(512)), (T_DISCARD, sectors_range(0, 1)), (T_WRITE_ZEROES, sectors_range(0, 1))):
        assert guest.status(kind, 0, [data]) == S_IOERR
    assert guest.status(T_IN, 0, room=[512]) == S_OK
    assert [call[0] for call in guest.disk.calls] == ["read"]


def test_serial_number() -> None:
    assert Guest().request(T_GET_ID, 0, room=[20]) == (S_OK, b"S3R1AL".ljust(20, b"\0"))
    assert Guest().request(T_GET_ID, 0, room=[4]) == (S_OK, b"S3R1")
    guest = Guest(Disk(serial="x" * 30))
    assert guest.request(T_GET_ID, 0, room=[20]) == (S_OK, b"x" * 20)


def test_discard_and_write_zeroes() -> None:
    guest = Guest()
    assert guest.status(T_DISCARD, 0, [sectors_range(2, 3)]) == S_OK
    assert guest.status(T_WRITE_ZEROES, 0, [sectors_range(4, 2)]) == S_OK
    assert guest.status(T_WRITE_ZEROES, 0, [sectors_range(8, 1, 1)]) == S_OK
    assert guest.disk.calls == [("discard", 1024, 1536), ("zero", 2048, 1024), ("unmap", 4096, 512)]


@pytest.mark.parametrize(
    ("kind", "data", "status"),
    [
        (T_DISCARD, sectors_range(0, 1, 1), S_UNSUPP),
        (T_WRITE_ZEROES, sectors_range(0, 1, 2), S_UNSUPP),
        (T_DISCARD, sectors_range(0, 1) * 2, S_UNSUPP),
        (T_DISCARD, b"short", S_UNSUPP),
        (T_DISCARD, sectors_range(SECTORS, 1), S_IOERR),
        (T_WRITE_ZEROES, sectors_range(SECTORS - 1, 2), S_IOERR),
        (T_WRITE_ZEROES, sectors_range((1 << 64) - 1, 2), S_IOERR),
        (T_DISCARD, sectors_range(0, 1 << 22), S_IOERR),
    ],
)
def test_refused_ranges(kind: int, data: bytes, status: int) -> None:
    guest = Guest()
    assert guest.status(kind, 0, [data]) == status
    assert guest.disk.calls == []


def test_commands_that_are_not_offered() -> None:
    guest = Guest(discard=False, write_zeroes=False)
    assert guest.status(T_DISCARD, 0, [sectors_range(0, 1)]) == S_UNSUPP
    assert guest.status(T_WRITE_ZEROES, 0, [sectors_range(0, 1)]) == S_UNSUPP


def test_write_cache() -> None:
    guest = Guest()
    assert guest.device.config_read(32, 1) == 1
    guest.status(T_OUT, 0, [bytes(512)])
    assert guest.disk.flushes == 0
    guest.status(T_FLUSH)
    assert guest.disk.flushes == 1
    guest.device.config_write(32, 1, 0)
    assert guest.disk.flushes == 2, "what the cache held"
    guest.status(T_OUT, 0, [bytes(512)])
    guest.status(T_WRITE_ZEROES, 0, [sectors_range(0, 1)])
    assert guest.disk.flushes == 4
    state = BlkState.from_dict(guest.device.save().to_dict())
    guest.device.set_status(0)
    assert guest.device.config_read(32, 1) == 1
    guest.device.load(state)
    assert guest.device.config_read(32, 1) == 0


def test_driver_that_cannot_flush_gets_no_write_cache() -> None:
    guest = Guest(features=0)
    guest.status(T_OUT, 0, [bytes(512)])
    assert guest.disk.flushes == 1
    guest.device.config_write(32, 1, 1)
    assert guest.device.config_read(32, 1) == 0


def test_configuration_space() -> None:
    guest = Guest(Disk(16384), num_queues=2, physical_block_size=4096, min_io_size=4096, opt_io_size=65536)
    config = guest.device.config()
    assert len(config) == guest.device.config_size == 60
    assert struct.unpack_from("<QIIHBBI", config) == (16384, 0, 254, 16, 16, 63, 512)
    assert struct.unpack_from("<BBHIBxH", config, 24) == (3, 0, 8, 128, 1, 2)
    assert struct.unpack_from("<IIIIIB", config, 36) == (0x3FFFFF, 1, 1, 0x3FFFFF, 1, 1)
    assert guest.device.offered_features & F_MQ
    assert len(guest.device.queues) == 2


def test_large_blocks() -> None:
    guest = Guest(Disk(64), logical_block_size=4096, physical_block_size=4096)
    assert struct.unpack_from("<I", guest.device.config(), 20) == (4096,)
    assert guest.status(T_IN, 8, room=[4096]) == S_OK
    assert guest.status(T_IN, 1, room=[4096]) == S_IOERR
    assert guest.status(T_IN, 0, room=[512]) == S_IOERR


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 3}, r"invalid queue-size property \(3\), must be a power of 2 \(max 1024\)"),
        ({"queue_size": 2048}, "invalid queue-size property"),
        ({"queue_size": 2}, "must be > 2"),
        ({"num_queues": 0}, "num-queues property must be larger than 0"),
        ({"num_queues": 1025}, "num-queues property must be at most"),
        ({"logical_block_size": 1000}, "it's not a power of 2"),
        ({"logical_block_size": 256}, "minimum: 512"),
        ({"logical_block_size": 4096}, "logical_block_size > physical_block_size not supported"),
        ({"min_io_size": 100}, "min_io_size must be a multiple of logical_block_size"),
        ({"min_io_size": 1 << 30}, "min_io_size must not exceed"),
        ({"max_discard_sectors": 0}, r"invalid max-discard-sectors property \(0\), must be between 1 and 4194303"),
    ],
)
def test_impossible_properties(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtioBlk(Disk(), **options)  # type: ignore[arg-type]


def test_malformed_requests_break_the_device() -> None:
    for readable, writable in (([b"short"], [1]), ([struct.pack("<IIQ", T_FLUSH, 0, 0)], [])):
        guest = Guest()
        guest.h.rings[0].add(readable, writable)
        guest.h.kick(0)
        assert guest.device.broken
        assert "header" in guest.h.errors[0]


def test_capacity_change_is_announced() -> None:
    guest = Guest()
    guest.disk.data += bytes(512)
    guest.device.resized()
    assert guest.device.config_read(0, 8) == SECTORS + 1
    assert len(guest.h.config_interrupts) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 14) | st.integers(0, (1 << 32) - 1),
    st.integers(0, 70) | st.integers(0, (1 << 64) - 1),
    st.lists(st.binary(min_size=1, max_size=600), max_size=3),
    st.lists(st.integers(1, 1100), max_size=3),
)
def test_hostile_requests(kind: int, sector: int, data: list[bytes], room: list[int]) -> None:
    guest = Guest()
    status = guest.status(kind, sector, data, room)
    assert status in (S_OK, S_IOERR, S_UNSUPP)


# Requests that do not end at once


class LateGuest(Guest):
    """A driver whose disk takes its time."""

    def __init__(self, *, packed: bool = False, error: OSError | None = None, **options: int) -> None:
        self.context = LateContext()
        self.disk = Disk()
        self.disk.error = error
        self.backend = BlockBackend(self.disk, self.context, werror="stop", rerror="stop")  # type: ignore[arg-type]
        self.device = VirtioBlk(self.backend, **options)
        self.h = start(self.device, FEATURES | (F_MQ & self.device.offered_features), packed=packed)

    def begin(self, kind: int, sector: int, data: Sequence[bytes] = (), room: Sequence[int] = ()) -> Buffer:
        header = struct.pack("<IIQ", kind, 0, sector)
        return self.h.rings[0].add([header, *data], [*room, 1], indirect=True)

    def successor(self) -> LateGuest:
        """Return a machine that took over this one's state and memory."""
        other = LateGuest.__new__(LateGuest)
        other.context = LateContext()
        other.disk = self.disk
        other.backend = BlockBackend(self.disk, other.context)  # type: ignore[arg-type]
        other.device = VirtioBlk(other.backend)
        other.h = Harness(other.device, self.h.memory, self.h.arena, self.h.rings)
        other.device.attach(self.h.memory, ALL_COMMON, other.h.interrupts.append, lambda: None)
        other.device.pause()
        other.device.load(BlkState.from_dict(self.device.save().to_dict()))
        return other


@pytest.mark.parametrize("packed", [False, True])
def test_requests_end_in_any_order(packed: bool) -> None:
    guest = LateGuest(packed=packed)
    buffers = [guest.begin(T_IN, sector, room=[512]) for sector in (4, 0, 8)]
    guest.h.kick(0)
    assert guest.h.rings[0].collect() == []
    assert [work.offset for work in guest.context.queue] == [0, 2048, 4096]  # type: ignore[attr-defined]
    guest.context.finish(1)
    guest.context.finish(1)
    assert guest.h.interrupts == [0, 0]
    guest.context.finish()
    done = guest.h.rings[0].collect()
    assert done == [buffers[0], buffers[2], buffers[1]]
    for buffer, sector in zip(buffers, (4, 0, 8), strict=True):
        assert buffer.data(guest.h.memory) == guest.disk.data[sector * 512 : sector * 512 + 512] + b"\0"


def test_neighbours_are_merged() -> None:
    guest = LateGuest()
    data = [os.urandom(512 * count) for count in (1, 2, 3)]
    writes = [guest.begin(T_OUT, sector, [block]) for sector, block in zip((3, 1, 4), data, strict=True)]
    apart = guest.begin(T_OUT, 9, [data[0]])
    reads = [guest.begin(T_IN, sector, room=[512]) for sector in (20, 21)]
    guest.h.kick(0)
    assert len(guest.context.queue) == 3
    guest.context.settle(lambda: False)
    assert guest.disk.calls == [("write", 512, 3072), ("write", 4608, 512), ("read", 10240, 1024)]
    assert guest.disk.data[512:3584] == data[1] + data[0] + data[2]
    assert guest.h.interrupts == [0, 0, 0], "one for each request to the back end"
    assert len(guest.h.rings[0].collect()) == 6
    assert [b.data(guest.h.memory)[-1] for b in [*writes, apart, *reads]] == [S_OK] * 6
    assert guest.backend.stats.merged[:2] == [1, 2]


def test_merging_can_be_switched_off_and_has_limits() -> None:
    guest = LateGuest(request_merging=False)
    for sector in (0, 1):
        guest.begin(T_IN, sector, room=[512])
    guest.h.kick(0)
    assert len(guest.context.queue) == 2
    large = LateGuest()
    large.disk.data = bytearray(4 << 20)
    for number in range(4):
        large.begin(T_IN, number * 1024, room=[512 << 10])
    large.h.kick(0)
    assert [work.length for work in large.context.queue] == [1 << 20, 1 << 20]  # type: ignore[attr-defined]
    overlapping = LateGuest()
    for _ in range(2):
        overlapping.begin(T_OUT, 0, [bytes(1024)])
    overlapping.h.kick(0)
    assert len(overlapping.context.queue) == 2


def test_one_interrupt_for_a_batch() -> None:
    guest = Guest()
    for sector in (0, 9, 3):
        guest.h.rings[0].add([struct.pack("<IIQ", T_IN, 0, sector)], [512, 1], indirect=True)
    guest.h.kick(0)
    assert guest.h.interrupts == [0]
    assert len(guest.h.rings[0].collect()) == 3


def test_flush_comes_behind_the_writes_before_it() -> None:
    guest = LateGuest()
    guest.begin(T_OUT, 0, [bytes(512)])
    guest.begin(T_FLUSH, 0)
    guest.begin(T_OUT, 1, [bytes(512)])
    guest.h.kick(0)
    guest.context.settle(lambda: False)
    assert [call[0] for call in guest.disk.calls] == ["write", "flush", "write"]


@pytest.mark.parametrize("packed", [False, True])
def test_requests_in_flight_survive_a_save(packed: bool) -> None:
    guest = LateGuest(packed=packed)
    data = os.urandom(1024)
    first = guest.begin(T_IN, 0, room=[512])
    write = guest.begin(T_OUT, 30, [data])
    read = guest.begin(T_IN, 8, room=[100, 412])
    guest.h.kick(0)
    guest.context.finish()  # in a packed ring, this overwrites a descriptor
    assert guest.h.rings[0].collect() == [first]
    other = guest.successor()
    assert other.device.save() == guest.device.save()
    assert not other.context.queue
    other.device.resume()
    other.context.settle(lambda: False)
    assert set(map(id, other.h.rings[0].collect())) == {id(write), id(read)}
    assert other.disk.data[30 * 512 : 32 * 512] == data
    assert read.data(other.h.memory) == guest.disk.data[4096:4608] + b"\0"
    later = other.begin(T_IN, 3, room=[512])
    other.h.kick(0)
    other.context.finish()
    assert other.h.rings[0].collect() == [later]


def test_held_requests_go_on_or_move() -> None:
    guest = LateGuest(error=OSError(28, "No space left on device"))
    buffer = guest.begin(T_OUT, 0, [b"x" * 512])
    guest.h.kick(0)
    guest.context.settle(lambda: False)
    assert guest.h.rings[0].collect() == []
    guest.device.pause()
    other = guest.successor()
    guest.disk.error = None
    guest.backend.resume()
    guest.context.settle(lambda: False)
    assert guest.h.rings[0].collect() == [buffer]
    assert buffer.data(guest.h.memory) == b"\0"
    assert len(other.device.save().requests) == 1


def test_reset_forgets_requests() -> None:
    guest = LateGuest(error=OSError(5, "Input/output error"))
    guest.begin(T_OUT, 0, [b"x" * 512])
    guest.h.kick(0)
    guest.context.settle(lambda: False)
    assert len(guest.backend.held) == 1
    guest.begin(T_IN, 1, room=[512])
    guest.h.kick(0)
    guest.device.set_status(0)
    assert not guest.backend.held
    assert not guest.context.queue
    assert guest.h.rings[0].collect() == []
    assert guest.h.interrupts == []
    assert guest.device.save().requests == []


def test_reset_of_one_queue_lets_its_requests_end() -> None:
    guest = LateGuest(num_queues=2)
    buffer = guest.begin(T_IN, 0, room=[512])
    guest.h.kick(0)
    guest.device.disable_queue(0)
    assert not guest.context.queue
    assert guest.h.rings[0].collect() == [buffer]


def test_states_that_cannot_be() -> None:
    guest = LateGuest()
    for sector in (0, 9):
        guest.begin(T_IN, sector, room=[512])
    guest.h.kick(0)
    good = guest.device.save()

    def refuse(change: Callable[[BlkState], None], message: str) -> None:
        state = good.copy()
        change(state)
        with pytest.raises(StateError, match=message):
            guest.device.load(state)

    refuse(lambda state: state.requests.pop(), "2 entries in use, but the chains in flight are others")
    refuse(lambda state: setattr(state.requests[1], "head", state.requests[0].head), "in flight twice")
    refuse(lambda state: setattr(state.requests[1], "queue", 7), "entries in use|not there")
    refuse(lambda state: setattr(state.requests[1], "head", 5000), "outside the queue")
    refuse(lambda state: state.requests[1].writable.append([1 << 40, 1]), "no guest RAM")
    refuse(lambda state: state.requests[1].writable.clear(), "a request in flight that is none")
    refuse(lambda state: state.requests[1].readable.clear(), "a request in flight that is none")
    refuse(lambda state: state.requests[1].readable.append([0, 0]), "zero sized")


def test_options_that_show() -> None:
    guest = Guest(seg_max_adjust=0, discard_granularity=8192, cyls=10, heads=4, secs=17, queue_size=64)
    config = guest.device.config()
    assert struct.unpack_from("<I", config, 12) == (126,)
    assert struct.unpack_from("<HBB", config, 16) == (10, 4, 17)
    assert struct.unpack_from("<I", config, 44) == (16,)
    quiet = VirtioBlk(Disk(), discard_granularity=8192, report_discard_granularity=False)
    assert struct.unpack_from("<I", quiet.config(), 44) == (1,)
    assert VirtioBlk(Disk(), discard=False, write_zeroes=False).config_size == 36
    assert VirtioBlk(Disk(), write_zeroes=False).config_size == 48
    plain = VirtioBlk(Disk(), config_wce=False, write_cache=False)
    assert not plain.offered_features & (F_FLUSH | F_CONFIG_WCE)
    assert not plain.backend.write_cache


def test_options_of_property_values() -> None:
    model = DeviceModel("virtio-blk-pci", "PCI", "Storage", VirtioBlk.PROPERTIES)
    chosen = keywords(set_properties(model, {"drive": "d0"}), cpus=3)
    assert (chosen["num_queues"], chosen["discard_granularity"], chosen["write_cache"]) == (3, None, None)
    given_values = {"num-queues": "2", "discard_granularity": "4k", "write-cache": "off", "seg-max-adjust": "off"}
    device = VirtioBlk(Disk(), **keywords(set_properties(model, given_values), cpus=3))
    assert len(device.queues) == 2
    assert not device.backend.write_cache
    assert struct.unpack_from("<I", device.config(), 12) == (126,)
    assert struct.unpack_from("<I", device.config(), 44) == (8,)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_asynchronous_disk_keeps_what_was_written(data: st.DataObject) -> None:
    guest = LateGuest(packed=data.draw(st.booleans()))
    model = bytearray(guest.disk.data)
    for _ in range(data.draw(st.integers(1, 5))):
        pending = []
        for sector in data.draw(st.lists(st.integers(0, 15), max_size=6, unique=True)):
            if data.draw(st.booleans()):
                content = os.urandom(1024)
                model[sector * 1024 : sector * 1024 + 1024] = content
                pending.append((guest.begin(T_OUT, sector * 2, [content]), b"\0"))
            else:
                expected = bytes(model[sector * 1024 : sector * 1024 + 1024]) + b"\0"
                pending.append((guest.begin(T_IN, sector * 2, room=[1000, 24]), expected))
        guest.h.kick(0)
        while guest.context.queue:
            guest.context.finish(data.draw(st.integers(0, len(guest.context.queue) - 1)))
        assert len(guest.h.rings[0].collect()) == len(pending)
        for buffer, expected in pending:
            assert buffer.data(guest.h.memory) == expected
    assert guest.disk.data == model


# The raw file itself


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512 + 100))
    return path


def test_raw_file_reads_and_writes(image: Path) -> None:
    disk = RawFile(str(image))
    assert disk.size == (SECTORS + 1) * 512, "a part of a sector is a sector"
    before = image.read_bytes()
    buffers = [memoryview(bytearray(length)) for length in (1, 511, 1000)]
    disk.readv(512, buffers)
    assert b"".join(buffers) == before[512 : 512 + 1512]
    many = [memoryview(bytes([number & 0xFF])) for number in range(3000)]
    disk.writev(0, many)
    disk.flush()
    assert image.read_bytes()[:3000] == b"".join(many)
    read_back = [memoryview(bytearray(1)) for _ in range(3000)]
    disk.readv(0, read_back)
    assert b"".join(read_back) == b"".join(many)
    disk.close()


def test_raw_file_that_was_cut_reads_zeros(image: Path) -> None:
    disk = RawFile(str(image))
    os.truncate(image, 700)
    buffers = [memoryview(bytearray(b"x" * 600)) for _ in range(2)]
    disk.readv(512, buffers)
    assert buffers[0][:188] == image.read_bytes()[512:]
    assert bytes(buffers[0][188:]) + bytes(buffers[1]) == bytes(1012)
    disk.close()


def test_raw_file_discard_and_zeroes(image: Path) -> None:
    disk = RawFile(str(image))
    before = image.read_bytes()
    disk.discard(4096, 4096)
    disk.write_zeroes(512, 512, False)
    disk.write_zeroes(1024, 512, True)
    now = image.read_bytes()
    assert now[512:1536] == bytes(1024)
    assert now[4096:8192] in (bytes(4096), before[4096:8192])
    assert now[:512] + now[1536:4096] + now[8192:] == before[:512] + before[1536:4096] + before[8192:]
    disk.close()


def test_raw_file_zeroes_without_help_of_the_file_system(image: Path) -> None:
    class Plain(RawFile):
        """A file system that knows no fallocate."""

        def _fallocate(self, mode: int, offset: int, length: int) -> None:
            raise OSError(95, "Operation not supported")

    disk = Plain(str(image))
    disk.write_zeroes(512, 1024, True)
    disk.discard(4096, 512)
    assert image.read_bytes()[512:1536] == bytes(1024)
    disk.close()


def test_raw_file_read_only(image: Path) -> None:
    image.chmod(0o400)
    disk = RawFile(str(image), read_only=True, serial="abc")
    assert (disk.read_only, disk.serial) == (True, "abc")
    disk.flush()
    with pytest.raises(OSError):  # noqa: PT011 - which error is the host's business
        disk.writev(0, [memoryview(b"x")])
    disk.close()


def test_raw_file_errors_are_one_line(tmp_path: Path) -> None:
    from pyvm.block.errors import BlockError as RawFileError

    with pytest.raises(RawFileError, match=r"^Could not open '.*/none': No such file or directory$"):
        RawFile(str(tmp_path / "none"))
    with pytest.raises(RawFileError, match=r"^Could not open '.*': Is a directory$"):
        RawFile(str(tmp_path))
    with pytest.raises(RawFileError, match="to be a regular file"):
        RawFile(str(tmp_path), read_only=True)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.booleans()), max_size=8))
def test_disk_keeps_what_was_written(image: Path, steps: list[tuple[int, int, bool]]) -> None:
    model = bytearray(image.read_bytes()[: SECTORS * 512])
    disk = RawFile(str(image))
    guest = Guest(disk)  # type: ignore[arg-type]
    for sector, count, zero in steps:
        if zero:
            assert guest.status(T_WRITE_ZEROES, 0, [sectors_range(sector, count)]) == S_OK
            model[sector * 512 : (sector + count) * 512] = bytes(count * 512)
        else:
            data = os.urandom(count * 512)
            assert guest.status(T_OUT, sector, [data]) == S_OK
            model[sector * 512 : (sector + count) * 512] = data
    assert guest.request(T_IN, 0, room=[SECTORS * 512]) == (S_OK, bytes(model))
    disk.close()
