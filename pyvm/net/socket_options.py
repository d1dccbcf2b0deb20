"""Makes the back ends `socket`, `stream` and `dgram` from their options, with QEMU's errors."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.chardev.address import InetAddress, Listener, UnixAddress, listen, resolve
from pyvm.chardev.base import ChardevError
from pyvm.errors import ConfigError
from pyvm.net.client import NetClient
from pyvm.net.datagram import DatagramNet, remover
from pyvm.net.stream import StreamNet

if TYPE_CHECKING:
    from pyvm.net.make import NetHost

_LARGEST_PORT = 65535
_WAYS = ("listen", "connect", "mcast", "udp")
_BACKLOG = 1


# ---- socket


def make_socket(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    """Return a back end `socket`; raises ConfigError."""
    ways = [way for way in ("fd", *_WAYS) if options.get(way) is not None]
    if len(ways) != 1:
        raise ConfigError("exactly one of listen=, connect=, mcast= or udp= is required")
    way = ways[0]
    local = options.get("localaddr")
    if local is not None and way not in ("mcast", "udp"):
        raise ConfigError("localaddr= is only valid with mcast= or udp=")
    if way == "fd":
        return _from_fd(host, name, options["fd"])
    if way == "mcast":
        return _mcast(host, name, options["mcast"], local)
    if way == "udp":
        if local is None:
            raise ConfigError("localaddr= is mandatory with udp=")
        return _udp(host, name, options["udp"], local)
    return _connected(host, name, way, options[way])


def _place(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``; raises ConfigError."""
    address, colon, number = text.rpartition(":")
    if not colon:
        raise ConfigError(f"host address '{text}' doesn't contain ':' separating host from port")
    try:
        port = int(number)
    except ValueError:
        port = -1
    if not 0 <= port <= _LARGEST_PORT:
        raise ConfigError(f"port number '{number}' is invalid")
    if not address:
        return "0.0.0.0", port
    try:
        return socket.gethostbyname(address), port
    except (OSError, UnicodeError):
        raise ConfigError(f"can't resolve host address '{address}'") from None


def _connected(host: NetHost, name: str, way: str, text: str) -> NetClient:
    place = _place(text)

    def named(connection: socket.socket, accepted: bool) -> tuple[str, None]:
        try:
            address, port = connection.getpeername()[:2]
        except OSError:
            address, port = place
        return f"socket: {'connection from' if accepted else 'connect to'} {address}:{port}", None

    client = StreamNet(name, "socket", host.loop, named, host.emit)
    if way == "listen":
        client.serve(_listener(place))
        return client
    failure = client.connect_to(socket.AF_INET, place)
    if failure is not None:
        raise ConfigError(f"can't connect socket: {os.strerror(failure.errno or 0)}")
    return client


def _listener(place: tuple[str, int]) -> Listener:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(f"can't bind ip={place[0]} to socket: {error.strerror}") from None
    return Listener([made])


def _udp(host: NetHost, name: str, text: str, local: str) -> NetClient:
    source, destination = _place(local), _place(text)
    made = _bound_datagram(source)
    return DatagramNet(name, "socket", host.loop, made, destination, f"socket: udp={destination[0]}:{destination[1]}")


