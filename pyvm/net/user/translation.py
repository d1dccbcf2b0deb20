"""How addresses of the guest's network and of the host correspond."""

from __future__ import annotations

import socket

from pyvm.net.user.config import UserConfig, address_text
from pyvm.net.user.resolver import HostResolver

_LOOPBACK = "127.0.0.1"
_MULTICAST = 224
_LOOPBACK_NET = 127


class Translation:
    """Finds what host address a guest means, and what a guest knows a host address by."""

    def __init__(self, config: UserConfig, resolver: HostResolver | None = None) -> None:
        self._config = config
        self._resolver = resolver or HostResolver()

    def to_host(self, address: bytes) -> str | None:
        """Return the host address that `address` stands for; None where it leads nowhere.

        The gateway is the host itself, the name server the host's resolver; other addresses of the guest's network are
        nobody's.  The host's own loopback network is not reached by its own addresses, nor is a group.
        """
        if address == self._config.host:
            return _LOOPBACK
        if address == self._config.dns:
            return self._resolver.server
        if self._config.contains(address) or address[0] in (0, _LOOPBACK_NET) or address[0] >= _MULTICAST:
            return None
        return address_text(address)

    def to_guest(self, address: str) -> bytes:
        """Return the address by which a guest knows a host that talks to it: the gateway for this host's own."""
        packed = socket.inet_aton(address)
        return self._config.host if packed[0] == _LOOPBACK_NET else packed
