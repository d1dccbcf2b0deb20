"""The block nodes of a drive: the image that a `-drive` names, and what is put in front of it.

The caller keeps all workers from nodes meanwhile.  Errors are BlockErrors, with nothing left open.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.open import Opener
from pyvm.block.options import Dialect, Tree, unflatten
from pyvm.temporary import new_temporary_file

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import Node
    from pyvm.config import DriveConfig

Warn = Callable[[str], None]


def open_drive(graph: BlockGraph, config: DriveConfig, warn: Warn) -> Node:
    """Open what is in a drive, and return the node that the caller holds."""
    tree: Tree = {
        **unflatten(config.options),
        "read-only": config.readonly or config.snapshot,
        "discard": "unmap" if config.discard else "ignore",
    }
    cache: Tree = tree.setdefault("cache", {})
    cache.update({"direct": config.direct, "no-flush": config.no_flush})
    if config.format is not None:
        tree["driver"] = config.format
    name = tree.pop("node-name", None) if config.snapshot else None
    node = Opener(graph, Dialect.DRIVE, warn=warn).open(config.file or None, tree, aio=config.aio)
    try:
        if config.snapshot:
            node = add_overlay(graph, node, name, discard=config.discard, warn=warn)
        if config.copy_on_read:
            node = _add_copy_on_read(graph, node)
    except BaseException:
        node.release()
        raise
    return node


def add_overlay(graph: BlockGraph, node: Node, name: str | None = None, *, discard: bool, warn: Warn) -> Node:
    """Put a temporary image in front of `node`, and hold that in its place: what is written is gone at the end."""
    from pyvm.block.create import create_image

    try:
        path = new_temporary_file("vl.")
    except OSError as error:
        raise BlockError(f"Could not get temporary filename: {error.strerror}") from None
    try:
        create_image(path, "qcow2", node.size, {}, durable=False)
        tree: Tree = {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": path, "locking": "off"},
            "backing": node.name,
            "cache": {"no-flush": True},
            "discard": "unmap" if discard else "ignore",
        }
        if name is not None:
            tree["node-name"] = name
        overlay = Opener(graph, Dialect.JSON, warn=warn).open(None, tree)
    finally:
        with suppress(OSError):
            os.unlink(path)
    node.release()  # the overlay holds it
    return overlay


def _add_copy_on_read(graph: BlockGraph, node: Node) -> Node:
    from pyvm.block.drivers.copy_on_read import CopyOnReadNode

    copier = CopyOnReadNode(node, name=graph.make_name())
    copier.implicit = True
    graph.add(copier)
    return copier
