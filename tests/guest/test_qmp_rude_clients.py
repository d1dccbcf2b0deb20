"""Clients of the monitor that behave badly, while a guest runs and another client asks: neither must wait for them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.build import build
from pyvm.agent import AgentClient
from pyvm.qmp_client import QmpClient
from tests.guest.support import BOOT, Process, agent_options, boot_options, until

pytestmark = pytest.mark.guest

MIB = 1 << 20
PIECE = 64 << 10
SECONDS = 3.0
LONGEST_GUEST = 1.0
"""Seconds that the guest's agent may take to answer meanwhile: of the clock, or of work where the host is busy."""
LONGEST_CLIENT = 0.5
"""The same for the monitor and the other client."""
ENOUGH = 10
"""How many answers are looked at, at least."""
MOST_MEMORY = 300 * MIB
"""By how much the process may grow for one client."""


class Subject:
    """A running guest, a well-behaved client, and a monitor for others."""

    def __init__(self, directory: Path) -> None:
        self.rude = directory / "rude"
        words = [*boot_options(build("demo")), *agent_options(directory / "ga")]
        self.process = Process(directory, *words, "-qmp", f"unix:{self.rude},server=on,wait=off")
        self.agent = AgentClient(str(directory / "ga"))
        self.agent.wait(BOOT)

    def close(self) -> None:
        self.agent.close()
        self.process.close()

    def memory(self) -> int:
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    def work(self) -> float:
        """Return for how many seconds the process has had a processor."""
        times = Path(f"/proc/{self.process.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(60)
        until(lambda: client.connect_ex(str(self.rude)) == 0, "a connection")
        return client

    @contextlib.contextmanager
    def watched(self) -> Iterator[Callable[[], bool]]:
        """Ask the guest and the monitor all the time; they must answer soon, and the process must not grow much.

        Gives what says whether there have been enough answers.
        """
        qmp: QmpClient = self.process.qmp
        done = threading.Event()
        waits: dict[str, list[float]] = {"guest": [], "client": []}

        def measured(who: str, ask: Callable[[], object]) -> None:
            start, before = time.monotonic(), self.work()
            ask()
            waits[who].append(min(time.monotonic() - start, self.work() - before))

        def ask() -> None:
            while not done.is_set():
                measured("guest", self.agent.ping)
                measured("client", lambda: qmp.execute("query-status"))
                time.sleep(0.005)

        before = self.memory()
        watcher = threading.Thread(target=ask)
        watcher.start()
        try:
            yield lambda: len(waits["client"]) > ENOUGH
            grown = self.memory() - before
        finally:
            done.set()
            watcher.join(120)
        assert grown < MOST_MEMORY
        assert len(waits["client"]) > ENOUGH
        assert max(waits["guest"]) < LONGEST_GUEST
        assert max(waits["client"]) < LONGEST_CLIENT


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with tempfile.TemporaryDirectory(prefix="rc-") as directory:
        subject = Subject(Path(directory))
        try:
            yield subject
        finally:
            subject.close()


def message(command: str) -> bytes:
    return json.dumps({"execute": command}).encode() + b"\n"


def test_one_that_never_reads(subject: Subject) -> None:
    with subject.watched() as enough, subject.connect() as client:
        client.settimeout(SECONDS / 3)
        client.sendall(message("qmp_capabilities"))
        end = time.monotonic() + SECONDS
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end:
                client.sendall(message("query-qmp-schema") * 100)
        time.sleep(max(end - time.monotonic(), 0))
        until(enough, "answers to others")


def test_one_that_floods(subject: Subject) -> None:
    count = 0
    with subject.watched() as enough, subject.connect() as client, client.makefile("rb") as reader:
        client.sendall(message("qmp_capabilities"))
        stop = threading.Event()

        def send() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    client.sendall(message("query-status") * 200)

        sender = threading.Thread(target=send)
        sender.start()
        end = time.monotonic() + SECONDS
        try:
            while time.monotonic() < end or count <= 500 or not enough():  # it is served as well
                assert reader.readline()
                count += 1
        finally:
            stop.set()
            client.shutdown(socket.SHUT_RDWR)
            sender.join()


def test_ones_that_leave_in_the_middle(subject: Subject) -> None:
    halves = (
        b"",
        b"{",
        b'{"execute": "qmp_cap',
        message("qmp_capabilities") + b'{"execute": "query-qmp-schema"}\n{"a',
        b"\xff[",
    )
    count = 0
    with subject.watched() as enough:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or count <= 20 or not enough():
            with subject.connect() as client:
                client.sendall(halves[count % len(halves)])
                if count % 3 == 0:  # without a farewell, and with unread input
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            count += 1
    with subject.connect() as client, client.makefile("rb") as reader:
        assert b"QMP" in reader.readline()


@pytest.mark.parametrize(
    ("begin", "middle", "end", "complaint"),
    [
        (b'{"execute": "', b"x", b'"}', "JSON token size limit exceeded"),
        (b'{"execute": "query-name", "id": [', b"1,", b"1]}", "JSON token count limit exceeded"),
        (b"", b"[", b"", "JSON nesting depth limit exceeded"),
    ],
    ids=["string", "list", "nesting"],
)
def test_one_that_sends_64_mib(subject: Subject, begin: bytes, middle: bytes, end: bytes, complaint: str) -> None:
    piece = middle * (PIECE // len(middle))
    with subject.watched() as enough, subject.connect() as client, client.makefile("rb") as reader:
        assert b"QMP" in reader.readline()
        client.sendall(begin)
        stuck = threading.Event()

        def read() -> None:
            with contextlib.suppress(OSError):
                for line in reader:
                    if complaint.encode() in line:
                        stuck.set()

        listener = threading.Thread(target=read)
        listener.start()
        for _ in range(65 * MIB // PIECE):
            if stuck.is_set():
                break  # what follows is looked at as new messages, one for each number
            client.sendall(piece)
        client.sendall(end + b"\n")
        found = stuck.wait(60)
        until(enough, "answers to others")
        client.shutdown(socket.SHUT_RDWR)
        listener.join()
        assert found, complaint
