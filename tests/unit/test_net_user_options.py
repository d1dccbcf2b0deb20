"""What the back end `user` is told, and what it refuses."""

from __future__ import annotations

import pytest

from pyvm.errors import ConfigError
from pyvm.net.user.config import user_config
from tests.unit.net_support import (
    options,
)


def test_addresses_follow_the_network() -> None:
    config = options(net="192.168.7.0/24")
    assert (config.host, config.dns, config.dhcp_start) == tuple(bytes((192, 168, 7, n)) for n in (2, 3, 15))
    config = options(net="10.1.0.0/255.255.0.0", host="10.1.0.9", dns="10.1.0.10", dhcpstart="10.1.2.3")
    assert config.mask == b"\xff\xff\0\0"
    assert (config.host, config.dns, config.dhcp_start) == (b"\x0a\x01\0\x09", b"\x0a\x01\0\x0a", b"\x0a\x01\x02\x03")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("net", "zz", "Failed to parse netmask"),
        ("net", "10.0.2.0/33", "Invalid netmask provided (must be in range 4-32)"),
        ("net", "10.0.2.0/255.0.255.0", "Failed to parse netmask"),
        ("host", "1.2.3.4", "Host doesn't belong to network"),
        ("host", "zz", "Failed to parse host"),
        ("dhcpstart", "1.2.3.4", "DHCP doesn't belong to network"),
        ("dns", "10.0.2.2", "DNS must be different from host and DHCP"),
        ("hostname", "x" * 256, "hostname cannot be longer than 255 bytes"),
        ("smb", "/tmp", "smb is not supported by pyvm yet"),
    ],
)
def test_refused_options(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        user_config({name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("zz", "No : separators"),
        ("sctp::1-:2", "Bad protocol name"),
        ("tcp:a", "Missing : separator"),
        ("tcp:a:1-:2", "Bad host address"),
        ("tcp::1", "Bad host port separator"),
        ("tcp::99999-:22", "Bad host port"),
        ("tcp::1-22", "Missing guest address"),
        ("tcp::1-x:22", "Bad guest address"),
        ("tcp::22-:", "Bad guest port"),
    ],
)
def test_refused_host_forwards(rule: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(hostfwd=[{"str": rule}])
    assert str(caught.value) == f"Invalid host forwarding rule '{rule}' ({reason})"


@pytest.mark.parametrize("rule", ["zz", "tcp:10.0.2.100:99999-zz", "udp:10.0.2.100:9-null", "tcp:10.0.2.100:9-"])
def test_refused_guest_forwards(rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(guestfwd=[{"str": rule}])
    assert str(caught.value) == f"Invalid guest forwarding rule '{rule}'"


@pytest.mark.parametrize("place", ["1.2.3.4:99", "10.0.2.2:99"])
def test_guest_forwards_are_inside_the_network_and_not_at_the_gateway(place: str) -> None:
    with pytest.raises(ConfigError, match="Conflicting/invalid host:port in guest forwarding rule"):
        options(guestfwd=[{"str": f"tcp:{place}-null"}])
