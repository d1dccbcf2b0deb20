"""What the back end `user` is told: addresses of its network, and forwards, with QEMU's errors."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from pyvm.errors import ConfigError
from pyvm.net.packets6 import ADDRESS_LENGTH, LINK_LOCAL_PREFIX
from pyvm.net.user import config6
from pyvm.records import field, record

_DEFAULT_NET = bytes((10, 0, 2, 0))
_HOST_NUMBER = 2
_DNS_NUMBER = 3
_DHCP_NUMBER = 15
_GUESTFWD_NUMBER = 4
_LARGEST_PORT = 65535
_BOOTFILE_LIMIT = 127
_HOSTNAME_LIMIT = 255
ANY_ADDRESS = bytes(4)
ROUTER6 = LINK_LOCAL_PREFIX + bytes(13) + b"\2"
"""The gateway on the link: what guests know their IPv6 router by."""


def _address6(tail: int) -> bytes:
    return b"\xfe\xc0" + bytes(13) + bytes((tail,))


def address_text(address: bytes) -> str:
    """Return an address as text."""
    return socket.inet_ntop(socket.AF_INET6 if len(address) == ADDRESS_LENGTH else socket.AF_INET, address)


@record(frozen=True)
class HostForward:
    """A port of the host that leads to the guest."""

    udp: bool
    address: bytes
    """Where the host listens; all zeros: everywhere."""
    port: int
    guest: bytes
    guest_port: int
    text: str = ""


@record(frozen=True)
class GuestForward:
    """An address and port inside the network that leads to a character device or a program."""

    address: bytes
    port: int
    target: str
    """A back end as for ``-serial``, or ``cmd:`` and a command."""
    text: str = ""


@record
class UserConfig:
    """The network: addresses are four bytes, or sixteen where they are IPv6's."""

    ipv4: bool = True
    ipv6: bool = True
    net: bytes = _DEFAULT_NET
    mask: bytes = b"\xff\xff\xff\0"
    host: bytes = bytes((10, 0, 2, _HOST_NUMBER))
    dns: bytes = bytes((10, 0, 2, _DNS_NUMBER))
    dhcp_start: bytes = bytes((10, 0, 2, _DHCP_NUMBER))
    prefix: bytes = _address6(0)
    prefix_length: int = 64
    host6: bytes = _address6(_HOST_NUMBER)
    dns6: bytes = _address6(_DNS_NUMBER)
    restrict: bool = False
    hostname: str | None = None
    domain_name: str | None = None
    dns_search: list[str] = field(default_factory=list)
    tftp_root: str | None = None
    tftp_server_name: str | None = None
    bootfile: str | None = None
    host_forwards: list[HostForward] = field(default_factory=list)
    guest_forwards: list[GuestForward] = field(default_factory=list)

    def contains(self, address: bytes) -> bool:
        """Whether an address is inside the network."""
        if len(address) == ADDRESS_LENGTH:
            link_local = address.startswith(LINK_LOCAL_PREFIX)
            return link_local or config6.in_prefix(address, self.prefix, self.prefix_length)
        return _number(address) & _number(self.mask) == _number(self.net)

    @property
    def broadcast(self) -> bytes:
        """The address of all on the network."""
        return _bytes(_number(self.net) | (_number(self.mask) ^ 0xFFFFFFFF))


def _number(address: bytes) -> int:
    return int.from_bytes(address, "big")


def _bytes(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "big")


def _parse_address(text: str) -> bytes | None:
    try:
        return socket.inet_aton(text)
    except (OSError, ValueError):
        return None


def user_config(options: Mapping[str, Any]) -> UserConfig:
    """Return what the members of a NetdevUserOptions mean; raises ConfigError."""
    for name in ("smb", "smbserver"):
        if options.get(name):
            raise ConfigError(f"{name} is not supported by pyvm yet")
    config = UserConfig()
    config.ipv4, config.ipv6 = config6.families(options)
    _place(config, options)
    if config.ipv6:
        config6.place(config, options)
    config.restrict = bool(options.get("restrict"))
    config.hostname = _limited(options, "hostname", "hostname", _HOSTNAME_LIMIT)
    config.domain_name = _limited(options, "domainname", "'domainname' parameter", _HOSTNAME_LIMIT)
    config.bootfile = _limited(options, "bootfile", "bootfile", _BOOTFILE_LIMIT)
    config.tftp_server_name = _limited(options, "tftp-server-name", "'tftp-server-name' parameter", _HOSTNAME_LIMIT)
    config.tftp_root = options.get("tftp")
    config.dns_search = _texts(options.get("dnssearch"))
    config.host_forwards = [host_forward(text, config) for text in _texts(options.get("hostfwd"))]
    for text in _texts(options.get("guestfwd")):
        config.guest_forwards.append(_guest_forward(text, config))
    return config


def _texts(items: Sequence[Mapping[str, str]] | None) -> list[str]:
    return [item["str"] for item in items or ()]


def _limited(options: Mapping[str, Any], name: str, shown: str, limit: int) -> str | None:
    value = options.get(name)
    if value is not None and len(value.encode()) > limit:
        raise ConfigError(f"{shown} cannot be longer than {limit} bytes")
    return value or None