def _bound_datagram(place: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError as error:
        made.close()
        raise ConfigError(f"can't bind ip={place[0]} to socket: {error.strerror}") from None
    return made


def _mcast(host: NetHost, name: str, text: str, local: str | None) -> NetClient:
    group = _place(text)
    made = _group_socket(group, local)
    return DatagramNet(name, "socket", host.loop, made, group, f"socket: mcast={group[0]}:{group[1]}")


def _group_socket(group: tuple[str, int], local: str | None) -> socket.socket:
    """Return a socket that hears and reaches a multicast group, by the interface with address `local`."""
    packed = socket.inet_aton(group[0])
    if not 224 <= packed[0] < 240:
        number = int.from_bytes(packed, "big")
        raise ConfigError(f"specified mcastaddr {group[0]} ({number:#010x}) does not contain a multicast address")
    try:
        interface = socket.inet_aton(local or "0.0.0.0")
    except OSError:
        raise ConfigError(f"localaddr '{local}' is not an address") from None
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(group)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", packed, interface))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        if local is not None:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
    except OSError as error:
        made.close()
        raise ConfigError(f"can't add socket to multicast group {group[0]}: {error.strerror}") from None
    return made


def take_fd(host: NetHost, text: str) -> int:
    """Return a descriptor by its number, or by the name that a monitor gave it; raises ConfigError."""
    if text.isascii() and text.isdigit():
        return int(text)
    return host.find_fd(text)


def _from_fd(host: NetHost, name: str, text: str) -> NetClient:
    fd = take_fd(host, text)
    try:
        made = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
    except (OSError, OverflowError):
        raise ConfigError("can't get socket option SO_TYPE") from None
    if made.type == socket.SOCK_DGRAM:
        return DatagramNet(name, "socket", host.loop, made, None, f"socket: fd={fd} (connected)")
    if made.type != socket.SOCK_STREAM:
        made.detach()
        raise ConfigError(f"socket type={int(made.type)} for fd={fd} must be either SOCK_DGRAM or SOCK_STREAM")
    client = StreamNet(name, "socket", host.loop, lambda connection, accepted: (f"socket: fd={fd}", None), host.emit)
    client.begin(made)
    return client


# ---- stream


def make_stream(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    """Return a back end `stream`; raises ConfigError.  An address that does not work is a link that is down."""
    address = options["addr"]
    server = bool(options.get("server"))

    def named(connection: socket.socket, accepted: bool) -> tuple[str, Mapping[str, Any]]:
        return _stream_name(connection, address, accepted)

    client = StreamNet(name, "stream", host.loop, named, host.emit)
    try:
        if address["type"] == "fd":
            _stream_fd(host, client, address["str"], server)
        elif server:
            client.serve(listen(_address(address)))
        else:
            _stream_connect(client, _address(address))
    except (ChardevError, ConfigError, OSError):
        client.info = "connection error"
    return client


def _address(address: Mapping[str, Any]) -> InetAddress | UnixAddress:
    if address["type"] == "unix":
        return UnixAddress(address["path"], bool(address.get("abstract")), address.get("tight", True))
    if address["type"] == "inet":
        return InetAddress(
            address["host"], address["port"], address.get("to"), address.get("ipv4"), address.get("ipv6")
        )
    raise ConfigError(f"socket type {address['type']} is not supported by pyvm yet")


def _stream_fd(host: NetHost, client: StreamNet, text: str, server: bool) -> None:
    made = socket.socket(fileno=take_fd(host, text))
    os.set_inheritable(made.fileno(), False)
    if server:
        client.serve(Listener([made]))
    else:
        client.begin(made)


def _stream_connect(client: StreamNet, address: InetAddress | UnixAddress) -> None:
    if isinstance(address, UnixAddress):
        failure = client.connect_to(socket.AF_UNIX, address.encode())
    else:
        family, place = resolve(address, socket.SOCK_STREAM)[0]
        failure = client.connect_to(family, place)
    if failure is not None:
        raise failure


def _stream_name(
    connection: socket.socket, address: Mapping[str, Any], accepted: bool
) -> tuple[str, Mapping[str, Any]]:
    if connection.family == socket.AF_UNIX:
        path = address.get("path", "")
        return f"unix:{path}", {"type": "unix", "path": path}
    host, port = connection.getpeername()[:2]
    family = "ipv6" if connection.family == socket.AF_INET6 else "ipv4"
    shown = f"[{host}]" if family == "ipv6" else host
    del accepted
    return f"tcp:{shown}:{port}", {"type": "inet", "host": host, "port": str(port), family: True}


# ---- dgram


def make_dgram(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    """Return a back end `dgram`; raises ConfigError."""
    local, remote = options.get("local"), options.get("remote")
    if remote is not None and remote["type"] == "inet" and _is_group(remote["host"]):
        group = _inet(remote)
        made = _group_socket(group, _multicast_interface(local))
        return DatagramNet(name, "dgram", host.loop, made, group, f"mcast={group[0]}:{group[1]}")
    if local is None:
        raise ConfigError("dgram requires local= parameter")
    if local["type"] == "fd":
        if remote is not None:
            raise ConfigError("don't set remote with local.fd")
        made = socket.socket(fileno=take_fd(host, local["str"]))
        return DatagramNet(name, "dgram", host.loop, made, None, f"fd={local['str']}")
    if remote is None:
        raise ConfigError("type=inet or type=unix requires remote parameter")
    if remote["type"] != local["type"]:
        raise ConfigError("remote and local types must be the same")
    if local["type"] == "unix":
        return _unix_datagram(host, name, local["path"], remote["path"])
    if local["type"] != "inet":
        raise ConfigError(f"socket type {local['type']} is not supported by pyvm yet")
    source, destination = _inet(local), _inet(remote)
    info = f"udp={source[0]}:{source[1]}/{destination[0]}:{destination[1]}"
    return DatagramNet(name, "dgram", host.loop, _bound_datagram(source), destination, info)


def _is_group(host: str) -> bool:
    try:
        return 224 <= socket.inet_aton(host)[0] < 240
    except OSError:
        return False


def _inet(address: Mapping[str, Any]) -> tuple[str, int]:
    return _place(f"{address['host']}:{address['port']}")


def _multicast_interface(local: Mapping[str, Any] | None) -> str | None:
    if local is None:
        return None
    if local["type"] != "inet":
        raise ConfigError("dgram: multicast requires local.type=inet")
    return str(local["host"])


def _unix_datagram(host: NetHost, name: str, source: str, destination: str) -> NetClient:
    own, other = UnixAddress(source), UnixAddress(destination)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        path = own.encode()
        remover(path)()
        made.bind(path)
        target = other.encode()
    except (OSError, ChardevError) as error:
        made.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"can't bind unix={source} to socket: {reason}") from None
    return DatagramNet(name, "dgram", host.loop, made, target, f"udp={source}:{destination}", remover(path))
