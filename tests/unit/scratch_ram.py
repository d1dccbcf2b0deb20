"""Guest RAM for tests: without a descriptor, so that nobody needs to give it back."""

from __future__ import annotations

import mmap

from pyvm.memory import GuestMemory, RamBlock


class AnonymousMemory:
    """Memory of this process."""

    def __init__(self, size: int) -> None:
        self.mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)

    def discard(self, offset: int, length: int) -> None:
        self.mapping.madvise(mmap.MADV_DONTNEED, offset, length)


def scratch_ram(size: int, blocks: list[RamBlock]) -> GuestMemory:
    return GuestMemory(size, blocks, AnonymousMemory(size))
