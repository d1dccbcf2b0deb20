"""Memory backends: memory of the host that is made by itself and becomes guest RAM where the machine says so.

Each is a descriptor and a mapping of it: anonymous memory (`memory-backend-ram`, `memory-backend-memfd`, which other
processes can be handed) or a file (`memory-backend-file`).  How the host treats the pages (merging, core dumps, NUMA
nodes, setting aside) is asked of the kernel when the backend is made.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pyvm.machine.user_objects import ObjectHost, UserObject
from pyvm.memory import map_fixed, punch_hole
from pyvm.monitor.errors import QmpError

_MADV_POPULATE_WRITE = 23
_MFD_HUGE_SHIFT = 26
_SYS_MBIND = 237
_POLICIES = {"default": 0, "preferred": 1, "bind": 2, "interleave": 3}
"""Modes of mbind(2)."""
_MPOL_MF_STRICT_MOVE = 0b11
_MAX_NODES = 128
_MAP_NORESERVE = 0x4000
_PAGE = mmap.PAGESIZE
_FILE_MODE = 0o644

_COMMON: dict[str, Any] = {
    "share": False,
    "dump": True,
    "merge": True,
    "prealloc": False,
    "reserve": True,
    "policy": "default",
    "host-nodes": [],
    "x-use-canonical-path-for-ramblock-id": False,
}
_MUTABLE = ("merge", "dump", "prealloc")


class MemoryBackend(UserObject):
    """Memory of the host.  Raises QmpError where it cannot be had."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        self.values = {
            **_COMMON,
            "prealloc-threads": host.default_threads,
            "prealloc-context": "",
            **_OF_TYPE[kind],
            **given,
        }
        self.mapped = False
        """Whether the memory is part of a machine."""
        self._check()
        self.fd, self.mapping = self._map()
        try:
            self._advise()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """The size in bytes."""
        return int(self.values["size"])

    @property
    def private(self) -> bool:
        """Whether what is written stays out of the file below."""
        return self.type == "memory-backend-file" and not self.values["share"]

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""
        if self.private:
            # The file has to stay as it is, and its old bytes would come back.
            self.mapping[offset : offset + length] = bytes(length)
        else:
            punch_hole(self.fd, offset, length)

    def place(self, address: int) -> None:
        """Map the memory at an address of this process, over what is there.  Raises OSError."""
        map_fixed(address, self.size, mmap.MAP_PRIVATE if self.private else mmap.MAP_SHARED, self.fd)

    @property
    def in_use(self) -> bool:
        """Whether the memory is part of a machine."""
        return self.mapped

    def close(self) -> None:
        """Give the memory back; nothing may use it any more."""
        if self.values.get("discard-data"):
            self._madvise("MADV_REMOVE")
        with suppress(BufferError):  # a machine that ends may still have views of it
            self.mapping.close()
        os.close(self.fd)

    def _check(self) -> None:
        values = self.values
        for name in ("size", "prealloc-threads"):
            if values[name] == 0:
                raise QmpError(f"property '{name}' of {self.type} doesn't take value '0'")
        if values["prealloc-context"]:
            raise QmpError(f"Device '{values['prealloc-context']}' not found", "DeviceNotFound")
        if values["host-nodes"] and values["policy"] == "default":
            raise QmpError(
                "host-nodes must be empty for policy default,"
                " or you should explicitly specify a policy other than default"
            )
        if not values["host-nodes"] and values["policy"] != "default":
            raise QmpError(f"host-nodes must be set for policy {values['policy']}")
        if any(node >= _MAX_NODES for node in values["host-nodes"]):
            raise QmpError(f"Invalid host-nodes value: {max(values['host-nodes'])}")
        if values.get("pmem"):
            raise QmpError("Lack of libpmem support while setting the 'pmem=on' of memory-backend-file "
                           f"'{self.id}'. We can't ensure data persistence.")  # fmt: skip
        if values["prealloc"] and not values["reserve"]:
            raise QmpError("'prealloc=on' and 'reserve=off' are incompatible")

    # ---- Making it

    def _map(self) -> tuple[int, mmap.mmap]:
        makers = {"memory-backend-file": self._open_file, "memory-backend-memfd": self._memfd}
        fd = makers.get(self.type, self._anonymous)()
        flags = mmap.MAP_PRIVATE if self.private else mmap.MAP_SHARED
        if not self.values["reserve"]:
            flags |= _MAP_NORESERVE
        writable = not self.values.get("readonly") or self.private
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            return fd, mmap.mmap(fd, self.size, flags=flags, prot=access)
        except (OSError, OverflowError, ValueError) as error:
            os.close(fd)
            raise QmpError(f"cannot set up guest memory '{self.id}': {_reason(error)}") from None

    def _anonymous(self) -> int:
        return self._made_memfd(os.MFD_CLOEXEC)

    def _made_memfd(self, flags: int) -> int:
        try:
            fd = os.memfd_create(self.type, flags)
        except OSError as error:
            raise QmpError(f"failed to create memfd: {error.strerror}") from None
        try:
            os.ftruncate(fd, self.size)
        except (OSError, OverflowError) as error:
            os.close(fd)
            raise QmpError(f"cannot set up guest memory '{self.id}': {_reason(error)}") from None
        return fd

    def _memfd(self) -> int:
        values = self.values
        flags = os.MFD_CLOEXEC
        if values["hugetlb"]:
            flags |= os.MFD_HUGETLB
            page = values["hugetlbsize"]
            if page:
                if page & (page - 1):
                    raise QmpError("Hugepage size must be a power of 2")
                flags |= (page.bit_length() - 1) << _MFD_HUGE_SHIFT
        if not values["seal"]:
            return self._made_memfd(flags)
        fd = self._made_memfd(flags | os.MFD_ALLOW_SEALING)
        seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        with suppress(OSError):  # a kernel cannot seal huge pages that is older than 4.16
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    def _open_file(self) -> int:
        values = self.values
        path = values["mem-path"]
        if values["align"] % _PAGE:
            raise QmpError(f"alignment {values['align']:#x} must be multiples of page size {_PAGE:#x}")
        try:
            fd = self._opened(path)
        except (OSError, ValueError) as error:
            raise QmpError(f"can't open backing store {path} for guest RAM: {_reason(error)}") from None
        try:
            length = os.fstat(fd).st_size
            if 0 < length < self.size:
                raise QmpError(f"backing store size {length:#x} does not match 'size' option {self.size:#x}")
            if not length:
                os.truncate(path if values["readonly"] else fd, self.size)
        except OSError as error:
            os.close(fd)
            raise QmpError(f"cannot set up guest memory '{self.id}': {_reason(error)}") from None
        except QmpError:
            os.close(fd)
            raise
        return fd

    def _opened(self, path: str) -> int:
        if os.path.isdir(path):
            import tempfile

            fd, name = tempfile.mkstemp(prefix=f"pyvm_back_mem.{self.id}.", dir=path)
            os.unlink(name)
            return fd
        if self.values["readonly"] and os.path.exists(path):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind) or stat.S_ISCHR(kind)):
            os.close(fd)
            raise ValueError("it is no file")
        return fd

    # ---- What the kernel is told

    def _advise(self) -> None:
        if self.values["merge"]:
            self._madvise("MADV_MERGEABLE")
        if not self.values["dump"]:
            self._madvise("MADV_DONTDUMP")
        if self.values["policy"] != "default":
            self._bind()
        if self.values["prealloc"]:
            self._take_pages()

    def _madvise(self, name: str) -> None:
        with suppress(OSError):  # a kernel may be built without it
            self.mapping.madvise(getattr(mmap, name))

    def _bind(self) -> None:
        mask = sum(1 << node for node in set(self.values["host-nodes"]))
        words = _MAX_NODES // 64
        nodes = (ctypes.c_ulong * words)(*((mask >> 64 * index) & ((1 << 64) - 1) for index in range(words)))
        libc = ctypes.CDLL(None, use_errno=True)
        mode = _POLICIES[self.values["policy"]]
        arguments = (
            address_of(self.mapping),
            self.size,
            mode,
            ctypes.byref(nodes),
            _MAX_NODES + 1,
            _MPOL_MF_STRICT_MOVE,
        )
        wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
        if libc.syscall(ctypes.c_long(_SYS_MBIND), *wide):
            reason = os.strerror(ctypes.get_errno())
            raise QmpError(f"cannot bind memory to host NUMA nodes: {reason}")

    def _take_pages(self) -> None:
        try:
            self.mapping.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise QmpError(f"preallocating memory failed: {error.strerror}") from None
            for offset in range(0, self.size, _PAGE):  # a kernel before 5.14
                self.mapping[offset] = self.mapping[offset]

    # ---- As clients see it

    def put(self, name: str, value: Any) -> None:
        """Change what can be changed; raises QmpError for the rest."""
        if name in ("share", "reserve"):
            raise QmpError("cannot change property value")
        if name not in _MUTABLE:
            raise QmpError(f"cannot change property {name} of {self.type} ")
        if name == "prealloc":
            if value and not self.values["prealloc"]:
                self._take_pages()
                self.values["prealloc"] = True
            return
        self.values[name] = value
        advice = {"merge": ("MADV_UNMERGEABLE", "MADV_MERGEABLE"), "dump": ("MADV_DONTDUMP", "MADV_DODUMP")}[name]
        self._madvise(advice[value])

    def info(self) -> dict[str, Any]:
        """Return a Memdev."""
        names = ("size", "merge", "dump", "prealloc", "share", "reserve", "policy")
        return {"id": self.id, **{name: self.values[name] for name in names}, "host-nodes": self.values["host-nodes"]}


