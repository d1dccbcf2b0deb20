"""SCSI disk: every command with plain calls, and hostile ones."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.scsi.disk import DiskLimits, ScsiDisk
from pyvm.devices.scsi.target import Direction, Identity, ScsiState
from pyvm.state import StateError
from tests.unit.disk_support import SECTORS, Disk
from tests.unit.scsi_support import (
    ATTENTION,
    ILLEGAL,
    NOT_READY,
    PROTECT,
    Answer,
    Initiator,
    cdb6,
    cdb10,
    cdb12,
    cdb16,
    make_backend,
)

INVALID_FIELD = (ILLEGAL, 0x24, 0)
OUT_OF_RANGE = (ILLEGAL, 0x21, 0)


def make(disk: Disk | None = None, *, late: bool = False, error_policy: str = "report", **options: Any) -> Initiator:
    disk = disk or Disk(serial="")
    backend, context, events = make_backend(disk, late=late, werror=error_policy, rerror=error_policy)
    return Initiator(ScsiDisk(backend, **options), disk, backend, context, events)


def test_inquiry() -> None:
    data = make().good(bytes((0x12, 0, 0, 0, 255, 0)))
    assert len(data) == 36
    assert data[0] == 0
    assert data[2] == 5
    assert data[8:36] == b"QEMU    QEMU HARDDISK   2.5+"
    named = make(identity=Identity("ACME", "Anvil", "1.0"), removable=True).good(bytes((0x12, 0, 0, 0, 255, 0)))
    assert named[1] == 0x80
    assert named[8:36] == b"ACME    Anvil           1.0 "
    assert make().good(bytes((0x12, 0, 0, 0, 5, 0))) == data[:5]
    assert make().send(bytes((0x12, 0, 0x80, 0, 255, 0))).sense == INVALID_FIELD


def test_vital_product_data() -> None:
    def page(unit: Initiator, code: int) -> bytes:
        data = unit.good(bytes((0x12, 1, code, 1, 0, 0)))
        assert data[:2] == bytes((0, code))
        assert int.from_bytes(data[2:4], "big") == len(data) - 4
        return data[4:]

    plain = make()
    assert list(page(plain, 0)) == [0, 0x83, 0xB0, 0xB1, 0xB2]
    assert plain.send(bytes((0x12, 1, 0x80, 0, 255, 0))).sense == INVALID_FIELD
    identity = Identity(serial="S1", device_id="id", wwn=0x5000C50015EA71AA, port_wwn=7, port_index=3)
    limits = DiskLimits(
        physical_block_size=4096,
        min_io_size=4096,
        opt_io_size=65536,
        max_io_size=1 << 20,
        max_unmap_size=1 << 16,
        discard_granularity=8192,
        rotation_rate=7200,
    )
    full = make(identity=identity, limits=limits)
    assert list(page(full, 0)) == [0, 0x80, 0x83, 0xB0, 0xB1, 0xB2]
    assert page(full, 0x80) == b"S1"
    naa = bytes.fromhex("01030008") + identity.wwn.to_bytes(8, "big")
    port = bytes.fromhex("61930008") + (7).to_bytes(8, "big") + bytes.fromhex("61940004 00000003")
    assert page(full, 0x83) == b"\x02\0\0\x02id" + naa + port
    block_limits = page(full, 0xB0)
    assert len(block_limits) == 60
    assert struct.unpack_from(">BBHII", block_limits) == (1, 0, 8, 2048, 128)
    assert struct.unpack_from(">III", block_limits, 16) == (128, 255, 16)
    assert struct.unpack_from(">Q", block_limits, 32) == (2048,)
    assert page(full, 0xB1)[:2] == (7200).to_bytes(2, "big")
    assert page(full, 0xB2) == bytes((0, 0xE0, 2, 0))
    thick = make(limits=DiskLimits(discard_granularity=0))
    assert page(thick, 0xB2) == bytes((0, 0xE0, 1, 0))
    assert thick.good(cdb16(0x9E, flags=0x10, length=32))[14] == 0


def test_capacity() -> None:
    unit = make(limits=DiskLimits(physical_block_size=4096))
    assert unit.good(cdb10(0x25)) == struct.pack(">II", SECTORS - 1, 512)
    long = unit.good(cdb16(0x9E, flags=0x10, length=32))
    assert struct.unpack_from(">QIBBB", long) == (SECTORS - 1, 512, 0, 3, 0x80)
    assert unit.send(cdb16(0x9E, flags=0x11, length=32)).sense == INVALID_FIELD
    assert unit.send(cdb10(0x25, lba=1)).sense == INVALID_FIELD
    large = make(limits=DiskLimits(logical_block_size=4096, physical_block_size=4096))
    assert large.good(cdb10(0x25)) == struct.pack(">II", SECTORS // 8 - 1, 4096)
    huge = make(Huge())
    assert huge.good(cdb10(0x25)) == struct.pack(">II", 0xFFFFFFFF, 512)


class Huge(Disk):
    """A disk that is too long for 32-bit block numbers."""

    @property
    def size(self) -> int:
        return 1 << 50


READS = [(0x08, cdb6), (0x28, cdb10), (0xA8, cdb12), (0x88, cdb16)]
WRITES = [(0x0A, cdb6), (0x2A, cdb10), (0xAA, cdb12), (0x8A, cdb16), (0x2E, cdb10), (0xAE, cdb12), (0x8E, cdb16)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("opcode", "cdb"), READS)
def test_read(opcode: int, cdb: Any, late: bool) -> None:
    unit = make(late=late)
    assert unit.disk is not None
    assert unit.unit.demand(cdb(opcode, 3, 2)) == (Direction.IN, 1024)
    assert unit.good(cdb(opcode, 3, 2), 1024) == unit.disk.data[1536:2560]
    assert unit.good(cdb(opcode, SECTORS - 1, 1), 512) == unit.disk.data[-512:]
    assert unit.good(cdb(opcode, 3, 2), 700) == unit.disk.data[1536:2236], "clipped to the room"
    assert unit.send(cdb(opcode, SECTORS - 1, 2), 1024).sense == OUT_OF_RANGE
    assert unit.send(cdb(opcode, 0xFFFFF, 1), 512).sense == OUT_OF_RANGE
    if cdb is not cdb6:
        assert unit.good(cdb(opcode, 0, 0)) == b""
        assert unit.send(cdb(opcode, 0, 1, 0x20)).sense == INVALID_FIELD


def test_six_byte_length_zero_is_256_blocks() -> None:
    unit = make(Disk(300))
    assert unit.unit.demand(cdb6(0x08)) == (Direction.IN, 256 * 512)
    assert unit.disk is not None
    assert unit.good(cdb6(0x08), 256 * 512) == unit.disk.data[: 256 * 512]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("opcode", "cdb"), WRITES)
def test_write(opcode: int, cdb: Any, late: bool) -> None:
    unit = make(late=late)
    assert unit.disk is not None
    data = os.urandom(1024)
    assert unit.unit.demand(cdb(opcode, 3, 2)) == (Direction.OUT, 1024)
    answer = unit.send(cdb(opcode, 3, 2), 0, data)
    assert (answer.result.status, answer.result.transferred) == (0, 1024)
    assert unit.disk.data[1536:2560] == data
    assert unit.send(cdb(opcode, SECTORS - 1, 2), 0, data).sense == OUT_OF_RANGE
    assert unit.send(cdb(opcode, 3, 3), 0, data).sense == INVALID_FIELD
    assert unit.disk.data[1536:2560] == data
    assert unit.disk.flushes == (1 if opcode in (0x2E, 0xAE, 0x8E) else 0)


def test_force_unit_access_and_write_cache() -> None:
    unit = make()
    assert unit.disk is not None
    unit.good(cdb10(0x2A, 0, 1, 8), 0, bytes(512))
    assert unit.disk.flushes == 1
    unit.good(cdb10(0x35))
    unit.good(cdb16(0x91))
    assert unit.disk.flushes == 3
    assert unit.send(cdb10(0x35, SECTORS, 1)).sense == OUT_OF_RANGE


def caching(unit: Initiator, control: int = 0) -> bytes:
    data = unit.good(bytes((0x1A, 8, control << 6 | 8, 0, 255, 0)))
    assert data[4:6] == bytes((8, 18))
    return data[6:]


def test_write_cache_can_be_switched() -> None:
    unit = make()
    assert unit.disk is not None
    assert caching(unit)[0] == 4
    assert caching(unit, 1) == bytes((4,)).ljust(18, b"\0")
    page = bytes((8, 18)) + bytes(18)
    select = bytes((0x15, 0x10, 0, 0, 24, 0))
    unit.good(select, 0, bytes(4) + page)
    assert caching(unit)[0] == 0
    assert caching(unit, 2)[0] == 4, "default"
    assert unit.disk.flushes == 1
    unit.good(cdb10(0x2A, 0, 1), 0, bytes(512))
    assert unit.disk.flushes == 2
    state = ScsiState.from_dict(unit.unit.save().to_dict())
    unit.unit.reset()
    unit.good(bytes((0x03, 0, 0, 0, 18, 0)))
    assert caching(unit)[0] == 4
    unit.unit.load(state)
    assert caching(unit)[0] == 0
    unit.good(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0)), 0, bytes(8) + bytes((8, 18, 4)) + bytes(17))
    assert caching(unit)[0] == 4


@pytest.mark.parametrize(
    ("cdb", "data", "sense"),
    [
        (bytes((0x15, 0x11, 0, 0, 24, 0)), bytes(4) + bytes((8, 18)) + bytes(18), INVALID_FIELD),
        (bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + bytes((8, 18, 5)) + bytes(17), (ILLEGAL, 0x26, 0)),
        (bytes((0x15, 0x10, 0, 0, 24, 0)), bytes(4) + bytes((9, 18)) + bytes(18), (ILLEGAL, 0x26, 0)),
        (bytes((0x15, 0x10, 0, 0, 23, 0)), bytes(4) + bytes((8, 18)) + bytes(17), (ILLEGAL, 0x1A, 0)),
        (bytes((0x15, 0x10, 0, 0, 5, 0)), bytes(4) + b"\x08", (ILLEGAL, 0x1A, 0)),
        (bytes((0x15, 0x10, 0, 0, 3, 0)), bytes(3), (ILLEGAL, 0x1A, 0)),
        (bytes((0x15, 0x10, 0, 0, 30, 0)), bytes(4), (ILLEGAL, 0x1A, 0)),
        (bytes((0x15, 0x10, 0, 0, 12, 0)), bytes((0, 0, 0, 7)) + bytes(8), (ILLEGAL, 0x26, 0)),
        (bytes((0x15, 0x10, 0, 0, 12, 0)), bytes((0, 0, 0, 8)) + bytes(6) + b"\x10\0", (ILLEGAL, 0x26, 0)),
        (bytes((0x15, 0x10, 0, 0, 6, 0)), bytes(4) + b"\x48\x01", (ILLEGAL, 0x26, 0)),
    ],
)
def test_mode_select_refuses(cdb: bytes, data: bytes, sense: tuple[int, int, int]) -> None:
    unit = make()
    assert unit.send(cdb, 0, data).sense == sense
    assert caching(unit)[0] == 4


def test_mode_select_takes_what_is_there() -> None:
    unit = make()
    unit.good(bytes((0x15, 0x10, 0, 0, 0, 0)), 0)
    descriptor = bytes(4) + bytes((0, 0, 2, 0))
    unit.good(bytes((0x15, 0x10, 0, 0, 12, 0)), 0, bytes((0, 0, 0, 8)) + descriptor)
    long = struct.pack(">QII", SECTORS, 0, 512)
    unit.good(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 24, 0)), 0, bytes((0, 0, 0, 0, 1, 0, 0, 16)) + long)


def test_mode_sense() -> None:
    unit = make(Disk(SECTORS, read_only=True), dpofua=True, geometry=(100, 4, 17))
    six = unit.good(bytes((0x1A, 0, 0x3F, 0, 255, 0)))
    assert six[:4] == bytes((len(six) - 1, 0, 0x90, 8))
    assert six[4:12] == struct.pack(">II", SECTORS, 512)
    ten = unit.good(bytes((0x5A, 0x10, 0x3F, 0, 0, 0, 0, 1, 0, 0)))
    assert ten[:8] == (len(ten) - 2).to_bytes(2, "big") + bytes((0, 0x90, 1, 0, 0, 16))
    assert ten[8:24] == struct.pack(">QII", SECTORS, 0, 512)
    assert ten[24:] == six[12:]
    codes, rest = [], six[12:]
    while rest:
        codes.append(rest[0])
        rest = rest[2 + rest[1] :]
    assert codes == [1, 4, 5, 8]
    rigid = unit.good(bytes((0x1A, 8, 0x04, 0, 255, 0)))[6:]
    assert (int.from_bytes(rigid[:3], "big"), rigid[3]) == (100, 4)
    flexible = unit.good(bytes((0x1A, 8, 0x05, 0, 255, 0)))[6:]
    assert flexible[2:8] == bytes((4, 17, 2, 0, 0, 100))
    assert unit.send(bytes((0x1A, 0, 0x2A, 0, 255, 0))).sense == INVALID_FIELD
    assert unit.send(bytes((0x1A, 0, 8, 1, 255, 0))).sense == INVALID_FIELD
    assert unit.send(bytes((0x1A, 0, 0xFF, 0, 255, 0))).sense == (ILLEGAL, 0x39, 0)


def test_write_protected() -> None:
    unit = make(Disk(SECTORS, read_only=True))
    block = bytes(512)
    unmap = struct.pack(">HH4xQI4x", 22, 16, 0, 1)
    for cdb, data in (
        (cdb10(0x2A, 0, 1), block),
        (cdb10(0x41, 0, 1), block),
        (cdb10(0x42, 0, len(unmap)), unmap),
        (cdb6(0x04), b""),
    ):
        assert unit.send(cdb, 0, data).sense == (PROTECT, 0x27, 0)
    assert unit.disk is not None
    assert unit.disk.calls == []


@pytest.mark.parametrize("late", [False, True])
def test_unmap(late: bool) -> None:
    unit = make(late=late)
    assert unit.disk is not None
    ranges = b"".join(struct.pack(">QI4x", lba, count) for lba, count in ((0, 8), (10, 0), (20, 4)))
    data = struct.pack(">HH4x", len(ranges) + 6, len(ranges)) + ranges
    answer = unit.send(cdb10(0x42, 0, len(data)), 0, data)
    assert (answer.result.status, answer.result.transferred) == (0, len(data))
    assert unit.disk.calls == [("discard", 0, 4096), ("discard", 10240, 2048)]
    unit.good(cdb10(0x42, 0, 0), 0)
    for bad, sense in (
        (data[:4], (ILLEGAL, 0x1A, 0)),
        (data[:-1], (ILLEGAL, 0x1A, 0)),
        (struct.pack(">HH4x", 6 + 15, 15) + bytes(15), (ILLEGAL, 0x1A, 0)),
        (struct.pack(">HH4xQI4x", 22, 16, SECTORS, 1), OUT_OF_RANGE),
        (struct.pack(">HH4xQI4x", 22, 16, (1 << 64) - 1, 1), OUT_OF_RANGE),
    ):
        assert unit.send(cdb10(0x42, 0, len(bad)), 0, bad).sense == sense
    assert unit.send(cdb10(0x42, 0, len(data) + 1), 0, data).sense == (ILLEGAL, 0x1A, 0)
    assert unit.send(cdb10(0x42, 0, len(data), 1), 0, data).sense == INVALID_FIELD
    assert len(unit.disk.calls) == 2


@pytest.mark.parametrize("late", [False, True])
def test_write_same(late: bool) -> None:
    unit = make(Disk(8192), late=late)
    assert unit.disk is not None
    unit.good(cdb10(0x41, 4, 3), 0, bytes(512))
    unit.good(cdb16(0x93, 8, 4, 8), 0, bytes(512))
    unit.good(cdb16(0x93, 16, 4, 9), 0)
    assert unit.disk.calls == [("zero", 2048, 1536), ("unmap", 4096, 2048), ("unmap", 8192, 2048)]
    block = os.urandom(512)
    assert unit.unit.demand(cdb16(0x93, 1, 5000)) == (Direction.OUT, 512)
    answer = unit.send(cdb16(0x93, 1, 5000), 0, block)
    assert (answer.result.status, answer.result.transferred) == (0, 512)
    assert unit.disk.data[512 : 5001 * 512] == block * 5000
    assert len(unit.disk.calls) > 4, "in pieces"
    for cdb, data in (
        (cdb16(0x93, 0, 0), block),
        (cdb16(0x93, 0, 1, 0x10), block),
        (cdb16(0x93, 0, 1, 0x02), block),
        (cdb10(0x41, 0, 1, 1), block),
        (cdb10(0x41, 0, 1), block[:100]),
    ):
        assert unit.send(cdb, 0, data).sense == INVALID_FIELD
    assert unit.send(cdb16(0x93, 8192, 1), 0, block).sense == OUT_OF_RANGE
    small = make(limits=DiskLimits(max_io_size=1024))
    assert small.send(cdb16(0x93, 0, 3), 0, block).sense == INVALID_FIELD


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("opcode", "cdb"), [(0x2F, cdb10), (0xAF, cdb12), (0x8F, cdb16)])
def test_verify(opcode: int, cdb: Any, late: bool) -> None:
    disk = Disk(6000)
    unit = make(disk, late=late)
    assert unit.unit.demand(cdb(opcode, 0, 9)) == (Direction.NONE, 0)
    unit.good(cdb(opcode, 0, 6000), 0)
    assert unit.send(cdb(opcode, 0, 6001)).sense == OUT_OF_RANGE
    content = bytes(disk.data[512 : 512 * 5001])
    assert unit.unit.demand(cdb(opcode, 1, 5000, 2)) == (Direction.OUT, len(content))
    unit.good(cdb(opcode, 1, 5000, 2), 0, content)
    wrong = content[:-1] + bytes((content[-1] ^ 1,))
    assert unit.send(cdb(opcode, 1, 5000, 2), 0, wrong).sense == (0xE, 0x1D, 0)
    assert unit.send(cdb(opcode, 1, 5000, 2), 0, content[:-1]).sense == INVALID_FIELD
    disk.data[: 3 * 512] = b"ab" * 768
    assert unit.unit.demand(cdb(opcode, 0, 3, 6)) == (Direction.OUT, 512)
    unit.good(cdb(opcode, 0, 3, 6), 0, b"ab" * 256)
    assert unit.send(cdb(opcode, 0, 4, 6), 0, b"ab" * 256).sense == (0xE, 0x1D, 0)
    assert unit.send(cdb(opcode, 0, 1, 4), 0, b"ab" * 256).sense == INVALID_FIELD


def test_errors_of_the_back_end() -> None:
    for number, sense in ((5, (11, 0, 6)), (28, (7, 0x27, 7)), (12, (4, 0x44, 0)), (123, (2, 0x3A, 0))):
        unit = make()
        assert unit.disk is not None
        unit.disk.error = OSError(number, "")
        assert unit.send(cdb10(0x28, 0, 1)).sense == sense
        assert unit.send(cdb10(0x35)).sense == sense
        assert unit.send(cdb10(0x2A, 0, 1, 8), 0, bytes(512)).sense == sense


def test_commands_without_effect() -> None:
    unit = make()
    for cdb in (
        bytes(6),
        cdb6(0x01),
        cdb6(0x0B, 5),
        cdb10(0x2B, 5),
        cdb6(0x16),
        cdb6(0x17),
        cdb10(0x56),
        cdb10(0x57),
        bytes((0x1B, 0, 0, 0, 1, 0)),
        bytes((0x1B, 0, 0, 0, 2, 0)),
        bytes((0x1D, 4, 0, 0, 0, 0)),
        cdb6(0x04),
    ):
        assert unit.good(cdb) == b""
    assert unit.send(cdb10(0x2B, SECTORS)).sense == OUT_OF_RANGE
    assert unit.send(bytes((0x16, 1, 0, 0, 0, 0))).sense == INVALID_FIELD
    assert unit.send(bytes((0x1D, 0, 0, 0, 0, 0))).sense == INVALID_FIELD
    assert unit.good(bytes((0x04, 0x10, 0, 0, 0, 0)), 0, bytes(4)) == b""
    assert unit.send(bytes((0x04, 0x10, 0, 0, 0, 0)), 0, bytes((0, 0, 0, 8))).sense == (ILLEGAL, 0x26, 0)


@pytest.mark.parametrize("opcode", [0x5E, 0x5F, 0xA3, 0x89, 0x7F, 0xFF, 0x1E])
def test_what_there_is_not(opcode: int) -> None:
    assert make().send(bytes((opcode,)) + bytes(31)).sense == (ILLEGAL, 0x20, 0)
    assert make().unit.demand(bytes((opcode,)) + bytes(31)) == (Direction.NONE, 0)


def test_short_cdbs() -> None:
    for cdb in (b"", b"\x28", cdb10(0x28)[:9], cdb16(0x88)[:15]):
        assert make().send(cdb).sense == (ILLEGAL, 0x20, 0)


def test_report_luns() -> None:
    unit = make()
    unit.unit.luns = lambda: [300, 0, 1]
    expected = (24).to_bytes(4, "big") + bytes(4) + bytes(8) + bytes((0, 1)) + bytes(6) + bytes((0x41, 0x2C)) + bytes(6)
    assert unit.good(cdb12(0xA0, 0, 256)) == expected
    assert unit.good(cdb12(0xA0, 1 << 24, 256)) == bytes(8), "no well known units"
    assert unit.send(cdb12(0xA0, 0, 15)).sense == INVALID_FIELD
    assert unit.send(cdb12(0xA0, 3 << 24, 256)).sense == INVALID_FIELD


def test_unit_attentions_come_first_and_once() -> None:
    unit = make()
    unit.unit.reset()
    changes: list[Any] = []
    unit.unit.on_change = changes.append
    unit.unit.resized()
    unit.unit.resized()
    assert [tuple(change) for change in changes] == [(6, 0x2A, 9)] * 2
    unit.good(bytes((0x12, 0, 0, 0, 36, 0)))
    unit.good(cdb12(0xA0, 0, 16))
    state = ScsiState.from_dict(unit.unit.save().to_dict())
    assert unit.send(bytes(6)).sense == (ATTENTION, 0x29, 0)
    assert unit.good(bytes((0x03, 0, 0, 0, 252, 0)))[2] == ATTENTION
    assert unit.good(bytes((0x03, 1, 0, 0, 252, 0))) == bytes((0x72, 0, 0, 0, 0, 0, 0, 0))
    unit.good(bytes(6))
    unit.unit.load(state)
    assert unit.send(bytes(6)).sense == (ATTENTION, 0x29, 0)
    assert unit.send(bytes(6)).sense == (ATTENTION, 0x2A, 9)


def test_removable_disk() -> None:
    unit = make(removable=True)
    unit.good(bytes((0x1E, 0, 0, 0, 1, 0)))
    assert unit.backend.locked
    assert unit.send(bytes((0x1B, 0, 0, 0, 2, 0))).sense == (ILLEGAL, 0x53, 2)
    unit.good(bytes((0x1E, 0, 0, 0, 0, 0)))
    unit.good(bytes((0x1B, 0, 0, 0, 2, 0)))
    assert unit.backend.tray_open
    assert unit.send(cdb10(0x28, 0, 1)).sense == (NOT_READY, 0x3A, 0)
    unit.good(bytes((0x1B, 0, 0, 0, 3, 0)))
    assert [data["tray-open"] for name, data in unit.events if name == "DEVICE_TRAY_MOVED"] == [True, False]
    unit.good(cdb10(0x28, 0, 1))
    assert unit.good(cdb12(0xA0, 0, 16))


def test_reset_ends_long_commands() -> None:
    unit = make(Disk(16384), late=True)
    _, results = unit.start(cdb16(0x93, 0, 16384), 0, b"x" * 512)
    assert unit.context is not None
    unit.context.finish()
    unit.unit.reset()
    assert not unit.context.queue
    assert [result.status for result in results] == [2]
    assert unit.disk is not None
    assert len(unit.disk.calls) == 2


def test_held_commands_end_with_a_reset() -> None:
    unit = make(late=True, error_policy="stop")
    assert unit.disk is not None
    assert unit.context is not None
    unit.disk.error = OSError(28, "")
    _, results = unit.start(cdb10(0x2A, 0, 1), 0, bytes(512))
    unit.context.settle(lambda: False)
    assert results == []
    unit.unit.reset()
    assert len(results) == 1


def test_states_that_cannot_be() -> None:
    unit = make()
    for change in ({"tray_open": True}, {"medium_locked": True}, {"attentions": [0x012800]}, {"sense": [1, 2]}):
        with pytest.raises(StateError):
            unit.unit.load(ScsiState(**change))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"logical_block_size": 1000}, "not a power of 2"),
        ({"physical_block_size": 256}, "minimum: 512"),
        ({"logical_block_size": 4096}, "logical_block_size > physical_block_size"),
        ({"min_io_size": 100}, "min_io_size must be a multiple"),
        ({"discard_granularity": 100}, "discard_granularity must be a multiple"),
    ],
)
def test_impossible_limits(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(limits=DiskLimits(**limits))


def test_impossible_names() -> None:
    with pytest.raises(ValueError, match="'vendor' is longer than 8 bytes"):
        make(identity=Identity(vendor="x" * 9))


OPCODES = sorted(ScsiDisk.operations)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(OPCODES) | st.integers(0, 255),
    st.binary(max_size=31),
    st.integers(0, 3000),
    st.binary(max_size=1200),
    st.booleans(),
)
def test_hostile_commands(opcode: int, rest: bytes, room: int, data: bytes, read_only: bool) -> None:
    unit = make(Disk(SECTORS, read_only=read_only))
    cdb = bytes((opcode,)) + rest
    direction, length = unit.unit.demand(cdb)
    assert length >= 0
    answer: Answer = unit.send(cdb, room, data)
    assert answer.result.status in (0, 2)
    assert answer.result.transferred <= max(room, len(data))
    if answer.result.status == 0 and direction is Direction.IN:
        assert answer.result.transferred <= length
    if read_only:
        assert unit.disk is not None
        assert not {call[0] for call in unit.disk.calls} - {"read", "flush"}
    unit.unit.load(ScsiState.from_dict(unit.unit.save().to_dict()))
