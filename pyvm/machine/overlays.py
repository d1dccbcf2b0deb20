"""External snapshots: images that are put on top of others while those are in use, and the names in their headers.

Errors are BlockErrors, and OSErrors of the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.filename import name_of
from pyvm.block.node import Node, Permission
from pyvm.block.options import Dialect, Tree
from pyvm.block.reopen import all_below

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.machine.storage import Storage


@dataclass(frozen=True)
class NewOverlay:
    """An image that is to go on top of another."""

    filename: str
    format: str
    node_name: str | None = None
    existing: bool = False
    """Whether the image is there; otherwise it is made."""


def make_overlay(storage: Storage, below: Node, wanted: NewOverlay, *, freeze: bool = True) -> Node:
    """Make an image, put it on top of `below`, and return it; the caller holds it, too.  `freeze`: see below."""
    graph = storage.graph
    graph.check_free(below)
    if wanted.node_name is not None and (wanted.node_name in graph.nodes or wanted.node_name in graph.device_names):
        raise BlockError("New overlay node-name already in use")
    if not wanted.existing:
        _create(storage, below, wanted)
    tree: Tree = {
        "driver": wanted.format,
        "backing": None,
        "discard": "unmap" if below.unmap else "ignore",
        "cache": {"direct": below.direct, "no-flush": below.no_flush},
        "read-only": below.read_only,
    }
    if not _takes_backing(wanted.format):
        del tree["backing"]
    if wanted.node_name is not None:
        tree["node-name"] = wanted.node_name
    overlay = storage.open(wanted.filename, tree, Dialect.DRIVE)
    try:
        put_on_top(storage, overlay, below, freeze=freeze)
    except BaseException:
        storage.release(overlay)
        raise
    return overlay


def _takes_backing(image_format: str) -> bool:
    from pyvm.block.options import DRIVERS

    driver = DRIVERS.get(image_format)
    return driver is None or "backing" in driver.options


def _create(storage: Storage, below: Node, wanted: NewOverlay) -> None:
    from pyvm.block.create import create_image

    with storage.quiet():
        create_image(
            wanted.filename,
            wanted.format,
            below.size,
            {},
            name_of(below),
            below.driver,
            check_backing=False,
            announce=_announce,
        )


def _announce(line: str) -> None:
    """Tell the person at the prompt, as every program does that makes an image."""
    print(line, flush=True)


def put_on_top(storage: Storage, overlay: Node, below: Node, *, freeze: bool = True) -> None:
    """Let everybody who uses `below` use `overlay` in its place, with `below` as its backing file.

    With `freeze`, that is read-only from now on; otherwise the caller calls :func:`freeze_below`.
    """
    graph = storage.graph
    if graph.accesses()[overlay].used & Permission.CONSISTENT_READ:
        raise BlockError("The overlay is already in use")
    if overlay.is_filter:
        raise BlockError("Filters cannot be used as overlays")
    if overlay.backing is not None:
        raise BlockError("The overlay already has a backing image")
    if not hasattr(overlay, "set_backing"):
        raise BlockError("The overlay does not support backing images")
    if overlay in all_below(below):
        raise BlockError(f"Making '{below.name}' a backing child of '{overlay.name}' would create a cycle")
    with storage.drained(below), storage.quiet():
        if not below.read_only:
            below.flush()
        _move_users(storage, overlay, below)
    if freeze:
        freeze_below(storage, below)


def freeze_below(storage: Storage, below: Node) -> None:
    """Let an image that another one stands on be read-only."""
    if not below.read_only:
        storage.set_read_only(below, True)


def _move_users(storage: Storage, overlay: Node, below: Node) -> None:
    from pyvm.block.jobs.surgery import replace_node

    image: Qcow2Node = overlay  # type: ignore[assignment]  # or another format that has backing files
    image.set_backing(below.hold())
    try:
        replace_node(storage, below, overlay)
    except BlockError:
        image.set_backing(None)
        below.references -= 1
        raise


def rename_backing(storage: Storage, device: str, root: Node, image: Node, backing_file: str) -> None:
    """Write the name of another backing file into the header of `image`, which is in the chain of `root`."""
    if image.backing is None:
        raise BlockError("not allowing backing file change on an image without a backing file")
    if image not in _chain(root):
        raise BlockError(f"'{device}' and image file are not in the same chain")
    was_read_only = image.read_only
    if was_read_only:
        storage.set_read_only(image, False)
    try:
        storage.settle()
        with storage.quiet():
            image.change_backing(backing_file, image.driver)  # type: ignore[attr-defined]  # formats with backing files
            image.named_backing = backing_file
    except OSError as error:
        raise BlockError(f"Could not change backing file to '{backing_file}': {error.strerror}") from None
    finally:
        if was_read_only:
            storage.set_read_only(image, True)


def _chain(root: Node) -> list[Node]:
    nodes: list[Node] = []
    node: Node | None = root
    while node is not None:
        nodes.append(node)
        node = node.file if node.is_filter else node.backing
    return nodes
