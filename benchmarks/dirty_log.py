"""Ways to know which pages of memory were written, and what they cost: `python -m benchmarks.dirty_log`.

Each way watches the same memory, a shared mapping as guest RAM is, while one word is stored into each of its pages.
Two figures are shown: nanoseconds for such a store, less those of one that nobody watches, and milliseconds to learn
which pages they were, for each GiB.  The log of the CPU engine is measured with guest code, the others with the host's.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

PAGE = mmap.PAGESIZE
SIZE = 64 << 20
PAGES = SIZE // PAGE
ROUNDS = 5
GIB = 1 << 30

_SYS_USERFAULTFD = 323
_UFFD_API, _UFFD_ASYNC, _UFFD_SHMEM_WP = 0xAA, 1 << 15, 1 << 12
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_MODE_WP = 2
_PAGEMAP_SCAN, _PAGE_IS_WRITTEN, _SCAN_WP, _SCAN_CHECK = 0xC0606610, 2, 1, 2
_SOFT_DIRTY = 1 << 55
_OFTEN = 200

Figures = tuple[float, float]


def _memory() -> tuple[mmap.mmap, np.ndarray[tuple[int, ...], np.dtype[np.uint64]]]:
    descriptor = os.memfd_create("watched")
    os.ftruncate(descriptor, SIZE)
    mapping = mmap.mmap(descriptor, SIZE)
    os.close(descriptor)
    words = np.frombuffer(mapping, dtype=np.uint64)
    words[:] = 1
    return mapping, words


def _store(words: np.ndarray[tuple[int, ...], np.dtype[np.uint64]]) -> float:
    start = time.perf_counter()
    words[:: PAGE // 8] += 1
    return time.perf_counter() - start


def _measure(store: Callable[[], float], arm: Callable[[], None], learn: Callable[[], int]) -> Figures:
    """Return nanoseconds for a store, and milliseconds to learn of those to a GiB."""
    plain = min(store() for _ in range(ROUNDS))
    watched, looks = [], []
    for _ in range(ROUNDS):
        arm()
        watched.append(store())
        start = time.perf_counter()
        found = learn()
        looks.append(time.perf_counter() - start)
        if found < PAGES:
            raise RuntimeError(f"{found} pages of {PAGES} were found")
    return (min(watched) - plain) / PAGES * 1e9, min(looks) * 1e3 * GIB / SIZE


def compare() -> Figures:
    """A copy of all memory, and a comparison of every page."""
    _, words = _memory()
    copy = words.copy()

    def learn() -> int:
        changed = (words != copy).reshape(-1, PAGE // 8).any(axis=1)
        return int(changed.sum())

    return _measure(lambda: _store(words), lambda: np.copyto(copy, words), learn)


def soft_dirty() -> Figures:
    """The kernel's soft-dirty bits, which are those of the whole process."""
    mapping, words = _memory()
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))

    def arm() -> None:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("4")

    def learn() -> int:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(start // PAGE * 8)
            entries = np.frombuffer(file.read(PAGES * 8), dtype=np.uint64)
        return int((entries & np.uint64(_SOFT_DIRTY) != 0).sum())

    return _measure(lambda: _store(words), arm, learn)


def _userfault(start: int, features: int) -> int:
    descriptor = int(ctypes.CDLL(None, use_errno=True).syscall(_SYS_USERFAULTFD, os.O_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, features, 0))
    fcntl.ioctl(descriptor, _UFFDIO_REGISTER, struct.pack("QQQQ", start, SIZE, _MODE_WP, 0))
    return descriptor


def userfault_events() -> Figures:
    """Write protection, and a thread that hears of each fault."""
    mapping, _ = _memory()
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    descriptor = _userfault(start, _UFFD_SHMEM_WP)
    found: set[int] = set()

    def protect(address: int, length: int, on: int) -> None:
        fcntl.ioctl(descriptor, _UFFDIO_WRITEPROTECT, struct.pack("QQQ", address, length, on))

    def serve() -> None:
        with suppress(OSError):
            while len(message := os.read(descriptor, 32)) == 32:
                page = struct.unpack_from("Q", message, 16)[0] & -PAGE
                found.add(page)
                protect(page, PAGE, 0)

    threading.Thread(target=serve, daemon=True).start()

    def arm() -> None:
        found.clear()
        protect(start, SIZE, 1)

    def store() -> float:
        # numpy holds the interpreter while it waits for the fault: the store is the kernel's, into a pipe's buffer.
        begin = time.perf_counter()
        with open("/dev/zero", "rb", buffering=0) as zero:
            for page in range(0, SIZE, PAGE):
                zero.readinto(memoryview(mapping)[page : page + 8])
        return time.perf_counter() - begin

    return _measure(store, arm, lambda: len(found))


def userfault_bits() -> Figures:
    """Write protection that ends by itself, and PAGEMAP_SCAN, which returns the pages and protects them again."""
    mapping, words = _memory()
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    descriptor = _userfault(start, _UFFD_ASYNC | _UFFD_SHMEM_WP)
    regions = np.zeros((1024, 3), dtype=np.uint64)
    with open("/proc/self/pagemap", "rb", buffering=0) as file:

        def learn() -> int:
            fields = [96, _SCAN_WP | _SCAN_CHECK, start, start + SIZE, 0, regions.ctypes.data, len(regions), 0]
            argument = bytearray(struct.pack("12Q", *fields, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN))
            count = fcntl.ioctl(file, _PAGEMAP_SCAN, argument)
            return int((regions[:count, 1] - regions[:count, 0]).sum()) // PAGE

        def arm() -> None:
            fcntl.ioctl(descriptor, _UFFDIO_WRITEPROTECT, struct.pack("QQQ", start, SIZE, 1))

        return _measure(lambda: _store(words), arm, learn)


def engine_log() -> Figures:
    """The log of the CPU engine, which is taken while guest code stands still.

    The first store through an entry of the TLB is compared with later ones: to fill the entry is part of the figure.
    """
    from tests.unit.engine_rig import DONE_HLT, RAM, Rig, code

    first, count = 0x100000, 512
    # mov rbx, start; mov ecx, count; loop: inc qword [rbx]; add rbx, 4096; dec ecx; jnz; dec rdx; jnz again
    again = code("48 bb", first.to_bytes(8, "little"), "b9", count.to_bytes(4, "little"))
    program = code(again, "48 ff 03", "48 81 c3 00100000", "ff c9", "75 f2", "48 ff ca", "75", bytes([0xFE - 33 + 2]))
    with Rig() as rig:
        log = bytearray(RAM // PAGE // 8)

        def store(times: int) -> float:
            rig.long(code(program if times else b"", DONE_HLT), rdx=times)
            start = time.perf_counter()
            rig.run_until_port()
            return time.perf_counter() - start

        rig.engine.dirty_start(rig.memory.mapping)
        none, once, often, looks = [], [], [], []
        for _ in range(ROUNDS * 4):
            rig.engine.dirty_take(log)
            none.append(store(0))
            once.append(store(1))
            often.append(store(_OFTEN))
            start = time.perf_counter()
            rig.engine.dirty_take(log)
            looks.append(time.perf_counter() - start)
    plain = (min(often) - min(once)) / (_OFTEN - 1)
    return (min(once) - min(none) - plain) / count * 1e9, min(looks) * 1e3 * GIB / RAM


WAYS = {
    "log of the CPU engine": engine_log,
    "comparison with a copy": compare,
    "soft-dirty bits": soft_dirty,
    "userfaultfd, a thread for faults": userfault_events,
    "userfaultfd, PAGEMAP_SCAN": userfault_bits,
}


def main() -> None:
    """Show all figures."""
    print("| way | ns a first store | ms to learn, a GiB |\n|---|---|---|")
    for name, way in WAYS.items():
        try:
            store, learn = way()
        except (OSError, RuntimeError) as error:
            print(f"| {name} | not here: {error} | |")
        else:
            print(f"| {name} | {store:.0f} | {learn:.1f} |")


if __name__ == "__main__":
    main()
