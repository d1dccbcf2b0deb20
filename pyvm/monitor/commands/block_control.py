"""Commands that change what nodes are, without changing the graph."""

from __future__ import annotations

from pyvm.monitor.commands.block_common import block_errors, find_node, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("block_resize")
def block_resize(context: Context, device: str | None, node_name: str | None, size: int) -> None:
    """Give an image another size; the guest is told."""
    storage = storage_of(context.machine)
    node = find_node(storage, device, node_name)
    if size < 0:
        raise QmpError("Parameter 'size' expects a >0 size")
    if storage.graph.is_blocked(node):
        raise QmpError(f"Device '{device or '(null)'}' is in use")
    with block_errors():
        storage.resize(node, size)


@COMMANDS.command("block-set-write-threshold")
def block_set_write_threshold(context: Context, node_name: str, write_threshold: int) -> None:
    """Have an event sent once somebody writes beyond an offset of a node; 0: no longer."""
    node = storage_of(context.machine).graph.nodes.get(node_name)
    if node is None:
        raise QmpError(f"Device '{node_name}' not found")
    node.write_threshold = write_threshold
