"""Changes of the graph under disks that are in use: filters that are put in, and nodes that take the place of others.

All disks stand still meanwhile.  Who holds a node by hand, as the monitor does, keeps the node that he has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.reopen import all_below

if TYPE_CHECKING:
    from pyvm.block.drivers.filter import FilterNode
    from pyvm.machine.storage import Storage


def replace_node(storage: Storage, old: Node, new: Node) -> None:
    """Let everybody who uses `old` use `new`, but for what `new` is made of, and users that stay with their node.

    Raises BlockError, with nothing changed, where that does not go together.
    """
    graph = storage.graph
    inside = all_below(new)
    parents = [it for it, _ in graph.parents(old) if it not in inside]
    users = [it for it in graph.users(old) if not it.stays]
    with storage.drained(old), storage.quiet():
        for parent in parents:
            parent.replace_child(old, new)
        for user in users:
            user.node = new
        try:
            graph.refresh()
        except BlockError:
            for parent in parents:
                parent.replace_child(new, old)
            for user in users:
                user.node = old
            raise
        moved = len(parents) + len(users)
        new.references += moved
        for backend in storage.backends():
            if backend.node is old:
                backend.adopt(new)
        old.references -= moved
        if old.references <= 0:
            old.references = 1
            old.release()


class NotMadeError(BlockError):
    """A filter could not use what it was made of; nobody else has to do with that."""


def insert_filter(storage: Storage, made: FilterNode, name: str | None) -> None:
    """Put a filter in front of the node that it was made for, which it holds.  Raises BlockError, and closes it then.

    Without a name nobody asked for it: queries show the node below.  The filter stays the caller's.
    """
    below = made.file
    assert below is not None
    graph = storage.graph
    try:
        if name is not None:
            graph.check_name(name)
    except BlockError:
        below.references -= 1
        raise
    made.name = name or graph.make_name()
    made.implicit = name is None
    graph.add(made)
    try:
        try:
            graph.refresh()
        except BlockError as error:
            raise NotMadeError(str(error)) from None
        replace_node(storage, below, made)
    except BlockError:
        storage.release(made)
        raise


def drop_filter(storage: Storage, made: FilterNode) -> None:
    """Take a filter out, and close it; what it shows takes its place."""
    below = made.file
    assert below is not None
    replace_node(storage, made, below)
    storage.release(made)


def set_backing(storage: Storage, node: Node, backing: Node | None) -> None:
    """Show another node where an image has nothing.  Raises BlockError."""
    before = node.backing
    if before is backing:
        return
    with storage.drained(node), storage.quiet():
        node.set_backing(backing.hold() if backing is not None else None)  # type: ignore[attr-defined]
        try:
            storage.graph.refresh()
        except BlockError:
            node.set_backing(before)  # type: ignore[attr-defined]
            if backing is not None:
                backing.references -= 1
            raise
        if before is not None:
            before.release()


def backing_child(node: Node) -> Node | None:
    """Return what is below an image, or below a filter."""
    return node.file if node.is_filter else node.backing


def chain(node: Node) -> list[Node]:
    """Return a node and all that shows where it has nothing, filters included, from the top down."""
    nodes = [node]
    while (below := backing_child(nodes[-1])) is not None:
        nodes.append(below)
    return nodes


def check_links(top: Node, below: list[Node]) -> None:
    """Raise BlockError where the chain from `top` through all of `below` is going to change by itself."""
    parent = top
    for node in below:
        if node.driver in ("mirror_top", "commit_top"):
            label = next(child.label for child in parent.children if child.node is node)
            raise BlockError(f"Cannot freeze '{label}' link to '{node.name}'")
        parent = node


def overlay_of(top: Node, below: Node) -> Node | None:
    """Return the node in the chain of `top` that is right above `below`; None where there is none."""
    nodes = chain(top)
    return nodes[nodes.index(below) - 1] if below in nodes[1:] else None


def is_root(storage: Storage, node: Node) -> bool:
    """Return whether no other node has it as a child."""
    return not any(True for _ in storage.graph.parents(node))


def rename_backing(storage: Storage, overlay: Node, name: str, image_format: str) -> None:
    """Write another backing file's name into the header of an image, whether it is read-only or not.

    Raises OSError or BlockError.
    """
    change = getattr(overlay, "change_backing", None)
    if change is None:
        return
    was_read_only = overlay.read_only
    if was_read_only:
        storage.set_read_only(overlay, False)
    try:
        storage.settle()
        with storage.quiet():
            change(name or None, image_format or None)
            overlay.named_backing = name
    finally:
        if was_read_only:
            storage.set_read_only(overlay, True)


def open_backing(storage: Storage, node: Node) -> Node | None:
    """Open the backing file that the header of an image names; None where it names none.  Raises BlockError."""
    header = getattr(node, "header", None)
    name = getattr(header, "backing_file", None)
    if not name:
        return None
    from pyvm.block.info import full_name
    from pyvm.block.options import Dialect, Tree

    tree: Tree = {"read-only": True}
    if header is not None and header.backing_format is not None:
        tree["driver"] = header.backing_format
    return storage.open(full_name(node, name), tree, Dialect.DRIVE)
