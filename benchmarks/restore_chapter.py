"""Saved machines: from the start of a process to the first answer of the guest's agent, and what copies cost.

Each emulator restores its own: pyvm the folder that Machine.snapshot makes, QEMU a stream that `migrate` wrote, read by
``-incoming exec:cat``; both also a snapshot in a disk, with -loadvm.  What only pyvm has is measured for pyvm alone:
restoring and forking within a process, and the memory of ten processes with restored guests compared with that of one
whose guest has booted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chapter import Chapter, Measure, Metric, Sample, Setting
from benchmarks.machine import BenchmarkError, Emulator, Lines, booted, command_of, connect, stop

MEMORY = 512
GUESTS = 10
METRICS = (
    Metric("restore_answer", "saved machine: exec to the agent's answer", "s", absolute=0.25),
    Metric("loadvm_answer", "-loadvm: exec to the agent's answer", "s", relative=1.0),
    Metric("save_seconds", "saving a machine", "s", absolute=1.0),
    Metric("savevm_seconds", "savevm", "s", relative=1.0),
    Metric("restore_inside", "Machine.restore to the agent's answer", "s", absolute=0.1),
    Metric("fork_inside", "Machine.fork to the agent's answer", "s", absolute=0.05),
    Metric("ten_guests", f"memory of {GUESTS} restored guests, of one that booted", "x", absolute=2.0),
)
_BOOT = """
import sys
from pyvm import Machine

folder, *arguments = sys.argv[1:]
with Machine(*arguments) as vm:
    vm.wait_agent(180)
    vm.snapshot(folder)
"""
_INSIDE = """
import json, statistics, sys, time
from pyvm import Machine

