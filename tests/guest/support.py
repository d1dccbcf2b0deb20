"""What the tests with real guests share: machines in processes of their own, and waiting for what a guest does."""

from __future__ import annotations

import collections
import contextlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from images.build import Image
from pyvm import Machine
from pyvm.agent import AgentFailure
from pyvm.qmp_client import QmpClient
from tests.unit.listeners import listens

PYVM = (sys.executable, "-m", "pyvm")
BOOT = 120.0
"""Seconds that a guest may take to boot: a CI machine may have much else to do."""
SOON = 60.0
"""Seconds for what takes a guest less than one."""

COMPLAINTS = re.compile(
    r"(?i:firmware (bug|warn)|bios (bug|error)|ACPI.*\b(error|exception|warning)\b|call trace|oops|panic"
    r"|rcu:.*(stall|detected|INFO)|lockup|hung task|blocked for more than|general protection|unhandled|spurious"
    r"|irq.*nobody cared|do_IRQ|unexpected|unsynchronized|unstable|failed to get a good estimate"
    r"|(can't|cannot) (claim|allocate|reserve)|no compatible bridge|address space collision|resource sanity check"
    r"|MP-BIOS|IO-APIC.*not connected|timer doesn't work|mtrr:|x86/cpu:.*(invalid|mismatch)|microcode: (error|fail)"
    r"|i8042.*(can't|no controller|failed)|hpet.*(disabl|wrong)|rtc.*(lost|invalid|unable)"
    r"|virtio.*(error|fail|unable)|tainted:)|\bBUG\b|WARNING:",
)
"""What a kernel says when firmware or devices are not as they should be."""

Result = TypeVar("Result")


def agent_options(path: Path) -> list[str]:
    """Return the options of a port for the guest agent, with a socket at `path`."""
    return [
        *("-device", "virtio-serial-pci", "-chardev", f"socket,path={path},server=on,wait=off,id=ga0"),
        *("-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
    ]


def boot_options(image: Image, append: str = "") -> list[str]:
    """Return the options that boot a guest."""
    words = ["-m", "512", "-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    return [*words, "-append", f"{image.append} {append}".strip()]


def complaints(dmesg: str) -> list[str]:
    """Return the lines of a kernel's log that complain of the machine."""
    return [line for line in dmesg.splitlines() if COMPLAINTS.search(line)]


def until(question: Callable[[], Result], what: str, timeout: float = SOON) -> Result:
    """Ask until the answer is true, and return it; fails after `timeout` s."""
    end = time.monotonic() + timeout
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < end, f"{what}: not within {timeout} s; the last answer was {answer!r}"
        time.sleep(0.05)


def boot_id(vm: Machine) -> str:
    """Return what is different after each boot."""
    return vm.run("cat /proc/sys/kernel/random/boot_id").text


@contextlib.contextmanager
def rebooting(vm: Machine) -> Iterator[None]:
    """Fails unless what is done in the block makes the guest boot again, up to its agent."""
    before = boot_id(vm)
    vm.monitor.events()
    yield
    vm.wait_event("RESET", BOOT)
    deadline = time.monotonic() + BOOT
    while True:
        try:
            vm.agent.wait(deadline - time.monotonic())
            after = boot_id(vm)
        except AgentFailure:
            assert time.monotonic() < deadline, vm.console_tail
            continue
        # The agent of the system that is going down may have answered.
        if after != before:
            return


class Process:
    """pyvm as a process: what a person would type, with the QMP monitor and the console in files of `directory`."""

    def __init__(self, directory: Path, *arguments: str, qmp: bool = True, console: bool = True, **popen: Any) -> None:
        self.directory = directory
        self.console = directory / "console.log"
        self.qmp_path = directory / "qmp.sock"
        words = [*arguments]
        if console:
            words += ["-display", "none", "-serial", f"file:{self.console}"]
        if qmp:
            words += ["-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
        self.arguments = words
        popen = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        self.process = subprocess.Popen([*PYVM, *words], **popen)
        self._qmp: QmpClient | None = None
        self._qmp_log: collections.deque[str] = collections.deque()

    @property
    def command_line(self) -> str:
        return shlex.join(["pyvm", *self.arguments])

    @property
    def console_text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    @property
    def console_tail(self) -> str:
        return "\n".join(self.console_text.splitlines()[-25:])

    @property
    def qmp_log(self) -> list[str]:
        return list(self._qmp_log)

    @property
    def qmp(self) -> QmpClient:
        """A client of the monitor, connected when it is first asked for."""
        if self._qmp is None:
            until(lambda: listens(self.qmp_path) or self.process.poll() is not None, "the QMP socket")
            self._qmp = QmpClient.connect(str(self.qmp_path))
            self._qmp_log = self._qmp.log
        return self._qmp

    def end(self, timeout: float = SOON) -> tuple[int, str, str]:
        """Wait until the process has ended, and return its status and what it wrote."""
        out, error = self.process.communicate(timeout=timeout)
        return self.process.returncode, (out or b"").decode(), (error or b"").decode()

    def close(self) -> None:
        if self._qmp is not None:
            self._qmp.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
