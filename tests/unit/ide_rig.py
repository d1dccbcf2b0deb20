"""An IDE controller with its ports, disks in memory, and a back end that works when it is told to."""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from threading import RLock

from pyvm.block.backend import BlockBackend
from pyvm.block.context import Work
from pyvm.block.node import Node
from pyvm.devices.ide.atapi import AtapiCd
from pyvm.devices.ide.disk import IdeDisk
from pyvm.devices.ide.piix3 import Piix3Ide
from pyvm.devices.pci import constants as pci
from pyvm.irq import IrqLine
from pyvm.memory import RamBlock
from tests.unit.scratch_ram import scratch_ram

SECTOR = 512
RAM = 1 << 20
BASE = 0x1F0, 0x170
CONTROL = 0x3F6, 0x376
BM = 0xC000
TABLE = 0x8000
BSY, DRDY, DSC, DRQ, ERR = 0x80, 0x40, 0x10, 0x08, 0x01


class MemoryNode(Node):
    """A disk in memory.  Sectors in `bad` cannot be read or written; calls are counted."""

    driver = "memory"

    def __init__(self, data: bytes | bytearray, *, read_only: bool = False) -> None:
        super().__init__("memory", read_only=read_only)
        self.data = bytearray(data)
        self.bad: set[int] = set()
        self.calls: list[tuple[str, int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def _account(self, kind: str, offset: int, length: int) -> None:
        self.calls.append((kind, offset // SECTOR, length // SECTOR))
        if any(sector in self.bad for sector in range(offset // SECTOR, (offset + length) // SECTOR)):
            raise OSError(errno.EIO, "bad sector")

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._account("read", offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._account("write", offset, sum(map(len, buffers)))
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        self._account("flush", 0, 0)

    def discard(self, offset: int, length: int) -> None:
        self._account("discard", offset, length)
        self.data[offset : offset + length] = bytes(length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._account("zero", offset, length)
        self.data[offset : offset + length] = bytes(length)


class SteppedContext:
    """An I/O context that works when a test says so."""

    def __init__(self) -> None:
        self.name = ""
        self.lock = RLock()
        self.queue: deque[Work] = deque()

    def submit(self, work: Work) -> None:
        self.queue.append(work)

    def attempt(self, action: Callable[[], bool]) -> bool:
        return False

    def step(self) -> None:
        work = self.queue.popleft()
        work.run()
        work.complete()

    def run(self) -> None:
        while self.queue:
            self.step()

    def settle(self, settled: Callable[[], bool]) -> None:
        while not settled() and self.queue:
            self.step()

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.run()


@cache
def pattern(sectors: int, size: int = SECTOR) -> bytes:
    """Blocks that differ: each is its own number repeated."""
    return b"".join(
        struct.pack("<I", (index * 0x9E3779B1 + 0x5A) & 0xFFFFFFFF) * (size // 4) for index in range(sectors)
    )


class Board:
    """The controller at its ports.  `drives` are put in their places: 0 and 1 primary, 2 and 3 secondary."""

    def __init__(self, **drives: IdeDisk | AtapiCd) -> None:
        self.memory = scratch_ram(RAM, [RamBlock(0, RAM, 0)])
        self.written: list[tuple[int, int]] = []
        self.memory.on_write = lambda gpa, length: self.written.append((gpa, length))
        self.edges = [0, 0]
        self.irqs = tuple(IrqLine(lambda level, index=index: self._edge(index, level)) for index in range(2))
        self.ide = Piix3Ide(self.memory, self.irqs)  # type: ignore[arg-type]
        for name, drive in drives.items():
            place = int(name[1:])
            self.ide.channels[place // 2].attach(place % 2, drive)
        self.ide.config_write(pci.COMMAND, 2, pci.COMMAND_IO | pci.COMMAND_MASTER)

    def _edge(self, index: int, level: bool) -> None:
        self.edges[index] += level

    def inp(self, port: int, size: int = 1) -> int:
        for index in range(2):
            if BASE[index] <= port < BASE[index] + 8:
                return self.ide.channels[index].command_read(port - BASE[index], size)
            if port == CONTROL[index]:
                return self.ide.channels[index].control_read(0, size)
        return self.ide.bm_read(port - BM, size)

    def out(self, port: int, value: int, size: int = 1) -> None:
        for index in range(2):
            if BASE[index] <= port < BASE[index] + 8:
                self.ide.channels[index].command_write(port - BASE[index], size, value)
                return
            if port == CONTROL[index]:
                self.ide.channels[index].control_write(0, size, value)
                return
        self.ide.bm_write(port - BM, size, value)

    def registers(self, base: int = BASE[0]) -> tuple[int, ...]:
        """Error, count, LBA low, mid, high, device."""
        return tuple(self.inp(base + offset) for offset in range(1, 7))

    def command(
        self,
        command: int,
        *,
        lba: int = 0,
        count: int = 0,
        features: int = 0,
        device: int = 0xE0,
        base: int = BASE[0],
        extended: bool = False,
    ) -> int:
        """Write a command with its registers; return the status, which acknowledges the interrupt."""
        if extended:
            self.out(base + 6, device)
            halves = ((features >> 8, count >> 8, lba >> 24), (features, count, lba))
        else:
            self.out(base + 6, device | (lba >> 24 & 0xF if device & 0x40 else 0))
            halves = ((features, count, lba),)
        for feature, number, address in halves:
            values = (feature, number, address, address >> 8, address >> 16)
            for offset, value in enumerate(values, 1):
                self.out(base + offset, value & 0xFF)
        self.out(base + 7, command)
        return self.inp(base + 7)

    def read_data(self, length: int, size: int = 2, base: int = BASE[0]) -> bytes:
        return b"".join(self.inp(base, size).to_bytes(size, "little") for _ in range(length // size))

    def write_data(self, data: bytes, size: int = 2, base: int = BASE[0]) -> None:
        for start in range(0, len(data), size):
            self.out(base, int.from_bytes(data[start : start + size], "little"), size)

    def table(self, regions: Iterable[tuple[int, int]], *, end: bool = True, address: int = TABLE) -> None:
        """Write a PRD table of (address, length) regions."""
        entries = [struct.pack("<IHH", where, length & 0xFFFF, 0) for where, length in regions]
        if end and entries:
            entries[-1] = entries[-1][:7] + b"\x80"
        self.memory.write(address, b"".join(entries))

    def start(self, address: int = TABLE, *, to_memory: bool = True, bm: int = BM) -> None:
        self.out(bm + 4, address, 4)
        self.out(bm, 8 if to_memory else 0)
        self.out(bm + 2, 6)
        self.out(bm, 9 if to_memory else 1)

    def packet(self, cdb: bytes, *, features: int = 0, limit: int = 0xFFFE, base: int = BASE[1]) -> int:
        """Send a packet to the drive that is master at `base`; return the status."""
        self.command(0xA0, lba=limit << 8, features=features, device=0xA0, base=base)
        self.write_data(cdb.ljust(12, b"\0"), base=base)
        return self.inp(base + 7)

    def packet_data(self, cdb: bytes, *, limit: int = 0xFFFE, base: int = BASE[1], size: int = 2) -> bytes:
        """Send a packet and read all that it returns by PIO."""
        status = self.packet(cdb, limit=limit, base=base)
        data = b""
        for _ in range(1 << 16):
            if not status & DRQ:
                return data
            count = self.inp(base + 4) | self.inp(base + 5) << 8
            rounded = -(-count // size) * size
            data += self.read_data(rounded, size, base)[:count]
            status = self.inp(base + 7)
        raise AssertionError("no end of data")


def disk(data: bytes | bytearray | int = 64, **options: object) -> IdeDisk:
    """A disk, of a number of sectors or with contents; `node` and `context` may be given."""
    node = options.pop("node", None) or MemoryNode(pattern(data) if isinstance(data, int) else data)
    backend = BlockBackend(node, options.pop("context", None))  # type: ignore[arg-type]
    return IdeDisk(backend, **options)  # type: ignore[arg-type]


def cd(blocks: int = 40, **options: object) -> AtapiCd:
    """A CD drive with a medium of so many blocks; none with 0."""
    node = MemoryNode(pattern(blocks, 2048), read_only=True) if blocks else None
    backend = BlockBackend(node, options.pop("context", None), read_only=True)  # type: ignore[arg-type]
    return AtapiCd(backend, **options)  # type: ignore[arg-type]


def node_of(drive: IdeDisk | AtapiCd) -> MemoryNode:
    node = drive.backend.node
    assert isinstance(node, MemoryNode)
    return node
