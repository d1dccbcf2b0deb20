"""Makes back ends from their options, which the schema calls Netdev."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.clock import Clock
from pyvm.errors import ConfigError
from pyvm.mainloop import MainLoop
from pyvm.net.client import NetClient
from pyvm.net.registry import NetSet
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

Emit = Callable[[str, Mapping[str, Any]], None]


def _no_chardev(text: str, label: str) -> Chardev:
    del label
    raise ConfigError(f"Could not open guest forwarding device '{text}'")


def _no_fd(name: str) -> int:
    raise ConfigError(f"Invalid file descriptor number '{name}'")


@record
class NetHost:
    """What back ends use of the program that they are part of."""

    loop: MainLoop
    clock: Clock
    clients: NetSet
    emit: Emit = lambda name, data: None
    find_chardev: Callable[[str, str], Chardev] = _no_chardev
    """Returns the character device that a text describes, called by the given label where it is made."""
    find_fd: Callable[[str], int] = _no_fd
    """Takes over a descriptor that a monitor gave a name to; raises ConfigError."""


def make_netdev(host: NetHost, options: Mapping[str, Any]) -> NetClient:
    """Make the back end that checked options describe, and take it in among the clients; raises ConfigError."""
    kind, name = options["type"], options["id"]
    if kind not in BACKENDS:
        raise ConfigError(f"network backend '{kind}' is not compiled into this binary")
    if host.clients.find_netdev(name) is not None:
        raise ConfigError(f"Duplicate ID '{name}'")
    if kind == "hubport":
        return _hub_port(host, options)
    client = _MAKERS[kind](host, name, options)
    host.clients.add(client)
    return client


def _hub_port(host: NetHost, options: Mapping[str, Any]) -> NetClient:
    peer = None
    if options.get("netdev") is not None:
        peer = host.clients.find_netdev(options["netdev"])
        if peer is None:
            raise ConfigError(f"netdev '{options['netdev']}' not found")
        if peer.peer is not None:
            raise ConfigError(f"netdev '{options['netdev']}' is in use")
    port = host.clients.hub_port(options["hubid"], options["id"])
    if peer is not None:
        port.connect(peer)
    return port


def _user(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    from pyvm.net.user.backend import UserBackend
    from pyvm.net.user.config import user_config

    return UserBackend(name, user_config(options), host.loop, host.clock, host.find_chardev)


def _socket(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    from pyvm.net.socket_options import make_socket

    return make_socket(host, name, options)


def _stream(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    from pyvm.net.socket_options import make_stream

    return make_stream(host, name, options)


def _dgram(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    from pyvm.net.socket_options import make_dgram

    return make_dgram(host, name, options)


def _tap(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    from pyvm.net.tap import make_tap

    return make_tap(host, name, options)


_MAKERS: dict[str, Callable[[NetHost, str, Mapping[str, Any]], NetClient]] = {
    "socket": _socket,
    "stream": _stream,
    "dgram": _dgram,
    "tap": _tap,
    "user": _user,
}
BACKENDS = ("hubport", *_MAKERS)
"""The types of back ends there are."""
