"""What is to be copied: images one after the other as one disk, and its runs of data and of zeros."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum

from pyvm.annotations import TYPE_CHECKING, NamedTuple
from pyvm.tools.img.console import warn
from pyvm.tools.img.errors import ImgError

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.block.status import ChainExtent

_SECTOR = 512


class Content(Enum):
    """What there is in a run."""

    DATA = "data"
    ZERO = "zero"
    BELOW = "below"
    """Nothing of its own: the target's backing file has it too."""


class Run(NamedTuple):
    """A run of bytes."""

    start: int
    end: int
    content: Content
    node: Node | None = None
    """Where its data is found as it is: from `place` on in `node`."""
    place: int = 0


class Layout(NamedTuple):
    """How the images are looked at."""

    target_backing: int | None = None
    """Size of the target's backing file, which shows what the source's shows; None where there is none."""
    salvage: bool = False
    """Whether what cannot be looked up is taken for data."""
    quiet: bool = False


class Disks:
    """Images that follow one another, and with `images` those that they are snapshots of.  It owns them."""

    def __init__(self, nodes: Sequence[Node], images: Sequence[Node] = ()) -> None:
        self.nodes = nodes
        self._images = images
        self.size = sum(node.size for node in nodes)

    def close(self) -> None:
        """Close all images."""
        for node in (*self.nodes, *self._images):
            node.release()

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read at the same time."""
        return all(node.takes_threads for node in self.nodes)

    def read(self, start: int, view: memoryview) -> None:
        """Fill `view` from `start` on.  Raises OSError."""
        base = 0
        for node in self.nodes:
            offset = start - base
            if offset < node.size:
                count = min(len(view), node.size - offset)
                node.readv(offset, (view[:count],))
                start += count
                view = view[count:]
                if not view:
                    return
            base += node.size

    def runs(self, layout: Layout) -> Iterator[Run]:
        """Yield the runs of all images in order.  Raises ImgError."""
        base = 0
        for node in self.nodes:
            offset = 0
            while offset < node.size:
                run = _status(node, offset, base, layout)
                yield run
                offset = run.end - base
            base += node.size


def _status(node: Node, offset: int, base: int, layout: Layout) -> Run:
    """Return the run at `offset` of an image that begins at `base`."""
    start = base + offset
    extent = _look_up(node, offset, start, layout)
    if extent is None:
        return Run(start, start + min(_SECTOR, node.size - offset), Content.DATA)
    end = start + extent.length
    if extent.data and not extent.zero:
        return Run(start, end, Content.DATA, extent.node, extent.offset or 0)
    if layout.target_backing is None:
        # What is neither data nor zeros has to be looked at.
        return Run(start, end, Content.ZERO if extent.zero else Content.DATA)
    if start >= layout.target_backing:
        # Behind the end of the target's backing file there are zeros, and they need not be written.
        is_zero = extent.zero or _is_above(node, offset)
        return Run(start, end, Content.BELOW if is_zero else Content.DATA)
    end = min(end, layout.target_backing)
    return Run(start, end, Content.ZERO if extent.zero else Content.BELOW)


def _look_up(node: Node, offset: int, start: int, layout: Layout) -> ChainExtent | None:
    """Return what there is at `offset`, which is `start` on the disk; None where that cannot be said of one sector."""
    from pyvm.block.status import backing_of, chain_status

    base = backing_of(node) if layout.target_backing is not None else None
    length = node.size - offset
    while True:
        try:
            return chain_status(node, offset, length, base)
        except OSError as error:
            text = f"error while reading block status at offset {start}: {error.strerror}"
        if not layout.salvage:
            raise ImgError(text)
        if length <= _SECTOR:
            if not layout.quiet:
                warn(text)
            return None
        # What cannot be said of all may be said of a part.
        length = max(length // 4 // _SECTOR * _SECTOR, _SECTOR)


def _is_above(node: Node, offset: int) -> bool:
    """Whether what is below the image ends before `offset`."""
    from pyvm.block.status import backing_of

    below = backing_of(node)
    return below is None or below.size <= offset


def aligned(
    runs: Iterator[Run], unit: int, size: int, most: int, position: int = 0
) -> Iterator[tuple[int, int, Content]]:
    """Yield runs that begin and end with whole units; one with any data in it is data.

    The runs begin at `position`.  Neighbouring data is put together, until it is `most` bytes or more.
    """
    for run in runs:
        last = run.end if run.end == size else run.end // unit * unit
        if run.content is Content.DATA:
            if last - position >= most:
                yield position, last, Content.DATA
                position = last
            continue
        first = -(-run.start // unit) * unit
        if first < last:
            if position < first:
                yield position, first, Content.DATA
            yield first, last, run.content
            position = last
    if position < size:
        yield position, size, Content.DATA
