"""What a character device is asked to be: one record a back end, and how `key=value` options become one.

Names, defaults and error texts are those of QEMU's `-chardev`.  An option that belongs to another back end is accepted
and means nothing, as there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyvm.chardev.address import FdAddress, InetAddress, SocketAddress, UnixAddress
from pyvm.chardev.base import ChardevError
from pyvm.chardev.ringbuf import DEFAULT_SIZE
from pyvm.records import record
from pyvm.sizes import UINT64_MAX, read_number, read_size


@record(frozen=True, kw_only=True)
class ChardevOptions:
    """What every back end has."""

    id: str
    mux: bool = False
    """Put a multiplexer in front, so that several front ends share the back end."""
    logfile: str | None = None
    logappend: bool = False


@record(frozen=True, kw_only=True)
class NullOptions(ChardevOptions):
    """`null`: nothing."""


@record(frozen=True, kw_only=True)
class VcOptions(ChardevOptions):
    """`vc`: a text console in a window; nothing on a machine without a display."""


@record(frozen=True, kw_only=True)
class PtyOptions(ChardevOptions):
    """`pty`: a new pseudo-terminal."""


@record(frozen=True, kw_only=True)
class StdioOptions(ChardevOptions):
    """`stdio`: standard input and output."""

    signal: bool = True
    """Leave Ctrl-C and the like to the terminal; otherwise the guest gets them."""


@record(frozen=True, kw_only=True)
class SocketOptions(ChardevOptions):
    """`socket`: a connection, made or accepted."""

    address: SocketAddress
    server: bool = False
    wait: bool = False
    """For a server: do not start before a client is there."""
    reconnect: int = 0
    """For a client: seconds before it tries again; 0 never."""
    nodelay: bool = False
    telnet: bool = False
    websocket: bool = False
    """For a server: clients speak WebSocket."""
    connect_if_live: bool = False
    """Listen, unless another process listens at the (unix) address already: then connect to that."""


@record(frozen=True, kw_only=True)
class UdpOptions(ChardevOptions):
    """`udp`: datagrams."""

    host: str = ""
    port: str
    local_host: str = ""
    local_port: str = ""
    ipv4: bool | None = None
    ipv6: bool | None = None


@record(frozen=True, kw_only=True)
class FileOptions(ChardevOptions):
    """`file`: output to a file, and maybe input from another."""

    path: str
    append: bool = False
    input_path: str | None = None


@record(frozen=True, kw_only=True)
class PipeOptions(ChardevOptions):
    """`pipe`: a pair of FIFOs."""

    path: str


@record(frozen=True, kw_only=True)
class SerialOptions(ChardevOptions):
    """`serial`: a serial line of the host."""

    path: str


@record(frozen=True, kw_only=True)
class ParallelOptions(ChardevOptions):
    """`parallel`: a parallel port of the host."""

    path: str


@record(frozen=True, kw_only=True)
class MsmouseOptions(ChardevOptions):
    """`msmouse`: a Microsoft mouse on the guest's serial line."""


@record(frozen=True, kw_only=True)
class WctabletOptions(ChardevOptions):
    """`wctablet`: a Wacom tablet on the guest's serial line."""


@record(frozen=True, kw_only=True)
class SpicevmcOptions(ChardevOptions):
    """`spicevmc`: a channel of SPICE, which pyvm does not have: nobody is at its other end."""


@record(frozen=True, kw_only=True)
class VdagentOptions(ChardevOptions):
    """`qemu-vdagent`: the host's side of the agent that SPICE guests run."""

    mouse: bool = True
    clipboard: bool = False


@record(frozen=True, kw_only=True)
class TestdevOptions(ChardevOptions):
    """`testdev`: executes commands of a guest that tests things."""


@record(frozen=True, kw_only=True)
class RingbufOptions(ChardevOptions):
    """`ringbuf` or `memory`: the newest output, in memory."""

    size: int = DEFAULT_SIZE
    kind: str = "ringbuf"


