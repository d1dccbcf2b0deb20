"""The machine in which every command of the guest agent is tried, and what its steps ask of it.

The guest is the demo guest, or the Debian disk: an ordinary system with systemd, which boots from its own disk and has
its own swap area.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import Emulator
from images.build import Image, build
from images.disk import DiskImage, build_disk
from pyvm.agent import AgentClient, AgentError, AgentFailure
from pyvm.qmp_client import QmpClient, QmpFailure

PATIENCE = 300.0
"""Seconds for what a guest takes a few for; the host may have much else to do."""
_DISK_BYTES = 64 << 20
_SWAP_BYTES = 1 << 30
OPTIONS = (
    *("-m", "512,slots=2,maxmem=1G", "-smp", "2,maxcpus=3", "-display", "none"),
    *("-device", "virtio-serial-pci,addr=5"),
    *("-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
    *("-device", "virtio-blk-pci,addr=6,drive=d0,serial=DISK-1,discard=on"),
    *("-device", "virtio-blk-pci,addr=7,drive=d1,serial=SWAP-1"),
    *("-netdev", "user,id=n0", "-device", "virtio-net-pci,addr=8,netdev=n0,mac=52:54:00:12:34:56"),
)
"""What both emulators get, beside the guest itself and paths."""


@dataclass(frozen=True)
class GuestSystem:
    """A guest that has the agent."""

    title: str
    """What it is, for people."""
    packages: dict[str, str]
    boot: Callable[[Path], Sequence[str]]
    """Makes what the guest boots from in a directory, and returns the options that boot it."""
    systemd: bool = False
    """Whether it is an ordinary system, that also has swap of its own and resumes from there."""

    @property
    def agent_version(self) -> str:
        """Return the version of the agent, as its authors number it."""
        return self.packages["qemu-guest-agent"].partition(":")[2].partition("+")[0]


def demo_guest(image: Image) -> GuestSystem:
    """Return the demo guest, which the emulator boots with -kernel."""
    words = ("-kernel", str(image.kernel), "-initrd", str(image.initrd))
    append = f"{image.append} pyvm.resume=/dev/vdb"
    title = f"Debian's kernel {image.release} and Debian's agent, with busybox around them"
    return GuestSystem(title, image.packages, lambda directory: (*words, "-append", append))


def disk_guest(image: DiskImage) -> GuestSystem:
    """Return the Debian disk, of which each machine has a copy; it is behind IDE, so /dev/vd* are other disks."""

    def boot(directory: Path) -> Sequence[str]:
        copy = directory / "system.qcow2"
        shutil.copyfile(image.disk, copy)
        return ("-drive", f"file={copy},format=qcow2,if=ide")

    title = f"Debian 12 with systemd on a disk, kernel {image.release}"
    return GuestSystem(title, image.packages, boot, systemd=True)


GUESTS: dict[str, Callable[[], GuestSystem]] = {
    "demo": lambda: demo_guest(build("demo", quiet=True)),
    "disk": lambda: disk_guest(build_disk(quiet=True)),
}
"""What the guests are called, and what builds them."""
HEADINGS = {"demo": "The demo guest", "disk": "The Debian disk"}


@dataclass
class Session:
    """One machine that runs, with its agent and its monitor."""

    agent: AgentClient
    qmp: QmpClient
    restart: Callable[[], None]
    """Starts the machine anew, once it has ended."""
    system: GuestSystem | None = None
    process: subprocess.Popen[bytes] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """What an earlier step leaves for a later one."""

    def shell(self, line: str) -> str:
        """Run a line in the guest and return what it printed."""
        return self.agent.run(line, timeout=PATIENCE, check=True).text

    def refusal(self, action: Callable[[], Any]) -> str:
        """Do what the agent should refuse, and return its words."""
        try:
            return f"answers {action()!r}"
        except AgentError as error:
            return f"{error.error_class}: {error.desc}"

    def attempt(self, action: Callable[[], Any]) -> Any:
        """Do what the agent may leave unanswered; return None then."""
        try:
            return action()
        except AgentFailure:
            return None

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event of the monitor, and return its data."""
        found: dict[str, Any] = self.qmp.wait_event(name, timeout=PATIENCE).get("data", {})
        return found

    def until(self, question: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Ask until the answer is true or the time is over; return the last answer."""
        end = time.monotonic() + seconds
        while not (answer := question()) and time.monotonic() < end:
            time.sleep(0.1)
        return answer

    def back(self) -> None:
        """Wait until the agent answers again."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.agent.wait(PATIENCE / 10)
                return
            except AgentFailure:
                if time.monotonic() > end:
                    raise

    def boot_id(self) -> str:
        """Return what is another one after each boot."""
        return self.shell("cat /proc/sys/kernel/random/boot_id")


@contextmanager
def running(emulator: Emulator, system: GuestSystem, directory: Path, options: Sequence[str] = ()) -> Iterator[Session]:
    """Boot a guest up to its agent, whose port the `options` have a place for, and end it afterwards.

    Monitor, agent and console are sockets and a file in `directory`.
    """
    paths = {name: directory / name for name in ("ga", "qmp", "console")}
    command = [
        *emulator.command,
        *system.boot(directory),
        *("-serial", f"file:{paths['console']}", "-chardev", f"socket,path={paths['ga']},server=on,wait=off,id=ga0"),
        *("-qmp", f"unix:{paths['qmp']},server=on,wait=off"),
        *options,
    ]
    found: Session | None = None

    def start() -> None:
        assert found is not None
        with contextlib.suppress(QmpFailure, AttributeError):
            found.qmp.close()
        for name in ("ga", "qmp"):
            paths[name].unlink(missing_ok=True)
        found.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        found.agent.reconnect()
        found.agent.wait(PATIENCE)
        found.qmp = QmpClient.connect(str(paths["qmp"]))

    with AgentClient(str(paths["ga"]), PATIENCE) as agent:
        found = Session(agent, None, start, system)  # type: ignore[arg-type]
        found.notes["console"] = lambda: paths["console"].read_text(errors="replace")
        try:
            start()
            yield found
        finally:
            with contextlib.suppress(AttributeError):
                found.qmp.close()
            if found.process is not None:
                found.process.kill()
                found.process.wait()


@contextmanager
def session(emulator: Emulator, system: GuestSystem, directory: Path) -> Iterator[Session]:
    """Boot a guest in the machine of the table, with disks of its own in `directory`, and end it afterwards."""
    disks = {"d0": (directory / "disk", _DISK_BYTES, ",discard=unmap"), "d1": (directory / "swap", _SWAP_BYTES, "")}
    words: list[str] = []
    for name, (path, size, more) in disks.items():
        with path.open("wb") as file:
            file.truncate(size)
        words += ("-drive", f"if=none,id={name},file={path},format=raw{more}")
    with running(emulator, system, directory, [*words, *OPTIONS]) as found:
        yield found
