"""Options and file names of the NBD driver.

Names are ``nbd:HOST:PORT[:exportname=EXPORT]``, ``nbd:unix:PATH[:exportname=EXPORT]``, ``nbd://HOST[:PORT][/EXPORT]``
(``nbd+tcp`` is the same) and ``nbd+unix:///[EXPORT]?socket=PATH``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pyvm.block.drivers.nbd_stream import ServerAddress
from pyvm.block.errors import BlockError
from pyvm.block.options import Dialect, Option, convert
from pyvm.chardev.address import FdAddress, FindFd, inherited_socket
from pyvm.chardev.base import ChardevError

DEFAULT_PORT = "10809"
_EXPORT = ":exportname="
_INET = {
    "host": Option(required=True),
    "port": Option(required=True),
    "ipv4": Option("boolean"),
    "ipv6": Option("boolean"),
    "keep-alive": Option("boolean"),
}
_UNIX = {"path": Option(required=True), "abstract": Option("boolean"), "tight": Option("boolean")}
_TYPES = {"inet": _INET, "unix": _UNIX, "fd": {"str": Option(required=True)}}


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that a file name stands for.  Raises BlockError."""
    own = _parse_url(name) if "://" in name else _parse_plain(name)
    if not own.get("export"):
        own.pop("export", None)
    return own


def _parse_plain(name: str) -> dict[str, Any]:
    if not name.startswith("nbd:"):
        raise BlockError("File name string for new protocols must start with 'nbd:'")
    place, has_export, export = name.removeprefix("nbd:").partition(_EXPORT)
    if has_export and not export:
        raise BlockError("NBD server address missing")
    if not place:
        raise BlockError("NBD server address missing")
    if place.startswith("unix:"):
        return {"server": {"type": "unix", "path": place.removeprefix("unix:")}, "export": export}
    host, colon, port = place.rpartition(":")
    if not colon or not port or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise BlockError(f"error parsing address '{place}'")
    return {"server": {"type": "inet", "host": host.strip("[]"), "port": port}, "export": export}


def _parse_url(name: str) -> dict[str, Any]:
    try:
        url = urlsplit(name)
        port = url.port
        query = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError:
        raise BlockError("No valid URL specified") from None
    export = unquote(url.path.removeprefix("/"))
    if url.fragment or (url.scheme == "nbd+unix") != bool(query):
        raise BlockError("No valid URL specified")
    if query:
        if url.netloc or len(query) != 1 or query[0][0] != "socket":
            raise BlockError("No valid URL specified")
        return {"server": {"type": "unix", "path": query[0][1]}, "export": export}
    if url.scheme not in ("nbd", "nbd+tcp") or not url.hostname:
        raise BlockError("No valid URL specified")
    server = {"type": "inet", "host": unquote(url.hostname), "port": str(port or DEFAULT_PORT)}
    return {"server": server, "export": export}


def make_filename(address: ServerAddress, export: str) -> str:
    """Return the name by which a person would open an export; empty where there is none that says all."""
    if address.connection is not None or address.abstract or (address.ipv4, address.ipv6) != (None, None):
        return ""
    path = f"/{quote(export)}" if export else ""
    if address.path is not None:
        return f"nbd+unix://{path}?socket={address.path}"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"nbd://{host}:{address.port}{path}"


def find_address(own: dict[str, Any], find_fd: FindFd | None = None) -> ServerAddress:
    """Return where the options say that the server is; `find_fd` knows the names of descriptors.  Raises BlockError."""
    server = own.get("server")
    path, host, port = own.get("path"), own.get("host"), own.get("port")
    if server is not None:
        if (path, host, port) != (None, None, None):
            raise BlockError("'server' and path/host/port cannot be used at the same time")
        return _read_server(server, find_fd)
    if path is not None and host is not None:
        raise BlockError("path and host may not be used at the same time")
    if path is not None:
        if port is not None:
            raise BlockError("port may not be used without host")
        return ServerAddress(path=path)
    if host is not None:
        return ServerAddress(host, port or DEFAULT_PORT)
    raise BlockError("NBD server address missing")


def _read_server(server: Any, find_fd: FindFd | None) -> ServerAddress:
    if not isinstance(server, dict):
        raise BlockError("Invalid parameter type for 'server', expected: SocketAddress")
    kind = server.get("type")
    if kind is None:
        raise BlockError("Parameter 'type' is missing")
    if kind == "vsock":
        raise BlockError("'server.type=vsock' is not supported by pyvm yet")
    if kind not in _TYPES:
        raise BlockError(f"Parameter 'type' does not accept value '{kind}'")
    members = _TYPES[kind]
    for key in server:
        if key != "type" and key not in members:
            raise BlockError(f"Parameter '{key}' is unexpected")
    values = {}
    for key, option in members.items():
        if key in server:
            values[key] = convert(server[key], option, Dialect.DRIVE, f"server.{key}", key)
        elif option.required:
            raise BlockError(f"Parameter '{key}' is missing")
    if kind == "fd":
        try:
            connection = inherited_socket(FdAddress(values["str"]), find_fd)
        except ChardevError as error:
            raise BlockError(str(error)) from None
        return ServerAddress(descriptor=values["str"], connection=connection)
    # Connections are always kept alive.
    values.pop("keep-alive", None)
    return ServerAddress(**values)
