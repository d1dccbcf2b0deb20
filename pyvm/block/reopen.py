"""Giving nodes that are in use other options, as blockdev-reopen does: all of them or none.

What is not said goes back to its default, with two exceptions: a node whose parent opened it keeps its options where
it is only named, and so does every node where just one thing is to be changed (``add_node``).  Children that a parent
opened inherit what is said of the parent.  Options that a driver cannot change must be what they were.

Nothing is changed until everything was checked.  Then images are written back from the top down, and opened in their
new way from the bottom up; an error undoes what was done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvm.block.context import Context
from pyvm.block.errors import BlockError
from pyvm.block.filename import flatten
from pyvm.block.graph import BlockGraph
from pyvm.block.node import Node, NodeOptions, Role
from pyvm.block.options import DRIVERS, GENERIC, Tree
from pyvm.records import record
from pyvm.wire_order import wire_order

_CHANGEABLE: dict[str, tuple[str, ...]] = {
    "file": ("x-check-cache-dropped",),
    "host_device": ("x-check-cache-dropped",),
    "host_cdrom": ("x-check-cache-dropped",),
    "null-co": (),
    "null-aio": (),
    "nbd": (),
    "raw": ("offset", "size"),
    "blkdebug": (),
    "luks": (),
    "preallocate": ("prealloc-align", "prealloc-size"),
    "throttle": ("throttle-group",),
    "qcow2": (
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "overlap-check",
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
    ),
}
"""Drivers that can be given other options, and which of their own."""
_REPLACEABLE = ("backing", "file")
_CACHE_SIZES = ("cache-size", "l2-cache-size", "refcount-cache-size")
_INHERITED = ("read-only", "auto-read-only", "cache.direct", "cache.no-flush", "discard")
_DEFAULTS: dict[str, Any] = {
    "read-only": False,
    "auto-read-only": False,
    "cache.direct": False,
    "cache.no-flush": False,
    "discard": "ignore",
    "detect-zeroes": "off",
}


@record(eq=False)
class _Entry:
    """One node on its way."""

    node: Node
    given: Tree
    """What every node takes, as far as it was said."""
    own: Tree
    children: dict[str, Node | None]
    """Children that are to be others: a name in the parent, and the node or None."""
    new: NodeOptions
    keep: bool
    backing_said: bool
    fixed: Tree
    """What must be as it was: the node's name, and options for children that this node did not open."""


