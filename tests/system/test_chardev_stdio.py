"""Standard input and output, in processes of their own: terminals, job control, pipes, files and sockets."""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.chardev.base import ChardevError
from pyvm.chardev.stdio import StdioChardev
from tests.unit.chardev_support import DEADLINE_SECONDS, running_loop

ROOT = Path(__file__).parents[2]

ECHO = """
import sys, termios
from pyvm.chardev.base import ChardevEvent
from pyvm.chardev.stdio import StdioChardev
from pyvm.clock import RunningClock
from pyvm.mainloop import MainLoop

class Echo:
    def can_receive(self): return 1000
    def receive(self, data):
        device.write(b"<" + data + b">")
        if b"q" in data: loop.stop()
        if b"!" in data: sys.exit("abrupt")
    def event(self, event):
        device.write(f"[{event.value}]".encode())
        if event is ChardevEvent.CLOSED: loop.stop()
    def writable(self): pass

loop = MainLoop(RunningClock())
device = StdioChardev("s", loop, signals="signals" in sys.argv)
device.attach(Echo())
loop.run()
if "leave" not in sys.argv: device.close()
"""

SHELL = """
import os, signal, sys, termios

def report(what):
    modes = termios.tcgetattr(0)
    os.write(1, b"\\n{%s echo=%d isig=%d}" % (what, bool(modes[3] & termios.ECHO), bool(modes[3] & termios.ISIG)))

os.login_tty(os.dup(0))
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while True:
    _, status = os.waitpid(child, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpid())
    if not os.WIFSTOPPED(status):
        break
    report(b"stopped")
    os.kill(child, signal.SIGCONT)      # goes on in the background ...
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    report(b"background")
    os.tcsetpgrp(0, child)              # ... and in the foreground
    os.kill(child, signal.SIGCONT)
report(b"ended")
"""


class Terminal:
    """A terminal with a small job-control shell on it that runs one command."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = os.openpty()
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", SHELL, "-c", ECHO, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)

    def expect(self, pattern: bytes) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := re.search(pattern, self.seen)):
            assert select.select([self.master], [], [], max(deadline - time.monotonic(), 0))[0], self.seen
            try:
                self.seen += os.read(self.master, 4096)
            except OSError:
                raise AssertionError(self.seen) from None
        self.seen = self.seen[found.end() :]

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def modes(self) -> int:
        local: int = termios.tcgetattr(self.master)[3]
        return local

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    made = Terminal(*getattr(request, "param", ()))
    yield made
    made.close()


def test_a_terminal_is_raw_and_restored(terminal: Terminal) -> None:
    terminal.expect(rb"\[opened\]")
    assert not terminal.modes() & (termios.ECHO | termios.ICANON | termios.ISIG)
    terminal.type(b"\x03\x1a\r")
    terminal.expect(rb"<\x03\x1a\r>")
    terminal.type(b"q")
    terminal.expect(rb"<q>\r?\n\{ended echo=1 isig=1\}")


@pytest.mark.parametrize("terminal", [("leave",)], indirect=True)
def test_a_terminal_is_restored_however_the_process_ends(terminal: Terminal) -> None:
    terminal.expect(rb"\[opened\]")
    terminal.type(b"!")
    terminal.expect(rb"\{ended echo=1 isig=1\}")


@pytest.mark.parametrize("terminal", [("leave",)], indirect=True)
def test_a_terminal_is_restored_without_close(terminal: Terminal) -> None:
    terminal.expect(rb"\[opened\]")
    terminal.type(b"q")
    terminal.expect(rb"\{ended echo=1 isig=1\}")


@pytest.mark.parametrize("terminal", [("signals",)], indirect=True)
def test_job_control(terminal: Terminal) -> None:
    terminal.expect(rb"\[opened\]")
    assert terminal.modes() & termios.ISIG
    for _ in range(2):
        terminal.type(b"\x1a")
        terminal.expect(rb"\{stopped echo=1 isig=1\}")
        terminal.expect(rb"\{background echo=1 isig=1\}")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while terminal.modes() & termios.ECHO:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        terminal.type(b"x")
        terminal.expect(rb"<x>")
    terminal.type(b"q")
    terminal.expect(rb"\{ended echo=1 isig=1\}")


def run_echo(stdin: int | object, stdout: int | object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ECHO], stdin=stdin, stdout=stdout, cwd=ROOT)  # type: ignore[call-overload]


def test_pipes_keep_their_mode_for_others(tmp_path: Path) -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    process = run_echo(in_read, out_write)
    assert os.read(out_read, 100) == b"[opened]"
    os.write(in_write, b"hello")
    assert os.read(out_read, 100) == b"<hello>"
    assert os.get_blocking(in_read)
    assert os.get_blocking(out_write)
    os.close(in_write)
    assert os.read(out_read, 100) == b"[closed]"
    assert process.wait(DEADLINE_SECONDS) == 0
    for fd in (in_read, out_read, out_write):
        os.close(fd)


def test_sockets_are_given_back_as_they_were() -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_SECONDS)
    process = run_echo(theirs.fileno(), theirs.fileno())
    assert ours.recv(100) == b"[opened]"
    assert not os.get_blocking(theirs.fileno())
    ours.sendall(b"q")
    assert ours.recv(100) == b"<q>"
    assert process.wait(DEADLINE_SECONDS) == 0
    assert os.get_blocking(theirs.fileno())
    ours.close()
    theirs.close()


def test_files_are_read_to_their_end_and_continued(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"content")
    target.write_bytes(b"before ")
    with source.open("rb") as stdin, target.open("ab") as stdout:
        assert run_echo(stdin, stdout).wait(DEADLINE_SECONDS) == 0
    assert target.read_bytes() == b"before [opened]<content>[closed]"


def test_no_input_at_all(tmp_path: Path) -> None:
    process = run_echo(subprocess.DEVNULL, subprocess.PIPE)
    output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert output == b"[opened][closed]"


def test_a_closed_descriptor_is_one_line() -> None:
    script = ECHO.replace("device = Stdio", "import os; os.close(0)\ndevice = Stdio", 1)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE_SECONDS, check=False
    )
    assert done.stderr.splitlines()[-1].endswith("ChardevError: cannot use stdio: Bad file descriptor")


def test_only_one_device_has_it() -> None:
    script = """
from pyvm.chardev.base import ChardevError
from pyvm.chardev.stdio import StdioChardev
from pyvm.clock import RunningClock
from pyvm.mainloop import MainLoop
loop = MainLoop(RunningClock())
first = StdioChardev("a", loop)
try:
    StdioChardev("b", loop)
except ChardevError as error:
    print(error)
first.close()
StdioChardev("c", loop).close()
print("again")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert done.stdout == "cannot use stdio by multiple character devices\nagain\n"


def test_the_name() -> None:
    with running_loop() as loop:
        try:
            device = StdioChardev("s", loop)
        except ChardevError:
            pytest.skip("pytest runs without standard input")
        assert device.filename == "stdio"
        device.close()
