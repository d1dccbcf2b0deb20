"""Files of the host that a boot loader reads: the kernel, the initrd, modules."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import Self

from pyvm.firmware.errors import BootError
from pyvm.memory import GuestMemory

MAX_SIZE = 1 << 32


class HostFile:
    """A regular file, open for reading.  `what` names its part in error messages: "kernel", "initrd"."""

    def __init__(self, path: str, what: str) -> None:
        self.path = path
        self.what = what
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # not blocking: it may be a FIFO
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise BootError(f"could not open {what} file '{path}': {_reason(error)}") from error
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            raise BootError(f"could not open {what} file '{path}': not a regular file")
        if status.st_size >= MAX_SIZE:
            os.close(self.fd)
            raise BootError(f"could not load {what} file '{path}': it has 4 GiB or more")
        self.size = status.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, or as many as there are."""
        try:
            return os.pread(self.fd, length, offset) if offset < self.size else b""
        except OSError as error:
            raise self._failed(error) from error

    def read_all(self) -> bytearray:
        """Return the whole file."""
        data = bytearray(self.size)
        self._fill(memoryview(data))
        return data

    def read_into(self, memory: GuestMemory, address: int) -> None:
        """Read the whole file into guest RAM."""
        self._fill(memory.view(address, self.size))
        memory.written(address, self.size)

    def _fill(self, target: memoryview) -> None:
        done = 0
        try:
            while done < len(target):
                count = os.preadv(self.fd, [target[done:]], done)
                if not count:
                    raise BootError(f"could not load {self.what} file '{self.path}': it became shorter")
                done += count
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> BootError:
        return BootError(f"could not load {self.what} file '{self.path}': {_reason(error)}")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
