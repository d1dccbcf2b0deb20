"""``pyvm-img commit``: write what an image has into an image below it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvm.records import record
from pyvm.tools.img.arguments import IMAGE_LONG, Cache, scan
from pyvm.tools.img.console import Progress
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.info import full_name
from pyvm.tools.img.opening import ImageChoice, as_qcow2
from pyvm.tools.img.sizes import parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node


@record(frozen=True)
class _Layer:
    """An image of the chain: the name by which it is opened, and its format."""

    filename: str
    format: str


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "f:ht:b:dpqr:", IMAGE_LONG)
    rate = parse_size("rate limit", arguments.get("r") or "0")
    filename = arguments.operand()
    arguments.add_objects()
    cache = arguments.cache("t", "writeback", "Invalid cache option: {}")
    quiet = "q" in arguments
    choice = ImageChoice.of(arguments)
    base = arguments.get("b")
    chain = _look(choice, filename, base, cache, quiet=quiet)
    progress = Progress("p" in arguments and not quiet)
    empty = "d" not in arguments and base is None
    try:
        _commit(choice, filename, chain, cache, progress, rate, empty=empty)
        progress.update(100.0)
    finally:
        progress.close()
    if not quiet:
        print("Image committed.")
    return 0


def _look(choice: ImageChoice, filename: str, base: str | None, cache: Cache, *, quiet: bool) -> list[_Layer]:
    """Return the images below the top one, down to the base.  Raises ImgError."""
    from pyvm.block.filename import name_of
    from pyvm.block.status import backing_of

    # As it is going to be opened: now is the time to find that it is in use.
    top = choice.open(filename, writable=True, cache=cache, quiet=quiet)
    chain: list[_Layer] = []
    try:
        above, node = top, backing_of(top)
        if node is None and base is None:
            raise ImgError("Image does not have a backing file")
        while node is not None:
            chain.append(_Layer(name_of(node), node.driver))
            if base is None or _is_named(above, node, base):
                return chain
            above, node = node, backing_of(node)
    finally:
        top.release()
    raise ImgError(f"Did not find '{base}' in the backing chain of '{filename}'")


def _is_named(above: Node, node: Node, name: str) -> bool:
    """Whether `name` is that of an image; as in the header above it, a relative path starts where that image is."""
    written = getattr(getattr(above, "header", None), "backing_file", None) or node.filename
    full = full_name(above.filename, written)
    if _has_protocol(name) or _has_protocol(written):
        return name in (written, full)
    return os.path.realpath(full_name(above.filename, name)) == os.path.realpath(full)


def _has_protocol(name: str) -> bool:
    protocol, colon, _ = name.partition(":")
    return bool(colon) and "/" not in protocol


def _commit(
    choice: ImageChoice,
    filename: str,
    chain: list[_Layer],
    cache: Cache,
    progress: Progress,
    rate: int,
    *,
    empty: bool,
) -> None:
    """Copy into the last image of `chain`, and make the top one empty where that is asked for."""
    nodes: list[Node] = []
    below = chain[-1]
    try:
        base = ImageChoice(below.format, secrets=choice.secrets).open(
            below.filename, writable=True, resize=True, cache=cache
        )
        nodes.append(base)
        top = choice.open(filename, writable=empty, backing=False, cache=cache)
        nodes.append(top)
        for layer in chain[:-1]:
            nodes.append(ImageChoice(layer.format, secrets=choice.secrets).open(layer.filename, backing=False))
        if base.size < top.size:
            base.truncate(top.size)
        _copy(nodes[1:], base, progress, rate)
        # What is thrown away must be safe elsewhere before.
        base.flush()
        if empty:
            _make_empty(top)
    finally:
        for node in nodes:
            node.release()


def _make_empty(top: Node) -> None:
    image = as_qcow2(top)
    if image is None:
        raise ImgError("Could not empty the image: Operation not supported")
    try:
        image.make_empty()
        image.flush()
    except OSError as error:
        raise ImgError(f"Could not empty {top.filename}: {error.strerror}") from None


def _copy(layers: Sequence[Node], base: Node, progress: Progress, rate: int) -> None:
    from pyvm.block.layers import copy_down
    from pyvm.tools.img.copying import Pace

    pace = Pace(rate)
    size = layers[0].size

    def wrote(end: int, count: int) -> None:
        pace.sent(count)
        progress.part(end, size)

    try:
        copy_down(layers, base, wrote)
    except OSError as error:
        raise ImgError(f"Block job failed: {error.strerror}") from None