class Reopener:
    """Collects nodes with their new options, and changes them in one go.  Errors are BlockErrors."""

    def __init__(self, graph: BlockGraph) -> None:
        self._graph = graph
        self._entries: list[_Entry] = []

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are changed."""
        return [entry.node for entry in self._entries]

    def check_contexts(self, context_of: Callable[[Node], Context], main: Context) -> None:
        """Refuse links between nodes of devices whose requests different threads carry out."""
        for entry in self._entries:
            for child in entry.children.values():
                if child is None:
                    continue
                one, other = context_of(entry.node), context_of(child)
                if one is not other and main not in (one, other):
                    raise BlockError("Cannot change iothread of active block backend")

    def add(self, tree: Tree) -> None:
        """Change the node that the options name."""
        name = tree.get("node-name")
        if name is None:
            raise BlockError("node-name not specified")
        node = self._graph.nodes.get(name)
        if node is None:
            raise BlockError(f"Failed to find node with node-name='{name}'")
        self._queue(node, tree, {}, keep=False)

    def add_node(self, node: Node, changes: Tree) -> None:
        """Change some options of a node, and leave the others as they are."""
        self._queue(node, changes, {}, keep=True)

    # ---- What is asked for

    def _queue(self, node: Node, tree: Tree, inherited: Tree, *, keep: bool) -> None:
        if any(entry.node is node for entry in self._entries):
            self._entries = [entry for entry in self._entries if entry.node is not node]
        given, rest = _split(tree)
        if keep:
            given = {**node.given, **given}
            rest = _joined(_own_options(node), rest)
        children, own, inner = self._children(node, rest)
        said = {**inherited, **given}
        new = _settle(node, said, own, keep=keep)
        opened = {edge.label for edge in node.children if _shown(edge.node).inherits_from is node}
        foreign = {label: options for label, options in inner.items() if label not in opened}
        fixed = dict(flatten(foreign))
        if "node-name" in tree:
            fixed["node-name"] = tree["node-name"]
        self._entries.append(_Entry(node, given, own, children, new, keep, "backing" in rest or keep, fixed))
        for edge in node.children:
            child = _shown(edge.node)
            if child.inherits_from is not node or edge.label in children:
                continue
            named = isinstance(rest.get(edge.label), str)
            self._queue(child, inner.get(edge.label, {}), _inherit(said, edge.role), keep=keep or named)

    def _children(self, node: Node, rest: Tree) -> tuple[dict[str, Node | None], Tree, dict[str, Tree]]:
        """Return children that are replaced, the driver's own options, and options for children that stay."""
        replaced: dict[str, Node | None] = {}
        inner: dict[str, Tree] = {}
        own: Tree = {}
        present = {edge.label: edge.node for edge in node.children}
        options = DRIVERS[node.driver].options if node.driver in DRIVERS else {}
        for key, value in rest.items():
            kind = options[key].kind if key in options else "any"
            if kind not in ("node", "node-or-null"):
                own[key] = value
            elif isinstance(value, dict):
                inner[key] = value
            elif value is None:
                if present.get(key) is not None:
                    replaced[key] = None
            elif key not in _REPLACEABLE:
                if key not in present or _shown(present[key]).name != value:
                    own[key] = value  # which is refused as a change
            else:
                child = self._graph.nodes.get(value)
                if child is None:
                    raise BlockError(f"Cannot find device='' nor node-name='{value}'")
                if not _same(present.get(key), child):
                    replaced[key] = child
        return replaced, own, inner

    # ---- Checks

    def run(self) -> None:
        """Check everything, then change everything.  All disks stand still meanwhile."""
        for entry in self._entries:
            self._check(entry)
        undo: list[Callable[[], None]] = []
        replaced: list[Node] = []
        try:
            for entry in self._entries:
                if not entry.node.read_only:
                    entry.node.inactivate()
            for entry in reversed(self._entries):
                self._commit(entry, undo, replaced)
            self._graph.refresh(frozenset(self.nodes))
        except (BlockError, OSError):
            for action in reversed(undo):
                action()
            raise
        for entry in self._entries:
            entry.node.given = entry.given
        for node in replaced:
            node.release()

    def _check(self, entry: _Entry) -> None:
        node = entry.node
        before = _own_options(node)
        mutable = _CHANGEABLE.get(node.driver)
        if mutable is None:
            raise BlockError(
                f"Block format '{node.driver}' used by node '{node.name}' does not support reopening files"
            )
        own = {"driver": node.driver, **entry.own}
        if not entry.keep:
            for key in before:
                if key not in own and key not in mutable:
                    raise BlockError(f"Option '{key}' cannot be reset to its default value")
        if not entry.backing_said and node.named_backing is not None and (node.backing or node.named_backing):
            raise BlockError(f"backing is missing for '{node.name}'")
        for key, child in entry.children.items():
            self._check_child(node, key, child)
        if entry.given.get("force-share", False) != node.force_share:
            raise BlockError("Cannot change the option 'force-share'")
        old = {**dict(flatten(before)), "driver": node.driver, "node-name": node.name}
        asked = {**dict(flatten(own)), **entry.fixed}
        for key in wire_order(asked):
            if key.partition(".")[0] not in mutable and old.get(key) != asked[key]:
                raise BlockError(f"Cannot change the option '{key}'")

    def _check_child(self, node: Node, key: str, child: Node | None) -> None:
        old = next((edge.node for edge in node.children if edge.label == key), None)
        if old is not None and self._graph.is_frozen(node, old):
            raise BlockError(f"Cannot change frozen '{key}' link from '{node.name}' to '{old.name}'")
        if child is None and key != "backing":
            raise BlockError(f"Cannot change the option '{key}'")
        if child is not None and node in all_below(child):
            raise BlockError(f"Making '{child.name}' a {key} child of '{node.name}' would create a cycle")
        if key == "backing":
            if not hasattr(node, "set_backing"):
                raise BlockError(f"Driver '{node.driver}' of node '{node.name}' does not support backing files")
            if node.backing is not None and node.backing.implicit and not node.backing.hidden:
                raise BlockError(f"Cannot replace implicit backing child of {node.name}")

    # ---- Changes

    def _commit(self, entry: _Entry, undo: list[Callable[[], None]], replaced: list[Node]) -> None:
        node = entry.node
        for key, child in entry.children.items():
            replaced += [edge.node for edge in node.children if edge.label == key]
            undo.append(_replace(node, key, child))
        undo.append(node.reopen(self._graph, entry.new))