@record(frozen=True, kw_only=True)
class MuxOptions(ChardevOptions):
    """`mux`: a multiplexer over a back end made before."""

    chardev: str


BACKENDS = (
    *("file", "memory", "msmouse", "mux", "null", "parallel", "pipe", "pty", "qemu-vdagent"),
    *("ringbuf", "serial", "socket", "stdio", "testdev", "udp", "vc", "wctablet"),
)
"""What `-chardev help` lists."""

_SPICE = ("spicevmc", "spiceport")
"""Back ends that are known, and not listed where there is no SPICE."""
SPICE_CHANNELS = ("vdagent", "smartcard", "usbredir")
_ALIASES = {"tty": "serial", "parport": "parallel"}

_BOOLEAN = "boolean"
_NUMBER = "number"
_SIZE = "size"
_STRING = "string"

PARAMETERS: dict[str, str] = {
    "backend": _STRING,
    "path": _STRING,
    "host": _STRING,
    "port": _STRING,
    "fd": _STRING,
    "localaddr": _STRING,
    "localport": _STRING,
    "to": _NUMBER,
    "ipv4": _BOOLEAN,
    "ipv6": _BOOLEAN,
    "keep-alive": _BOOLEAN,
    "wait": _BOOLEAN,
    "server": _BOOLEAN,
    "delay": _BOOLEAN,
    "nodelay": _BOOLEAN,
    "reconnect": _NUMBER,
    "telnet": _BOOLEAN,
    "tn3270": _BOOLEAN,
    "tls-creds": _STRING,
    "tls-authz": _STRING,
    "websocket": _BOOLEAN,
    "width": _NUMBER,
    "height": _NUMBER,
    "cols": _NUMBER,
    "rows": _NUMBER,
    "mux": _BOOLEAN,
    "signal": _BOOLEAN,
    "name": _STRING,
    "debug": _NUMBER,
    "size": _SIZE,
    "chardev": _STRING,
    "append": _BOOLEAN,
    "input-path": _STRING,
    "logfile": _STRING,
    "logappend": _BOOLEAN,
    "mouse": _BOOLEAN,
    "clipboard": _BOOLEAN,
    "abstract": _BOOLEAN,
    "tight": _BOOLEAN,
}
"""All options of `-chardev` and their types."""

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
_BACKEND = "backend"


def split_options(text: str, first: str = _BACKEND) -> dict[str, str]:
    """Split ``a=b,c=d``: a comma in a value is doubled, the first word alone is the value of `first`.

    A later word alone is a boolean: ``server`` means server=on, ``nowait`` wait=off.
    """
    values: dict[str, str] = {}
    for index, part in enumerate(_split_commas(text)):
        name, separator, value = part.partition("=")
        if separator:
            values[name] = value
        elif index == 0 and first:
            values[first] = part
        elif part.startswith("no"):
            values[part[2:]] = "off"
        elif part:
            values[part] = "on"
    return values


def _split_commas(text: str) -> list[str]:
    parts = [""]
    position = 0
    while position < len(text):
        end = text.find(",", position)
        if end < 0:
            end = len(text)
        parts[-1] += text[position:end]
        if text.startswith(",,", end):
            parts[-1] += ","
            position = end + 2
        else:
            if end < len(text):
                parts.append("")
            position = end + 1
    return parts


class _Values:
    """The options given, checked against :data:`PARAMETERS`, each read as its type."""

    def __init__(self, given: Mapping[str, str]) -> None:
        for name, value in given.items():
            if name == "id":
                continue
            kind = PARAMETERS.get(name)
            if kind is None:
                raise ChardevError(f"Invalid parameter '{name}'")
            if kind == _BOOLEAN and value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
                raise ChardevError(f"Parameter '{name}' expects 'on' or 'off'")
            if kind == _NUMBER:
                parse_number(name, value)
            if kind == _SIZE:
                parse_size(name, value)
        self._given = given

    def flag(self, name: str, default: bool) -> bool:
        found = self.maybe_flag(name)
        return default if found is None else found

    def maybe_flag(self, name: str) -> bool | None:
        value = self._given.get(name)
        return None if value is None else value in ("on", "yes", "true", "y")

    def number(self, name: str, default: int) -> int:
        return parse_number(name, self._given[name]) if name in self._given else default

    def text(self, name: str) -> str | None:
        return self._given.get(name)

    def required(self, name: str, complaint: str) -> str:
        value = self._given.get(name)
        if value is None:
            raise ChardevError(complaint)
        return value


