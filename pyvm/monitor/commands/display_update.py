"""Commands that change remote displays while they are in use."""

from __future__ import annotations

from pyvm.chardev.address import FdAddress, InetAddress, SocketAddress, UnixAddress
from pyvm.chardev.base import ChardevError
from pyvm.monitor.commands.vnc import vnc_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

COMMANDS = CommandTable()


@COMMANDS.command("display-reload")
def display_reload(context: Context, arguments: Record) -> None:
    """Read certificates again; there are none to read."""
    if not arguments.tls_certs:
        return
    displays = vnc_of(context)
    if displays is None or displays.find(None) is None:
        raise QmpError("Can not find vnc display")
    raise QmpError("vnc tls is not enabled")


@COMMANDS.command("display-update")
def display_update(context: Context, arguments: Record) -> None:
    """Have the first VNC display listen somewhere else."""
    displays = vnc_of(context)
    server = None if displays is None else displays.find(None)
    if server is None:
        raise QmpError("Can not find vnc display")
    if arguments.addresses is None:
        return
    addresses = [_address(address) for address in arguments.addresses]
    try:
        server.listen(addresses, context.session.named_fds.require)
    except ChardevError as error:
        raise QmpError(str(error)) from None


def _address(record: Record) -> SocketAddress:
    match record.type:
        case "inet":
            return InetAddress(
                record.host,
                record.port,
                to=record.to,
                ipv4=record.ipv4,
                ipv6=record.ipv6,
                keep_alive=bool(record.keep_alive),
            )
        case "unix":
            return UnixAddress(record.path, bool(record.abstract), record.tight is not False)
        case "fd":
            return FdAddress(record.str)
    raise QmpError("addresses of type 'vsock' are not supported by pyvm")
