"""The real qemu-ga over a serial line and over a virtio socket, and pyvm-ga with all of them."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import compile_static
from pyvm import Machine
from pyvm.agent import AgentAbsent, AgentClient
from tests.guest.conftest import GuestFactory
from tests.guest.support import BOOT, SOON, until

MIB = 1 << 20
CID, PORT = 42, 1234
SERIAL = "qemu-ga -d -m isa-serial -p /dev/ttyS1 -f /run/qga-serial.pid -t /run -l /dev/null"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sockets")


@pytest.fixture(scope="module")
def vm(boot_shared: GuestFactory, places: Path) -> Machine:
    """A guest without virtio-serial: its agent listens at a virtio socket, and another one at a serial line."""
    vm = boot_shared(
        *("-device", f"virtio-vsock-pci,guest-cid={CID},uds={places}/vsock"),
        *(
            "-chardev",
            f"socket,path={places}/serial,server=on,wait=off,id=line",
            "-device",
            "isa-serial,chardev=line,index=1",
        ),
        append=f"pyvm.agent=vsock-listen:{CID}:{PORT}",
        agent=False,
    )
    with AgentClient(addresses(places)["vsock"]) as agent:
        agent.wait(BOOT).run(SERIAL, check=True)
    return vm


def addresses(places: Path) -> dict[str, str]:
    return {"vsock": f"vsock:{places}/vsock:{PORT}", "serial": str(places / "serial")}


def ga(address: str, *words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pyvm.tools.ga.cli", "-s", address, "--wait", str(SOON), *words]
    return subprocess.run(command, capture_output=True, timeout=2 * SOON, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(params=["vsock", "serial"])
def address(request: pytest.FixtureRequest, vm: Machine, places: Path) -> str:
    assert vm.qmp("query-status")["running"]
    return addresses(places)[request.param]


class TestAgents:
    def test_commands(self, address: str) -> None:
        with AgentClient(address).wait(SOON) as agent:
            assert len(agent.info().supported_commands) == 42
            for number in range(50):
                assert agent.sync(number) == number
            content = random.Random(5).randbytes(20_000)
            agent.write_file("/tmp/content", content)
            assert agent.run("sha256sum /tmp/content").text.split()[0] == hashlib.sha256(content).hexdigest()
            assert agent.read_file("/tmp/content") == content

    def test_half_a_request_is_forgotten(self, address: str) -> None:
        with AgentClient(address).wait(SOON) as agent:
            connection = agent._connection._socket
            assert connection is not None
            connection.sendall(b'{"execute":"guest-exec","arguments":{"path":"/bin/')
            agent.reconnect()
        with AgentClient(address).wait(SOON) as agent:
            assert agent.get_host_name() == "pyvm-demo"

    def test_pyvm_ga(self, address: str, tmp_path: Path) -> None:
        done = ga(address, "exec", "--", "sh", "-c", "cat; echo error >&2; exit 7", input=b"in\0put")
        assert (done.returncode, done.stdout, done.stderr) == (7, b"in\0put", b"error\n")
        (tmp_path / "here").write_bytes(bytes(range(256)) * 40)
        (tmp_path / "here").chmod(0o751)
        assert ga(address, "cp", str(tmp_path / "here"), ":/tmp/there").returncode == 0
        assert ga(address, "cp", ":/tmp/there", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
        assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751
        done = ga(address, "shell", input=b"cd /etc\npwd\nexport A=b\necho $A\n")
        assert done.stdout == b"/etc\nb\n"


def test_nobody_listens_at_a_port(vm: Machine, places: Path) -> None:
    with AgentClient(f"vsock:{places}/vsock:99", SOON) as agent, pytest.raises(AgentAbsent, match="nothing listens"):
        agent.ping()


class TestStreams:
    """What goes through connections that programs on both sides make."""

    @pytest.fixture
    def agent(self, vm: Machine, places: Path) -> Iterator[AgentClient]:
        assert vm.qmp("query-status")["running"]
        with AgentClient(addresses(places)["vsock"]).wait(SOON) as agent:
            if not agent.run("test -e /tmp/vsockctl").ok:
                agent.write_file("/tmp/vsockctl", compile_static(Path(__file__).with_name("vsockctl.c")))
                agent.run("chmod 755 /tmp/vsockctl", check=True)
            yield agent

    @staticmethod
    def call(places: Path, port: int) -> socket.socket:
        """Connect to a program of the guest, once it serves its port."""

        def attempt() -> socket.socket | None:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(SOON)
            connection.connect(str(places / "vsock"))
            connection.sendall(b"CONNECT %d\n" % port)
            if connection.recv(64):
                return connection
            connection.close()
            return None

        return until(attempt, f"port {port} of the guest")  # type: ignore[return-value]

    @staticmethod
    def receive(connection: socket.socket) -> bytes:
        found = bytearray()
        while data := connection.recv(MIB):
            found += data
        return bytes(found)

    def test_echo(self, agent: AgentClient, places: Path) -> None:
        content = random.Random(1).randbytes(8 * MIB)
        agent.exec("/tmp/vsockctl", ["echo", "70"])
        with self.call(places, 70) as connection:

            def send() -> None:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert self.receive(connection) == content
            sender.join()

    def test_host_to_guest(self, agent: AgentClient, places: Path) -> None:
        pid = agent.exec("/tmp/vsockctl", ["count", "71"], capture_output=True)
        content = random.Random(2).randbytes(8 * MIB)
        with self.call(places, 71) as connection:
            connection.sendall(content)  # and close it with all of that on its way
        status = until(lambda: (status := agent.exec_status(pid)).exited and status, "the end of the program")
        assert agent.outputs(status)[0].split() == [str(len(content)).encode(), str(sum(content)).encode()]  # type: ignore[arg-type]

    def test_guest_to_host(self, agent: AgentClient, places: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(places / "vsock_72"))
            server.listen()
            server.settimeout(SOON)
            agent.exec("/tmp/vsockctl", ["send", "72", str(8 * MIB)])
            with server.accept()[0] as connection:
                connection.settimeout(SOON)
                assert self.receive(connection) == b"v" * (8 * MIB)
        assert "Connection re" in agent.run("/tmp/vsockctl send 73 1").stderr.decode()

    def test_slow_program_does_not_hold_up_others(self, agent: AgentClient, places: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(places / "vsock_74"))
            server.listen()
            server.settimeout(SOON)
            agent.exec("/tmp/vsockctl", ["send", "74", str(4 * MIB)])
            with server.accept()[0] as connection:
                connection.settimeout(SOON)
                for _ in range(20):
                    agent.ping()
                assert len(self.receive(connection)) == 4 * MIB


def test_agents_answer_after_a_restore(vm: Machine, places: Path, tmp_path: Path) -> None:
    """Half a request was on its way when the machine was saved: each agent forgets it, and answers."""
    agents = {name: AgentClient(place, SOON) for name, place in addresses(places).items()}
    for name, agent in agents.items():
        agent.run(f"echo {name} > /tmp/{name}", check=True)
        connection = agent._connection._socket
        assert connection is not None
        connection.sendall(b'{"execute":"guest-get-')
    vm.snapshot(tmp_path / "saved")
    for agent in agents.values():
        assert agent.wait(SOON).get_host_name() == "pyvm-demo", "the saved machine goes on"
        agent.close()
    vm.stop()
    with Machine.restore(tmp_path / "saved", agent=False):
        for name, place in addresses(places).items():
            with AgentClient(place, SOON).wait(SOON) as agent:
                assert agent.read_file(f"/tmp/{name}").strip() == name.encode()
            done = ga(place, "exec", "hostname", stdin=subprocess.DEVNULL)
            assert done.stdout == b"pyvm-demo\n"
