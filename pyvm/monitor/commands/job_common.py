"""What the commands that start jobs share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.block.jobs.block_job import JobOptions
from pyvm.block.jobs.surgery import is_root
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.block.jobs.job import Transaction
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage


def lookup(storage: Storage, name: str) -> Node:
    """Return what is in a drive, filters that nobody asked for included, or a node.  Raises QmpError."""
    drive = storage.drives.get(name)
    if drive is not None:
        node = drive.backend.node
        if node is None:
            raise QmpError(f"Device '{name}' has no medium")
        return node
    found = storage.graph.nodes.get(name)
    if found is None:
        raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'")
    return found


def lookup_root(storage: Storage, name: str) -> Node:
    """Return a drive's or another node that no other node has as a child.  Raises QmpError."""
    node = lookup(storage, name)
    if not is_root(storage, node):
        raise QmpError("Need a root block node")
    return node


def skip_implicit(node: Node) -> Node:
    """Return the first node from `node` down that somebody asked for."""
    while node.implicit and node.file is not None:
        node = node.file
    return node


def job_options(
    storage: Storage,
    arguments: Any,
    node: Node,
    *,
    filter_name: str | None = None,
    transaction: Transaction | None = None,
) -> JobOptions:
    """Return what every job takes out of a command's arguments; its ID is the drive's name where none is given."""
    identifier = arguments.job_id
    if identifier is None:
        identifier = next((it.name for it in storage.backends() if it.node is node and it.name), "")
    return JobOptions(
        identifier,
        speed=arguments.speed or 0,
        auto_finalize=arguments.auto_finalize is not False,
        auto_dismiss=arguments.auto_dismiss is not False,
        filter_name=filter_name,
        transaction=transaction,
    )
