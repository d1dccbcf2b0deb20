"""Whether a copy of what one node shows can take the place of another without a sudden change of what is read."""

from __future__ import annotations

from pyvm.block.graph import BlockGraph
from pyvm.block.node import Node

_QUORUM = "quorum"


def can_replace(graph: BlockGraph, shown: Node, replaced: Node) -> bool:
    """Return whether `replaced` can give way to a node with the data of `shown`.

    It can where it is `shown`, or below that with nothing but filters in between.  It also can where it is a copy of a
    quorum that shows that data: it may be the copy that is broken, so nobody else must be reading from it.
    """
    node: Node | None = shown
    while node is not None and node is not replaced:
        if node.driver == _QUORUM:
            return _is_copy_of(graph, node, replaced)
        node = node.file if node.is_filter else None
    return node is not None


def _is_copy_of(graph: BlockGraph, quorum: Node, node: Node) -> bool:
    """Return whether `node` is a copy that nobody but the quorum uses."""
    return not graph.users(node) and [parent for parent, _ in graph.parents(node)] == [quorum]