def _place(config: UserConfig, options: Mapping[str, Any]) -> None:
    """Fill in the addresses of network, host, name server and first guest."""
    _place_net(config, options)
    net, outside = _number(config.net), _number(config.mask) ^ 0xFFFFFFFF
    config.host = _bytes(net | (_HOST_NUMBER & outside))
    config.dhcp_start = _bytes(net | (_DHCP_NUMBER & outside))
    config.dns = _bytes(net | (_DNS_NUMBER & outside))
    if "host" in options:
        config.host = _given(options["host"], "host")
        if not config.contains(config.host):
            raise ConfigError("Host doesn't belong to network")
    if "dhcpstart" in options:
        config.dhcp_start = _given(options["dhcpstart"], "DHCP start address")
        if not config.contains(config.dhcp_start):
            raise ConfigError("DHCP doesn't belong to network")
    if config.dhcp_start in (config.host, config.dns):
        raise ConfigError("DNS must be different from host and DHCP" if config.dhcp_start == config.dns
                          else "DHCP must be different from host")  # fmt: skip
    if "dns" in options:
        config.dns = _given(options["dns"], "DNS")
        if config.contains(config.dns) and config.dns in (config.host, config.dhcp_start):
            raise ConfigError("DNS must be different from host and DHCP")


def _given(text: str, what: str) -> bytes:
    address = _parse_address(text)
    if address is None:
        raise ConfigError(f"Failed to parse {what}")
    return address


def _place_net(config: UserConfig, options: Mapping[str, Any]) -> None:
    text = options.get("net") or options.get("ip")
    if text is None:
        return
    address, slash, mask = text.partition("/")
    net = _parse_address(address)
    if net is None:
        raise ConfigError("Failed to parse netmask")
    if not slash:
        length = 8 if net[0] < 128 else 16 if net[0] < 192 else 24
    elif mask.isascii() and mask.isdigit():
        length = int(mask)
    else:
        wide = _parse_address(mask)
        if wide is None:
            raise ConfigError("Failed to parse netmask")
        length = _prefix(_number(wide))
    if not 4 <= length <= 32:
        raise ConfigError("Invalid netmask provided (must be in range 4-32)")
    config.mask = _bytes(0xFFFFFFFF << (32 - length))
    config.net = _bytes(_number(net) & _number(config.mask))


def _prefix(mask: int) -> int:
    for length in range(33):
        if mask == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
            return length
    raise ConfigError("Failed to parse netmask")


def _port(text: str, lowest: int) -> int | None:
    try:
        port = int(text or "0", 0)
    except ValueError:
        return None
    return port if lowest <= port <= _LARGEST_PORT else None


def host_forward(text: str, config: UserConfig) -> HostForward:
    """Return what ``[tcp|udp]:[ADDRESS]:PORT-[GUEST]:PORT`` means; raises ConfigError."""

    def bad(reason: str) -> ConfigError:
        return ConfigError(f"Invalid host forwarding rule '{text}' ({reason})")

    protocol, colon, rest = text.partition(":")
    if not colon:
        raise bad("No : separators")
    if protocol not in ("tcp", "udp", ""):
        raise bad("Bad protocol name")
    place, colon, rest = rest.partition(":")
    if not colon:
        raise bad("Missing : separator")
    address = _parse_address(place) if place else ANY_ADDRESS
    if address is None:
        raise bad("Bad host address")
    number, dash, rest = rest.partition("-")
    if not dash:
        raise bad("Bad host port separator")
    port = _port(number, 0)
    if port is None:
        raise bad("Bad host port")
    place, colon, number = rest.partition(":")
    if not colon:
        raise bad("Missing guest address")
    guest = _parse_address(place) if place else config.dhcp_start
    if guest is None:
        raise bad("Bad guest address")
    guest_port = _port(number, 1)
    if guest_port is None:
        raise bad("Bad guest port")
    return HostForward(protocol == "udp", address, port, guest, guest_port, text)


def forward_key(text: str) -> tuple[bool, bytes, int] | None:
    """Return protocol, address and port of a host forward to be removed, None where `text` names none."""
    protocol, _, rest = text.partition(":")
    place, colon, number = rest.partition(":")
    address = _parse_address(place) if place else ANY_ADDRESS
    port = _port(number, 1)
    if protocol not in ("tcp", "udp", "") or not colon or address is None or port is None:
        return None
    return protocol == "udp", address, port


def _guest_forward(text: str, config: UserConfig) -> GuestForward:
    """Return what ``tcp:[ADDRESS]:PORT-BACKEND`` means; raises ConfigError."""
    bad = ConfigError(f"Invalid guest forwarding rule '{text}'")
    protocol, colon, rest = text.partition(":")
    place, second, rest = rest.partition(":")
    number, dash, target = rest.partition("-")
    if not (colon and second and dash and target) or protocol not in ("tcp", ""):
        raise bad
    address = _parse_address(place) if place else _bytes(_number(config.net) | _GUESTFWD_NUMBER)
    port = _port(number, 1)
    if address is None or port is None:
        raise bad
    taken = {(forward.address, forward.port) for forward in config.guest_forwards}
    if not config.contains(address) or address in (config.host, config.dns) or (address, port) in taken:
        raise ConfigError(f"Conflicting/invalid host:port in guest forwarding rule '{text}'")
    return GuestForward(address, port, target, text)
