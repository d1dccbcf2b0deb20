"""Scripting: the console, the QMP client, and machines as far as that goes without a guest."""

from __future__ import annotations

import gc
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.api import Console, Machine, MachineError, Plugs, option_words
from pyvm.errors import ConfigError
from pyvm.qmp_client import QmpClient, QmpDisconnected, QmpError, QmpTimeout


class Wire:
    """A guest's end of a console."""

    def __init__(self) -> None:
        ours, self.guest = socket.socketpair()
        self.console = Console(ours)

    def close(self) -> None:
        self.guest.close()
        self.console.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


# Console


def test_console_waits_for_what_comes_in_pieces(wire: Wire) -> None:
    wire.guest.sendall(b"Debian GNU/Linux\r\nhost lo")
    thread = threading.Timer(0.01, wire.guest.sendall, [b"gin: "])
    thread.start()
    match = wire.console.wait(r"^(\w+) login: ", 60)
    assert match is not None
    assert match[1] == b"host"
    thread.join()


def test_console_goes_on_after_the_last_match(wire: Wire) -> None:
    wire.guest.sendall(b"# one\n# two\n# ")
    for expected in (0, 6, 12):
        match = wire.console.wait("# ", 60)
        assert match is not None
        assert match.start() == expected
    assert wire.console.wait("# ", 0.01) is None
    assert wire.console.wait("one", 0.01) is None
    assert wire.console.wait(b"one", 60, rewind=True) is not None


def test_console_log_text_and_tail(wire: Wire) -> None:
    wire.guest.sendall(b"".join(b"line %d\r\n" % number for number in range(100)) + b"\x1b[1;31mred\x1b[0m \xff\r\n")
    wire.console.wait("red", 60)
    assert wire.console.log.startswith(b"line 0\r\nline 1\r\n")
    assert wire.console.text.startswith("line 0\nline 1\n")
    tail = wire.console.tail.split("\n")
    assert len(tail) == 25
    assert tail[0] == "line 76"
    assert tail[-1] == "red \ufffd"


def test_console_input_reaches_the_guest(wire: Wire) -> None:
    wire.console.write("ls\n")
    wire.console.write(b"\x03")
    assert wire.guest.recv(10) == b"ls\n\x03"


def test_a_console_that_ends_wakes_who_waits(wire: Wire) -> None:
    threading.Timer(0.01, wire.guest.close).start()
    assert wire.console.wait("never", 60) is None
    assert wire.console.ended
    with pytest.raises(MachineError, match="has ended"):
        wire.console.write("anybody?")


# QMP


class Monitor:
    """The monitor's end of a QMP connection, from a script of answers by command."""

    def __init__(self, answers: dict[str, Any]) -> None:
        ours, self.socket = socket.socketpair()
        self.client_end = ours
        self.requests: list[dict[str, Any]] = []
        self._answers = {"qmp_capabilities": {}} | answers
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\r\n")

    def _serve(self) -> None:
        self.send({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}})
        buffer = b""
        while data := self.socket.recv(65536):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._answer(json.loads(line))

    def _answer(self, request: dict[str, Any]) -> None:
        self.requests.append(request)
        name = request["execute"]
        if name not in self._answers:
            error = {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}
            self.send({"id": request["id"], "error": error})
        elif self._answers[name] is not None:
            self.send({"return": self._answers[name], "id": request["id"]})

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.socket.close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor({"query-status": {"status": "running"}, "stop": {}, "silent": None})
    yield made
    made.close()


def test_qmp_negotiates_and_asks(monitor: Monitor) -> None:
    with QmpClient(monitor.client_end) as client:
        assert client.greeting["QMP"]["version"]["qemu"]["major"] == 7
        assert client.command("query-status") == {"status": "running"}
        assert [request["execute"] for request in monitor.requests] == ["qmp_capabilities", "query-status"]
        client.command("stop", some_argument=[1])
        assert monitor.requests[-1]["arguments"] == {"some-argument": [1]}
        client.execute("stop", {"some_argument": 1})
        assert monitor.requests[-1]["arguments"] == {"some_argument": 1}
        assert any("query-status" in line for line in client.log)


def test_qmp_errors(monitor: Monitor) -> None:
    with QmpClient(monitor.client_end) as client:
        with pytest.raises(QmpError, match=r"^nonsense: The command nonsense has not been found$") as caught:
            client.command("nonsense")
        assert caught.value.error_class == "CommandNotFound"
        with pytest.raises(QmpTimeout, match="'silent'"):
            client.command("silent", timeout=0.01)
        assert client.command("query-status") == {"status": "running"}


def test_qmp_events_are_kept_until_asked_for(monitor: Monitor) -> None:
    with QmpClient(monitor.client_end) as client:
        monitor.send({"event": "STOP"})
        monitor.send({"event": "RESET", "data": {"guest": False}})
        monitor.send({"event": "RESET", "data": {"guest": True}})
        client.command("query-status")
        assert client.wait_event("RESET", match=lambda event: event["data"]["guest"])["data"] == {"guest": True}
        assert client.wait_event("RESET")["data"] == {"guest": False}
        assert [event["event"] for event in client.events()] == ["STOP"]
        assert client.events() == []
        with pytest.raises(QmpTimeout, match="RESET"):
            client.wait_event("RESET", timeout=0.01)
        threading.Timer(0.01, monitor.send, [{"event": "RESUME"}]).start()
        assert client.wait_event("RESUME", timeout=60)["event"] == "RESUME"


