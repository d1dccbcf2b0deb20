"""Commands that tell of drives, nodes and I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.monitor.commands.block_common import storage_of
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()


def _shown(storage: Storage) -> list[BlockBackend]:
    """Return the drives that have a name or a device."""
    return [backend for backend in storage.backends() if backend.name or backend.device is not None]


@COMMANDS.command("query-block")
def query_block(context: Context) -> list[dict[str, Any]]:
    """Return all drives, with what is in them."""
    from pyvm.block.filename import Namer
    from pyvm.block.info import drive_info

    namer = Namer()
    return [drive_info(backend, namer) for backend in _shown(storage_of(context.machine))]


@COMMANDS.command("query-blockstats")
def query_blockstats(context: Context, query_nodes: bool | None) -> list[dict[str, Any]]:
    """Return what drives did, or what was done to each node."""
    from pyvm.block.info import drive_stats, node_stats

    storage = storage_of(context.machine)
    if query_nodes:
        return [node_stats(node, of_drive=False) for node in storage.graph.listed()]
    return [drive_stats(backend) for backend in _shown(storage)]


@COMMANDS.command("query-named-block-nodes")
def query_named_block_nodes(context: Context, flat: bool | None) -> list[dict[str, Any]]:
    """Return all nodes, the newest first; `flat` leaves out what is below each."""
    from pyvm.block.filename import Namer
    from pyvm.block.info import device_info

    storage = storage_of(context.machine)
    owners = {backend.node: backend for backend in storage.backends() if backend.node is not None}
    nodes, namer = reversed(storage.graph.listed()), Namer()
    return [device_info(node, namer, owner=owners.get(node), flat=bool(flat)) for node in nodes]


@COMMANDS.command("x-debug-query-block-graph")
def query_block_graph(context: Context) -> dict[str, Any]:
    """Return the graph of nodes, and who uses them."""
    from pyvm.block.dump import dump_graph

    storage = storage_of(context.machine)
    return dump_graph(storage.graph, list(storage.backends()))