folder, rounds = sys.argv[1], 7
figures = {"restore_inside": [], "fork_inside": []}
for _ in range(rounds):
    start = time.perf_counter()
    with Machine.restore(folder) as vm:
        vm.wait_agent()
        figures["restore_inside"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with vm.fork() as child:
            child.wait_agent()
            figures["fork_inside"].append(time.perf_counter() - start)
print(json.dumps({name: statistics.median(values) for name, values in figures.items()}))
"""
"""Measured in a process of its own, whose imports are done after the first round."""


def _qmp(directory: Path) -> tuple[str, str]:
    return "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"


def _monitor(process: subprocess.Popen[bytes], directory: Path) -> Lines:
    client = connect(directory / "qmp", process)
    client.settimeout(60)
    monitor = Lines(client)
    monitor.receive()
    monitor.ask("qmp_capabilities")
    return monitor


def _ask(monitor: Lines, command: str, **arguments: Any) -> Any:
    """Return what a command returns; events come in between."""
    monitor.send(command, **arguments)
    while "return" not in (answer := monitor.receive()):
        if "error" in answer:
            raise BenchmarkError(f"{command}: {answer['error']}")
    return answer["return"]


def _moved(monitor: Lines, uri: str) -> None:
    """Write the machine to a stream as fast as that goes."""
    _ask(monitor, "migrate-set-parameters", max_bandwidth=1 << 40)
    _ask(monitor, "migrate", uri=uri)
    while (status := _ask(monitor, "query-migrate").get("status")) != "completed":
        if status == "failed":
            raise BenchmarkError("the machine could not be saved in a stream")
        time.sleep(0.002)


def _start(emulator: Emulator, setting: Setting, directory: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    for name in ("ga", "port", "qmp"):
        (directory / name).unlink(missing_ok=True)
    command = command_of(emulator, setting.image, directory, MEMORY, options)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


def _ping(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Return when the agent has answered."""
    client = connect(directory / "ga", process)
    client.settimeout(60)
    agent = Lines(client)
    agent.ask("guest-ping")
    agent.close()


def _answer(emulator: Emulator, setting: Setting, directory: Path, options: Sequence[str]) -> float:
    """Return the seconds from the start of a process to the answer of the agent in it."""
    start = time.monotonic()
    process = _start(emulator, setting, directory, options)
    try:
        _ping(process, directory)
        return time.monotonic() - start
    finally:
        stop(process)


def _proportional_kib(process: subprocess.Popen[bytes]) -> int:
    """Return the memory of a process; what several share counts for each in part."""
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def _together(emulator: Emulator, setting: Setting, directory: Path, options: Sequence[str]) -> int:
    """Return the memory of several processes, whose guests have all answered, in KiB."""
    processes = []
    try:
        for number in range(GUESTS):
            own = directory / str(number)
            own.mkdir(exist_ok=True)
            processes.append(_start(emulator, setting, own, options))
            _ping(processes[-1], own)
        return sum(map(_proportional_kib, processes))
    finally:
        for process in processes:
            stop(process)


def _save(emulator: Emulator, setting: Setting, directory: Path, disk: Path) -> tuple[list[str], Sample]:
    """Boot a guest, and save it in both ways; return the words that restore it from what is no disk."""
    saved = directory / "saved"
    drive = ["-drive", f"file={disk},format=qcow2,if=virtio,id=disk"]
    with booted(emulator, setting.image, directory, MEMORY, options=[*drive, *_qmp(directory)]) as guest:
        monitor = _monitor(guest.process, directory)
        start = time.monotonic()
        _ask(monitor, "human-monitor-command", command_line="savevm booted")
        figures = {"savevm_seconds": time.monotonic() - start, "booted_kib": _proportional_kib(guest.process)}
        if emulator.name != "pyvm":
            start = time.monotonic()
            _moved(monitor, f"exec:cat > {saved}")
            figures["save_seconds"] = time.monotonic() - start
            return ["-incoming", f"exec:cat {saved}"], figures
        monitor.close()
    figures["save_seconds"] = _save_folder(emulator, setting, directory, saved, drive)
    return ["-incoming", f"file:{saved},disks=overlay"], figures


def _save_folder(emulator: Emulator, setting: Setting, directory: Path, saved: Path, drive: Sequence[str]) -> float:
    """Save the machine with the same command line in a folder, from Python; return the seconds that takes."""
    from pyvm import Machine

    words = command_of(emulator, setting.image, directory, MEMORY, [*drive, "-loadvm", "booted"])
    for name in ("ga", "port"):
        (directory / name).unlink(missing_ok=True)
    with Machine(*words[len(emulator.command) :], agent=False) as vm:
        vm.qmp("query-status")
        start = time.monotonic()
        vm.snapshot(saved)
        return time.monotonic() - start


def _prepare(setting: Setting) -> Measure:
    kept: dict[str, tuple[list[str], list[str], Sample]] = {}

    def saved(emulator: Emulator, directory: Path) -> tuple[list[str], list[str], Sample]:
        """Save the emulator's machine, once."""
        if emulator.name not in kept:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            disk = directory / "disk.qcow2"
            subprocess.run([*emulator.image_tool, "create", "-q", "-f", "qcow2", disk, "1G"], check=True)
            words, figures = _save(emulator, setting, directory, disk)
            drive = ["-drive", f"file={disk},format=qcow2,if=virtio,id=disk"]
            kept[emulator.name] = ([*drive, *words], [*drive, "-loadvm", "booted"], figures)
        return kept[emulator.name]

    def measure(emulator: Emulator) -> Sample:
        directory = setting.directory / f"restore-{emulator.name}"
        restore, loadvm, figures = saved(emulator, directory)
        sample = dict(figures)
        booted_kib = sample.pop("booted_kib")
        sample["restore_answer"] = _answer(emulator, setting, directory, restore)
        sample["loadvm_answer"] = _answer(emulator, setting, directory, loadvm)
        if emulator.name == "pyvm":
            sample["ten_guests"] = _together(emulator, setting, directory, restore) / booted_kib
            sample.update(_inside(setting, directory))
        return sample

    return measure


def _inside(setting: Setting, directory: Path) -> Sample:
    """Return the figures of machines within one process."""
    folder, image = directory / "plain", setting.image
    shutil.rmtree(folder, ignore_errors=True)
    words: list[str | Path] = [
        "-m",
        str(MEMORY),
        "-kernel",
        image.kernel,
        "-initrd",
        image.initrd,
        "-append",
        image.append,
    ]
    _python(_BOOT, folder, *words)
    sample: Sample = json.loads(_python(_INSIDE, folder))
    return sample


def _python(script: str, *arguments: str | Path) -> str:
    """Run a script in a process of its own, and return what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


CHAPTER = Chapter("restore", "saved machines: how soon they are back, and what they cost", METRICS, _prepare)
