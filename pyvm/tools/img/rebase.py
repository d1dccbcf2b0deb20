"""``pyvm-img rebase``: give an image another backing file, without a change to its content unless ``-u`` says so."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pyvm.records import replace
from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import Progress
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.info import full_name
from pyvm.tools.img.opening import ImageChoice, as_qcow2
from pyvm.tools.img.zeros import is_zero

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvm.block.node import Node

_LONG = {**IMAGE_LONG, "force-share": "U"}
_CHUNK = 2 << 20


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:F:b:upt:T:qU", _LONG)
    filename = arguments.operand()
    unsafe = "u" in arguments
    backing = arguments.get("b")
    if backing is None and not unsafe:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    arguments.add_objects()
    cache = arguments.cache("t", "writeback", "Invalid cache option: {}")
    source_cache = arguments.cache("T", "writeback", "Invalid source cache option: {}")
    quiet = "q" in arguments
    choice = ImageChoice.of(arguments)
    # Others may write to the new backing file at most: the image is about to change.
    image = replace(choice, force_share=False).open(
        filename, writable=True, backing=not unsafe, cache=cache, quiet=quiet
    )
    progress = Progress("p" in arguments and not quiet)
    below: Node | None = None
    try:
        backing_format = arguments.get("F")
        _check_format(backing_format)
        if not unsafe and backing:
            below = ImageChoice(backing_format, force_share=choice.force_share, secrets=choice.secrets).open(
                full_name(filename, backing),
                cache=source_cache,
                complaint=f"Could not open new backing file '{backing}'",
            )
        if backing and backing_format is None:
            raise ImgError(f"Could not change the backing file to '{backing}': backing format must be specified")
        if not unsafe:
            _keep_content(image, below, progress)
        _change(image, backing, backing_format)
        progress.update(100.0)
    finally:
        progress.close()
        if below is not None:
            below.release()
        image.release()
    return 0


def _check_format(name: str | None) -> None:
    from pyvm.block.options import DRIVERS

    if name is not None and name not in DRIVERS:
        raise ImgError(f"Invalid format name: '{name}'")


def _change(node: Node, backing: str | None, backing_format: str | None) -> None:
    from pyvm.block.errors import BlockError

    image = as_qcow2(node)
    what = f"Could not change the backing file to '{backing or ''}'"
    if image is None:
        raise ImgError(f"{what}: Operation not supported")
    try:
        # What was copied has to be there before the new backing file is.
        image.flush()
        image.change_backing(backing or None, backing_format if backing else None)
        image.flush()
    except OSError as error:
        reason = "No space left in the file header" if error.errno == errno.ENOSPC else error.strerror
        raise ImgError(f"{what}: {reason}") from None
    except BlockError as error:
        raise ImgError(f"{what}: {error}") from None


def _keep_content(image: Node, new: Node | None, progress: Progress) -> None:
    """Write into the image what its present backing file shows, and `new` does not."""
    from pyvm.block.status import backing_of, is_allocated

    old = backing_of(image)
    same = _find_in_chain(old, new)
    size = image.size
    offset = 0
    while offset < size:
        length = min(_CHUNK, size - offset)
        extent = image.block_status(offset, length)
        length = extent.length
        changed = not extent.allocated
        if changed and same is not None and old is not None and offset < old.size:
            # Above an image that stays in the chain, only what is in between is lost.
            changed, length = is_allocated(old, offset, min(length, old.size - offset), same)
        if changed:
            _keep_run(image, old, new, offset, length)
        offset += length
        progress.part(offset, size)


def _find_in_chain(node: Node | None, wanted: Node | None) -> Node | None:
    """Return the image of a chain that is in the same file as `wanted`."""
    from pyvm.block.status import backing_of

    identity = _file_identity(wanted)
    while node is not None and identity is not None:
        if node.driver == (wanted.driver if wanted is not None else "") and _file_identity(node) == identity:
            return node
        node = backing_of(node)
    return None


def _file_identity(node: Node | None) -> object:
    return node.file.identity if node is not None and node.file is not None else None


def _keep_run(image: Node, old: Node | None, new: Node | None, offset: int, length: int) -> None:
    was = _read(old, offset, length, "old")
    becomes = _read(new, offset, length, "new")
    try:
        for start, end in _differences(was, becomes, offset, image.cluster_size or 512):
            if is_zero(was, start, end):
                image.write_zeroes(offset + start, end - start, False)
            else:
                image.writev(offset + start, (memoryview(was)[start:end],))
    except OSError as error:
        raise ImgError(f"Error while writing to COW image: {error.strerror}") from None


def _read(node: Node | None, offset: int, length: int, which: str) -> bytearray:
    """Return what a backing file shows; behind its end, and without one, there are zeros."""
    data = bytearray(length)
    there = min(length, max(node.size - offset, 0)) if node is not None else 0
    if node is not None and there:
        try:
            node.readv(offset, (memoryview(data)[:there],))
        except OSError:
            raise ImgError(f"error while reading from {which} backing file") from None
    return data


def _differences(one: bytearray, other: bytearray, offset: int, unit: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges, of whole units of the disk, in which two buffers differ; neighbours as one."""
    if one == other:
        return
    begin: int | None = None
    position = 0
    while position < len(one):
        end = min(position + unit - (offset + position) % unit, len(one))
        if one[position:end] != other[position:end]:
            begin = position if begin is None else begin
        elif begin is not None:
            yield begin, position
            begin = None
        position = end
    if begin is not None:
        yield begin, len(one)
