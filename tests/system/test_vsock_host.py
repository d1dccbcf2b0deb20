"""virtio-vsock: the unix sockets on the host, and the device on a board."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.chardev.base import ChardevError
from pyvm.devices.virtio.pci import VirtioPci
from pyvm.devices.virtio.vsock_connection import VsockConnection
from pyvm.mainloop import MainLoop
from pyvm.native import Vector
from pyvm.net.vsock import VsockHost
from pyvm.runstate import ShutdownCause
from tests.system.machine_rig import Machine, shared
from tests.unit.chardev_support import is_quiet, run_until, running_loop, settle


class Device:
    """Stands in for the device: remembers what programs on the host ask for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.streams: list[object] = []
        self.aborted = 0
        self.readable = 0

    def connect(self, stream: object, guest_port: int) -> VsockConnection | None:
        self.asked.append(guest_port)
        if guest_port == 99:
            return None
        self.streams.append(stream)
        connection = VsockConnection(guest_port, 1 << 30, stream, "requested")  # type: ignore[arg-type]
        stream.attach(connection)  # type: ignore[attr-defined]
        return connection

    def abort(self, connection: VsockConnection) -> None:
        self.aborted += 1

    def host_readable(self, connection: VsockConnection) -> bool:
        self.readable += 1
        return False

    def host_writable(self, connection: VsockConnection) -> None:
        pass


