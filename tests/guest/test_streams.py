"""Byte streams between host and guest: many reconnects, a lot of data, slow peers and peers that leave."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm import Machine
from pyvm.agent import AgentClient
from tests.guest.conftest import GuestFactory
from tests.guest.support import until

RECONNECTS = 1000
MEGABYTE = 1 << 20
STREAM = 100 * MEGABYTE
SERIAL = 256 << 10
GENEROUS = 240.0
PORT = "/dev/virtio-ports/org.example.data"


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sockets")


@pytest.fixture(scope="module")
def vm(boot_shared: GuestFactory, sockets: Path) -> Machine:
    """A guest with two serial lines, an agent, a port for data and a virtio console, each on a socket."""

    names = ("agent", "data", "hvc", "tty")
    return boot_shared(
        *(
            word
            for name in names
            for word in ("-chardev", f"socket,id={name},path={sockets / name},server=on,wait=off")
        ),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-device", "virtserialport,chardev=data,name=org.example.data", "-device", "virtconsole,chardev=hvc"),
        *("-serial", f"unix:{sockets}/console,server=on,wait=off", "-serial", "chardev:tty"),
        agent=False,
        smp=2,
    )


@pytest.fixture(scope="module")
def agent(vm: Machine, sockets: Path) -> Iterator[AgentClient]:
    assert vm.qmp("query-status")["running"]
    with AgentClient(str(sockets / "agent")).wait(GENEROUS) as agent:
        yield agent


@pytest.fixture(scope="module")
def content() -> bytes:
    """Bytes of all values, that do not repeat in step with any buffer."""
    block = random.Random(7).randbytes(MEGABYTE + 4099)
    return (block * (STREAM // len(block) + 1))[:STREAM]


def connect(path: Path, timeout: float = GENEROUS) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(str(path))
    return connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    text = b""
    while end not in text:
        data = connection.recv(65536)
        assert data, f"the connection ended after {text[-200:]!r}"
        text += data
    return text


def receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(1 << 20)
        assert piece, f"the connection ended after {len(data)} of {count} bytes"
        data += piece
    assert len(data) == count
    return bytes(data)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Background:
    """A program that runs in the guest while the host talks to it."""

    def __init__(self, agent: AgentClient, command: str) -> None:
        self._agent = agent
        self._pid = agent.exec("/bin/sh", ["-c", command], capture_output=True)

    def output(self, timeout: float = GENEROUS) -> str:
        status = until(lambda: (now := self._agent.exec_status(self._pid)).exited and now, "a program's end", timeout)
        assert status.exitcode == 0, status
        return base64.b64decode(status.out_data or "").decode().strip()


class TestReconnects:
    @pytest.mark.slow
    def test_console_answers_each_time(self, agent: AgentClient, sockets: Path) -> None:
        agent.ping()
        with connect(sockets / "console") as connection:
            connection.sendall(b"\nstty -echo; PS1='>'; echo rea''dy\n")
            read_until(connection, b"ready\r\n")
        for number in range(RECONNECTS):
            with connect(sockets / "console") as connection:
                connection.sendall(b"echo n%dn\n" % number)
                read_until(connection, b"n%dn\r\n" % number)
        with connect(sockets / "console") as connection:
            connection.sendall(b"stty echo\n")

    @pytest.mark.slow
    def test_agent_answers_each_time(self, agent: AgentClient) -> None:
        for number in range(RECONNECTS):
            agent.reconnect()
            assert agent.sync(number) == number

    def test_half_a_request_of_a_client_that_left(self, agent: AgentClient, sockets: Path) -> None:
        agent.reconnect()
        for _ in range(20):
            with connect(sockets / "agent") as connection:
                connection.sendall(b'{"execute":"guest-get-osinfo"}\n{"execute":"guest-fi')
            assert agent.sync(1) == 1
            agent.reconnect()


class TestVolume:
    @pytest.mark.slow
    def test_a_hundred_megabytes_into_the_guest(self, agent: AgentClient, sockets: Path, content: bytes) -> None:
        with connect(sockets / "data") as connection:
            program = Background(
                agent, f"dd if={PORT} bs=64k count={STREAM // 65536} iflag=fullblock 2>/dev/null | md5sum"
            )
            connection.sendall(content)
            assert program.output().split()[0] == md5(content)

    @pytest.mark.slow
    def test_a_hundred_megabytes_out_of_the_guest(self, agent: AgentClient, sockets: Path, vm: Machine) -> None:
        script = (
            "dd if=/dev/urandom of=/tmp/block bs=1M count=10 2>/dev/null;"
            "ten() { for i in 1 2 3 4 5 6 7 8 9 10; do cat /tmp/block; done; };"
            f"ten > {PORT}; ten | md5sum"
        )
        with connect(sockets / "data") as connection:
            program = Background(agent, script)
            data = receive(connection, STREAM)
            assert program.output().split()[0] == md5(data)
        agent.run("rm /tmp/block")

    def test_both_ways_at_once(self, agent: AgentClient, sockets: Path, content: bytes) -> None:
        size = 8 * MEGABYTE
        with connect(sockets / "data") as connection:
            program = Background(agent, f"exec 3<>{PORT}; head -c {size} <&3 >&3")
            sender = threading.Thread(target=connection.sendall, args=(content[:size],))
            sender.start()
            assert receive(connection, size) == content[:size]
            sender.join()
            program.output()

    def test_serial_line_into_the_guest(self, agent: AgentClient, sockets: Path, content: bytes) -> None:
        with connect(sockets / "tty") as connection:
            # What comes while nobody has the line open, or reads for long, is lost.
            command = (
                f"exec 3<>/dev/ttyS1; stty raw -echo 115200 <&3; (echo go >&3; exec head -c {SERIAL} <&3) | md5sum"
            )
            program = Background(agent, command)
            read_until(connection, b"go")
            time.sleep(0.5)
            connection.sendall(content[:SERIAL])
            assert program.output().split()[0] == md5(content[:SERIAL])

    def test_serial_line_out_of_the_guest(self, agent: AgentClient, sockets: Path) -> None:
        with connect(sockets / "tty") as connection:
            agent.run(f"head -c {SERIAL} /dev/urandom > /tmp/random")
            program = Background(agent, "stty -F /dev/ttyS1 raw -echo; cat /tmp/random >/dev/ttyS1; md5sum /tmp/random")
            data = receive(connection, SERIAL)
            assert program.output().split()[0] == md5(data)


class TestPeers:
    def test_slow_reader_gets_everything(self, agent: AgentClient, sockets: Path) -> None:
        with connect(sockets / "data") as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            program = Background(agent, f"seq 300000 | tee {PORT} | md5sum")
            data = bytearray()
            wanted = sum(len(str(number)) + 1 for number in range(1, 300001))
            while len(data) < wanted:
                data += connection.recv(16384)
                if len(data) < 400000:
                    time.sleep(0.01)
            assert program.output().split()[0] == md5(bytes(data))

    def test_slow_guest_gets_everything(self, agent: AgentClient, sockets: Path, content: bytes) -> None:
        size = 4 * MEGABYTE
        with connect(sockets / "data") as connection:
            script = f"exec 3<{PORT}; sleep 1; (dd bs=1000 count=1; sleep 1; head -c {size - 1000}) <&3 | md5sum"
            program = Background(agent, script)
            connection.sendall(content[:size])
            assert program.output().split()[0] == md5(content[:size])

    def test_what_is_sent_before_the_guest_listens_waits(self, agent: AgentClient, sockets: Path) -> None:
        with connect(sockets / "data") as connection:
            connection.sendall(b"early\n")
            time.sleep(0.3)
            assert agent.run(f"head -n 1 {PORT}").text == "early"

    def test_guest_that_writes_waits_for_a_peer(self, agent: AgentClient, sockets: Path) -> None:
        agent.ping()
        program = Background(agent, f"echo to whom it may concern > {PORT}; echo written")
        time.sleep(0.5)
        with connect(sockets / "data") as connection:
            assert read_until(connection, b"\n") == b"to whom it may concern\n"
        assert program.output() == "written"

    def test_peers_come_and_go_in_the_middle(self, agent: AgentClient, sockets: Path) -> None:
        """Each peer gets lines that follow each other; what was in flight to one that left is its own loss."""
        program = Background(agent, f"i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); done > {PORT}; echo all")
        last = -1
        while last < 3999:
            with connect(sockets / "data") as connection:
                text = b""
                while text.count(b"\n") < 300 and not text.endswith(b"3999\n"):
                    data = connection.recv(512)
                    assert data
                    text += data
            lines = text.split(b"\n")[1:-1] if last >= 0 else text.split(b"\n")[:-1]
            numbers = [int(line) for line in lines]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[0] > last
            last = numbers[-1]
        assert program.output() == "all"

    def test_stopped_guest_gets_it_when_it_goes_on(self, vm: Machine, agent: AgentClient, sockets: Path) -> None:
        with connect(sockets / "data") as connection:
            program = Background(agent, f"head -n 3 {PORT}")
            vm.pause()
            connection.sendall(b"one\ntwo\nthree\n")
            time.sleep(0.3)
            vm.resume()
            assert program.output() == "one\ntwo\nthree"

    def test_port_knows_its_peer(self, vm: Machine, agent: AgentClient, sockets: Path) -> None:
        """The guest's poll says POLLHUP while nobody is connected on the host."""

        def connected() -> list[bool]:
            return [device["frontend-open"] for device in vm.qmp("query-chardev") if device["label"] == "data"]

        until(lambda: connected() == [False], "the end of what an earlier test ran")
        program = Background(agent, f"exec 3<{PORT}; until [ -e /tmp/seen ]; do sleep 0.1; done; echo closed")
        until(lambda: connected() == [True], "the guest's opening of the port")
        agent.run("touch /tmp/seen")
        program.output()
        until(lambda: connected() == [False], "the guest's closing of the port")


class TestVirtconsole:
    def test_login_on_hvc0(self, vm: Machine, sockets: Path, agent: AgentClient) -> None:
        agent.ping()
        assert agent.run("cat /sys/class/tty/hvc0/dev").text == "229:0"
        with connect(sockets / "hvc") as connection:
            connection.sendall(b"\n")
            read_until(connection, b"root@pyvm-demo:")
            connection.sendall(b"tty; echo $((6*7))\n")
            text = read_until(connection, b"\n42\r\n")
            assert b"/dev/hvc0" in text

    def test_volume_on_hvc0(self, agent: AgentClient, sockets: Path) -> None:
        with connect(sockets / "hvc") as connection:
            connection.sendall(b"stty -echo; seq 3000; echo e''nd\n")
            text = read_until(connection, b"end\r\n")
            body = text[text.index(b"\n1\r\n") + 1 : text.index(b"end\r\n")]
            assert body == b"".join(b"%d\r\n" % number for number in range(1, 3001))
