"""What the tests with whole disks share: a disk guest booted up to its login prompt, images made and checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyvm.agent import AgentClient
from tests.guest.conftest import ProcessFactory
from tests.guest.support import SOON, Process, agent_options, until
from tests.unit.listeners import listens
from tests.unit.qcow2_images import empty_image

LOGIN = 400.0
"""Seconds until the login prompt, on a CI machine with much else to do."""
PROMPT = "pyvm-disk login: "
GRUB_LINES = ("Loading Linux", "Loading initial ramdisk")
BACKING_FORMAT = 0xE2792ACA
"""The type of qcow2's header extension that names the backing file's format."""


@dataclass
class DiskGuest:
    """A guest at its login prompt."""

    process: Process
    agent: AgentClient

    def run(self, command: str) -> str:
        """Run a command of the shell in the guest and return its output; it must succeed."""
        return self.agent.run(command, timeout=SOON, check=True).text

    @property
    def root_device(self) -> str:
        return self.run("findmnt --noheadings --output SOURCE /")

    def power_off(self) -> None:
        """Let the guest shut down, and assert that the emulator ends as it should."""
        self.agent.shutdown()
        assert self.process.end() == (0, "", "")


@contextlib.contextmanager
def booted(pyvm: ProcessFactory, directory: Path, *options: str) -> Iterator[DiskGuest]:
    """Boot a disk guest up to its login prompt and its agent."""
    agent_path = directory / "ga.sock"
    process = pyvm("-m", "512", *options, *agent_options(agent_path))
    with AgentClient(str(agent_path)) as agent:

        def arrived() -> bool:
            assert process.process.poll() is None, (process.command_line, process.end(), process.console_tail)
            return PROMPT in process.console_text

        until(arrived, "the login prompt", LOGIN)
        agent.wait(LOGIN)
        agent.ping()
        yield DiskGuest(process, agent)


class Line:
    """Somebody at the other end of a serial line, which is a socket."""

    def __init__(self, path: Path) -> None:
        until(lambda: listens(path), "the serial line's socket")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self.text = ""
        self._position = 0

    def type(self, text: str) -> None:
        self._socket.sendall(text.encode())

    def expect(self, text: str, timeout: float = SOON) -> None:
        """Wait until `text` has come, after what was expected before."""
        end = time.monotonic() + timeout
        while (found := self.text.find(text, self._position)) < 0:
            left = end - time.monotonic()
            assert left > 0, f"{text!r} did not come within {timeout} s:\n{self.text[-2000:]}"
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                data = self._socket.recv(65536)
                assert data, f"the line is gone before {text!r}:\n{self.text[-2000:]}"
                self.text += data.decode(errors="replace")
        self._position = found + len(text)

    def close(self) -> None:
        self._socket.close()


def make_overlay(path: Path, backing: Path, size: int) -> Path:
    """Make an empty qcow2 image on top of another, which it names relative to itself where it can."""
    extension = struct.pack(">II", BACKING_FORMAT, 5) + b"qcow2".ljust(8, b"\0")
    name = backing.name if backing.parent == path.parent else str(backing)
    path.write_bytes(empty_image(size=size, cluster_bits=16, backing=name, extensions=extension))
    return path


def virtual_size(path: Path) -> int:
    """Return the size of the disk in a qcow2 image."""
    with path.open("rb") as file:
        header = file.read(32)
    assert header[:4] == b"QFI\xfb"
    return int.from_bytes(header[24:32], "big")


def digest(path: Path) -> str:
    """Return a digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assert_clean(path: Path) -> None:
    """Assert that qemu-img, where it is installed, finds nothing wrong with an image."""
    if (program := shutil.which("qemu-img")) is None:
        return
    command = [program, "check", "--output=json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON)
    assert done.returncode == 0, (done.stdout, done.stderr)
    result = json.loads(done.stdout)
    assert not {"corruptions", "leaks", "check-errors"} & {key for key, value in result.items() if value}, result
