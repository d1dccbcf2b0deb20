"""Sends pages of RAM over one connection: zeros are told apart, the rest goes as it is, as deltas or compressed.

The guest may run meanwhile: a page is copied before its checksum is made, and one that changes during the copy is in
the log of writes, and sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.memory import PAGE_SIZE
from pyvm.migration.pages import BATCH, DELTA, PLAIN, ZEROES, ZLIB, ZSTD, pack, pack_deltas, pack_pages, runs_of
from pyvm.migration.progress import PageCounts
from pyvm.records import record

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from pyvm.migration.channel import Channel
    from pyvm.migration.delta import PageCache
    from pyvm.migration.pages import PageNumbers
    from pyvm.migration.stream import Buffer

_WORDS = PAGE_SIZE // 8
_FIRST_WORDS = 4
_PART = 64
"""Pages that are compressed together."""
_ENCODINGS = {"none": PLAIN, "zlib": ZLIB, "zstd": ZSTD}


def _parts(numbers: PageNumbers) -> range:
    return range(0, len(numbers), _PART)


def _used(data: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which pages hold anything but zeros: few that do begin with many of them."""
    import numpy as np

    used: np.ndarray[Any, np.dtype[np.bool_]] = np.bitwise_or.reduce(data[:, :_FIRST_WORDS], axis=1) != 0
    doubtful = np.flatnonzero(~used)
    if len(doubtful):
        used[doubtful] = np.bitwise_or.reduce(data[doubtful], axis=1) != 0
    return used


def _pool(threads: int) -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, thread_name_prefix="compress")


@record
class Packing:
    """How pages are to be packed."""

    encoding: int = PLAIN
    level: int = 1
    threads: int = 1

    @classmethod
    def for_channels(cls, parameters: dict[str, Any]) -> Packing:
        """Return what the parameters say of the connections of `multifd`."""
        name = parameters["multifd-compression"]
        return cls(_ENCODINGS[name], parameters.get(f"multifd-{name}-level", 1))


class PageSender:
    """Sends pages of the blocks `views` over a connection; one thread uses it."""

    def __init__(
        self, channel: Channel, views: list[memoryview], packing: Packing, cache: PageCache | None = None
    ) -> None:
        import numpy as np

        self._channel = channel
        self._pages = [np.frombuffer(view, dtype=np.uint64).reshape(-1, _WORDS) for view in views]
        self._packing = packing
        self._cache = cache
        self._buffer = np.empty((BATCH, _WORDS), dtype=np.uint64)
        self._second = np.empty((BATCH, _WORDS), dtype=np.uint64)
        self._workers = _pool(packing.threads) if packing.encoding != PLAIN and packing.threads > 1 else None
        self.counts = PageCounts()
        self.deltas = False
        """Whether pages were sent before, so that deltas may be worth while."""

    def _write(self, parts: list[Buffer]) -> None:
        self._channel.writelines(parts)
        self.counts.bytes += sum(map(len, parts))

    def send_zeroes(self, block: int, numbers: PageNumbers) -> None:
        """Send pages that are known to be zeros."""
        self._write(pack_pages(ZEROES, block, runs_of(numbers)))
        self.counts.zero += len(numbers)

    def send(self, block: int, numbers: PageNumbers) -> None:
        """Send up to :data:`BATCH` pages, by their numbers, which ascend."""
        import numpy as np

        np.take(self._pages[block], numbers, axis=0, out=self._buffer[: len(numbers)], mode="clip")
        self.send_copies(block, numbers)

    @property
    def buffer(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Room for as many pages as are sent at a time."""
        return self._buffer

    def send_copies(self, block: int, numbers: PageNumbers) -> None:
        """Send pages, by their numbers, which ascend, as they are in the buffer."""
        import numpy as np

        data = self._buffer[: len(numbers)]
        used = _used(data)
        if not used.all():
            self.send_zeroes(block, numbers[~used])
            self._forget(block, numbers[~used])
            numbers = numbers[used]
            if not len(numbers):
                return
            second = self._second[: len(numbers)]
            np.take(data, np.flatnonzero(used), axis=0, out=second, mode="clip")
            data = second
        self.counts.normal += len(numbers)
        if self._cache is not None:
            numbers, data = self._send_deltas(self._cache, block, numbers, data)
        if len(numbers):
            self._send_data(block, numbers, data.data.cast("B"))

    def _forget(self, block: int, numbers: PageNumbers) -> None:
        if self._cache is not None:
            for page in numbers.tolist():
                self._cache.forget(block, page)

    def _send_data(self, block: int, numbers: PageNumbers, data: memoryview) -> None:
        if self._packing.encoding == PLAIN:
            self._write(pack_pages(PLAIN, block, runs_of(numbers), data))
            return
        parts = [(numbers[at : at + _PART], data[at * PAGE_SIZE :][: _PART * PAGE_SIZE]) for at in _parts(numbers)]
        pack_all = map if self._workers is None else self._workers.map
        for (pages, plain), packed in zip(parts, pack_all(self._pack, (plain for _, plain in parts)), strict=True):
            if len(packed) < len(plain):
                self._write(pack_pages(self._packing.encoding, block, runs_of(pages), packed))
                self.counts.compressed += len(pages)
                self.counts.compressed_bytes += len(packed)
            else:
                self._write(pack_pages(PLAIN, block, runs_of(pages), plain))

    def _pack(self, data: memoryview) -> bytes:
        return pack(self._packing.encoding, data, self._packing.level)

    def close(self) -> None:
        """Let the threads go that compress."""
        if self._workers is not None:
            self._workers.shutdown()

    def _send_deltas(
        self, cache: PageCache, block: int, numbers: PageNumbers, data: np.ndarray[Any, np.dtype[np.uint64]]
    ) -> tuple[PageNumbers, np.ndarray[Any, np.dtype[np.uint64]]]:
        """Send what can be sent as deltas; return the rest."""
        import numpy as np

        octets = data.data.cast("B")
        if not self.deltas:
            return numbers, data
        deltas, whole = [], []
        for index, page in enumerate(numbers.tolist()):
            found = cache.delta(block, page, octets[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            if found is None:
                whole.append(index)
            else:
                deltas.append((index, found))
        if deltas:
            sent = np.array([index for index, _ in deltas])
            self._write(pack_pages(DELTA, block, runs_of(numbers[sent]), pack_deltas(it for _, it in deltas)))
        rest = np.array(whole, dtype=np.int64)
        return numbers[rest], data[rest]