class TestHostSide:
    @pytest.fixture
    def loop(self) -> Iterator[MainLoop]:
        with running_loop() as loop:
            yield loop

    @pytest.fixture
    def device(self) -> Device:
        return Device()

    @pytest.fixture
    def host(self, loop: MainLoop, device: Device, tmp_path: Path) -> Iterator[VsockHost]:
        host = VsockHost(loop, str(tmp_path / "v.sock"), device)
        yield host
        host.close()
        assert os.listdir(tmp_path) in ([], ["v.sock_80"])

    @staticmethod
    def program(tmp_path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(tmp_path / "v.sock"))
        return connection

    def test_program_is_connected(self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path) -> None:
        with self.program(tmp_path) as program:
            program.sendall(b"CONN")
            settle(loop)
            assert is_quiet(loop)
            program.sendall(b"ECT 1234\nearly data")
            run_until(loop, lambda: bool(device.asked))
            assert device.asked == [1234]
            (stream,) = device.streams
            stream.accepted(77)  # type: ignore[attr-defined]
            assert program.recv(100) == b"OK 77\n"
            buffers = Vector(memoryview(bytearray(100)), [(0, 0, 100)])
            assert stream.read_into(buffers) == 10  # type: ignore[attr-defined]
            assert bytes(buffers[0][:10]) == b"early data"
            assert stream.read_into(buffers) is None  # type: ignore[attr-defined]
            stream.wait_readable()  # type: ignore[attr-defined]
            program.sendall(b"x")
            run_until(loop, lambda: device.readable == 1)
            assert is_quiet(loop), "the device has not asked for more"

    @pytest.mark.parametrize(
        "line", [b"\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"HELLO 5\n", b"x" * 40, b"CONNECT 99\n"]
    )
    def test_program_is_turned_away(
        self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path, line: bytes
    ) -> None:
        with self.program(tmp_path) as program:
            program.sendall(line)
            run_until(loop, lambda: not host.greetings and not host.streams and bool(loop))
            settle(loop)
            if not host.greetings:
                try:
                    assert program.recv(100) == b""
                except ConnectionResetError:
                    pass
        assert device.asked in ([], [99])

    def test_end_of_the_program_is_told_from_the_end_of_its_output(
        self, loop: MainLoop, host: VsockHost, device: Device, tmp_path: Path
    ) -> None:
        program = self.program(tmp_path)
        program.sendall(b"CONNECT 1\n")
        run_until(loop, lambda: bool(device.asked))
        (stream,) = device.streams
        program.shutdown(socket.SHUT_WR)
        buffers = Vector(memoryview(bytearray(100)), [(0, 0, 100)])
        assert stream.read_into(buffers) == 0  # type: ignore[attr-defined]
        assert not stream.hung_up()  # type: ignore[attr-defined]
        program.close()
        assert stream.hung_up()  # type: ignore[attr-defined]
        assert stream.write(buffers) == 100  # type: ignore[attr-defined]
        assert stream.broken  # type: ignore[attr-defined]

    def test_guest_reaches_what_serves_a_port(self, host: VsockHost, loop: MainLoop, tmp_path: Path) -> None:
        assert host.connect(80) is None
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            stream = host.connect(80)
            assert stream is not None
            program, _ = server.accept()
            with program:
                assert stream.write_bytes(b"from the guest") == 14
                assert program.recv(100) == b"from the guest"
                stream.finish()
                assert program.recv(100) == b""
                stream.close()
            settle(loop)
            assert not host.streams

    def test_no_descriptor_is_left_for_the_guest(self, host: VsockHost, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
            try:
                assert host.connect(80) is None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_slow_program(self, host: VsockHost, loop: MainLoop, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "v.sock_80"))
            server.listen()
            stream = host.connect(80)
            assert stream is not None
            program, _ = server.accept()
            with program:
                data = memoryview(bytearray(1 << 20))
                done = stream.write(Vector(data, [(0, 0, 1 << 20)]))
                assert 0 < done < 1 << 20
                told: list[int] = []
                host.device.host_writable = told.append  # type: ignore[method-assign, assignment]
                stream.attach(object())  # type: ignore[arg-type]
                assert is_quiet(loop)
                left = done
                while left:
                    left -= len(program.recv(1 << 20))
                run_until(loop, lambda: bool(told))
                assert is_quiet(loop)
            stream.close()

    def test_path_in_use(self, host: VsockHost, loop: MainLoop, device: Device, tmp_path: Path) -> None:
        with pytest.raises(ChardevError, match="Address already in use"):
            VsockHost(loop, str(tmp_path / "v.sock"), device)


class TestMachine:
    """The device on a board."""

    def test_it_comes_and_goes(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sock"
        with Machine("-device", f"virtio-vsock-pci,guest-cid=3,uds={path},id=v0") as machine:
            assert path.is_socket()
            status = machine.execute("x-query-virtio-status", path="/machine/peripheral/v0/virtio-backend")
            assert (status["name"], status["device-id"], status["num-vqs"]) == ("virtio-vsock", 19, 3)
            offered = status["host-features"]["dev-features"]
            assert offered == ["VIRTIO_VSOCK_F_STREAM: SOCK_STREAM supported"]
            assert machine.get("/machine/peripheral/v0", "guest-cid") == 3
            (function,) = (
                device.made
                for device in machine.pc.plugger.plugged.devices
                if device.config.driver == "virtio-vsock-pci"
            )
            assert isinstance(function, VirtioPci)
            assert function.config_read(2, 2) == 0x1040 + 19, "modern only"
            machine.execute("device_del", id="v0")
            with machine.pc.lock:
                machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
                machine.pc.mainloop.loop.run_until_complete(asyncio.sleep(0))
            assert not path.exists()
            assert not machine.pc.plugger.plugged.vsock_hosts
            machine.execute("device_add", **{"driver": "virtio-vsock-pci", "guest-cid": 4, "uds": str(path)})
            assert path.is_socket()
        assert not path.exists()

    @pytest.mark.parametrize(
        ("properties", "error"),
        [
            ({"uds": "x"}, "guest-cid property must be greater than 2"),
            ({"guest-cid": 1 << 32, "uds": "x"}, "guest-cid property must be a 32-bit number"),
            ({"guest-cid": 3}, "uds property must be the path of a socket for programs on the host"),
            ({"guest-cid": 3, "uds": "/no/dir/s"}, "Failed to bind socket to /no/dir/s: No such file or directory"),
        ],
    )
    def test_what_it_needs(self, properties: dict[str, Any], error: str) -> None:
        assert shared().error("device_add", driver="virtio-vsock-pci", **properties) == error

    def test_place_that_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "v.sock"
        properties = {"guest-cid": 3, "uds": str(path), "addr": "1"}
        assert "in use" in shared().error("device_add", driver="virtio-vsock-pci", **properties)
        assert not path.exists(), "nothing is left of a device that could not be plugged in"
