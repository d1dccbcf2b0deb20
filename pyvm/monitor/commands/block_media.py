"""Commands about media and trays."""

from __future__ import annotations

from pyvm.monitor.commands.block_common import block_errors, find_backend, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("eject")
def eject(context: Context, device: str | None, id: str | None, force: bool | None) -> None:  # noqa: A002
    """Open the tray, and take the medium out."""
    from pyvm.machine.media import open_tray, take_out

    backend = find_backend(context, device, id)
    with block_errors():
        open_tray(backend, device or id or "", force=bool(force))
        take_out(storage_of(context.machine), backend, device or id or "")


@COMMANDS.command("blockdev-open-tray")
def blockdev_open_tray(context: Context, device: str | None, id: str | None, force: bool | None) -> None:  # noqa: A002
    """Open the tray; a guest that has it locked is asked, and the command succeeds."""
    backend = find_backend(context, device, id)
    if not backend.has_removable_medium:
        raise QmpError(f"Device '{device or id}' is not removable")
    with block_errors():
        backend.open_tray(bool(force))


@COMMANDS.command("blockdev-close-tray")
def blockdev_close_tray(context: Context, device: str | None, id: str | None) -> None:  # noqa: A002
    """Close the tray."""
    backend = find_backend(context, device, id)
    if not backend.has_removable_medium:
        raise QmpError(f"Device '{device or id}' is not removable")
    with block_errors():
        backend.close_tray()


@COMMANDS.command("blockdev-remove-medium")
def blockdev_remove_medium(context: Context, id: str) -> None:  # noqa: A002
    """Take the medium out of an open tray."""
    from pyvm.machine.media import take_out

    backend = find_backend(context, None, id)
    with block_errors():
        take_out(storage_of(context.machine), backend, id)


@COMMANDS.command("blockdev-insert-medium")
def blockdev_insert_medium(context: Context, id: str, node_name: str) -> None:  # noqa: A002
    """Put a node into an open tray."""
    from pyvm.machine.media import put_in

    backend = find_backend(context, None, id)
    storage = storage_of(context.machine)
    node = storage.graph.nodes.get(node_name)
    if node is None:
        raise QmpError(f"Node '{node_name}' not found")
    if any(user.name == "root" for user in storage.graph.users(node)):
        raise QmpError(f"Node '{node_name}' is already in use")
    with block_errors():
        put_in(backend, node)


@COMMANDS.command("blockdev-change-medium")
def blockdev_change_medium(
    context: Context,
    device: str | None,
    id: str | None,  # noqa: A002
    filename: str,
    format: str | None,  # noqa: A002
    force: bool | None,
    read_only_mode: str | None,
) -> None:
    """Put the image in a file into a drive, in the place of what is there."""
    from pyvm.machine.media import change

    backend = find_backend(context, device, id)
    with block_errors():
        change(
            storage_of(context.machine),
            backend,
            device or id or "",
            filename,
            image_format=format,
            force=bool(force),
            read_only=None if read_only_mode in (None, "retain") else read_only_mode == "read-only",
        )


@COMMANDS.command("change")
def change_device(context: Context, device: str, target: str, arg: str | None) -> None:
    """Put another medium into a drive; with the device `vnc`, change the password of the VNC server."""
    if device != "vnc":
        blockdev_change_medium(context, device, None, target, arg, None, None)
        return
    if target not in ("passwd", "password") or context.schema.command("change-vnc-password") is None:
        raise QmpError("Could not set up the VNC display: it cannot be moved while the machine runs")
    if arg is None:
        raise QmpError("Parameter 'password' is missing")
    from pyvm.monitor.dispatcher import load_handler

    command = context.schema.command("change-vnc-password")
    assert command is not None
    load_handler(command)(context, password=arg)
