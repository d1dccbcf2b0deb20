"""QEMU's own client library, and the shell that comes with it, against a machine in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.listeners import listens

qmp = pytest.importorskip("qemu.qmp")

PATIENCE = 90.0
SHELL = Path(sys.executable).with_name("qmp-shell")
BASE = ("-S", "-nodefaults", "-display", "none", "-m", "16")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="qc-") as name:
        yield Path(name)


@contextmanager
def machine(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "pyvm", *BASE, *options], stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def listening(path: Path) -> Path:
    end = time.monotonic() + PATIENCE
    while not listens(path):
        assert time.monotonic() < end, f"nobody listens at {path.name}"
        time.sleep(0.01)
    return path


def server(path: Path) -> tuple[str, str]:
    return "-qmp", f"unix:{path},server=on,wait=off"


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Any]:
    client = qmp.QMPClient("test")
    await client.connect(str(listening(path)))
    try:
        yield client
    finally:
        with contextlib.suppress(EOFError):  # where the machine has ended
            await client.disconnect()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), PATIENCE)

    asyncio.run(limited())


class TestLibrary:
    def test_greeting_and_commands(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                assert client.greeting.QMP.version["qemu"]["major"] == 7
                assert client.greeting.QMP.capabilities == ["oob"]
                status = await client.execute("query-status")
                assert status == {"status": "prelaunch", "singlestep": False, "running": False}
                with pytest.raises(qmp.ExecuteError) as refused:
                    await client.execute("nothing")
                assert refused.value.error_class == "CommandNotFound"
                assert str(refused.value) == "The command nothing has not been found"
                assert (await client.execute("qom-get", {"path": "/machine", "property": "type"})).startswith("pc-")

        with machine(*server(directory / "q")):
            run(work)

    def test_many_commands_at_once_get_their_own_replies(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                count = 50
                asked = [client.execute("human-monitor-command", {"command-line": f"print {n}"}) for n in range(count)]
                *found, missing = await asyncio.gather(
                    *asked, client.execute("qom-list", {"path": "/nothing"}), return_exceptions=True
                )
                assert [int(text, 0) for text in found] == list(range(count))
                assert isinstance(missing, qmp.ExecuteError)
                assert missing.error_class == "DeviceNotFound"

        with machine(*server(directory / "q")):
            run(work)

    def test_events(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                with client.listener(("RESUME", "STOP")) as listener:
                    await client.execute("cont")
                    await client.execute("stop")
                    seen = [(await listener.get())["event"], (await listener.get())["event"]]
                assert seen == ["RESUME", "STOP"]
                with client.listener("RESET", event_filter=lambda event: event["data"]["guest"] is False) as listener:
                    await client.execute("system_reset")
                    assert (await listener.get())["data"] == {"guest": False, "reason": "host-qmp-system-reset"}

        with machine(*server(directory / "q")):
            run(work)

    def test_out_of_band(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                request = client.make_execute_msg("query-yank", oob=True)
                assert {"type": "chardev", "id": "c"} in await client.execute_msg(request)
                refused = client.make_execute_msg("query-status", oob=True)
                with pytest.raises(qmp.ExecuteError, match="query-status does not support OOB"):
                    await client.execute_msg(refused)

        chardev = f"socket,id=c,path={directory / 'c'},server=on,wait=off"
        with machine(*server(directory / "q"), "-chardev", chardev, "-device", "isa-serial,chardev=c"):
            run(work)

    def test_clients_come_and_go(self, directory: Path) -> None:
        async def work() -> None:
            client = qmp.QMPClient("again")
            for _ in range(20):
                await client.connect(str(listening(directory / "q")))
                assert not (await client.execute("query-status"))["running"]
                await client.disconnect()
            assert client.runstate is qmp.Runstate.IDLE

        with machine(*server(directory / "q")):
            run(work)

    def test_two_clients_on_two_monitors(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "a") as first, connected(directory / "b") as second:
                with second.listener("POWERDOWN") as listener:
                    await first.execute("system_powerdown")
                    await listener.get()
                assert await second.execute("query-name") == {}

        with machine(*server(directory / "a"), *server(directory / "b")):
            run(work)

    def test_the_client_listens_and_the_machine_connects(self, directory: Path) -> None:
        async def work() -> None:
            client = qmp.QMPClient("listener")
            await client.start_server(str(directory / "q"))
            with machine("-qmp", f"unix:{directory / 'q'}"):
                await client.accept()
                assert (await client.execute("query-status"))["status"] == "prelaunch"
                await client.disconnect()

        run(work)

    def test_a_descriptor_is_passed(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                with (directory / "file").open("wb") as file:
                    client.send_fd_scm(file.fileno())
                    await client.execute("getfd", {"fdname": "f"})
                await client.execute("closefd", {"fdname": "f"})
                with pytest.raises(qmp.ExecuteError, match="File descriptor named 'f' not found"):
                    await client.execute("closefd", {"fdname": "f"})

        with machine(*server(directory / "q")):
            run(work)

    def test_the_machine_ends(self, directory: Path) -> None:
        async def work() -> None:
            async with connected(directory / "q") as client:
                with client.listener("SHUTDOWN") as listener:
                    await client.execute("quit")
                    assert (await listener.get())["data"]["reason"] == "host-qmp-quit"
                while client.runstate is qmp.Runstate.RUNNING:
                    await client.runstate_changed()

        with machine(*server(directory / "q")) as process:
            run(work)
            assert process.wait(PATIENCE) == 0

    def test_the_older_interface_without_asyncio(self, directory: Path) -> None:
        from qemu.qmp.legacy import QEMUMonitorProtocol

        # The library makes a loop where there is none, and leaves it open.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        with machine(*server(directory / "q")):
            monitor = QEMUMonitorProtocol(str(listening(directory / "q")))
            try:
                assert "QMP" in (monitor.connect() or {})
                assert monitor.cmd("query-status")["status"] == "prelaunch"
                monitor.cmd("cont")
                event = monitor.pull_event(wait=PATIENCE)
                assert event is not None
                assert event["event"] == "RESUME"
            finally:
                monitor.close()
                asyncio.set_event_loop(None)
                loop.close()


@pytest.mark.skipif(not SHELL.exists(), reason="qmp-shell is not installed beside this Python")
class TestShell:
    @staticmethod
    def session(path: Path, *options: str, typed: list[tuple[str, str]]) -> str:
        """Type lines into a shell, each when what stands before it is on the screen; return all of the screen."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [str(SHELL), *options, str(path)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env=os.environ | {"HOME": str(path.parent), "TERM": "dumb"},
        )
        os.close(terminal)
        screen = ""
        at = 0
        end = time.monotonic() + PATIENCE
        try:
            for awaited, line in typed:
                while awaited not in screen[at:]:
                    assert time.monotonic() < end, screen
                    if select.select([controller], [], [], 0.5)[0]:
                        screen += os.read(controller, 65536).decode(errors="replace")
                at = screen.index(awaited, at) + len(awaited)
                os.write(controller, line.encode())
            process.wait(PATIENCE)
            while select.select([controller], [], [], 0.2)[0]:
                try:
                    screen += os.read(controller, 65536).decode(errors="replace")
                except OSError:
                    break
        finally:
            process.kill()
            process.wait()
            os.close(controller)
        return screen

    def test_commands(self, directory: Path) -> None:
        with machine(*server(directory / "q")):
            screen = self.session(
                listening(directory / "q"),
                typed=[
                    ("(QEMU) ", "query-status\n"),
                    ('"status": "prelaunch"', ""),
                    ("(QEMU) ", "qom-get path=/machine property=type\n"),
                    ("-machine", ""),
                    ("(QEMU) ", "device_add driver=virtio-rng-pci id=r1\n"),
                    ("(QEMU) ", "device_add driver=virtio-rng-pci id=r1\n"),
                    ("Duplicate device ID 'r1'", ""),
                    ("(QEMU) ", "query-vers\t\n"),
                    ("pyvm", ""),
                    ("(QEMU) ", "\x04"),
                ],
            )
        assert "Connected to QEMU 7.2" in screen

    def test_the_human_monitor_through_it(self, directory: Path) -> None:
        with machine(*server(directory / "q")):
            screen = self.session(
                listening(directory / "q"),
                "-H",
                typed=[("(QEMU) ", "info status\n"), ("VM status: paused", ""), ("(QEMU) ", "\x04")],
            )
        assert "VM status: paused (prelaunch)" in screen


def test_a_connection_without_a_word_is_greeted_and_let_go(directory: Path) -> None:
    with machine(*server(directory / "q")):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(str(listening(directory / "q")))
                assert client.recv(8) == b'{"QMP": '
