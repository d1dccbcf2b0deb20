"""Commands about exports of block nodes, and the NBD server."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from pyvm.block.export.exports import ExportOptions, find_exportable
from pyvm.monitor.commands.block_common import block_errors, find_node, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.block.export.exports import Exports
    from pyvm.block.export.nbd import NbdOptions
    from pyvm.chardev.address import SocketAddress

COMMANDS = CommandTable()


def _exports(context: Context) -> Exports:
    return storage_of(context.machine).exports


# ---- The server


@COMMANDS.command("nbd-server-start")
def nbd_server_start(context: Context, arguments: Record) -> None:
    """Listen for NBD clients."""
    from pyvm.block.export.starting import ServerOptions, open_listener, start_server

    machine: Any = context.machine
    options = ServerOptions(arguments.max_connections or 0, arguments.tls_creds, arguments.tls_authz)
    address = _address(arguments.addr)
    with block_errors():
        start_server(
            _exports(context),
            lambda: open_listener(address, context.session.named_fds.require),
            options,
            machine.model.objects.find,
        )


def _address(record: Record) -> SocketAddress:
    from pyvm.chardev.address import FdAddress, InetAddress, UnixAddress

    data = record.data
    if record.type == "unix":
        return UnixAddress(data.path, bool(data.abstract), data.tight is not False)
    if record.type == "fd":
        return FdAddress(data.str)
    if record.type != "inet":
        raise QmpError(f"an NBD server at an address of type '{record.type}' is not supported by pyvm yet")
    if data.numeric or data.mptcp:
        raise QmpError("'numeric' and 'mptcp' are not supported by pyvm yet")
    return InetAddress(data.host, data.port, data.to, data.ipv4, data.ipv6, bool(data.keep_alive))


@COMMANDS.command("nbd-server-stop")
def nbd_server_stop(context: Context) -> None:
    """Stop the server; all of its exports go."""
    with block_errors():
        _exports(context).stop_server()


@COMMANDS.command("nbd-server-add")
def nbd_server_add(context: Context, arguments: Record) -> None:
    """Export a drive or node under its own or another name."""
    from pyvm.block.export.nbd import NbdOptions

    storage = storage_of(context.machine)
    node = find_node(storage, arguments.device, arguments.device)
    name = arguments.device if arguments.name is None else arguments.name
    bitmaps = () if arguments.bitmap is None else (arguments.bitmap,)
    # What cannot be written to is exported all the same.
    options = ExportOptions(name, node.name, bool(arguments.writable) and not node.read_only)
    _add_nbd(context, options, NbdOptions(name, arguments.description, bitmaps))
    drive = storage.drives.get(arguments.device)
    export = storage.exports.find(name)
    if drive is not None and export is not None:
        drive.backend.on_eject.append(export.shut_down)


@COMMANDS.command("nbd-server-remove")
def nbd_server_remove(context: Context, name: str, mode: str | None) -> None:
    """Let an NBD export go."""
    export = _exports(context).find(name)
    if export is not None and export.kind != "nbd":
        raise QmpError(f"Block export '{name}' is not an NBD export")
    block_export_del(context, id=name, mode=mode)


# ---- Exports of all kinds


@COMMANDS.command("block-export-add")
def block_export_add(context: Context, arguments: Record) -> None:
    """Export a node."""
    options = ExportOptions(
        arguments.id,
        arguments.node_name,
        bool(arguments.writable),
        bool(arguments.writethrough),
        arguments.iothread,
        bool(arguments.fixed_iothread),
    )
    if arguments.type == "nbd":
        _add_nbd(context, options, _nbd_options(arguments))
        return
    if arguments.type == "vhost-user-blk":
        _add_vhost_user_blk(context, options, arguments)
        return
    exports = _exports(context)
    with block_errors():
        exports.check_identifier(options.id)
        find_exportable(exports.storage, options)
    if arguments.type == "fuse":
        _check_mountpoint(arguments.mountpoint)
    raise QmpError(f"Block exports of type '{arguments.type}' are not supported by pyvm yet")


def _check_mountpoint(path: str) -> None:
    """Refuse what could be no mountpoint anyway."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise QmpError(f"Failed to stat '{path}': {reason}") from None
    if not stat.S_ISREG(mode):
        raise QmpError(f"'{path}' is not a regular file")


def _add_vhost_user_blk(context: Context, options: ExportOptions, arguments: Record) -> None:
    from pyvm.block.export.starting import open_listener
    from pyvm.block.export.vhost_user_blk import VhostUserBlkExport
    from pyvm.chardev.address import FdAddress, UnixAddress

    where = arguments.addr
    address: SocketAddress
    if where.type == "unix":
        address = UnixAddress(where.path, bool(where.abstract), where.tight is not False)
    elif where.type == "fd":
        address = FdAddress(where.str)
    else:
        raise QmpError("Only socket address types 'unix' and 'fd' are supported")
    exports = _exports(context)
    with block_errors():
        exports.check_identifier(options.id)
        export = VhostUserBlkExport(
            exports,
            options,
            lambda: open_listener(address, context.session.named_fds.require),
            logical_block_size=512 if arguments.logical_block_size is None else arguments.logical_block_size,
            num_queues=1 if arguments.num_queues is None else arguments.num_queues,
        )
        exports.add(export)


def _nbd_options(arguments: Record) -> NbdOptions:
    from pyvm.block.export.nbd import NbdOptions

    bitmaps = [it if isinstance(it, str) else (it.node, it.name) for it in arguments.bitmaps or ()]
    name = arguments.node_name if arguments.name is None else arguments.name
    return NbdOptions(name, arguments.description, bitmaps, bool(arguments.allocation_depth))


def _add_nbd(context: Context, options: ExportOptions, nbd: NbdOptions) -> None:
    from pyvm.block.export.nbd import NbdExport

    exports = _exports(context)
    with block_errors():
        exports.check_identifier(options.id)
        exports.add(NbdExport(exports, options, nbd))


@COMMANDS.command("block-export-del")
def block_export_del(context: Context, id: str, mode: str | None) -> None:  # noqa: A002 - the name that the schema gives it
    """Let an export go; it is gone when BLOCK_EXPORT_DELETED says so."""
    with block_errors():
        _exports(context).remove(id, hard=mode == "hard")


@COMMANDS.command("query-block-exports")
def query_block_exports(context: Context) -> list[dict[str, Any]]:
    """Return all exports, the newest first."""
    return [export.describe() for export in _exports(context)]