def parse_number(name: str, text: str) -> int:
    """Read a number as C does (0x: hexadecimal, 0: octal); raises ChardevError."""
    value = read_number(text)
    if value is None or not text[0].isdigit():
        raise ChardevError(f"Parameter '{name}' expects a number")
    if value > UINT64_MAX:
        raise ChardevError(f"Value '{text}' is too large for parameter '{name}'")
    return value


def parse_size(name: str, text: str) -> int:
    """Read a number of bytes with an optional suffix (powers of 1024); raises ChardevError."""
    size = read_size(text)
    if size is None or size > UINT64_MAX:
        raise ChardevError(f"Parameter '{name}' expects a non-negative number below 2^64")
    return size


def parse_chardev(given: Mapping[str, str], *, implicit_server: bool = False) -> ChardevOptions:
    """Turn the options of one `-chardev` into its record; raises ChardevError.

    With `implicit_server` a unix socket without `server` listens there without waiting, unless somebody else does.
    """
    identifier = given.get("id")
    if identifier is None:
        raise ChardevError("chardev: no id specified")
    if not _IDENTIFIER.fullmatch(identifier):
        raise ChardevError(
            "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', starting with a letter"
        )
    values = _Values(given)
    backend = values.required(_BACKEND, f'chardev: "{identifier}" missing backend')
    backend = _ALIASES.get(backend, backend)
    if backend not in BACKENDS and backend not in _SPICE:
        raise ChardevError(f"'{backend}' is not a valid char driver name")
    common = ChardevOptions(
        id=identifier,
        mux=values.flag("mux", False),
        logfile=values.text("logfile"),
        logappend=values.flag("logappend", False),
    )
    if backend == "socket":
        return _socket(common, values, implicit_server)
    return _other(backend, common, values)


def _other(backend: str, common: ChardevOptions, values: _Values) -> ChardevOptions:
    base = vars(common)
    match backend:
        case "file":
            path = values.required("path", "chardev: file: no filename given")
            append = values.flag("append", False)
            return FileOptions(**base, path=path, append=append, input_path=values.text("input-path"))
        case "pipe":
            return PipeOptions(**base, path=values.required("path", "chardev: pipe: no device path given"))
        case "serial":
            return SerialOptions(**base, path=values.required("path", "chardev: serial/tty: no device path given"))
        case "parallel":
            return ParallelOptions(**base, path=values.required("path", "chardev: parallel: no device path given"))
        case "udp":
            return _udp(common, values)
        case "mux":
            return MuxOptions(**base, chardev=values.required("chardev", "chardev: mux: no chardev given"))
        case "ringbuf" | "memory":
            size = parse_size("size", values.text("size") or "0") or DEFAULT_SIZE
            return RingbufOptions(**base, size=size, kind=backend)
        case "stdio":
            return StdioOptions(**base, signal=values.flag("signal", True))
        case "pty":
            return PtyOptions(**base)
        case "vc":
            return VcOptions(**base)
        case "null":
            return NullOptions(**base)
    return _device(backend, base, values)


def _device(backend: str, base: Mapping[str, Any], values: _Values) -> ChardevOptions:
    """Return the options of a back end that is a device itself, or the end of a protocol."""
    match backend:
        case "wctablet":
            return WctabletOptions(**base)
        case "qemu-vdagent":
            return VdagentOptions(**base, mouse=values.flag("mouse", True), clipboard=values.flag("clipboard", False))
        case "spicevmc":
            return spice_channel(base, values.required("name", "chardev: spice channel: no name given"))
        case "spiceport":
            values.required("name", "chardev: spice port: no name given")
            raise no_spice()
        case "msmouse":
            return MsmouseOptions(**base)
    return TestdevOptions(**base)


