"""The events of power, watchdogs and panic beside QEMU's: boot sectors do what a guest's kernel would."""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyvm.records import record

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")

SECTOR = 512
PATIENCE = 60.0
"""Seconds for what an emulator does at once when it has nothing else to do."""
QUIET = 1.2
"""Seconds without a message after which a conversation goes on: an alarm that comes each second would have come."""
WORKERS = 6
"""Conversations at once; they do little but wait."""

Message = dict[str, Any]


def out_byte(port: int, value: int) -> bytes:
    return b"\xba" + port.to_bytes(2, "little") + bytes((0xB0, value, 0xEE))


def out_word(port: int, value: int) -> bytes:
    return b"\xba" + port.to_bytes(2, "little") + b"\xb8" + value.to_bytes(2, "little") + b"\xef"


def cmos(index: int, value: int) -> bytes:
    return out_byte(0x70, index) + out_byte(0x71, value)


HALT = b"\xfa\xf4\xeb\xfc"
IDLE = b"\xfb\xf4\xeb\xfd"
PM1_ENABLE, PM1_CONTROL, SLEEP = 0x602, 0x604, 0x2001
S5, S4, S3 = (out_word(PM1_CONTROL, SLEEP | kind << 10) + HALT for kind in (0, 2, 1))
ALARM_EACH_SECOND = cmos(1, 0xC0) + cmos(3, 0xC0) + cmos(5, 0xC0) + cmos(0x0B, 0x22)
PANIC, CRASH_KERNEL = (out_byte(0x505, value) + HALT for value in (1, 2))
WATCHDOG = out_byte(0x443, 14) + IDLE
"""For two seconds."""


@record(frozen=True)
class Case:
    """What a guest does, the event by which one sees that, and what a client wants then."""

    code: bytes
    first: str | None
    options: tuple[str, ...] = ()
    commands: tuple[str | Message, ...] = ()
    last: str | None = None
    """The event that ends the conversation: what follows is a matter of the firmware."""


def _action(first: str, code: bytes, device: str, *options: str) -> Case:
    return Case(code, first, ("-device", device, *options), ("query-status",))


PROBE: Message = {"execute": "query-name", "id": "probe"}
KEY: Message = {"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": "a"}]}}
CASES: dict[str, Case] = {
    "soft off": Case(S5, "SHUTDOWN"),
    "soft off, the process stays": Case(S5, "SHUTDOWN", ("-no-shutdown",), ("query-status",)),
    "disk": Case(S4, "SUSPEND_DISK"),
    "disk, the process stays": Case(S4, "SUSPEND_DISK", ("-no-shutdown",), ("query-status",)),
    "system_wakeup": Case(S3, "SUSPEND", (), ("query-status", "system_wakeup"), "WAKEUP"),
    "a key": Case(S3, "SUSPEND", (), (KEY,), "WAKEUP"),
    "an alarm": Case(out_word(PM1_ENABLE, 0x400) + ALARM_EACH_SECOND + S3, "SUSPEND", last="WAKEUP"),
    "an alarm that is not to wake": Case(
        out_word(PM1_ENABLE, 0) + ALARM_EACH_SECOND + S3, "SUSPEND", (), ("query-status",)
    ),
    "asleep, all else": Case(
        out_word(PM1_ENABLE, 0x100) + S3, "SUSPEND", (),
        ("stop", "query-status", "cont", "system_powerdown", "query-status", "quit"),
    ),
    "asleep, reset": Case(S3, "SUSPEND", (), ("system_reset", "query-status")),
    "awake": Case(HALT, None, (), ("query-current-machine", "system_wakeup")),
    "crash kernel": _action("GUEST_CRASHLOADED", CRASH_KERNEL, "pvpanic"),
    "panic": _action("GUEST_PANICKED", PANIC, "pvpanic"),
    "panic, the process stays": _action("GUEST_PANICKED", PANIC, "pvpanic", "-no-shutdown"),
    "panic exit-failure": _action("GUEST_PANICKED", PANIC, "pvpanic", "-action", "panic=exit-failure"),
    "panic exit-failure, the process stays": _action(
        "GUEST_PANICKED", PANIC, "pvpanic", "-no-shutdown", "-action", "panic=exit-failure"
    ),
    "panic none": _action("GUEST_PANICKED", PANIC, "pvpanic", "-action", "panic=none"),
    "watchdog, no reboot": _action("WATCHDOG", WATCHDOG, "ib700", "-no-reboot"),
    **{
        f"watchdog {action}": _action("WATCHDOG", WATCHDOG, "ib700", "-watchdog-action", action)
        for action in ("shutdown", "poweroff", "pause", "inject-nmi")
    },
}  # fmt: skip


