"""Who has the images: this process, or the one that a machine moves to or comes from.

Images that are inactive are open, but not locked, and what was in memory of them is on disk: another process may change
them.  Before they are used again, all that was read from them is read anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage


def give_disks_up(storage: Storage) -> None:
    """Write everything back, and let other processes have the images.  Raises BlockError, with nothing changed."""
    graph = storage.graph
    storage.drain()
    with storage.quiet():
        for node in _roots(storage):
            if not node.read_only and not node.inactive:
                try:
                    node.inactivate()
                except OSError as error:
                    raise BlockError(f"'{node.name}' cannot be written back: {error.strerror}") from None
        graph.inactive = True
        for node in graph.nodes.values():
            node.inactive = True
        graph.refresh()


def take_disks(storage: Storage) -> None:
    """Have all images for this process.  Raises BlockError, with nothing changed, where another one has some."""
    graph = storage.graph
    before, graph.inactive = graph.inactive, False
    try:
        _take(storage, _roots(storage))
    except BlockError:
        graph.inactive = before
        raise


def take_node(storage: Storage, node: Node) -> None:
    """Have one image, and what it is made of, for this process, if it is not yet.  Raises BlockError."""
    if any(it.inactive for it in _below(node)):
        _take(storage, [node])


def _take(storage: Storage, roots: Iterable[Node]) -> None:
    taken = [node for root in roots for node in _below(root) if node.inactive]
    for node in taken:
        node.inactive = False
    try:
        storage.graph.refresh()
    except BlockError:
        for node in taken:
            node.inactive = True
        raise
    with storage.quiet():
        for root in roots:
            if root in taken or any(node in taken for node in _below(root)):
                try:
                    root.drop_cache()
                except OSError as error:
                    raise BlockError(f"'{root.name}' cannot be read again: {error.strerror}") from None
    for node in taken:
        storage.load_bitmaps(node)


def _below(node: Node) -> list[Node]:
    """Return a node, and all that it is made of, each once."""
    found = {node: None}
    for child in node.children:
        found.update(dict.fromkeys(_below(child.node)))
    return list(found)


def _roots(storage: Storage) -> list[Node]:
    """Return the nodes that no other node is made of."""
    below = {child.node for node in storage.graph.nodes.values() for child in node.children}
    return [node for node in storage.graph.nodes.values() if node not in below]
