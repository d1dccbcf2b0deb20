"""Dumps of guest memory.  Expected replies, and the layout of the files, are QEMU 7.2's."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.cpu import paging
from pyvm.cpu.registers import RegisterState, SegmentState
from pyvm.machine.dump.dumper import Dumper, PhysicalMemory, memory_runs
from pyvm.machine.dump.file import Dump, MemoryRun, Segment, write_elf
from pyvm.memory import DeviceRam, GuestMemory, IoSpace, pc_ram_blocks
from pyvm.monitor.descriptors import FdSets
from pyvm.runstate import RunState
from tests.unit.monitor_support import Bench, FakeMachine

SIZE = 2 << 20
LOW = 0xA0000
TOTAL = SIZE - 0x20000
VIDEO = 0xFD000000


class Guest:
    """A client of a machine with memory."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.memory = GuestMemory(SIZE, pc_ram_blocks(SIZE))
        self.mmio = IoSpace("memory")
        self.video = DeviceRam(4096)
        self.states = [RegisterState()]
        machine: Any = self.bench.machine
        machine.memory, machine.mmio, machine.register_states = self.memory, self.mmio, lambda: self.states
        machine.fdsets = FdSets()
        self.dumper = Dumper(machine, self.bench.events.emit)
        machine.dumper = self.dumper
        self.client = self.bench.client()

    def run(self) -> None:
        self.bench.machine.states.set(RunState.RUNNING)

    def step(self) -> list[Any]:
        """Carry out the first thing that waits."""
        asyncio.run(self.bench.spawned.pop(0))
        return self.client.messages()

    def finish(self) -> list[Any]:
        """Carry out all that waits."""
        messages = []
        while self.bench.spawned:
            messages += self.step()
        return messages

    def ask(self, command: str, **arguments: Any) -> list[Any]:
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        messages = self.client.ask({"execute": command, "arguments": arguments})
        return messages + self.finish()

    def dump(self, path: Path, **more: Any) -> list[Any]:
        return self.ask("dump-guest-memory", **({"paging": False, "protocol": f"file:{path}"} | more))

    def dump_fails(self, **arguments: Any) -> str:
        (*_, reply) = self.ask("dump-guest-memory", **{"paging": False, **arguments})
        description: str = reply["error"]["desc"]
        return description

    def close(self) -> None:
        self.dumper.close()
        self.memory.close()
        self.video.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


def completed(total: int) -> dict[str, Any]:
    return {"result": {"total": total, "status": "completed", "completed": total}}


def strings(messages: list[Any]) -> list[str]:
    """Return what came: names of events, and for replies their kind."""
    return [message.get("event") or next(iter(message.keys() & {"return", "error"})) for message in messages]


