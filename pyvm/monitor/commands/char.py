"""Commands about character devices."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

from pyvm.chardev.base import ChardevError, ChardevEvent
from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.chardev.address import SocketAddress
    from pyvm.chardev.base import Chardev
    from pyvm.chardev.options import ChardevOptions, SocketOptions
    from pyvm.chardev.registry import ChardevSet
    from pyvm.chardev.ringbuf import RingbufChardev

COMMANDS = CommandTable()

_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
_PLAIN = {
    "pty": "PtyOptions",
    "null": "NullOptions",
    "msmouse": "MsmouseOptions",
    "testdev": "TestdevOptions",
    "wctablet": "WctabletOptions",
}
"""Kinds of back ends that have no parameters of their own."""
_LISTED = (
    *("testdev", "pty", "wctablet", "serial", "file", "memory", "udp", "parallel", "vc", "socket", "msmouse", "null"),
    *("qemu-vdagent", "pipe", "mux", "ringbuf", "stdio"),
)


@runtime_checkable
class ChardevOwner(Protocol):
    """A machine whose character devices can be changed."""

    chardev_set: ChardevSet


def _devices(context: Context) -> ChardevSet:
    machine = context.machine
    if not isinstance(machine, ChardevOwner):
        raise unsupported()
    return machine.chardev_set


@COMMANDS.command("query-chardev")
def query_chardev(context: Context) -> list[dict[str, Any]]:
    """Return all character devices."""
    return [
        {"label": chardev.label, "filename": chardev.filename, "frontend-open": chardev.frontend_open}
        for chardev in context.machine.chardevs()
    ]


@COMMANDS.command("query-chardev-backends")
def query_chardev_backends(context: Context) -> list[dict[str, Any]]:
    """Return what kinds of back ends there are."""
    return [{"name": name} for name in _LISTED]


# ---- Ring buffers


def _ringbuf(context: Context, device: str) -> RingbufChardev:
    from pyvm.chardev.ringbuf import RingbufChardev

    found = _devices(context).find(device)
    if found is None:
        raise QmpError(f"Device '{device}' not found")
    if not isinstance(found, RingbufChardev):
        raise QmpError(f"{device} is not a ringbuf device")
    return found


def _decode_base64(text: str) -> bytes:
    """Decode as GLib does: each group of four characters by itself, and no group that is not whole."""
    if not _BASE64.issuperset(text):
        raise QmpError("Base64 data contains invalid characters")
    data = bytearray()
    for start in range(0, len(text) - 3, 4):
        group = text[start : start + 4]
        first, second, third = base64.b64decode(group.replace("=", "A"))
        data.append(first)
        if group[2] != "=":
            data.append(second)
        if group[3] != "=":
            data.append(third)
    return bytes(data)


@COMMANDS.command("ringbuf-write")
def ringbuf_write(
    context: Context,
    device: str,
    data: str,
    format: str | None = None,  # noqa: A002 - the name that the schema gives it
) -> None:
    """Write to a ring buffer."""
    ring = _ringbuf(context, device)
    ring.write(_decode_base64(data) if format == "base64" else data.encode("utf-8", "surrogatepass"))


@COMMANDS.command("ringbuf-read")
def ringbuf_read(
    context: Context,
    device: str,
    size: int,
    format: str | None = None,  # noqa: A002
) -> str:
    """Read from a ring buffer what was written first; text ends where a zero byte was written."""
    ring = _ringbuf(context, device)
    if size <= 0:
        raise QmpError("size must be greater than zero")
    data = ring.read(size)
    if format == "base64":
        return base64.b64encode(data).decode("ascii")
    return data.partition(b"\0")[0].decode("utf-8", "replace")


# ---- Making, changing and removing devices


def _socket_address(record: Record) -> SocketAddress:
    from pyvm.chardev.address import FdAddress, InetAddress, UnixAddress

    data = record.data
    match record.type:
        case "unix":
            tight = True if data.tight is None else data.tight
            return UnixAddress(data.path, bool(data.abstract), tight)
        case "fd":
            return FdAddress(data.str)
        case "inet":
            return InetAddress(data.host, data.port, data.to, data.ipv4, data.ipv6, bool(data.keep_alive))
    raise ChardevError("chardev: socket: vsock is not supported")


def _check_socket(data: Record) -> None:
    from pyvm.chardev.address import FdAddress
    from pyvm.chardev.options import check_websocket

    server = True if data.server is None else data.server
    if isinstance(_socket_address(data.addr), FdAddress) and data.reconnect:
        raise ChardevError("'reconnect' option is incompatible with 'fd' address type")
    if server and data.reconnect is not None:
        raise ChardevError("'reconnect' option is incompatible with socket in server listen mode")
    if not server and data.wait is not None:
        raise ChardevError("'wait' option is incompatible with socket in client connect mode")
    if data.websocket and not server:
        raise ChardevError("Websocket client is not implemented")
    if data.tls_creds is not None:
        raise ChardevError(f"No TLS credentials with id '{data.tls_creds}'")
    if data.tls_authz is not None:
        raise ChardevError("'tls_authz' option requires 'tls_creds' option")
    if data.websocket:
        check_websocket(server=server, telnet=bool(data.telnet))
    if data.tn3270:
        raise ChardevError("chardev: socket: tn3270 is not supported")


def _socket(common: dict[str, Any], data: Record) -> ChardevOptions:
    from pyvm.chardev.options import SocketOptions

    _check_socket(data)
    # A server waits for nobody: the guest and the other clients would wait with it.
    return SocketOptions(
        **common,
        address=_socket_address(data.addr),
        server=True if data.server is None else data.server,
        reconnect=max(data.reconnect or 0, 0),
        nodelay=bool(data.nodelay),
        telnet=bool(data.telnet),
        websocket=bool(data.websocket),
    )


def _udp(common: dict[str, Any], data: Record) -> ChardevOptions:
    from pyvm.chardev.address import InetAddress
    from pyvm.chardev.options import UdpOptions

    remote = _socket_address(data.remote)
    local = None if data.local is None else _socket_address(data.local)
    if not isinstance(remote, InetAddress) or not isinstance(local, InetAddress | None):
        raise ChardevError("socket type unsupported for datagram")
    return UdpOptions(
        **common,
        host=remote.host,
        port=remote.port,
        local_host="" if local is None else local.host,
        local_port="" if local is None else local.port,
        ipv4=remote.ipv4,
        ipv6=remote.ipv6,
    )


def _simple(kind: str, common: dict[str, Any], data: Record) -> ChardevOptions:
    from pyvm.chardev import options
    from pyvm.chardev.ringbuf import DEFAULT_SIZE

    match kind:
        case "file":
            return options.FileOptions(**common, path=data.out, append=bool(data.append), input_path=data.in_)
        case "serial":
            return options.SerialOptions(**common, path=data.device)
        case "parallel":
            return options.ParallelOptions(**common, path=data.device)
        case "pipe":
            return options.PipeOptions(**common, path=data.device)
        case "mux":
            return options.MuxOptions(**common, chardev=data.chardev)
        case "stdio":
            return options.StdioOptions(**common, signal=True if data.signal is None else data.signal)
        case "vc":
            return options.VcOptions(**common)
        case "ringbuf" | "memory":
            return options.RingbufOptions(**common, size=data.size or DEFAULT_SIZE, kind=kind)
        case "spicevmc":
            return options.spice_channel(common, data.type)
        case "spiceport":
            raise options.no_spice()
        case "qemu-vdagent":
            mouse = True if data.mouse is None else data.mouse
            return options.VdagentOptions(**common, mouse=mouse, clipboard=bool(data.clipboard))
    if kind == "braille":
        raise ChardevError("brlapi__openConnection: connect: No such file or directory")  # there is no BrlTTY to reach
    if kind in _PLAIN:
        made: ChardevOptions = getattr(options, _PLAIN[kind])(**common)
        return made
    raise ChardevError(f"'{kind}' is not a valid char driver name")


def _options(identifier: str, backend: Record) -> ChardevOptions:
    """Return what a client asks for as the command line has it; raises ChardevError."""
    data = backend.data
    common = {"id": identifier, "logfile": data.logfile, "logappend": bool(data.logappend)}
    if backend.type == "socket":
        return _socket(common, data)
    if backend.type == "udp":
        return _udp(common, data)
    return _simple(backend.type, common, data)


def _find_fd(context: Context) -> Callable[[str], int]:
    """Return how back ends find descriptors that the client gave names to."""

    def find(name: str) -> int:
        fd = context.session.named_fds.take(name)
        if fd is None:
            raise ChardevError(f"File descriptor named '{name}' has not been found")
        return fd

    return find


def _made(chardev: Chardev) -> dict[str, Any]:
    from pyvm.chardev.pty import PtyChardev

    return {"pty": chardev.path} if isinstance(chardev, PtyChardev) else {}


@COMMANDS.command("chardev-add")
def chardev_add(
    context: Context,
    id: str,  # noqa: A002
    backend: Record,
) -> dict[str, Any] | Coroutine[Any, Any, dict[str, Any]]:
    """Make a character device."""
    devices = _devices(context)
    if devices.find(id) is not None:
        raise QmpError(f"Chardev with id '{id}' already exists")
    try:
        options = _options(id, backend)
        if _connects_to_host(options):
            return _add_connected(devices, options)
        return _made(devices.add(options, _find_fd(context)))
    except ChardevError as error:
        raise _not_added(id, error) from None


def _not_added(identifier: str, error: ChardevError) -> QmpError:
    # A second line is advice for a person, which is not for the wire.
    return QmpError(f"Failed to add chardev '{identifier}': {str(error).partition(chr(10))[0]}")


def _connects_to_host(options: ChardevOptions) -> TypeGuard[SocketOptions]:
    """Return whether making the device means to ask the network, which may take its time."""
    from pyvm.chardev.address import InetAddress
    from pyvm.chardev.options import SocketOptions

    if not isinstance(options, SocketOptions) or not isinstance(options.address, InetAddress):
        return False
    return not options.server and not options.reconnect


async def _add_connected(devices: ChardevSet, options: SocketOptions) -> dict[str, Any]:
    """Connect in another thread, then make the device of the connection."""
    from pyvm.chardev.address import FdAddress, connect

    assert not isinstance(options.address, FdAddress)
    try:
        connection = await asyncio.get_running_loop().run_in_executor(None, connect, options.address)
        try:
            devices.add(options, connection=connection)
        except ChardevError:
            connection.close()
            raise
    except ChardevError as error:
        raise _not_added(options.id, error) from None
    return {}


@COMMANDS.command("chardev-change")
def chardev_change(context: Context, id: str, backend: Record) -> dict[str, Any]:  # noqa: A002
    """Put another back end in place of one that may be in use."""
    devices = _devices(context)
    try:
        devices.check_replaceable(id)
        return _made(devices.replace(_options(id, backend), _find_fd(context)))
    except ChardevError as error:
        raise QmpError(str(error)) from None


@COMMANDS.command("chardev-remove")
def chardev_remove(context: Context, id: str) -> None:  # noqa: A002
    """Remove a character device that nobody uses."""
    try:
        _devices(context).remove(id)
    except ChardevError as error:
        raise QmpError(str(error)) from None


@COMMANDS.command("chardev-send-break")
def chardev_send_break(context: Context, id: str) -> None:  # noqa: A002
    """Send a break condition to whoever uses a character device."""
    found = _devices(context).find(id)
    if found is None:
        raise QmpError(f"Chardev '{id}' not found")
    if found.frontend is not None:
        found.frontend.event(ChardevEvent.BREAK)
