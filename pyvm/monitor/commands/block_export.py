"""Commands about exports of block nodes, which pyvm does not have yet: they answer as where nothing is exported."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.commands.block_common import find_node, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record
from pyvm.options import is_identifier

COMMANDS = CommandTable()


def _not_running() -> QmpError:
    return QmpError("NBD server not running")


def _not_found(name: str) -> QmpError:
    return QmpError(f"Export '{name}' is not found")


@COMMANDS.command("nbd-server-start")
def nbd_server_start(context: Context, arguments: Record) -> None:
    """Refuse: there is no server."""
    raise QmpError("The NBD server is not supported by pyvm yet")


@COMMANDS.command("nbd-server-stop")
def nbd_server_stop(context: Context) -> None:
    """Refuse: the server does not run."""
    raise _not_running()


@COMMANDS.command("nbd-server-add")
def nbd_server_add(context: Context, arguments: Record) -> None:
    """Refuse: the server does not run."""
    find_node(storage_of(context.machine), arguments.device, arguments.device)
    raise _not_running()


@COMMANDS.command("nbd-server-remove")
def nbd_server_remove(context: Context, name: str, mode: str | None) -> None:
    """Refuse: nothing is exported."""
    raise _not_found(name)


@COMMANDS.command("block-export-add")
def block_export_add(context: Context, arguments: Record) -> None:
    """Refuse: NBD needs the server, and pyvm has no exports of other kinds."""
    if not is_identifier(arguments.id):
        raise QmpError("Invalid block export id")
    storage = storage_of(context.machine)
    find_node(storage, None, arguments.node_name)
    if arguments.iothread is not None and arguments.iothread not in storage.iothreads:
        raise QmpError(f'iothread "{arguments.iothread}" not found')
    if arguments.type == "nbd":
        raise _not_running()
    raise QmpError(f"Block exports of type '{arguments.type}' are not supported by pyvm yet")


@COMMANDS.command("block-export-del")
def block_export_del(context: Context, id: str, mode: str | None) -> None:  # noqa: A002 - the name that the schema gives it
    """Refuse: nothing is exported."""
    raise _not_found(id)


@COMMANDS.command("query-block-exports")
def query_block_exports(context: Context) -> list[dict[str, Any]]:
    """Return the exports: none."""
    return []