class JoinedMemory:
    """Several backends one behind the other in the place of `mapping`, as the RAM of NUMA nodes is.  Raises OSError."""

    def __init__(self, backends: Sequence[MemoryBackend], mapping: mmap.mmap) -> None:
        self._parts: list[tuple[int, MemoryBackend]] = []
        self.mapping = mapping
        offset = 0
        for backend in backends:
            backend.place(address_of(self.mapping) + offset)
            self._parts.append((offset, backend))
            offset += backend.size

    def discard(self, offset: int, length: int) -> None:
        """Give whole pages back to the host; they read as zeros afterwards.  Raises OSError."""
        for start, backend in self._parts:
            low, high = max(offset, start), min(offset + length, start + backend.size)
            if low >= high:
                continue
            if backend.private:
                self.mapping[low:high] = bytes(high - low)
            else:
                punch_hole(backend.fd, low - start, high - low)


def address_of(mapping: mmap.mmap) -> int:
    """Return where in this process a mapping is."""
    probe = (ctypes.c_char * 1).from_buffer(mapping)
    address = ctypes.addressof(probe)
    del probe
    return address


_OF_TYPE: dict[str, dict[str, Any]] = {
    "memory-backend-ram": {},
    "memory-backend-memfd": {"share": True, "hugetlb": False, "hugetlbsize": 0, "seal": True},
    "memory-backend-file": {"align": 0, "discard-data": False, "pmem": False, "readonly": False},
}


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
