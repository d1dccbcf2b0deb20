"""CD-ROM and DVD-ROM drive, on a SCSI bus and behind ATAPI."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.scsi import cd_sector, mmc
from pyvm.devices.scsi.cdrom import ScsiCd
from pyvm.devices.scsi.target import Direction, Identity, ScsiState
from tests.unit.disk_support import Disk
from tests.unit.scsi_support import (
    ATTENTION,
    ILLEGAL,
    NOT_READY,
    Initiator,
    cdb6,
    cdb10,
    cdb12,
    cdb16,
    make_backend,
)

INVALID_FIELD = (ILLEGAL, 0x24, 0)
NO_MEDIUM = (NOT_READY, 0x3A, 0)
BLOCKS = 40
READY = bytes(6)


def make(disk: Disk | None = None, *, empty: bool = False, atapi: bool = False, late: bool = False) -> Initiator:
    disk = None if empty else disk or Disk(BLOCKS * 4, read_only=True)
    backend, context, events = make_backend(disk, late=late)
    return Initiator(ScsiCd(backend, atapi=atapi), disk, backend, context, events)


class Dvd(Disk):
    """A medium that is too long for a CD."""

    @property
    def size(self) -> int:
        return 4 << 30


def test_inquiry() -> None:
    data = make().good(bytes((0x12, 0, 0, 0, 255, 0)))
    assert data[:4] == bytes((5, 0x80, 5, 0x12))
    assert data[8:36] == b"QEMU    QEMU CD-ROM     2.5+"
    atapi = make(atapi=True).good(bytes((0x12, 0, 0, 0, 255, 0)))
    assert atapi[:4] == bytes((5, 0x80, 0, 0x21))
    assert atapi[8:36] == b"QEMU    QEMU DVD-ROM    2.5+"
    assert list(make().good(bytes((0x12, 1, 0, 0, 255, 0)))[4:]) == [0, 0x83]
    assert make().send(bytes((0x12, 1, 0xB0, 0, 255, 0))).sense == INVALID_FIELD
    backend, _, _ = make_backend(Disk())
    named = ScsiCd(backend, identity=Identity(serial="QM00003", device_id="cd0"))
    assert Initiator(named, None, backend).good(bytes((0x12, 1, 0x80, 0, 255, 0)))[4:] == b"QM00003"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("opcode", "cdb"), [(0x08, cdb6), (0x28, cdb10), (0xA8, cdb12), (0x88, cdb16)])
def test_read(opcode: int, cdb: Any, late: bool) -> None:
    unit = make(late=late)
    assert unit.disk is not None
    assert unit.unit.demand(cdb(opcode, 3, 2)) == (Direction.IN, 4096)
    assert unit.good(cdb(opcode, 3, 2), 4096) == unit.disk.data[6144:10240]
    assert unit.good(cdb(opcode, 3, 2), 2048) == unit.disk.data[6144:8192]
    assert unit.send(cdb(opcode, BLOCKS, 1), 2048).sense == (ILLEGAL, 0x21, 0)
    if cdb is not cdb6:
        assert unit.good(cdb(opcode, 0, 0)) == b""


def test_capacity_and_profiles() -> None:
    cd = make()
    assert cd.good(cdb10(0x25)) == struct.pack(">II", BLOCKS - 1, 2048)
    answer = cd.good(cdb10(0x46, length=0xFFFF))
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4
    assert int.from_bytes(answer[6:8], "big") == mmc.PROFILE_CD_ROM
    dvd = make(Dvd())
    assert dvd.good(cdb10(0x46, length=0xFFFF))[6:8] == bytes((0, 0x10))
    empty = make(empty=True)
    assert empty.good(cdb10(0x46, length=8))[6:8] == bytes(2)

    def features(data: bytes) -> dict[int, int]:
        found, rest = {}, data[8:]
        while rest:
            code, flags, length = struct.unpack_from(">HBB", rest)
            found[code] = flags & 1
            rest = rest[4 + length :]
        return found

    assert features(answer) == {0: 1, 1: 1, 2: 1, 3: 1, 0x10: 1, 0x1E: 1, 0x1F: 0, 0x100: 1, 0x105: 1}
    current = features(empty.good(bytes((0x46, 1, 0, 0, 0, 0, 0, 255, 255, 0))))
    assert set(current) == {0, 1, 2, 3, 0x100, 0x105}
    assert set(features(cd.good(bytes((0x46, 2, 0, 3, 0, 0, 0, 255, 255, 0))))) == {3}
    assert set(features(cd.good(bytes((0x46, 0, 0, 0x1F, 0, 0, 0, 255, 255, 0))))) == {0x1F, 0x100, 0x105}
    assert cd.send(bytes((0x46, 3, 0, 0, 0, 0, 0, 255, 255, 0))).sense == INVALID_FIELD


def test_table_of_contents() -> None:
    unit = make()

    def toc(kind: int, track: int = 0, msf: int = 0, old: int = 0) -> bytes:
        return unit.good(bytes((0x43, msf, kind, 0, 0, 0, track, 4, 0, old << 6)))

    assert toc(0) == bytes.fromhex("0012 0101 00140100 00000000 0014aa00") + BLOCKS.to_bytes(4, "big")
    assert toc(0, msf=2) == bytes.fromhex("0012 0101 00140100 00000200 0014aa00") + bytes((0, 0, 2, BLOCKS))
    assert toc(0, track=0xAA) == bytes.fromhex("000a 0101 0014aa00") + BLOCKS.to_bytes(4, "big")
    assert toc(1) == bytes.fromhex("000a 0101 00140100 00000000") == toc(0, old=1)
    full = toc(2)
    assert full[:4] == bytes.fromhex("002e0101")
    assert [full[4 + 11 * index + 3] for index in range(4)] == [0xA0, 0xA1, 0xA2, 1]
    for bad in (bytes((0x43, 0, 3)), bytes((0x43, 0, 4)), bytes((0x43, 0, 0, 0, 0, 0, 2))):
        assert unit.send(bad.ljust(7, b"\0") + bytes((4, 0, 0))).sense == INVALID_FIELD
    assert make(empty=True).send(cdb10(0x43, length=100)).sense == NO_MEDIUM


def test_small_answers() -> None:
    unit = make()
    information = unit.good(cdb10(0x51, length=255))
    assert information[:7] == bytes.fromhex("00200e01010101")
    assert len(information) == 34
    assert unit.send(bytes((0x51, 1, 0, 0, 0, 0, 0, 0, 255, 0))).sense == INVALID_FIELD
    assert unit.good(bytes((0xBD,)) + bytes(8) + bytes((8, 0, 0))) == bytes((0, 0, 0, 0, 0, 1, 0, 0))
    assert unit.good(bytes((0x42, 0, 0, 0, 0, 0, 0, 0, 48, 0))) == bytes((0, 0x15, 0, 0))
    position = unit.good(bytes((0x42, 2, 0x40, 1, 0, 0, 0, 0, 48, 0)))
    assert position == bytes((0, 0x15, 0, 12, 1, 0x14, 1, 1)) + bytes((0, 0, 2, 0)) * 2
    assert len(unit.good(bytes((0x42, 2, 0x40, 2, 0, 0, 0, 0, 48, 0)))) == 24
    assert len(unit.good(bytes((0x42, 2, 0x40, 3, 0, 0, 0, 0, 48, 0)))) == 24
    assert unit.send(bytes((0x42, 2, 0x40, 0, 0, 0, 0, 0, 48, 0))).sense == INVALID_FIELD
    for cdb in (cdb12(0xBB), cdb10(0x2B, 5), cdb10(0x35), READY):
        assert unit.good(cdb) == b""
    assert unit.send(cdb10(0x2B, BLOCKS)).sense == (ILLEGAL, 0x21, 0)
    assert unit.send(cdb10(0x2A, 0, 1)).sense == (ILLEGAL, 0x20, 0)


def test_dvd_structures() -> None:
    def structure(unit: Initiator, data_format: int, *, layer: int = 0, media: int = 0) -> Any:
        return unit.send(bytes((0xAD, media, 0, 0, 0, 0, layer, data_format, 0x10, 0, 0, 0)), 4096)

    dvd = make(Dvd())
    physical = structure(dvd, 0).data
    assert len(physical) == 2052
    assert physical[:2] == (2050).to_bytes(2, "big")
    assert struct.unpack_from(">BBBBIII", physical, 4) == (1, 15, 1, 0, 0x30000, 0x30000 + (2 << 20) - 1, 0)
    assert len(structure(dvd, 1).data) == 8
    assert len(structure(dvd, 4).data) == 2052
    assert structure(dvd, 0xFF).data[:8] == bytes.fromhex("000e 0000 0040 0804")
    assert structure(dvd, 3).sense == structure(dvd, 0, layer=1).sense == structure(dvd, 0, media=1).sense
    assert structure(dvd, 3).sense == INVALID_FIELD
    assert structure(make(), 0).sense == (ILLEGAL, 0x30, 0)
    assert structure(make(empty=True), 0).sense == NO_MEDIUM


def test_modes() -> None:
    unit = make()
    page = unit.good(bytes((0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 255, 0)))
    assert page[:8] == bytes((0, len(page) - 2, 0, 0, 0, 0, 0, 0))
    assert page[8:10] == bytes((0x2A, 24))
    assert not page[14] & 2
    unit.good(bytes((0x1E, 0, 0, 0, 1, 0)))
    assert unit.good(bytes((0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 255, 0)))[14] & 2, "locked"
    every = unit.good(bytes((0x1A, 0, 0x3F, 0, 255, 0)))
    assert every[:4] == bytes((len(every) - 1, 0, 0, 0))
    recovery = unit.good(bytes((0x5A, 0, 1, 0, 0, 0, 0, 0, 255, 0)))[8:]
    assert recovery == bytes((1, 10, 0, 0x20)) + bytes(8)
    unit.good(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0)), 0, bytes(8) + recovery)
    changed = bytes(8) + bytes((1, 10, 1, 0x20)) + bytes(8)
    assert unit.send(bytes((0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0)), 0, changed).sense == (ILLEGAL, 0x26, 0)
    assert unit.send(bytes((0x5A, 0, 8, 0, 0, 0, 0, 0, 255, 0))).sense == INVALID_FIELD


def event(unit: Initiator) -> tuple[int, int]:
    """Return event and status of the medium."""
    data = unit.good(bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0)))
    assert data[:4] == bytes((0, 4, 4, 0x10))
    return data[4], data[5]


def test_events_are_told_once() -> None:
    unit = make()
    assert event(unit) == (0, 2)
    assert unit.good(bytes((0x4A, 1, 0, 0, 0x02, 0, 0, 0, 8, 0))) == bytes((0, 0, 0x80, 0x10))
    assert unit.send(bytes((0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8, 0))).sense == INVALID_FIELD
    unit.good(bytes((0x1E, 0, 0, 0, 1, 0)))
    assert not unit.backend.open_tray()
    assert event(unit) == (1, 2)
    assert event(unit) == (0, 2)
    assert unit.unit.medium_locked
    assert unit.backend.open_tray(force=True)
    assert event(unit) == (0, 1)
    unit.backend.close_tray()
    assert event(unit) == (2, 2)
    assert event(unit) == (0, 2)


def swap(unit: Initiator) -> Disk:
    """Change the medium as the person at the machine does."""
    unit.backend.open_tray(force=True)
    unit.backend.remove_medium()
    disk = Disk(8, read_only=True)
    unit.backend.insert_medium(disk)
    unit.backend.close_tray()
    return disk


def test_change_of_medium_on_a_bus() -> None:
    unit = make()
    swap(unit)
    assert unit.send(READY).sense == (ATTENTION, 0x3A, 0)
    unit.good(bytes((0x12, 0, 0, 0, 36, 0)))
    assert unit.send(READY).sense == (ATTENTION, 0x28, 0)
    unit.good(READY)
    assert unit.good(cdb10(0x25)) == struct.pack(">II", 1, 2048)


def test_change_of_medium_behind_atapi() -> None:
    unit = make(atapi=True)
    swap(unit)
    assert event(unit) == (2, 2)
    assert unit.send(READY).sense == NO_MEDIUM
    assert unit.good(bytes((0x03, 0, 0, 0, 18, 0)))[2] == NOT_READY
    state = ScsiState.from_dict(unit.unit.save().to_dict())
    assert unit.send(READY).sense == (ATTENTION, 0x28, 0)
    unit.good(READY)
    unit.unit.load(state)
    assert unit.send(READY).sense == (ATTENTION, 0x28, 0)
    sense = unit.good(bytes((0x03, 0, 0, 0, 18, 0)))
    assert (sense[2], sense[12]) == (ATTENTION, 0x28)
    assert unit.good(bytes((0x03, 0, 0, 0, 18, 0)))[2] == 0
    unit.good(READY)


def test_empty_drive_behind_atapi() -> None:
    unit = make(empty=True, atapi=True)
    assert event(unit) == (0, 0)
    for cdb in (READY, cdb10(0x25), cdb10(0x28, 0, 1), cdb10(0x43, length=20)):
        assert unit.send(cdb).sense == NO_MEDIUM
        assert unit.unit.save().sense == [*NO_MEDIUM], "kept for REQUEST SENSE"
    unit.backend.insert_medium(Disk(8, read_only=True))
    assert unit.send(READY).sense == NO_MEDIUM
    assert unit.send(READY).sense == (ATTENTION, 0x28, 0)
    unit.good(READY)


def test_tray() -> None:
    unit = make()
    unit.good(bytes((0x1B, 0, 0, 0, 2, 0)))
    assert unit.unit.tray_open
    assert event(unit) == (0, 1)
    assert unit.good(bytes((0xBD,)) + bytes(8) + bytes((8, 0, 0)))[1] == 0x10
    assert unit.send(READY).sense == NO_MEDIUM
    unit.good(bytes((0x1B, 0, 0, 0, 0x12, 0)))
    assert unit.unit.tray_open, "a power condition moves no tray"
    unit.good(bytes((0x1B, 0, 0, 0, 3, 0)))
    unit.good(READY)
    unit.good(bytes((0x1E, 0, 0, 0, 1, 0)))
    assert unit.send(bytes((0x1B, 0, 0, 0, 2, 0))).sense == (ILLEGAL, 0x53, 2)
    empty = make(empty=True)
    empty.good(bytes((0x1E, 0, 0, 0, 1, 0)))
    assert empty.send(bytes((0x1B, 0, 0, 0, 2, 0))).sense == (NOT_READY, 0x53, 2)
    empty.unit.reset()
    assert not empty.unit.medium_locked
    assert [data["tray-open"] for _, data in unit.events] == [True, False]


def read_cd(lba: int, count: int, selection: int, *, kind: int = 0, sub: int = 0) -> bytes:
    return bytes((0xBE, kind << 2)) + lba.to_bytes(4, "big") + count.to_bytes(3, "big") + bytes((selection, sub, 0))


@pytest.mark.parametrize("late", [False, True])
def test_read_cd(late: bool) -> None:
    unit = make(late=late)
    assert unit.disk is not None
    data = unit.disk.data
    assert unit.unit.demand(read_cd(2, 20, 0x10)) == (Direction.IN, 20 * 2048)
    assert unit.good(read_cd(2, 20, 0x10), 20 * 2048) == data[4096 : 22 * 2048]
    assert unit.unit.demand(read_cd(2, 20, 0xF8)) == (Direction.IN, 20 * 2352)
    whole = unit.good(read_cd(2, 20, 0xF8), 20 * 2352)
    for index in range(20):
        sector = whole[index * 2352 : (index + 1) * 2352]
        assert sector[16:2064] == data[(index + 2) * 2048 : (index + 3) * 2048]
    assert whole[:16] == bytes.fromhex("00ffffffffffffffffffff00 00020201")
    assert unit.good(read_cd(73 - 40, 1, 0x20), 4) == bytes((0, 2, 0x33, 1)), "BCD"
    assert unit.good(read_cd(2, 20, 0xF8), 3000) == whole[:3000]
    assert unit.good(read_cd(2, 2, 0)) == b""
    assert unit.good(read_cd(2, 0, 0xF8)) == b""
    msf = bytes((0xB9, 0, 0, 0, 2, 2, 0, 2, 22, 0xF8, 0, 0))
    assert unit.unit.demand(msf) == (Direction.IN, 20 * 2352)
    assert unit.good(msf, 20 * 2352) == whole
    for bad in (
        read_cd(0, 1, 0x10, kind=1),
        read_cd(0, 1, 0x12),
        read_cd(0, 1, 0x10, sub=1),
        bytes((0xB9, 0, 0, 0, 3, 0, 0, 2, 0, 0x10, 0, 0)),
    ):
        assert unit.send(bad).sense == INVALID_FIELD
    assert unit.send(read_cd(BLOCKS - 1, 2, 0x10)).sense == (ILLEGAL, 0x21, 0)
    assert unit.send(bytes((0xB9, 0, 0, 0, 0, 0, 0, 2, 0, 0x10, 0, 0))).sense == (ILLEGAL, 0x21, 0)


def _multiply(left: int, right: int) -> int:
    product = 0
    while right:
        product ^= left if right & 1 else 0
        left = left << 1 ^ (0x11D if left & 0x80 else 0)
        right >>= 1
    return product


@settings(max_examples=4, deadline=None)
@given(st.binary(min_size=2048, max_size=2048), st.integers(0, 400000))
def test_parity_of_whole_sectors(data: bytes, block: int) -> None:
    """Every code word is a root of both check equations (ECMA-130, annex A)."""
    sector = cd_sector.whole(block, data)
    assert len(sector) == 2352
    body = sector[12:]
    p_words = [[column + 86 * row for row in range(26)] for column in range(43 * 2)]
    q_words = []
    for number in range(52):
        start = (number >> 1) * 86 + (number & 1)
        diagonal = [(start + 88 * step) % 2236 for step in range(43)]
        q_words.append([*diagonal, 2236 + number, 2288 + number])
    for word in p_words + q_words:
        values = [body[index] for index in word]
        plain = weighted = 0
        for value in values:
            plain ^= value
            weighted = _multiply(weighted, 2) ^ value
        assert (plain, weighted) == (0, 0)


def test_error_detection_code() -> None:
    """The remainder of the whole code word by the polynomial is 0 (ECMA-130, 14.3), bits least significant first."""
    sector = cd_sector.whole(7, bytes(range(256)) * 8)
    remainder = 0
    for byte in sector[:2068]:
        for bit in range(8):
            remainder = remainder << 1 | (byte >> bit & 1)
            if remainder >> 32:
                remainder ^= 0x18001801B
    assert remainder == 0


OPCODES = sorted(ScsiCd.operations)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(OPCODES) | st.integers(0, 255),
    st.binary(max_size=15),
    st.integers(0, 5000),
    st.binary(max_size=100),
    st.booleans(),
    st.booleans(),
)
def test_hostile_commands(opcode: int, rest: bytes, room: int, data: bytes, atapi: bool, changed: bool) -> None:
    unit = make(atapi=atapi)
    if changed:
        swap(unit)
    cdb = bytes((opcode,)) + rest
    assert unit.unit.demand(cdb)[1] >= 0
    answer = unit.send(cdb, room, data)
    assert answer.result.status in (0, 2)
    assert answer.result.transferred <= max(room, len(data))
    unit.unit.load(ScsiState.from_dict(unit.unit.save().to_dict()))
