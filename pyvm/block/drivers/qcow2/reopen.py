"""Giving an open image other options: it is closed and opened again, around the same file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.block.drivers.filter import ReadOnlyView
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.options import Options, read_options
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, NodeOptions

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.graph import BlockGraph

Change = Callable[["BlockGraph", NodeOptions], Callable[[], None]]


def reopen(node: Qcow2Node, graph: BlockGraph, new: NodeOptions, change: Change) -> Callable[[], None]:
    """Let an image be as `new` says; return what undoes that.

    Its file is in its new state already, and what was in memory was written back.  `change` does what is the same for
    all nodes.  Raises BlockError, with nothing changed.
    """
    own = {key: value for key, value in new.own.items() if key != "encrypt"}
    chosen = read_options(own, node.header, unmap=new.unmap)
    file, before = node.file, node.disk
    assert file is not None
    undo = [change(graph, new)]
    try:
        undo.append(_adjust_file(node, file, graph, new))
        node.disk = _make_disk(node, before, chosen)
        node.open_again()
    except BaseException:
        node.disk = before
        for action in reversed(undo):
            action()
        raise

    def back() -> None:
        node.disk = before
        for action in reversed(undo):
            action()
        node.open_again()

    return back


def _adjust_file(node: Qcow2Node, file: Node, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
    """Let the image see its file read-only where it is to be so itself, although others may write to that."""
    if file.hidden:
        below = file.file
        assert below is not None
        if below.read_only and not new.read_only:
            raise BlockError("Block node is read-only")
        before, file.read_only = file.read_only, new.read_only
        return lambda: setattr(file, "read_only", before)
    if file.read_only and not new.read_only:
        raise BlockError("Block node is read-only")
    if file.read_only or not new.read_only:
        return lambda: None
    view = ReadOnlyView(file, name=graph.make_name())
    graph.add(view)
    node.replace_file(view)

    def back() -> None:
        node.replace_file(file)
        view.children.clear()
        view.release()

    return back


def _make_disk(node: Qcow2Node, before: Disk, chosen: Options) -> Disk:
    file = node.file
    assert file is not None
    data = file if before.stored_in is before.file else before.stored_in
    if node.encryption is not None:
        data = node.encryption.wrap(data)
    disk = Disk(file, node.header, chosen, name=node.name, data=data, backing=node.backing, warn=before.warn)
    disk.reader.uses_disk_offsets = before.reader.uses_disk_offsets
    disk.image.on_corrupted = before.image.on_corrupted
    return disk
