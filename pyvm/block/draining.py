"""Nodes that stand still: nothing is on its way to them, and who works on them by himself pauses.

What stands on a node does so, too: its parents, theirs, and the jobs that use one of these.  A client sees that as a
job that is paused for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import Node


class Worker(Protocol):
    """Somebody who works on nodes by himself: a job."""

    nodes: list[Node]
    """The nodes with which he stands still."""

    def stand_still(self) -> bool:
        """Begin nothing new until :meth:`go_on`; return False where there is nothing to be begun."""

    def come_to_rest(self) -> None:
        """Return once nothing of his is under way."""

    def go_on(self) -> None:
        """End :meth:`stand_still`."""


@contextmanager
def drained(graph: BlockGraph, nodes: Iterable[Node] | None = None, *, below: bool = False) -> Iterator[None]:
    """Have everybody stand still meanwhile who works on `nodes`, or on what stands on them; None: on any node.

    With `below`, also who works on what they are made of.
    """
    if not graph.workers:
        yield
        return
    visits = list(_all_visits(graph) if nodes is None else _visits(graph, nodes, below))
    held = [worker for worker in dict.fromkeys(visits) if worker.stand_still()]
    try:
        if held:
            with graph.unlimited():
                for worker in held:
                    worker.come_to_rest()
        yield
    finally:
        # Each goes on with the last of his nodes.
        going_on = [worker for worker in reversed(dict.fromkeys(reversed(visits))) if worker in held]
        if graph.resting is None:
            _let_go_on(going_on)
        else:
            graph.resting += going_on


def drained_for(graph: BlockGraph | None, node: Node | None) -> AbstractContextManager[None]:
    """Do as :func:`drained` for a disk that shows `node`, if it shows anything."""
    return nullcontext() if graph is None or node is None or not graph.workers else drained(graph, [node])


@contextmanager
def drained_once(graph: BlockGraph) -> Iterator[None]:
    """Let who begins to stand still meanwhile do so until the end of it: many ask for it, and nobody sees that."""
    if not graph.workers or graph.resting is not None:
        yield
        return
    graph.resting = []
    try:
        yield
    finally:
        going_on, graph.resting = graph.resting, None
        _let_go_on(going_on)


def _let_go_on(workers: Iterable[Worker]) -> None:
    for worker in workers:
        worker.go_on()


def take_leave(graph: BlockGraph, node: Node) -> None:
    """Wait as somebody does who has used a node like a disk, and is about to let it go.

    That is twice: for what he has asked for, and for what the end of that led to.
    """
    for _ in range(2):
        with drained(graph, [node]):
            pass


def _all_visits(graph: BlockGraph) -> Iterator[Worker]:
    """Yield who works on the nodes, in the order in which these were made; each with each of his nodes."""
    for node in graph.nodes.values():
        yield from _workers(graph, node)


def _visits(graph: BlockGraph, nodes: Iterable[Node], below: bool) -> Iterator[Worker]:
    """Yield who works on `nodes` and on what stands on them, from the bottom up; each with each of his nodes."""
    parents: dict[Node, list[Node]] = {}
    for parent in graph.nodes.values():
        for child in parent.children:
            parents.setdefault(child.node, []).append(parent)
    seen: set[Node] = set()
    for start in _with_all_below(nodes) if below else nodes:
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                yield from _workers(graph, node)
                waiting += parents.get(node, ())


def _workers(graph: BlockGraph, node: Node) -> Iterator[Worker]:
    return (worker for worker in reversed(graph.workers) if node in worker.nodes)


def _with_all_below(nodes: Iterable[Node]) -> list[Node]:
    found: dict[Node, None] = {}
    waiting = list(nodes)[::-1]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting += [child.node for child in reversed(node.children)]
    return list(found)
