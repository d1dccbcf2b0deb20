"""``pyvm-img compare``: find out whether two images have the same content.

Exit statuses: 0 the same, 1 different, 2 an image cannot be opened, 3 what is allocated cannot be looked up, 4 a read
failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import Progress
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.opening import ImageChoice

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.block.status import ChainExtent

_LONG = {**IMAGE_LONG, "force-share": "U"}
_CHUNK = 2 << 20
_SECTOR = 512


class _DifferentError(Exception):
    """The images differ."""


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:F:T:pqsU", _LONG)
    if len(arguments.operands) != 2:
        raise UsageError("Expecting two image file names")
    arguments.add_objects()
    cache = arguments.cache("T", "writeback", "Invalid source cache option: {}", status=2)
    quiet = "q" in arguments
    first, second = arguments.operands
    nodes: list[Node] = []
    try:
        try:
            nodes.append(ImageChoice.of(arguments).open(first, cache=cache, quiet=quiet))
            nodes.append(ImageChoice.of(arguments, "F").open(second, cache=cache, quiet=quiet))
        except ImgError as error:
            raise ImgError(str(error), 2) from None
        progress = Progress("p" in arguments and not quiet)
        comparison = _Comparison((nodes[0], nodes[1]), (first, second), progress, quiet)
        try:
            comparison.run("s" in arguments)
        except _DifferentError as difference:
            _say(str(difference), quiet)
            return 1
        else:
            _say("Images are identical.", quiet)
            return 0
        finally:
            progress.close()
    finally:
        for node in nodes:
            node.release()


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)


class _Comparison:
    def __init__(self, nodes: tuple[Node, Node], names: tuple[str, str], progress: Progress, quiet: bool) -> None:
        self._nodes = nodes
        self._names = names
        self._progress = progress
        self._quiet = quiet
        self._buffers = (bytearray(_CHUNK), bytearray(_CHUNK))
        self._end = max(node.size for node in nodes)

    def run(self, strict: bool) -> None:
        """Compare the images; raises _DifferentError, and ImgError where that cannot be done."""
        first, second = self._nodes
        if strict and first.size != second.size:
            raise _DifferentError("Strict mode: Image size mismatch!")
        both = min(first.size, second.size)
        position = 0
        while position < both:
            statuses = [self._status(number, position, both - position) for number in (0, 1)]
            if strict and _strict(statuses[0]) != _strict(statuses[1]):
                raise _DifferentError(f"Strict mode: Offset {position} block status mismatch!")
            length = min(statuses[0].length, statuses[1].length)
            self._compare_run(position, length, *statuses)
            position += length
            self._progress.part(position, self._end)
        if first.size != second.size:
            _say("Warning: Image size mismatch!", self._quiet)
            self._check_rest(0 if first.size > second.size else 1, both)

    def _status(self, number: int, position: int, length: int) -> ChainExtent:
        from pyvm.block.status import chain_status

        try:
            return chain_status(self._nodes[number], position, length)
        except OSError:
            raise ImgError(f"Sector allocation test failed for {self._names[number]}", 3) from None

    def _compare_run(self, position: int, length: int, first: ChainExtent, second: ChainExtent) -> None:
        if first.zero and second.zero:
            return
        has_first, has_second = _has_content(first), _has_content(second)
        if not has_first and not has_second:
            return
        for start in range(position, position + length, _CHUNK):
            count = min(_CHUNK, position + length - start)
            if has_first and has_second:
                self._compare_data(start, count)
            else:
                self._check_zero(0 if has_first else 1, start, count)

    def _compare_data(self, start: int, count: int) -> None:
        self._read(0, start, count)
        self._read(1, start, count)
        one, other = self._buffers
        if count == _CHUNK and one == other:
            return
        for position in range(0, count, _SECTOR):
            end = min(position + _SECTOR, count)
            if one[position:end] != other[position:end]:
                raise _DifferentError(f"Content mismatch at offset {start + position}!")

    def _check_zero(self, number: int, start: int, count: int) -> None:
        from pyvm.tools.img.zeros import zero_end

        self._read(number, start, count)
        end = zero_end(self._buffers[number], 0, count, _SECTOR)
        if end < count:
            raise _DifferentError(f"Content mismatch at offset {start + end}!")

    def _read(self, number: int, start: int, count: int) -> None:
        try:
            with memoryview(self._buffers[number]) as view:
                self._nodes[number].readv(start, (view[:count],))
        except OSError as error:
            name = self._names[number]
            raise ImgError(f"Error while reading offset {start} of {name}: {error.strerror}", 4) from None

    def _check_rest(self, number: int, position: int) -> None:
        """Check that what the longer image has more is zeros."""
        while position < self._end:
            extent = self._status(number, position, self._end - position)
            if _has_content(extent):
                for start in range(position, position + extent.length, _CHUNK):
                    self._check_zero(number, start, min(_CHUNK, position + extent.length - start))
            position += extent.length
            self._progress.part(position, self._end)


def _has_content(extent: ChainExtent) -> bool:
    return extent.present and not extent.zero


def _strict(extent: ChainExtent) -> tuple[bool, ...]:
    """Return what has to be the same in strict mode."""
    return extent.data, extent.zero, extent.present, extent.offset is not None
