"""The back end `tap` with real interfaces, where the host lets this user make them."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from pyvm.clock import ManualClock
from pyvm.errors import ConfigError
from pyvm.net.client import Offloads
from pyvm.net.make import NetHost, make_netdev
from pyvm.net.registry import NetSet
from tests.unit.net_support import PATIENCE, Loop, Peer

FRAME = (b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x88\xb5").ljust(60, b"t")
ETHERTYPE = 0x88B5


def can_make_interfaces() -> bool:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
            return True
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_make_interfaces(), reason="this user may not make network interfaces")


@pytest.fixture
def host() -> Iterator[NetHost]:
    loop = Loop()
    made = NetHost(loop, ManualClock(), NetSet())
    yield made
    made.clients.close()
    loop.close()


def tap(host: NetHost, **options: object) -> Peer:
    """Return the other end of a link to a new interface, which is up."""
    plain = {"type": "tap", "id": "t0", "script": "no", "downscript": "no", **options}
    client = make_netdev(host, plain)
    peer = Peer()
    peer.connect(client)
    name = client.info.partition("ifname=")[2].partition(",")[0]
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    peer.name = name
    return peer


@pytest.mark.parametrize(("queues", "header"), [(1, True), (1, False), (3, True)])
def test_frames_pass_both_ways(host: NetHost, queues: int, header: bool) -> None:
    peer = tap(host, queues=queues, vnet_hdr=header)
    assert peer.peer is not None
    assert (peer.peer.queues, peer.peer.offloads) == (queues, header)
    peer.tell_offloads(Offloads(checksum=True, tso4=True))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as outside:
        outside.bind((peer.name, ETHERTYPE))
        outside.settimeout(PATIENCE)
        for queue in range(queues):
            assert peer.send(FRAME, None, queue)
            assert outside.recv(2000) == FRAME
        outside.send(FRAME)
        host.loop.until(lambda: FRAME in peer.frames)  # type: ignore[attr-defined]


def test_an_interface_goes_with_its_back_end(host: NetHost) -> None:
    peer = tap(host, queues=2)
    assert os.path.exists(f"/sys/class/net/{peer.name}")
    host.clients.close()
    assert not os.path.exists(f"/sys/class/net/{peer.name}")


def test_scripts_are_run_with_the_name(host: NetHost, tmp_path: os.PathLike[str]) -> None:
    script, log = os.path.join(tmp_path, "script"), os.path.join(tmp_path, "log")
    with open(script, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\necho $1 >> {log}\n")
    os.chmod(script, 0o755)
    peer = tap(host, script=script, downscript=script)
    host.clients.close()
    with open(log, encoding="utf-8") as file:
        assert file.read().split() == [peer.name] * 2


def test_a_script_that_fails_takes_the_interface_along(host: NetHost) -> None:
    with pytest.raises(ConfigError, match="network script /bin/false failed with status 256"):
        make_netdev(host, {"type": "tap", "id": "t0", "ifname": "pyvmtest0", "script": "/bin/false"})
    assert not os.path.exists("/sys/class/net/pyvmtest0")