def test_qmp_end_of_the_machine(monitor: Monitor) -> None:
    with QmpClient(monitor.client_end) as client:
        threading.Timer(0.01, monitor.socket.shutdown, [socket.SHUT_RDWR]).start()
        with pytest.raises(QmpDisconnected):
            client.wait_event("SHUTDOWN", timeout=60)
        assert client.closed
        with pytest.raises(QmpDisconnected):
            client.command("query-status")


def test_qmp_without_a_greeting() -> None:
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(QmpTimeout, match="greeting"):
        QmpClient(ours, timeout=0.01)
    assert ours.fileno() == -1


def test_qmp_nonsense_is_ignored(monitor: Monitor) -> None:
    monitor.socket.sendall(b'nonsense\n[1]\n{"id": "x"}\n{"id": 99, "return": 1}\n')
    with QmpClient(monitor.client_end) as client:
        assert client.command("query-status") == {"status": "running"}


def test_qmp_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(QmpDisconnected, match=r"cannot connect to .*none': No such file or directory"):
        QmpClient.connect(str(tmp_path / "none"))


# Machines


def test_keywords_are_options() -> None:
    assert option_words(
        {
            "m": 512,
            "S": True,
            "no_reboot": True,
            "nographic": False,
            "uuid": None,
            "fw_cfg": "opt/a,string=b",
            "append": "a=1,2 b",
            "device": ["virtio-rng-pci", {"driver": "virtio-balloon-pci", "id": "b,0", "deflate-on-oom": True}],
        }
    ) == [
        "-m", "512", "-S", "-no-reboot", "-fw_cfg", "opt/a,string=b", "-append", "a=1,2 b", "-device", "virtio-rng-pci",
        "-device", "driver=virtio-balloon-pci,id=b,,0,deflate-on-oom=on",
    ]  # fmt: skip


def test_mistakes_are_found_when_the_machine_is_described() -> None:
    with pytest.raises(ConfigError, match=r"^-smp 0: Invalid CPU topology"):
        Machine(smp=0)
    with pytest.raises(ConfigError, match="invalid option"):
        Machine("-nonsense")
    with pytest.raises(ConfigError, match="not for a machine within a script"):
        Machine(daemonize=True)


def test_the_command_line_can_be_typed() -> None:
    machine = Machine("-S", name="two words", m=64)
    assert machine.command_line == "pyvm -S -name 'two words' -m 64 -nographic"
    assert Machine(nographic=True).command_line == "pyvm -nographic"


def test_a_machine_that_was_not_started() -> None:
    machine = Machine("-S")
    for call in (lambda: machine.console, lambda: machine.agent, lambda: machine.qmp("stop"), machine.wait):
        with pytest.raises(MachineError, match="has not been started"):
            call()
    assert machine.console_text == machine.console_tail == ""
    machine.stop()


def test_a_real_machine_starts_stops_and_answers() -> None:
    with Machine("-S", m=16) as machine:
        assert machine.qmp("query-status")["status"] == "prelaunch"
        assert [entry["label"] for entry in machine.qmp("query-chardev")] == ["pyvm-qmp", "pyvm-console", "pyvm-agent"]
        machine.resume()
        assert machine.wait_event("RESUME", 60)["event"] == "RESUME"
        machine.pause()
        assert machine.qmp("query-status")["status"] == "paused"
        with pytest.raises(MachineError, match=r"has not shown 'login' within 0\.01 s"):
            machine.wait_console("login", 0.01)
        with pytest.raises(MachineError, match="waited for the guest agent"):
            machine.wait_agent(0.01)
        with pytest.raises(MachineError, match="has not ended within"):
            machine.wait(0.01)
        with pytest.raises(MachineError, match="was started already"):
            machine.start()
        assert any("query-status" in line for line in machine.qmp_log)
    machine.wait(0)
    with pytest.raises(MachineError, match="the machine ended"):
        machine.wait_console("login", 10)
    machine.stop()


def test_quitting_ends_a_real_machine() -> None:
    machine = Machine("-S", m=16, agent=False, serial="none").start()
    assert [entry["label"] for entry in machine.qmp("query-chardev")] == ["pyvm-qmp"]
    with pytest.raises(MachineError, match="give the serial port to somebody else"):
        machine.console.write("x")
    with pytest.raises(MachineError, match="no port for its agent"):
        machine.agent.ping()
    machine.quit()
    machine.wait(60)


def test_a_start_that_fails_says_why_and_leaves_nothing_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for words in (["-device", "nonsense"], ["-kernel", __file__]):
        machine = Machine("-S", *words, m=16)
        with pytest.raises(ConfigError, match=r"nonsense|kernel"):
            machine.start()
        machine.stop()
    del machine
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_sockets_that_a_failed_machine_did_not_take_over_are_closed() -> None:
    plugs = Plugs()
    first, second = (int(plugs.add(name)[1].rpartition("fd=")[2]) for name in ("a", "b"))
    # The machine took the first one, closed it, and something else has its number now.
    os.close(first)
    other = os.open(os.devnull, os.O_RDONLY)
    os.dup2(other, first)
    plugs.close()
    os.fstat(first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second)
    assert all(ours.fileno() == -1 for ours in plugs.ours.values())
    os.close(other)
    if other != first:
        os.close(first)
