"""Copying straight from file to file, where the host alone has a say in how data is read and written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Lock

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.file import FileNode
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import as_file, as_qcow2
from pyvm.tools.img.runs import Content, Disks, Run

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.filling import Filler
    from pyvm.block.node import Node

_BUFFER = 512 << 10
"""Most bytes of one read and of one write: they stay in a processor's cache in between."""
_BATCH = 8 << 20
"""How much is copied in one go, without a look at anything else."""
_FIRST_BATCH = 1 << 20
"""Other threads begin when this is done."""
_MOST_UNIT = 2 << 20


class Batch:
    """Data that is copied in one go."""

    __slots__ = ("areas", "pieces", "room")

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int, FileNode, int]] = []
        """Where each starts and ends on the disk, which file has it, and from where on."""
        self.room = 0
        """How much room it takes in the target, if it has no zeros."""
        self.areas: list[tuple[int, list[tuple[int, int]]]] = []
        """Where in the target's file there is which data: starts on the disk, and lengths."""

    @property
    def start(self) -> int:
        """Where it starts on the disk."""
        return self.pieces[0][0]

    @property
    def length(self) -> int:
        """How many bytes of the disk it is."""
        return sum(end - start for start, end, _, _ in self.pieces)


class Direct:
    """Copies from `files` to `target`, but for units of zeros.

    The target is a raw image that starts at `base`, or what `filler` belongs to.  Several threads may copy.
    """

    def __init__(self, files: set[Node], target: FileNode, base: int, filler: Filler | None, unit: int) -> None:
        self._files = files
        self._target = target
        self._base = base
        self._filler = filler
        self._unit = unit
        self._align = unit if filler is not None else 1
        """What one batch has of the disk, another has not."""
        self._buffers: list[bytearray] = []
        self._lock = Lock()
        """For the filler, and what it has given out."""
        self._reserved: dict[int, int] = {}
        self.rest: Run | None = None
        """The first run that cannot be copied like this."""

    def batches(self, runs: Iterator[Run]) -> Iterator[Batch]:
        """Yield the data of all runs, up to the first that is not in one of the files as it is."""
        batch = Batch()
        covered = 0
        most = min(_FIRST_BATCH, _BATCH)
        for run in runs:
            if run.content is not Content.DATA:
                continue
            if not isinstance(run.node, FileNode) or run.node not in self._files:
                self.rest = run
                break
            start = run.start
            while start < run.end:
                if batch.room >= most and start >= covered:
                    yield batch
                    batch, most = Batch(), _BATCH
                stop = min(run.end, self._up(start + max(most - batch.room, 1)))
                batch.pieces.append((start, stop, run.node, run.place + start - run.start))
                first, covered = max(start // self._align * self._align, covered), self._up(stop)
                batch.room += covered - first
                start = stop
        if batch.pieces:
            yield batch

    def _up(self, position: int) -> int:
        return -(-position // self._align) * self._align

    def copy(self, batch: Batch) -> None:
        """Read and write; any thread may do that.  Raises ImgError, or OSError where there is no room."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = bytearray(max(_BUFFER, self._unit))
        position: int | None = 0
        while position is not None:
            host, room = self._reserve(max(position, batch.start), batch.room)
            position, runs, failure = self._target.copy_pieces(batch.pieces, position, host, room, self._unit, buffer)
            if failure is not None:
                is_write, number = failure
                doing = "writing" if is_write else "reading"
                raise ImgError(f"error while {doing} at byte {position}: {os.strerror(number)}")
            if room:
                batch.areas.append((host, runs))
                batch.room -= self._keep(host, sum(length for _, length in runs))
        self._buffers.append(buffer)

    def _reserve(self, start: int, length: int) -> tuple[int, int]:
        if self._filler is None:
            return self._base, 0
        with self._lock:
            host, room = self._filler.reserve(start, length)
            self._reserved[host] = room
            return host, room

    def _keep(self, host: int, length: int) -> int:
        """Give back what was reserved but for `length` bytes; return that."""
        with self._lock:
            assert self._filler is not None
            room = self._reserved.pop(host)
            if length:
                self._reserved[host] = length
            if length < room:
                self._filler.give_back(host + length, room - length)
        return length

    def settle(self, batch: Batch) -> None:
        """Put what was copied into the target's tables.  Raises OSError."""
        with self._lock:
            for host, runs in batch.areas:
                assert self._filler is not None
                place = host
                for start, length in runs:
                    self._filler.take(start, place, length)
                    place += length
                self._reserved.pop(host, None)

    def abandon(self) -> None:
        """Give back what did not come into the target's tables."""
        with self._lock:
            for host, room in self._reserved.items():
                assert self._filler is not None
                self._filler.give_back(host, room)
            self._reserved.clear()


def find_way(source: Disks, target: Node, unit: int) -> Direct | None:
    """Return what copies zeros in units of `unit` bytes as nothing to a target that is empty, None if it cannot be."""
    files: set[Node] = set()
    into = _plain_file(target.file)
    unlike = target.detect_zeroes != "off" or target.dirty_bitmaps or getattr(target, "probed", False)
    if into is None or unlike or unit > _MOST_UNIT or not all(_find_files(node, files) for node in source.nodes):
        return None
    image = as_qcow2(target)
    if image is not None:
        from pyvm.block.drivers.qcow2.filling import Filler

        if unit != image.cluster_size or not Filler.is_possible(image):
            return None
        return Direct(files, into, 0, Filler(image), unit)
    start = target.block_status(0, target.size) if target.driver == "raw" and target.size else None
    if start is None or start.node is not into or start.offset is None:
        return None
    return Direct(files, into, start.offset, None, unit)


def _plain_file(node: Node | None) -> FileNode | None:
    """Return `node` where it is a file of which the host's page cache has all there is."""
    file = as_file(node)
    return file if file is not None and not file.direct and file.detect_zeroes == "off" else None


def _find_files(node: Node, files: set[Node]) -> bool:
    """Add the files that an image is in; return whether nothing but formats and files has a say in its data."""
    if _plain_file(node) is not None:
        files.add(node)
        return True
    formats = node.driver in ("raw", "qcow2") and not node.encrypted
    return formats and all(_find_files(child.node, files) for child in node.children)
