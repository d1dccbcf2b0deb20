"""The graph of nodes as x-debug-query-block-graph shows it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvm.block.backend import BlockBackend
from pyvm.block.graph import BlockGraph
from pyvm.block.node import Access, Node, Permission

_NAMES = (
    (Permission.RESIZE, "resize"),
    (Permission.WRITE_UNCHANGED, "write-unchanged"),
    (Permission.WRITE, "write"),
    (Permission.CONSISTENT_READ, "consistent-read"),
)


class _Dump:
    """One walk; everything gets its number when it is first met."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self.nodes: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []

    def _number(self, thing: object) -> int:
        return self._numbers.setdefault(thing, len(self._numbers) + 1)

    def node(self, thing: object, kind: str, name: str) -> None:
        self.nodes.append({"id": self._number(thing), "type": kind, "name": name})

    def edge(self, parent: object, child: Node, name: str, access: Access) -> None:
        self.edges.append(
            {
                "parent": self._number(parent),
                "child": self._number(_seen(child)),
                "name": name,
                "perm": _names(access.used),
                "shared-perm": _names(access.shared),
            }
        )


def _names(permissions: Permission) -> list[str]:
    return [name for permission, name in _NAMES if permissions & permission]


def _seen(node: Node) -> Node:
    """Return the node, or the one below where no client may see it."""
    while node.hidden and node.file is not None:
        node = node.file
    return node


def dump_graph(graph: BlockGraph, backends: Iterable[BlockBackend]) -> dict[str, Any]:
    """Return all drives and nodes, and the edges between them; the last first, as QEMU has them."""
    dump = _Dump()
    accesses = graph.accesses()
    for backend in backends:
        dump.node(backend, "block-backend", backend.name or backend.device_id)
        if backend.node is not None:
            dump.edge(backend, backend.node, "root", backend.access)
    for node in graph.listed():
        dump.node(node, "block-driver", node.name)
        used = accesses.get(node)
        for child in reversed(node.children):
            if used is not None:
                dump.edge(node, child.node, child.label, node.child_access(child, used.used, used.shared))
    return {"nodes": dump.nodes[::-1], "edges": dump.edges[::-1]}
