"""Which pages are still to be sent: all at first, then what was written since.

Guest RAM has a log of writes, which :class:`pyvm.cpu.vcpu.VcpuSet` keeps.  Memory of devices, a frame buffer of some
MiB, is drawn in by many hands: a copy of it is sent, and compared when the guest has stopped.

**Why the log is kept where it is.**  A guest's first store through an entry of the TLB takes a slow way in any case, so
noting the page there costs next to nothing, and needs no help of the host.  The other ways were measured with
`benchmarks/dirty_log.py`; the figures are in `docs/migration.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.memory import PAGE_SIZE
from pyvm.migration.page_scan import touched

if TYPE_CHECKING:
    import numpy as np

    from pyvm.migration.pages import PageNumbers

    Flags = np.ndarray[Any, np.dtype[np.bool_]]


class WriteLog(Protocol):
    """What knows which pages of guest RAM were written."""

    def log_writes(self) -> None:
        """Begin to note."""

    def take_writes(self, log: bytearray) -> int:
        """Move what was noted to `log`, a bit for each page; return how many pages they are."""

    def forget_writes(self) -> None:
        """End it."""


class DirtyPages:
    """The pages of all blocks of memory that are to be sent.  The first block is guest RAM, which has a log."""

    def __init__(self, blocks: Mapping[str, memoryview], log: WriteLog, ram_fd: int) -> None:
        """`ram_fd` is of the file that guest RAM is, where it has one that is nothing else; otherwise -1."""
        import numpy as np

        self.names = list(blocks)
        ram, *others = blocks.values()
        self._others = others
        self.views = [ram, *(memoryview(bytearray(view)) for view in others)]
        """What is to be sent of each block: guest RAM itself, copies of the others."""
        self._log = log
        self._ram_fd = ram_fd
        self._wanted: list[Flags] = [np.ones(len(view) // PAGE_SIZE, dtype=bool) for view in self.views]
        self._bits = bytearray(-(-len(self._wanted[0]) // 8))

    def start(self) -> None:
        """Begin to note what is written; with the machine lock held."""
        self._log.log_writes()

    def end(self) -> None:
        """Note nothing any more; with the machine lock held."""
        self._log.forget_writes()

    def sync(self) -> int:
        """Add what was written since; with the machine lock held.  Return how many pages that are."""
        import numpy as np

        count = self._log.take_writes(self._bits)
        written = np.unpackbits(np.frombuffer(self._bits, dtype=np.uint8), bitorder="little")
        self._wanted[0] |= written[: len(self._wanted[0])].astype(bool)
        return count

    def compare_others(self) -> None:
        """Add what differs in the other blocks from what was sent; the guest does not run any more."""
        import numpy as np

        for block, view in enumerate(self._others, start=1):
            sent = np.frombuffer(self.views[block], dtype=np.uint64).reshape(-1, PAGE_SIZE // 8)
            now = np.frombuffer(view, dtype=np.uint64).reshape(-1, PAGE_SIZE // 8)
            changed = (sent != now).any(axis=1)
            sent[changed] = now[changed]
            self._wanted[block] |= changed

    def take_ram(self) -> bytearray:
        """Return the pages of guest RAM that are to be sent, a bit for each, and take them as sent."""
        import numpy as np

        bits = bytearray(np.packbits(self._wanted[0], bitorder="little").tobytes())
        self._wanted[0][:] = False
        return bits

    def remaining(self) -> int:
        """Return how many pages are to be sent."""
        return sum(int(wanted.sum()) for wanted in self._wanted)

    def untouched(self) -> Iterator[tuple[int, PageNumbers]]:
        """Yield the pages of guest RAM that nobody has ever used; they are not looked at, which would use them."""
        import numpy as np

        if self._ram_fd < 0:
            return
        unused = np.ones(len(self._wanted[0]), dtype=bool)
        for start, stop in touched(self._ram_fd, len(self.views[0])):
            unused[start // PAGE_SIZE : -(-stop // PAGE_SIZE)] = False
        unused &= self._wanted[0]
        self._wanted[0] &= ~unused
        if unused.any():
            yield 0, np.flatnonzero(unused)

    def take(self, batch: Callable[[], int]) -> Iterator[tuple[int, PageNumbers]]:
        """Yield the pages to be sent, up to `batch()` at a time, and take them as sent."""
        import numpy as np

        for block, wanted in enumerate(self._wanted):
            numbers = np.flatnonzero(wanted)
            place = 0
            while place < len(numbers):
                part = numbers[place : place + batch()]
                wanted[part] = False
                place += len(part)
                yield block, part
