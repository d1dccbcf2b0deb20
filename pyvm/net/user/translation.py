"""How addresses of the guest's network and of the host correspond."""

from __future__ import annotations

import socket

from pyvm.net.packets6 import ADDRESS_LENGTH
from pyvm.net.user.config import ROUTER6, UserConfig, address_text
from pyvm.net.user.resolver import HostResolver

_LOOPBACK = "127.0.0.1"
_LOOPBACK6 = "::1"
_SCOPED = 0xFE80
"""Addresses that mean something on one link only; there, and not beyond it, are the host's neighbours."""
_SCOPED_MASK = 0xFFC0
_RESERVED, _GROUPS = 0x00, 0xFF
"""Addresses that begin like this are nobody's, the host itself or stand for IPv4 addresses; and groups."""
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
        nobody's.  The host's own loopback network is not reached by its own addresses, nor is a group.  Versions mix:
        the name server's IPv6 address may stand for an IPv4 address of the host's resolver.
        """
        if len(address) == ADDRESS_LENGTH:
            return self._to_host6(address)
        if address == self._config.host:
            return _LOOPBACK
        if address == self._config.dns:
            return self._resolver.server
        if self._config.contains(address) or address[0] in (0, _LOOPBACK_NET) or address[0] >= _MULTICAST:
            return None
        return address_text(address)

    def _to_host6(self, address: bytes) -> str | None:
        config = self._config
        if address in (config.host6, ROUTER6):
            return _LOOPBACK6
        if address == config.dns6:
            return self._resolver.server
        scoped = int.from_bytes(address[:2], "big") & _SCOPED_MASK == _SCOPED
        if config.contains(address) or scoped or address[0] in (_RESERVED, _GROUPS):
            return None
        return address_text(address)

    def to_guest(self, address: str) -> bytes:
        """Return the address by which a guest knows a host that talks to it: the gateway for this host's own."""
        packed = socket.inet_aton(address)
        return self._config.host if packed[0] == _LOOPBACK_NET else packed


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of a host address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