class Elf:
    """A core file, read again."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.wide = self.data[4] == 2
        header = struct.unpack_from("<HHIQQQIHHHHHH" if self.wide else "<HHIIIIIHHHHHH", self.data, 16)
        self.type, self.machine = header[:2]
        self.program, self.section = header[4:6]
        self.header_size, self.entry_size, self.count, self.section_size, self.sections, self.names = header[7:]
        self.segments = [self._segment(index) for index in range(self.count)]

    def _segment(self, index: int) -> tuple[int, int, int, int, int, int]:
        """Return type, offset, linear and physical address, and sizes in file and memory."""
        form = "<IIQQQQQQ" if self.wide else "<IIIIIIII"
        values = struct.unpack_from(form, self.data, self.program + index * self.entry_size)
        kind, offset, linear, gpa, in_file, in_memory = (values[0], *values[2:7]) if self.wide else values[:6]
        return kind, offset, linear, gpa, in_file, in_memory

    def memory(self) -> dict[int, bytes]:
        return {segment[3]: self.data[segment[1] : segment[1] + segment[4]] for segment in self.segments[1:]}

    def notes(self) -> list[tuple[bytes, int, bytes]]:
        _, position, _, _, size, _ = self.segments[0]
        end, found = position + size, []
        while position < end:
            name_size, size, kind = struct.unpack_from("<III", self.data, position)
            name = self.data[position + 12 : position + 12 + name_size]
            position += 12 + (name_size + 3 & ~3)
            found.append((name, kind, self.data[position : position + size]))
            position += size + 3 & ~3
        return found


def test_capability(guest: Guest) -> None:
    formats = guest.client.execute("query-dump-guest-memory-capability")
    assert formats == {"formats": ["elf", "kdump-zlib", "win-dmp"]}
    assert guest.client.execute("query-dump") == {"status": "none", "completed": 0, "total": 0}


def test_elf_of_a_guest_in_real_mode(guest: Guest, tmp_path: Path) -> None:
    guest.memory.write(0x1234, b"hello")
    guest.memory.write(0x100000, b"high")
    guest.states[0].rip, guest.states[0].cs = 0xFFF0, SegmentState(selector=0xF000, base=0xFFFF0000, limit=0xFFFF)
    event, reply = guest.dump(tmp_path / "d")
    assert (event["event"], event["data"], reply) == ("DUMP_COMPLETED", completed(TOTAL), {"return": {}})
    assert guest.client.execute("query-dump") == completed(TOTAL)["result"]
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o400
    elf = Elf(tmp_path / "d")
    assert (elf.wide, elf.type, elf.machine, elf.count, elf.sections) == (False, 4, 3, 3, 2)
    assert [segment[0] for segment in elf.segments] == [4, 1, 1]
    assert [segment[2:] for segment in elf.segments[1:]] == [
        (0, 0, LOW, LOW),
        (0, 0xC0000, SIZE - 0xC0000, SIZE - 0xC0000),
    ]
    memory = elf.memory()
    assert memory[0] == guest.memory.read(0, LOW)
    assert memory[0xC0000] == guest.memory.read(0xC0000, SIZE - 0xC0000)
    assert elf.data.endswith(b"\0.shstrtab\0")
    (core, kind, status), (name, other, state) = elf.notes()
    assert (core, kind, len(status)) == (b"CORE\0", 1, 144)
    assert struct.unpack_from("<I", status, 24) == (1,)
    assert struct.unpack_from("<II", status, 72 + 12 * 4) == (0xFFF0, 0xF000)
    assert (name, other, len(state)) == (b"QEMU\0", 0, 440)
    assert struct.unpack_from("<II", state) == (1, 440)
    assert struct.unpack_from("<QQIIII Q", state, 136) == (0xFFF0, 2, 0xF000, 0xFFFF, 0, 0, 0xFFFF0000)


def long_mode(index: int = 0) -> RegisterState:
    gpr = struct.pack("<16Q", *(0x1000 * index + number for number in range(16)))
    state = RegisterState(cr0=1 | paging.CR0_PG, cr3=0x1000, cr4=paging.CR4_PAE, efer=0x500, gpr=gpr)
    state.rip, state.kernel_gs_base, state.cr2 = 0xFFFF_FFFF_8000_0000 + index, 0x77, 0x55
    state.fs, state.gs = SegmentState(base=0x111), SegmentState(base=0x222)
    return state


def test_elf_of_a_guest_in_long_mode(guest: Guest, tmp_path: Path) -> None:
    guest.states = [long_mode(0), long_mode(1)]
    guest.mmio.add(VIDEO, 4096, guest.video.read, guest.video.write, "video", ram=guest.video)
    guest.video.view[:5] = b"video"
    guest.dump(tmp_path / "d")
    elf = Elf(tmp_path / "d")
    assert (elf.wide, elf.machine, elf.count) == (True, 62, 4)
    assert elf.memory()[VIDEO] == b"video".ljust(4096, b"\0")
    notes = elf.notes()
    assert [(name, len(content)) for name, _, content in notes] == [(b"CORE\0", 336)] * 2 + [(b"QEMU\0", 440)] * 2
    status = notes[1][2]
    assert struct.unpack_from("<I", status, 32) == (2,)
    registers = struct.unpack_from("<27Q", status, 112)
    assert [value - 0x1000 for value in registers[:15]] == [15, 14, 13, 12, 5, 3, 11, 10, 9, 8, 0, 1, 2, 6, 7]
    assert registers[16] == 0xFFFF_FFFF_8000_0001
    assert registers[19] == 0x1004
    assert registers[21:23] == (0x111, 0x222)
    state = notes[2][2]
    assert struct.unpack_from("<16Q", state, 8) == (0, 3, 1, 2, 6, 7, 4, 5, *range(8, 16))
    control = (1 | paging.CR0_PG, 0, 0x55, 0x1000, paging.CR4_PAE, 0x77)
    assert struct.unpack_from("<6Q", state, 392) == control


def test_linear_addresses(guest: Guest, tmp_path: Path) -> None:
    guest.memory.write_u64(0x1000 + 8 * 511, 0x2000 | 1)
    guest.memory.write_u64(0x2000 + 8 * 510, 0x3000 | 1)
    guest.memory.write_u64(0x3000, 0x81)
    guest.memory.write_u64(0x3008, 0x4000 | 1)
    guest.memory.write_u64(0x4000, 0x9000 | 1)
    guest.memory.write_u64(0x4008, 0xFFFF_0000_0001 & ~0xFFE)
    guest.states = [long_mode(), long_mode()]
    guest.dump(tmp_path / "d", paging=True)
    elf = Elf(tmp_path / "d")
    assert [segment[2:5] for segment in elf.segments[1:]] == [
        (0xFFFF_FFFF_8000_0000, 0, LOW),
        (0xFFFF_FFFF_800C_0000, 0xC0000, SIZE - 0xC0000),
        (0xFFFF_FFFF_8020_0000, 0x9000, 0x1000),
    ]
    offset = elf.segments[3][1]
    assert elf.data[offset : offset + 0x1000] == guest.memory.read(0x9000, 0x1000)


def test_hostile_page_tables(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(512):
        guest.memory.write_u64(0x1000 + 8 * index, 0x1000 | 1)
    guest.states = [long_mode()]
    guest.run()
    monkeypatch.setattr(paging, "TABLE_LIMIT", 600)
    messages = guest.dump(tmp_path / "d", paging=True)
    assert strings(messages) == ["STOP", "DUMP_COMPLETED", "RESUME", "error"]
    assert messages[-1]["error"]["desc"] == "the guest has too many page tables"


def test_ranges(guest: Guest, tmp_path: Path) -> None:
    guest.memory.write(0x9FFFE, b"ab")
    guest.memory.write(0xC0000, b"cd")
    (event, _) = guest.dump(tmp_path / "d", begin=0x9FFFE, length=0x20004)
    assert event["data"] == completed(4)
    assert Elf(tmp_path / "d").memory() == {0x9FFFE: b"ab", 0xC0000: b"cd"}
    nothing = {"begin": 1 << 40, "length": 4096}
    assert guest.dump_fails(protocol=f"file:{tmp_path}/e", **nothing) == "dump: no guest memory to dump"
    assert guest.dump_fails(protocol=f"file:{tmp_path}/e", begin=0, length=0) == "Invalid parameter 'length'"
    assert guest.dump_fails(protocol=f"file:{tmp_path}/e", begin=-1, length=5) == "Invalid parameter 'begin'"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "Parameter 'protocol' is missing"),
        ({"protocol": "zz:/x"}, "Invalid parameter 'protocol'"),
        ({"protocol": "file:/none/x"}, "Could not open '/none/x': No such file or directory"),
        ({"protocol": "file:/x\0"}, "Could not open '/x\0': Invalid argument"),
        ({"protocol": "fd:zz"}, "File descriptor named 'zz' has not been found"),
        ({"protocol": "file:/none/x", "begin": 0}, "Parameter 'length' is missing"),
        ({"protocol": "file:/none/x", "length": 4096}, "Parameter 'begin' is missing"),
        ({"protocol": "file:/none/x", "format": "kdump-lzo"}, "kdump-lzo is not available now"),
        ({"protocol": "file:/none/x", "format": "kdump-snappy"}, "kdump-snappy is not available now"),
        (
            {"protocol": "file:/none/x", "format": "kdump-zlib", "paging": True},
            "kdump-compressed format doesn't support paging or filter",
        ),
        (
            {"protocol": "file:/none/x", "format": "kdump-lzo", "begin": 0},
            "kdump-compressed format doesn't support paging or filter",
        ),
    ],
)
def test_errors(guest: Guest, arguments: dict[str, Any], problem: str) -> None:
    assert guest.dump_fails(**arguments) == problem


def test_the_guest_stands_still_meanwhile(guest: Guest, tmp_path: Path) -> None:
    guest.run()
    assert strings(guest.dump(tmp_path / "d")) == ["STOP", "DUMP_COMPLETED", "RESUME", "return"]
    client = guest.client
    arguments = {"paging": False, "protocol": f"file:{tmp_path}/e", "detach": True}
    assert client.ask({"execute": "dump-guest-memory", "arguments": arguments}) == []
    assert strings(guest.step()) == ["STOP", "return"]
    assert client.execute("query-status")["status"] == "save-vm"
    assert client.execute("query-dump")["status"] == "active"
    wait = "There is a dump in process, please wait."
    detached = guest.bench.spawned.pop()
    assert guest.dump_fails(protocol="zz") == wait
    guest.bench.spawned.append(detached)
    assert strings(guest.finish()) == ["DUMP_COMPLETED", "RESUME"]
    assert guest.bench.machine.run_state is RunState.RUNNING


def test_no_dump_of_a_guest_that_is_still_coming(guest: Guest) -> None:
    guest.bench.machine.states.set(RunState.INMIGRATE)
    assert guest.dump_fails(protocol="zz") == "Dump not allowed during incoming migration."


def test_a_full_disk(guest: Guest) -> None:
    guest.run()
    stop, event, resume, reply = guest.ask("dump-guest-memory", paging=False, protocol="file:/dev/full")
    full = "dump: failed to write elf header: No space left on device"
    assert [stop["event"], resume["event"], reply["error"]["desc"]] == ["STOP", "RESUME", full]
    assert event["data"] == {"result": {"total": TOTAL, "status": "failed", "completed": 0}, "error": full}
    assert guest.client.execute("query-dump")["status"] == "failed"


def test_windows_dumps_need_a_note_of_the_guest(guest: Guest, tmp_path: Path) -> None:
    note = "win-dump: invalid vmcoreinfo note size"
    event, reply = guest.dump(tmp_path / "d", format="win-dmp")
    assert (event["data"]["error"], reply["error"]["desc"]) == (note, note)
    assert (tmp_path / "d").read_bytes() == b""


def test_descriptors(guest: Guest, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    guest.client.wire.take_fds = lambda: [writing]  # type: ignore[method-assign]
    guest.client.execute("getfd", fdname="out")
    (event, _) = guest.ask("dump-guest-memory", paging=False, protocol="fd:out", begin=0, length=4096)
    assert event["data"] == completed(4096)
    with open(reading, "rb") as file:
        assert file.read(4) == b"\x7fELF"
        assert len(file.read()) > 4096
    machine: Any = guest.bench.machine
    fd = os.open(tmp_path / "set", os.O_WRONLY | os.O_CREAT)
    machine.fdsets.add(fd)
    guest.ask("dump-guest-memory", paging=False, protocol="file:/dev/fdset/0", begin=0, length=4096)
    machine.fdsets.close()
    assert (tmp_path / "set").stat().st_size > 4096


def test_the_machine_ends_while_nobody_reads(guest: Guest) -> None:
    reading, writing = os.pipe()
    guest.client.wire.take_fds = lambda: [writing]  # type: ignore[method-assign]
    guest.client.execute("getfd", fdname="out")
    guest.client.ask({"execute": "dump-guest-memory", "arguments": {"paging": False, "protocol": "fd:out"}})

    async def end() -> None:
        waiting = asyncio.ensure_future(guest.bench.spawned.pop(0))
        while guest.dumper.completed == 0 and not waiting.done():
            await asyncio.sleep(0)
            if os.read(reading, 1 << 12) and guest.dumper.active:
                break
        await asyncio.to_thread(guest.dumper.close)
        await waiting

    asyncio.run(end())
    messages = guest.client.messages()
    assert messages[0]["data"]["error"] == "dump: cancelled"
    os.close(reading)


# ---- kdump


class Kdump:
    """A kdump file, read again."""

    def __init__(self, path: Path) -> None:
        self.data = self._unflatten(path.read_bytes())
        assert self.data[:12] == b"KDUMP   " + struct.pack("<I", 6)
        self.machine = self.data[12 + 4 * 65 : 12 + 5 * 65].rstrip(b"\0")
        self.wide = self.machine == b"x86_64"
        counts = struct.unpack_from("<10I", self.data, 424 if self.wide else 412)
        self.status, self.block, self.sub_blocks, self.bitmap_blocks, self.frames = counts[:5]
        self.cpus = counts[9]

    @staticmethod
    def _unflatten(data: bytes) -> bytes:
        assert data[:16] == b"makedumpfile\0\0\0\0"
        assert struct.unpack_from(">qq", data, 16) == (1, 1)
        image, position = bytearray(), 4096
        while True:
            offset, size = struct.unpack_from(">qq", data, position)
            position += 16
            if offset < 0:
                assert position == len(data)
                return bytes(image)
            image.extend(bytes(max(offset + size - len(image), 0)))
            image[offset : offset + size] = data[position : position + size]
            position += size

    def pages(self) -> dict[int, bytes]:
        start = self.block * (1 + self.sub_blocks)
        half = self.bitmap_blocks * self.block // 2
        bitmap = self.data[start : start + half]
        assert self.data[start + half : start + 2 * half] == bitmap
        frames = [frame for frame in range(8 * half) if bitmap[frame >> 3] >> (frame & 7) & 1]
        found, position = {}, start + 2 * half
        for frame in frames:
            offset, size, flags, _ = struct.unpack_from("<QIIQ", self.data, position)
            position += 24
            piece = self.data[offset : offset + size]
            found[frame] = zlib.decompress(piece) if flags == 1 else piece
        return found


@pytest.mark.parametrize("wide", [False, True])
def test_kdump(guest: Guest, tmp_path: Path, wide: bool) -> None:
    guest.memory.write(0x3000, os.urandom(4096))
    guest.memory.write(0x4000, b"text" * 1024)
    guest.memory.write(SIZE - 1, b"x")
    if wide:
        guest.states = [long_mode(0), long_mode(1)]
    (event, _) = guest.dump(tmp_path / "d", format="kdump-zlib")
    assert event["data"] == completed(TOTAL)
    kdump = Kdump(tmp_path / "d")
    assert (kdump.wide, kdump.status, kdump.block, kdump.frames) == (wide, 1, 4096, SIZE // 4096)
    assert kdump.cpus == len(guest.states)
    pages = kdump.pages()
    present = [*range(LOW >> 12), *range(0xC0, SIZE >> 12)]
    assert sorted(pages) == present
    assert all(pages[frame] == guest.memory.read(frame << 12, 4096) for frame in present)
    form = "<QII11Q" if wide else "<5IQIQIQI3Q"
    sub = struct.unpack_from(form, kdump.data, 4096)
    assert (sub[1], sub[-1]) == (1, SIZE // 4096)
    offset, size = sub[7:9]
    assert kdump.data[offset + 12 : offset + 16] == b"CORE"
    assert size == len(guest.states) * ((12 + 8 + (336 if wide else 144)) + (12 + 8 + 440))


def test_bits_of_frames_at_odd_places() -> None:
    from pyvm.machine.dump.file import _bitmap

    runs = [MemoryRun(page << 12, count << 12, lambda offset, length: memoryview(b"")) for page, count in _ODD]
    bitmap = _bitmap(Dump(runs, b"", 1, False), 4096)
    frames = {frame for frame in range(8 * 4096) if bitmap[frame >> 3] >> (frame & 7) & 1}
    assert frames == {frame for page, count in _ODD for frame in range(page, page + count)}


_ODD = ((0, 3), (5, 2), (9, 30), (48, 8), (63, 1), (64, 65))


def test_very_many_segments() -> None:
    parts: list[bytes] = []
    page = memoryview(bytes(4096))
    run = MemoryRun(0, 4096, lambda offset, length: page[offset : offset + length])
    segments = [Segment(number << 13, 0, 4096, 0) for number in range(70000)]
    dump = Dump([run], b"", 1, True, segments)
    write_elf(dump, lambda data, what: parts.append(bytes(data)), lambda length: None, 1 << 20)
    data = b"".join(parts)
    assert struct.unpack_from("<H", data, 56) == (0xFFFF,)
    assert struct.unpack_from("<I", data, 64 + 44) == (70001,)


# ---- Plain copies


def test_pmemsave(guest: Guest, tmp_path: Path) -> None:
    guest.memory.write(0x9FFFE, b"ab")
    path = tmp_path / "p"
    assert guest.ask("pmemsave", val=0x9FFFE, size=4, filename=str(path)) == [{"return": {}}]
    assert path.read_bytes() == b"ab\0\0"
    assert guest.ask("pmemsave", val=0, size=0, filename=str(path)) == [{"return": {}}]
    assert path.read_bytes() == b""
    assert guest.ask("pmemsave", val=-8, size=16, filename=str(path)) == [{"return": {}}]
    assert path.read_bytes() == bytes(16)
    (reply,) = guest.ask("pmemsave", val=0, size=16, filename="/none/p")
    assert reply["error"]["desc"] == "Could not open '/none/p': No such file or directory"
    (reply,) = guest.ask("pmemsave", val=0, size=-1, filename=str(path))
    assert reply["error"]["desc"] == "Invalid parameter 'size'"
    (reply,) = guest.ask("pmemsave", val=0, size=16, filename="/dev/full")
    assert reply["error"]["desc"] == "An IO error has occurred"
    big = (1 << 20) + 5
    guest.ask("pmemsave", val=0xC0000, size=big, filename=str(path))
    assert path.read_bytes() == guest.memory.read(0xC0000, big)


def test_registers_and_device_memory_are_physical_memory_too(guest: Guest) -> None:
    guest.mmio.add(VIDEO, 4096, guest.video.read, guest.video.write, "video", ram=guest.video)
    guest.mmio.add(VIDEO + 4096, 8, lambda offset, size: 0x11 * (offset + 1), lambda *_: None, "registers")
    guest.video.view[-1] = 7
    physical = PhysicalMemory(guest.memory, guest.mmio)
    assert physical.read(VIDEO + 4095, 8).hex() == "0711000000550000"
    assert physical.read(VIDEO + 4097, 1) == b"\0"
    assert physical.has(VIDEO, 4104)
    assert not physical.has(VIDEO, 4105)
    assert [run.gpa for run in memory_runs(guest.memory, guest.mmio)] == [0, 0xC0000, VIDEO]


def test_memsave(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "m"
    guest.memory.write(0x1000, b"abcd")
    assert guest.ask("memsave", val=0x1002, size=2, filename=str(path)) == [{"return": {}}]
    assert path.read_bytes() == b"cd"
    (reply,) = guest.ask("memsave", val=0, size=64, filename=str(path), cpu_index=9)
    assert reply["error"]["desc"] == "Parameter 'cpu-index' expects a CPU number"
    (reply,) = guest.ask("memsave", val=1 << 40, size=64, filename=str(path))
    assert reply["error"]["desc"] == "Invalid addr 0x0000010000000000/size 64 specified"
    (reply,) = guest.ask("memsave", val=0, size=-1, filename=str(path))
    assert reply["error"]["desc"] == "Invalid parameter 'size'"
    for table, entry in ((0x1000, 0x2001), (0x2000, 0x3001), (0x3000, 0x4001), (0x4008, 0x9001), (0x4010, 0x7001)):
        guest.memory.write_u64(table, entry)
    guest.memory.write(0x9FFE, b"ab")
    guest.memory.write(0x7000, b"cd")
    guest.states = [RegisterState(), long_mode()]
    guest.ask("memsave", val=0x1FFE, size=4, filename=str(path), cpu_index=1)
    assert path.read_bytes() == b"abcd"


def test_without_memory() -> None:
    client = Bench().client()
    assert isinstance(client.bench.machine, FakeMachine)
    assert client.error("query-dump") == "this feature or command is not currently supported"