def _shown(node: Node) -> Node:
    """Return the node that clients see."""
    while node.hidden and node.file is not None:
        node = node.file
    return node


def _split(tree: Tree) -> tuple[Tree, Tree]:
    """Return what every node takes, with dots in the names, and the rest."""
    given: Tree = {}
    rest: Tree = {}
    for key, value in tree.items():
        if key == "node-name":
            continue
        if key in GENERIC and key != "driver":
            given.update(flatten({key: value}))
        else:
            rest[key] = value
    return given, rest


def _own_options(node: Node) -> Tree:
    return {key: value for key, value in node.options.items() if key != "driver"}


def _joined(old: Tree, new: Tree) -> Tree:
    """Return new options, with the old ones where nothing new is said; caches share one size, or have one each."""
    if "cache-size" in new:
        old = {key: value for key, value in old.items() if key not in _CACHE_SIZES}
    joined = {**old, **new}
    if all(key in joined for key in _CACHE_SIZES) and not all(key in new for key in _CACHE_SIZES):
        del joined["cache-size"]
    return joined


def _settle(node: Node, said: Tree, own: Tree, *, keep: bool) -> NodeOptions:
    values = {**_DEFAULTS, **(_present(node) if keep else {}), **said}
    unmap = values["discard"] == "unmap"
    if values["detect-zeroes"] == "unmap" and not unmap:
        raise BlockError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    return NodeOptions(
        values["read-only"],
        values["auto-read-only"],
        unmap,
        values["cache.direct"],
        values["cache.no-flush"],
        values["detect-zeroes"],
        own={key: value for key, value in own.items() if key != "driver"},
    )


def _present(node: Node) -> Tree:
    return {
        "read-only": node.read_only,
        "auto-read-only": node.auto_read_only,
        "cache.direct": node.direct,
        "cache.no-flush": node.no_flush,
        "discard": "unmap" if node.unmap else "ignore",
        "detect-zeroes": node.detect_zeroes,
    }


def _inherit(said: Tree, role: Role) -> Tree:
    """Return what a child takes over: a backing file is not written to, whatever its parent is."""
    inherited = {key: said[key] for key in _INHERITED if key in said}
    if role is Role.BACKING:
        inherited.update({"read-only": True, "auto-read-only": False})
    return inherited


def _same(present: Node | None, wanted: Node) -> bool:
    while present is not None and present is not wanted and present.implicit:
        present = present.file
    return present is wanted


def all_below(node: Node) -> set[Node]:
    """Return a node, and all that it is made of."""
    found = {node}
    for child in node.children:
        found |= all_below(child.node)
    return found


def _replace(node: Node, key: str, child: Node | None) -> Callable[[], None]:
    """Put another child in a place; return what undoes that.  The one before is let go when it is too late for that."""
    old = next((edge.node for edge in node.children if edge.label == key), None)
    if key == "backing":
        node.set_backing(child.hold() if child is not None else None)  # type: ignore[attr-defined]
    else:
        assert child is not None
        assert old is not None
        node.replace_child(old, child.hold())

    def back() -> None:
        if key == "backing":
            node.set_backing(old)  # type: ignore[attr-defined]
        elif old is not None and child is not None:
            node.replace_child(child, old)
        if child is not None:
            child.references -= 1

    return back
