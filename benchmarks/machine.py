"""Runs an emulator as a person would, and talks to it by its sockets only: QMP, guest agent, a second serial port."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.build import Image

CONNECT_INTERVAL = 0.001
CONSOLE_INTERVAL = 0.02
PORT_NAME = "bench.0"


class BenchmarkError(RuntimeError):
    """An emulator or its guest did not do what the benchmark needs."""


@dataclass(frozen=True)
class Emulator:
    """One of the two that are compared."""

    name: str
    command: tuple[str, ...]
    image_tool: tuple[str, ...] = ()
    """Its tool for disk images: pyvm-img, qemu-img."""

    def version(self) -> str:
        """Return the first line of what --version prints."""
        done = subprocess.run([self.command[0], "--version"], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).strip().splitlines()[0] if done.returncode == 0 else "unknown"


def connect(path: Path, process: subprocess.Popen[bytes], seconds: float = 30) -> socket.socket:
    """Return a connection to the unix socket at `path`, as soon as the process listens there."""
    end = time.monotonic() + seconds
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except OSError as error:
            client.close()
            if process.poll() is not None:
                raise BenchmarkError(f"the emulator ended with status {process.returncode}") from error
            if time.monotonic() > end:
                raise BenchmarkError(f"nobody listens at {path.name} after {seconds} s") from error
            time.sleep(CONNECT_INTERVAL)
        else:
            return client


class Lines:
    """A connection on which each message is a line of JSON."""

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        self._reader = client.makefile("rb")

    def receive(self) -> Any:
        """Return the next message."""
        try:
            line = self._reader.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise BenchmarkError("the connection has ended: the emulator's own messages are above")
        return json.loads(line.lstrip(b"\xff"))

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command, whose answer is not waited for."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a command and return what it returns."""
        self.send(command, **arguments)
        answer = self.receive()
        if "return" not in answer:
            raise BenchmarkError(f"{command}: {answer.get('error', answer)}")
        return answer["return"]

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()
        self._socket.close()


class Guest:
    """A machine whose guest has booted."""

    def __init__(self, process: subprocess.Popen[bytes], agent: Lines, port: socket.socket, boot: float) -> None:
        self.process = process
        self.agent = agent
        self.port = port
        self.boot = boot
        """Seconds from the start of the process to the answer to the first guest-ping."""

    def start(self, command: str) -> int:
        """Start a shell command in the guest and return its pid."""
        path, arguments = "/bin/sh", ["-c", command]
        return int(self.agent.ask("guest-exec", path=path, arg=arguments, capture_output=True)["pid"])

    def finish(self, pid: int, seconds: float = 120, interval: float = 0.05) -> str:
        """Wait for a command that start() began, and return what it printed."""
        end = time.monotonic() + seconds
        while not (status := self.agent.ask("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > end:
                raise BenchmarkError(f"a command in the guest is not done after {seconds} s")
            time.sleep(interval)
        output = base64.b64decode(status.get("out-data", "")).decode()
        if status.get("exitcode") != 0:
            errors = base64.b64decode(status.get("err-data", "")).decode().strip()
            raise BenchmarkError(f"a command in the guest failed: {errors or status}")
        return output

    def run(self, command: str) -> str:
        """Run a shell command in the guest and return what it printed."""
        return self.finish(self.start(command))

    def resident_bytes(self) -> int:
        """Return how much memory the emulator's process has, its guest's included."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def cpu_seconds(self) -> float:
        """Return the processor time the emulator has used, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End an emulator at once."""
    process.kill()
    process.wait()


def command_of(
    emulator: Emulator, image: Image, directory: Path, memory: int, options: Sequence[str] = ()
) -> list[str]:
    """Return the command for a machine with one processor, whose sockets `ga` and `port` are in `directory`."""
    return [
        *emulator.command,
        *(
            "-m",
            str(memory),
            "-smp",
            "1",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            f"file:{directory / 'console'}",
        ),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,path={directory / 'ga'},server=on,wait=off,id=ga0"),
        *("-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
        *("-chardev", f"socket,path={directory / 'port'},server=on,wait=off,id=bench0"),
        *("-device", f"virtserialport,chardev=bench0,name={PORT_NAME}"),
        *options,
    ]


@contextmanager
def booted(
    emulator: Emulator,
    image: Image,
    directory: Path,
    memory: int,
    seconds: float = 180,
    options: Sequence[str] = (),
) -> Iterator[Guest]:
    """Boot the guest with one processor and yield it when its agent has answered for the first time.

    `options` are words of the command line for what else the machine has.
    """
    agent_path, port_path, console = directory / "ga", directory / "port", directory / "console"
    command = command_of(emulator, image, directory, memory, options)
    for path in (agent_path, port_path):
        path.unlink(missing_ok=True)
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        client = connect(agent_path, process)
        client.settimeout(seconds)
        agent = Lines(client)
        agent.ask("guest-ping")
        boot = time.monotonic() - start
        port = connect(port_path, process)
        port.settimeout(seconds)
        yield Guest(process, agent, port, boot)
        agent.close()
        port.close()
    except TimeoutError as error:
        tail = console.read_text(errors="replace").splitlines()[-1:] if console.exists() else []
        raise BenchmarkError(f"no answer from the guest in {seconds} s; its console ends: {tail}") from error
    finally:
        stop(process)


def seconds_to_greeting(emulator: Emulator, directory: Path, options: Sequence[str] = ()) -> float:
    """Return how long a stopped machine takes from its start to the QMP greeting."""
    path = directory / "qmp"
    path.unlink(missing_ok=True)
    words = ("-S", "-nodefaults", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off", *options)
    start = time.monotonic()
    process = subprocess.Popen([*emulator.command, *words], stdin=subprocess.DEVNULL)
    try:
        client = connect(path, process)
        client.settimeout(30)
        monitor = Lines(client)
        if "QMP" not in monitor.receive():
            raise BenchmarkError("the monitor's first message is no greeting")
        taken = time.monotonic() - start
        monitor.close()
        return taken
    finally:
        stop(process)


def seconds_to_text(emulator: Emulator, options: Sequence[str], console: Path, text: bytes, seconds: float) -> float:
    """Return how long a machine takes from its start until `text` is on its first serial line, kept in `console`."""
    console.unlink(missing_ok=True)
    words = ("-nodefaults", "-display", "none", "-serial", f"file:{console}", *options)
    start = time.monotonic()
    process = subprocess.Popen([*emulator.command, *words], stdin=subprocess.DEVNULL)
    try:
        while True:
            written = console.read_bytes() if console.exists() else b""
            taken = time.monotonic() - start
            if text in written:
                return taken
            if process.poll() is not None:
                raise BenchmarkError(f"the emulator ended with status {process.returncode}")
            if taken > seconds:
                tail = written.decode(errors="replace").splitlines()[-1:]
                raise BenchmarkError(f"no {text.decode()!r} in {seconds} s; the console ends: {tail}")
            time.sleep(CONSOLE_INTERVAL)
    finally:
        stop(process)