def spice_channel(common: Mapping[str, Any], name: str) -> SpicevmcOptions:
    """Return a channel of SPICE; raises ChardevError where there is none of that name."""
    if name not in SPICE_CHANNELS:
        raise ChardevError(f"unsupported type name: {name}\nallowed spice char type names: {', '.join(SPICE_CHANNELS)}")
    return SpicevmcOptions(**common)


def no_spice() -> ChardevError:
    """Return the error for what needs a SPICE server."""
    return ChardevError("spice not enabled")


def _udp(common: ChardevOptions, values: _Values) -> UdpOptions:
    port = values.text("port")
    if not port:
        raise ChardevError("chardev: udp: remote port not specified")
    return UdpOptions(
        **vars(common),
        host=values.text("host") or "",
        port=port,
        local_host=values.text("localaddr") or "",
        local_port=values.text("localport") or "",
        ipv4=values.maybe_flag("ipv4"),
        ipv6=values.maybe_flag("ipv6"),
    )


def _socket(common: ChardevOptions, values: _Values, implicit_server: bool) -> SocketOptions:
    address = _address(values)
    _check_socket_extras(values)
    given_server = values.maybe_flag("server")
    connect_if_live = implicit_server and given_server is None and isinstance(address, UnixAddress)
    server = bool(given_server) or connect_if_live
    reconnect = values.number("reconnect", 0)
    if server and reconnect:
        raise ChardevError("'reconnect' option is incompatible with socket in server listen mode")
    if isinstance(address, FdAddress) and reconnect:
        raise ChardevError("'reconnect' option is incompatible with 'fd'")
    if not server and values.text("wait") is not None:
        raise ChardevError("'wait' option is incompatible with socket in client connect mode")
    if values.flag("websocket", False):
        check_websocket(server=server, telnet=values.flag("telnet", False))
    if values.text("delay") is not None and values.text("nodelay") is not None:
        raise ChardevError("'delay' and 'nodelay' are mutually exclusive")
    return SocketOptions(
        **vars(common),
        address=address,
        server=server,
        wait=server and values.flag("wait", not connect_if_live),
        reconnect=min(reconnect, 1 << 31),
        nodelay=values.flag("nodelay", False) or not values.flag("delay", True),
        telnet=values.flag("telnet", False),
        websocket=values.flag("websocket", False),
        connect_if_live=connect_if_live,
    )


def check_websocket(*, server: bool, telnet: bool) -> None:
    """Raise ChardevError where a socket cannot speak WebSocket."""
    if not server:
        raise ChardevError("Websocket client is not implemented")
    if telnet:
        raise ChardevError("chardev: socket: websocket and telnet together are not supported")


def _address(values: _Values) -> SocketAddress:
    path, fd, host = values.text("path"), values.text("fd"), values.text("host")
    if sum(given is not None for given in (path, fd, host)) > 1:
        raise ChardevError("None or one of 'path', 'fd' or 'host' option required.")
    if path is not None:
        return UnixAddress(path, values.flag("abstract", False), values.flag("tight", True))
    if fd is not None:
        return FdAddress(fd)
    if host is None:
        raise ChardevError("chardev: socket: no 'path', 'host' or 'fd' given")
    return InetAddress(
        host,
        values.required("port", "chardev: socket: no port given"),
        values.number("to", 0) if values.text("to") is not None else None,
        values.maybe_flag("ipv4"),
        values.maybe_flag("ipv6"),
        values.flag("keep-alive", False),
    )


def _check_socket_extras(values: _Values) -> None:
    """Refuse what pyvm's sockets do not do."""
    credentials = values.text("tls-creds")
    if credentials is not None:
        raise ChardevError(f"No TLS credentials with id '{credentials}'")
    if values.text("tls-authz") is not None:
        raise ChardevError("'tls_authz' option requires 'tls_creds' option")
    if values.flag("tn3270", False):
        raise ChardevError("chardev: socket: tn3270 is not supported")
