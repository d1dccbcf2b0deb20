"""Networks under Linux: an address by DHCP, names, downloads and uploads with equal checksums, forwards, links."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from images.build import Image
from pyvm import Machine
from tests.guest.conftest import GuestFactory
from tests.guest.support import SOON, complaints, until

MIB = 1 << 20
CONTENT = random.Random(7).randbytes(4 * MIB)
TIMES = 8
MAC = "52:54:00:12:34:56"
TRANSPORTS = {
    "transitional": "",
    "modern": ",disable-legacy=on",
    "legacy": ",disable-modern=on",
    "packed": ",packed=on",
    "intx": ",vectors=0",
    "bare": ",event_idx=off,indirect_desc=off,mrg_rxbuf=off",
    "no-offloads": ",csum=off,guest_csum=off",
    "no-control": ",ctrl_vq=off,status=off",
}


class Handler(BaseHTTPRequestHandler):
    """Serves the content several times over, and counts what it is sent."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(TIMES * len(CONTENT)))
        self.end_headers()
        for _ in range(TIMES):
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class has
        """Say nothing."""


class Server6(ThreadingHTTPServer):
    """The same by IPv6."""

    address_family = socket.AF_INET6


@contextmanager
def http_server(kind: type[ThreadingHTTPServer] = ThreadingHTTPServer, host: str = "127.0.0.1") -> Iterator[int]:
    server = kind((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(times: int = TIMES) -> str:
    found = hashlib.md5(usedforsecurity=False)
    for _ in range(times):
        found.update(CONTENT)
    return found.hexdigest()


def shell(vm: Machine, command: str) -> str:
    return vm.agent.run(command, check=True, timeout=SOON * 2).stdout.decode()


def addresses(vm: Machine) -> list[str]:
    return re.findall(r"inet (10\.[\d.]+)", shell(vm, "ip -4 addr show dev eth0"))


def configured(vm: Machine) -> str:
    """Return the guest's address, once it has one and a route."""
    until(lambda: "default" in shell(vm, "ip route") or None, "route")
    return addresses(vm)[0]


def forward_port(vm: Machine) -> int:
    """Return where the host listens for the guest's port 8080."""
    text = vm.qmp("human-monitor-command", command_line="info usernet")
    line = next(line for line in text.splitlines() if "HOST_FORWARD" in line)
    return int(line.split()[3])


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), SOON) as connection:
        connection.sendall(b"GET /file HTTP/1.0\r\n\r\n")
        parts = []
        while part := connection.recv(MIB):
            parts.append(part)
    return b"".join(parts).partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("kind", list(TRANSPORTS))
def test_a_guest_gets_an_address_downloads_and_serves(boot: GuestFactory, kind: str) -> None:
    vm = boot(
        *("-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:8080"),
        *("-device", f"virtio-net-pci,netdev=n0,id=nic0{TRANSPORTS[kind]}"),
    )
    assert configured(vm) == "10.0.2.15"
    assert MAC in shell(vm, "ip link show dev eth0")
    assert ", 0% packet loss" in shell(vm, "ping -c 2 10.0.2.2")
    with http_server() as port:
        assert shell(vm, f"wget -q -O - http://10.0.2.2:{port}/ | md5sum").split()[0] == digest()
        shell(vm, f"mkdir -p /tmp/w; wget -q -O /tmp/w/file http://10.0.2.2:{port}/; httpd -p 8080 -h /tmp/w")
    assert hashlib.md5(fetch(forward_port(vm)), usedforsecurity=False).hexdigest() == digest()
    interfaces = vm.agent.command("guest-network-get-interfaces")
    found = next(item for item in interfaces if item["name"] == "eth0")
    assert found["hardware-address"] == MAC
    assert any(address["ip-address"] == "10.0.2.15" for address in found["ip-addresses"])
    assert complaints(shell(vm, "dmesg")) == []


def test_an_intel_card(boot: GuestFactory, generic: Image) -> None:
    vm = boot("-nic", "user,hostfwd=tcp:127.0.0.1:0-:8080,id=n0", image=generic)
    assert configured(vm) == "10.0.2.15"
    assert "e1000" in shell(vm, "readlink /sys/class/net/eth0/device/driver")
    assert MAC in shell(vm, "ip link show dev eth0")
    with http_server() as port:
        assert shell(vm, f"wget -q -O - http://10.0.2.2:{port}/ | md5sum").split()[0] == digest()
        shell(vm, f"mkdir -p /tmp/w; wget -q -O /tmp/w/file http://10.0.2.2:{port}/; httpd -p 8080 -h /tmp/w")
    assert hashlib.md5(fetch(forward_port(vm)), usedforsecurity=False).hexdigest() == digest()
    shell(vm, "ip link set dev eth0 promisc on")
    assert ", 0% packet loss" in shell(vm, "ping -c 2 10.0.2.2")
    vm.qmp("set_link", name="n0", up=False)
    until(lambda: shell(vm, "cat /sys/class/net/eth0/carrier").strip() == "0" or None, "carrier to go")
    vm.qmp("set_link", name="n0", up=True)
    until(lambda: shell(vm, "cat /sys/class/net/eth0/carrier").strip() == "1" or None, "carrier to come")
    assert ", 0% packet loss" in shell(vm, "ping -c 2 10.0.2.2")
    counters = ("rx_errors", "tx_errors", "rx_dropped")
    assert shell(vm, " ".join(f"cat /sys/class/net/eth0/statistics/{name};" for name in counters)).split() == ["0"] * 3
    assert complaints(shell(vm, "dmesg")) == []


