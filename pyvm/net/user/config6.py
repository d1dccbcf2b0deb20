"""The IPv6 addresses of the network behind the back end `user`, with QEMU's errors."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.net.user.config import UserConfig

_LONGEST_PREFIX = 126
_HOST_NUMBER = 2
_DNS_NUMBER = 3
_ALL = (1 << 128) - 1


def families(options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the network has IPv4, and IPv6: where only one of them is switched on, the other is off."""
    four, six = options.get("ipv4"), options.get("ipv6")
    has_four = not (four is False or (six and four is None))
    has_six = not (six is False or (four and six is None))
    if not has_four and any(options.get(name) for name in ("net", "ip", "host", "dns")):
        raise ConfigError("IPv4 disabled but netmask/host/dns provided")
    if not has_six and any(options.get(name) for name in ("ipv6-prefix", "ipv6-host", "ipv6-dns")):
        raise ConfigError("IPv6 disabled but prefix/host6/dns6 provided")
    if not has_four and not has_six:
        raise ConfigError("IPv4 and IPv6 disabled")
    return has_four, has_six


def place(config: UserConfig, options: Mapping[str, Any]) -> None:
    """Fill in the prefix, and the addresses of host and name server."""
    if "ipv6-prefix" in options:
        config.prefix = _given(options["ipv6-prefix"], "prefix")
    length = options.get("ipv6-prefixlen", config.prefix_length)
    if not 0 <= length <= _LONGEST_PREFIX:
        raise ConfigError("Invalid IPv6 prefix provided (IPv6 prefix length must be between 0 and 126)")
    config.prefix_length = length
    config.host6 = _numbered(config.prefix, _HOST_NUMBER)
    config.dns6 = _numbered(config.prefix, _DNS_NUMBER)
    if "ipv6-host" in options:
        config.host6 = _given(options["ipv6-host"], "host")
        if not in_prefix(config.host6, config.prefix, length):
            raise ConfigError("IPv6 Host doesn't belong to network")
    if "ipv6-dns" in options:
        config.dns6 = _given(options["ipv6-dns"], "DNS")


def _given(text: str, what: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        raise ConfigError(f"Failed to parse IPv6 {what}") from None


def _numbered(prefix: bytes, number: int) -> bytes:
    return prefix[:-1] + bytes((prefix[-1] | number,))


def in_prefix(address: bytes, prefix: bytes, length: int) -> bool:
    """Whether the first `length` bits of an address are those of the prefix."""
    mask = _ALL << (128 - length) & _ALL
    return not (int.from_bytes(address, "big") ^ int.from_bytes(prefix, "big")) & mask
