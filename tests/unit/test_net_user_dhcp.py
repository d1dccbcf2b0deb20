"""The DHCP server of the back end `user`."""

from __future__ import annotations

import struct

from pyvm.net.user.dhcp import search_list
from tests.unit.net_support import (
    DNS,
    GATEWAY,
    GUEST_IP,
    GUEST_MAC,
    Guest,
    options,
    user_network,
)


def dhcp(kind: int, mac: bytes = GUEST_MAC, extra: bytes = b"") -> bytes:
    head = struct.pack("!BBBBIHH4s4s4s4s16s64s128s", 1, 1, 6, 0, 77, 0, 0, *([bytes(4)] * 4), mac, b"", b"")
    return head + b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + extra + b"\xff"


def answers(guest: Guest) -> list[tuple[bytes, dict[int, bytes]]]:
    """Return the addresses and options that the server gave."""
    found = []
    for _, source_port, port, data in guest.datagrams():
        assert (source_port, port) == (67, 68)
        position, given = 240, {}
        while data[position] != 255:
            length = data[position + 1]
            given[data[position]] = data[position + 2 : position + 2 + length]
            position += 2 + length
        found.append((data[16:20], given))
    guest.take()
    return found


def ask(guest: Guest, message: bytes) -> list[tuple[bytes, dict[int, bytes]]]:
    guest.udp(b"\xff" * 4, 67, message, 68, bytes(4))
    return answers(guest)


def test_a_guest_gets_an_address_and_all_that_belongs_to_it() -> None:
    config = options(
        hostname="box",
        domainname="example.org",
        dnssearch=[{"str": "a.example"}, {"str": "b"}],
        bootfile="/boot",
        tftp_server_name="server",
    )
    with user_network(config, known=False) as guest:
        ((address, given),) = ask(guest, dhcp(1))
        assert (address, given[53]) == (GUEST_IP, b"\x02")
        ((address, given),) = ask(guest, dhcp(3, extra=bytes((50, 4)) + address + bytes((54, 4)) + GATEWAY))
        assert (address, given[53]) == (GUEST_IP, b"\x05")
        assert (given[1], given[3], given[6]) == (b"\xff\xff\xff\0", GATEWAY, DNS)
        assert (given[12], given[15], given[66], given[67]) == (b"box", b"example.org", b"server", b"/boot")
        assert given[119] == b"\x01a\x07example\0\x01b\0"
        assert guest.network.neighbours[GUEST_IP] == GUEST_MAC


def test_each_card_has_an_address_of_its_own() -> None:
    with user_network(known=False) as guest:
        seen = [ask(guest, dhcp(1, bytes((2, 0, 0, 0, 0, n))))[0][0] for n in (1, 2, 1, 3)]
        assert [address[3] for address in seen] == [15, 16, 15, 17]


def test_an_address_that_another_card_has_is_refused() -> None:
    with user_network(known=False) as guest:
        ask(guest, dhcp(1))
        ((_, given),) = ask(guest, dhcp(3, b"\2\0\0\0\0\1", bytes((50, 4)) + GUEST_IP))
        assert given[53] == b"\x06"
        ((_, given),) = ask(guest, dhcp(3, b"\2\0\0\0\0\1", bytes((50, 4)) + b"\xc0\xa8\0\1"))
        assert given[53] == b"\x06"


def test_a_restricted_network_names_no_router() -> None:
    with user_network(options(restrict=True), known=False) as guest:
        ((_, given),) = ask(guest, dhcp(1))
        assert 3 not in given
        assert 6 not in given


def test_names_that_cannot_be_are_left_out_of_the_search_list() -> None:
    assert search_list(["ok.example", "x" * 64, "a..b"]) == b"\x02ok\x07example\0"