def test_ipv6(boot: GuestFactory) -> None:
    vm = boot("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
    until(lambda: "fec0::5054:ff:fe12:3456" in shell(vm, "ip -6 addr") or None, "address")
    assert "default via fe80::2" in shell(vm, "ip -6 route")
    until(lambda: ", 0% packet loss" in vm.run("ping6 -c 1 fec0::2", check=False).text, "answer")
    assert ", 0% packet loss" in shell(vm, "ping6 -c 1 -s 4000 fec0::2")
    interfaces = vm.agent.command("guest-network-get-interfaces")
    found = next(item for item in interfaces if item["name"] == "eth0")
    assert {"fec0::5054:ff:fe12:3456", "10.0.2.15"} <= {item["ip-address"] for item in found["ip-addresses"]}
    try:
        with http_server(Server6, "::1") as port:
            assert shell(vm, f"wget -q -O - 'http://[fec0::2]:{port}/' | md5sum").split()[0] == digest()
    except OSError:
        pytest.skip("the host has no IPv6")


@pytest.mark.parametrize("vectors", ["", ",vectors=0"])
def test_a_card_behind_bridges(boot: GuestFactory, vectors: str) -> None:
    vm = boot(
        *("-device", "pci-bridge,id=br0,chassis_nr=1", "-device", "pci-bridge,id=br1,chassis_nr=2,bus=br0,addr=5"),
        *("-netdev", "user,id=n0", "-device", f"virtio-net-pci,netdev=n0,bus=br1,addr=6{vectors}"),
    )
    assert configured(vm) == "10.0.2.15"
    assert ", 0% packet loss" in shell(vm, "ping -c 2 10.0.2.2")
    assert "0000:02:06.0" in shell(vm, "ls /sys/bus/pci/devices")
    assert complaints(shell(vm, "dmesg")) == []


def asks_resolver() -> bool:
    """Return whether the host's resolver answers at all."""
    try:
        text = Path("/etc/resolv.conf").read_text()
        server = re.search(r"^nameserver\s+([\d.]+)\s*$", text, re.MULTILINE)
        question = struct.pack("!HHHHHH", 1, 0x100, 1, 0, 0, 0) + b"\x07invalid\0" + struct.pack("!HH", 1, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(3)
            probe.sendto(question, (server[1] if server else "127.0.0.1", 53))
            return bool(probe.recv(512))
    except OSError:
        return False


def test_names_are_asked_of_the_hosts_resolver(boot: GuestFactory) -> None:
    if not asks_resolver():
        pytest.skip("the host has no name server that answers")
    vm = boot("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
    configured(vm)
    assert "nameserver 10.0.2.3" in shell(vm, "cat /etc/resolv.conf")
    answer = vm.agent.run("nslookup no-such-name.invalid").stdout.decode()
    assert "10.0.2.3" in answer
    assert "NXDOMAIN" in answer


def test_links_filters_and_a_restricted_network(boot: GuestFactory) -> None:
    vm = boot(
        *("-netdev", "user,id=n0,net=192.168.55.0/24,hostname=box,restrict=on"),
        *("-device", "virtio-net-pci,netdev=n0,id=nic0"),
    )
    until(lambda: "192.168.55.15" in shell(vm, "ip addr") or None, "address")
    with http_server() as port:
        shell(vm, "ip route add default via 192.168.55.2")
        assert vm.agent.run(f"echo | nc 192.168.55.2 {port}").exit_code != 0
    (info,) = vm.qmp("query-rx-filter")
    assert (info["name"], info["main-mac"], info["promiscuous"]) == ("nic0", MAC, False)
    shell(vm, "ip link set dev eth0 promisc on")
    event = vm.wait_event("NIC_RX_FILTER_CHANGED")
    assert event["data"] == {"name": "nic0", "path": "/machine/peripheral/nic0/virtio-backend"}
    vm.qmp("human-monitor-command", command_line="set_link nic0 off")
    until(lambda: shell(vm, "cat /sys/class/net/eth0/carrier").strip() == "0" or None, "carrier to go")
    vm.qmp("human-monitor-command", command_line="set_link n0 on")
    until(lambda: shell(vm, "cat /sys/class/net/eth0/carrier").strip() == "1" or None, "carrier to come")


def test_two_guests_talk_over_a_socket(boot: GuestFactory, tmp_path: Path) -> None:
    path = tmp_path / "link"
    pair = []
    for number, server in enumerate(("on", "off")):
        vm = boot(
            *("-netdev", f"stream,id=n0,server={server},addr.type=unix,addr.path={path}"),
            *("-device", f"virtio-net-pci,netdev=n0,mac=52:54:00:00:00:0{number + 1}"),
            *("-object", f"filter-dump,id=f0,netdev=n0,file={tmp_path}/dump{number}"),
            m=256,
        )
        shell(vm, f"ip link set dev eth0 up; ip addr add 10.9.9.{number + 1}/24 dev eth0")
        pair.append(vm)
    assert ", 0% packet loss" in shell(pair[1], "ping -c 3 10.9.9.1")
    shell(pair[0], "mkdir -p /tmp/w; dd if=/dev/urandom of=/tmp/w/f bs=1M count=8 2>/dev/null; httpd -p 80 -h /tmp/w")
    expected = shell(pair[0], "md5sum < /tmp/w/f")
    assert shell(pair[1], "wget -q -O - http://10.9.9.1/f | md5sum") == expected
    for number in range(2):
        assert (tmp_path / f"dump{number}").stat().st_size > 8 * MIB
