"""Copying layers down: what the images on top of one have goes into it, all at once, while nobody else changes them.

The disks of a running machine are copied piece by piece instead: see :mod:`pyvm.block.jobs.commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pyvm.annotations import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.block.node import Node

_CHUNK = 2 << 20


def copy_down(layers: Sequence[Node], base: Node, wrote: Callable[[int, int], None] | None = None) -> None:
    """Write what `layers` have, the topmost one first, into `base`, which is as large.  Raises OSError.

    None of the layers has to know what is below it.  `wrote` is told up to where all is copied, and how many bytes
    of data were written since it was told last.
    """
    buffer = bytearray(_CHUNK)
    for start, end, source in _runs(layers):
        if source is None:
            base.write_zeroes(start, end - start, True)
            if wrote is not None:
                wrote(end, 0)
            continue
        for position in range(start, end, _CHUNK):
            with memoryview(buffer)[: min(_CHUNK, end - position)] as view:
                source.readv(position, (view,))
                base.writev(position, (view,))
                if wrote is not None:
                    wrote(position + len(view), len(view))


def _runs(layers: Sequence[Node]) -> Iterator[tuple[int, int, Node | None]]:
    """Yield what any of the layers has, the topmost one counts: start, end, and which; None for zeros."""
    size = layers[0].size
    offset = 0
    while offset < size:
        length = size - offset
        found = False
        source: Node | None = None
        for layer in layers:
            if offset >= layer.size:
                # Behind the end of a shorter layer there are zeros, whatever is below it.
                found = True
                break
            extent = layer.block_status(offset, min(length, layer.size - offset))
            length = extent.length
            if extent.allocated:
                found = True
                source = None if extent.zero else layer
                break
        if found:
            yield offset, offset + length, source
        offset += length