class Conversation:
    """One run of a case: all messages from the start of the guest, and the exit status where the process ended."""

    def __init__(self, emulator: list[str], directory: Path, case: Case) -> None:
        self.heard: list[Message] = []
        self.status: int | None = None
        self._case = case
        self._rest = b""
        directory.mkdir()
        disk, path = directory / "disk", directory / "qmp"
        disk.write_bytes(case.code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa" + bytes(2047 * SECTOR))
        words = [*emulator, "-display", "none", "-m", "64", "-drive", f"file={disk},format=raw,if=ide", "-S"]
        words += ["-qmp", f"unix:{path},server=on,wait=off", *case.options]
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                with self._connect(path) as self._socket:
                    ended = self._talk()
                if ended:
                    self.status = process.wait(PATIENCE)
            finally:
                process.kill()

    @staticmethod
    def _connect(path: Path) -> socket.socket:
        end = time.monotonic() + PATIENCE
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
            except OSError:
                connection.close()
                assert time.monotonic() < end, "the emulator does not listen"
                time.sleep(0.05)
            else:
                return connection

    def _talk(self) -> bool:
        """Return whether the emulator ended the conversation."""
        self._socket.settimeout(PATIENCE)
        self._send("qmp_capabilities")
        self._send("cont")
        case, last = self._case, self._case.last
        if case.first is not None and not self._listen(case.first):
            return True
        if last is not None and not case.commands:
            return not self._listen(last)
        for command in (None, *case.commands):
            if command is not None:
                self._send(command)
            if last is not None and command is case.commands[-1]:
                return not self._listen(last)
            if not self._listen(None):
                return True
        return False

    def _send(self, command: str | Message) -> None:
        message = {"execute": command} if isinstance(command, str) else command
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self, until: str | None) -> bool:
        """Take messages up to an event, or until it is quiet; return False at the end of the conversation.

        A busy host makes quiet as well: what counts is that the emulator then still answers.
        """
        end = time.monotonic() + PATIENCE
        probed = False
        while time.monotonic() < end:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                message = json.loads(line)
                message.pop("timestamp", None)
                if message.get("id") == PROBE["id"]:
                    return True
                if "QMP" not in message:
                    self.heard.append(message)
                if until is not None and message.get("event") == until:
                    return True
            if until is None and not probed and not select.select([self._socket], [], [], QUIET)[0]:
                self._send(PROBE)
                probed = True
            try:
                data = self._socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return False
            self._rest += data
        raise AssertionError(f"{until} did not come; there were {self.heard}")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Future[Conversation]]]:
    """Have all conversations with both emulators, several at once; each result can be waited for."""
    directory = tmp_path_factory.mktemp("power")
    emulators = {"theirs": [str(QEMU)], "ours": [sys.executable, "-m", "pyvm"]}
    with ThreadPoolExecutor(WORKERS) as pool:
        yield {
            (name, side): pool.submit(Conversation, emulator, directory / f"{number}-{side}", case)
            for number, (name, case) in enumerate(CASES.items())
            for side, emulator in emulators.items()
        }


@pytest.mark.parametrize("name", list(CASES))
def test_same_events(conversations: dict[tuple[str, str], Future[Conversation]], name: str) -> None:
    theirs, ours = (conversations[name, side].result(5 * PATIENCE) for side in ("theirs", "ours"))
    assert ours.heard == theirs.heard
    assert ours.status == theirs.status
    assert {"event": "RESUME"} in ours.heard
