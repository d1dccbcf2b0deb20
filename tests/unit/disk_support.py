"""Disks in RAM for tests of disk devices, and an I/O context that ends requests when the test says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from pyvm.block.context import Work
from pyvm.block.node import Node

SECTORS = 64


class Disk(Node):
    """A node in RAM that counts flushes and fails on demand."""

    driver = "test"

    def __init__(self, sectors: int = SECTORS, *, read_only: bool = False, serial: str = "S3R1AL") -> None:
        super().__init__("disk", read_only=read_only, serial=serial)
        self.data = bytearray(os.urandom(sectors * 512))
        self.flushes = 0
        self.calls: list[tuple[str, int, int]] = []
        self.error: OSError | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def _begin(self, what: str, offset: int, length: int) -> None:
        assert offset >= 0
        assert offset + length <= self.size
        if self.error is not None:
            raise self.error
        self.calls.append((what, offset, length))

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._begin("read", offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self._begin("write", offset, sum(map(len, buffers)))
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        self._begin("flush", 0, 0)
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        self._begin("discard", offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self._begin("unmap" if unmap else "zero", offset, length)
        self.data[offset : offset + length] = bytes(length)


class LateContext:
    """A context that carries out what was submitted when the test says so, in the order that it says."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.name = "late"
        self.queue: list[Work] = []

    def submit(self, work: Work) -> None:
        self.queue.append(work)

    def attempt(self, action: Callable[[], bool]) -> bool:
        return False

    def finish(self, index: int = 0) -> None:
        work = self.queue.pop(index)
        work.run()
        work.complete()

    def settle(self, settled: Callable[[], bool]) -> None:
        while self.queue and not settled():
            self.finish()
