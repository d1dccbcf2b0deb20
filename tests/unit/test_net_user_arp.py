"""The back end `user`: ARP and ICMP by plain packets."""

from __future__ import annotations

import pytest

from pyvm.net import packets as p
from tests.unit.net_support import (
    DNS,
    GATEWAY,
    GUEST_IP,
    GUEST_MAC,
    user_network,
)


def arp_request(target: bytes) -> bytes:
    packet = p.arp_packet(p.ARP_REQUEST, (GUEST_MAC, GUEST_IP), (bytes(6), target))
    return p.ETHERNET.pack(p.BROADCAST_MAC, GUEST_MAC, p.ETHERTYPE_ARP) + packet


@pytest.mark.parametrize(
    ("target", "answered"), [(GATEWAY, True), (DNS, True), (GUEST_IP, False), (b"\x0a\0\2\5", False)]
)
def test_arp_is_answered_for_what_is_here(target: bytes, answered: bool) -> None:
    with user_network(known=False) as guest:
        guest.send(arp_request(target))
        assert len(guest.frames) == answered
        if answered:
            fields = p.ARP.unpack_from(guest.frames[0], 14)
            assert fields[4:] == (p.ARP_REPLY, b"\x52\x55" + target, target, GUEST_MAC, GUEST_IP)
        assert guest.network.neighbours == {GUEST_IP: GUEST_MAC}


def test_the_gateway_answers_pings() -> None:
    with user_network() as guest:
        guest.ip(GATEWAY, p.PROTO_ICMP, p.icmp_message(p.ICMP_ECHO, 0, 7, 3, b"hello there"))
        ((source, destination, message),) = guest.packets(p.PROTO_ICMP)
        assert (source, destination) == (GATEWAY, GUEST_IP)
        assert p.words_sum(message) == 0
        assert p.ICMP.unpack_from(message)[0:2] == (p.ICMP_ECHO_REPLY, 0)
        assert p.ICMP.unpack_from(message)[3:] == (7, 3)
        assert message[p.ICMP.size :] == b"hello there"


def test_a_damaged_ping_is_not_answered() -> None:
    with user_network() as guest:
        message = bytearray(p.icmp_message(p.ICMP_ECHO, 0, 7, 3, b"hello"))
        message[-1] ^= 1
        guest.ip(GATEWAY, p.PROTO_ICMP, bytes(message))
        assert guest.frames == []


def test_an_address_is_asked_for_before_the_first_packet() -> None:
    with user_network(known=False) as guest:
        guest.network.send_ip(GATEWAY, GUEST_IP, p.PROTO_ICMP, b"12345678")
        (question,) = guest.take()
        assert p.ARP.unpack_from(question, 14)[4] == p.ARP_REQUEST
        answer = p.arp_packet(p.ARP_REPLY, (GUEST_MAC, GUEST_IP), (guest.network.mac, GATEWAY))
        guest.send(p.ETHERNET.pack(guest.network.mac, GUEST_MAC, p.ETHERTYPE_ARP) + answer)
        assert [payload for _, _, payload in guest.packets(p.PROTO_ICMP)] == [b"12345678"]
