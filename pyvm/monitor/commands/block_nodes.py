"""Commands that change the graph of nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyvm.monitor.commands.block_common import block_errors, find_node, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("blockdev-add")
def blockdev_add(context: Context, arguments: dict[str, Any]) -> None:
    """Open a node that the monitor holds."""
    storage = storage_of(context.machine)
    storage.graph.find_fd = context.session.named_fds.take
    with block_errors():
        storage.add_node(arguments)


@COMMANDS.command("blockdev-del")
def blockdev_del(context: Context, node_name: str) -> None:
    """Close a node that the monitor holds, and that nobody uses."""
    with block_errors():
        storage_of(context.machine).remove_node(node_name)


@COMMANDS.command("blockdev-reopen")
def blockdev_reopen(context: Context, arguments: dict[str, Any]) -> None:
    """Give nodes other options, all of them or none."""
    _reopen(context, arguments["options"])


@COMMANDS.command("x-blockdev-reopen")
def x_blockdev_reopen(context: Context, arguments: dict[str, Any]) -> None:
    """Give one node other options."""
    _reopen(context, [arguments])


def _reopen(context: Context, trees: list[dict[str, Any]]) -> None:
    with block_errors():
        storage_of(context.machine).reopen(trees)


@COMMANDS.command("blockdev-snapshot-sync")
def blockdev_snapshot_sync(
    context: Context,
    device: str | None,
    node_name: str | None,
    snapshot_file: str,
    snapshot_node_name: str | None,
    format: str | None,  # noqa: A002 - the name in the schema
    mode: str | None,
) -> None:
    """Make an image, and put it on top of a node: what is written from now on goes there."""
    from pyvm.monitor.commands.transaction import carry_out

    data = SimpleNamespace(
        device=device,
        node_name=node_name,
        snapshot_file=snapshot_file,
        snapshot_node_name=snapshot_node_name,
        format=format,
        mode=mode,
    )
    carry_out(storage_of(context.machine), [("blockdev-snapshot-sync", data)])


@COMMANDS.command("blockdev-snapshot")
def blockdev_snapshot(context: Context, node: str, overlay: str) -> None:
    """Put a node that was opened for that on top of another."""
    from pyvm.monitor.commands.transaction import carry_out

    carry_out(storage_of(context.machine), [("blockdev-snapshot", SimpleNamespace(node=node, overlay=overlay))])


@COMMANDS.command("change-backing-file")
def change_backing_file(context: Context, device: str, image_node_name: str, backing_file: str) -> None:
    """Write another backing file's name into an image; what is open stays."""
    from pyvm.machine.overlays import rename_backing

    storage = storage_of(context.machine)
    root = find_node(storage, device, device)
    if any(True for _ in storage.graph.parents(root)):
        raise QmpError("Need a root block node")
    image = find_node(storage, None, image_node_name)
    with block_errors():
        rename_backing(storage, device, root, image, backing_file)


@COMMANDS.command("x-blockdev-change")
def blockdev_change(context: Context, parent: str, child: str | None, node: str | None) -> None:
    """Add a child to a node, or take one away: no driver that is there has a choice."""
    storage = storage_of(context.machine)
    found = find_node(storage, parent, parent)
    if (child is None) == (node is None):
        if child is not None:
            raise QmpError("The parameters child and node are in conflict")
        raise QmpError("Either child or node must be specified")
    if child is not None:
        if not any(edge.label == child for edge in found.children):
            raise QmpError(f"Node '{parent}' does not have child '{child}'")
        raise QmpError(f"The node {found.name} does not support removing a child")
    if node not in storage.graph.nodes:
        raise QmpError(f"Node '{node}' not found")
    raise QmpError(f"The node {found.name} does not support adding a child")


@COMMANDS.command("x-blockdev-set-iothread")
def set_iothread(context: Context, node_name: str, iothread: Any, force: bool | None) -> None:
    """Let an I/O thread, or the main loop, serve a node."""
    storage = storage_of(context.machine)
    node = storage.graph.nodes.get(node_name)
    if node is None:
        raise QmpError(f"Failed to find node with node-name='{node_name}'")
    if not force and any(user.name == "root" for user in storage.graph.users(node)):
        raise QmpError(
            f"Node {node_name} is associated with a BlockBackend and could be in use (use force=true to override this "
            "check)"
        )
    if iothread is not None and iothread not in storage.iothreads:
        raise QmpError(f"Cannot find iothread {iothread}")
    with block_errors():
        storage.move_node(node, iothread)


@COMMANDS.command("block_passwd")
def block_passwd(context: Context, device: str | None, node_name: str | None, password: str) -> None:
    """Refuse: keys of encrypted images are `secret` objects."""
    raise QmpError("Setting block passwords directly is no longer supported")
