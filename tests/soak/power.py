"""Puts the Debian disk guest through power and hot-plug cycles while it works, and shows what became of it.

    python -m tests.soak.power [--cpus 20] [--memory 20] [--sleep 50] [--freeze 100] [--hibernate 5]

A count of 0 leaves a kind of cycle out.  The guest compresses, writes and compares files all the time, and each cycle
ends with the question whether it still does.  In the end its file system and its image are checked.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.agent_machine import GUESTS, Session, running
from benchmarks.machine import Emulator
from tests.guest.disk_support import assert_clean
from tests.guest.support import complaints
from tests.soak.power_cycles import CYCLES
from tests.soak.power_load import Load

OPTIONS = (
    *("-m", "512,slots=4,maxmem=4G", "-smp", "2,maxcpus=4", "-display", "none"),
    *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
    *("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"),
)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak.power", description=(__doc__ or "").partition("\n")[0])
    for name, cycle in CYCLES.items():
        parser.add_argument(f"--{name}", type=int, default=cycle.count, metavar="N", help=cycle.about)
    command = f"{sys.executable} -m pyvm"
    parser.add_argument("--command", default=command, help="the emulator (pyvm); QEMU's command is good too")
    parser.add_argument("--directory", help="where the guest's disk lies meanwhile ($TMPDIR)")
    return parser.parse_args(words)


def _cycles(name: str, count: int, machine: Session, load: Load) -> bool:
    """Run one kind of cycle so many times; return whether all were good."""
    cycle = CYCLES[name]
    start = time.monotonic()
    for number in range(1, count + 1):
        try:
            cycle.run(machine)
            load.check()
        except Exception:  # noqa: BLE001 - whatever it is, the guest's last words belong to it
            _say(f"{name}: cycle {number} of {count} failed\n{traceback.format_exc()}")
            with contextlib.suppress(Exception):
                _say("the guest's last words:\n" + machine.shell("dmesg | tail -n 40"))
            return False
        _say(f"{name}: {number} of {count}, {time.monotonic() - start:.0f} s")
    return True


def _finish(machine: Session, load: Load) -> None:
    """Let the guest stop working and power off; raises AssertionError where something is wrong."""
    load.stop()
    wrong = complaints(machine.shell("dmesg"))
    machine.shell("touch /forcefsck; sync")
    machine.agent.shutdown("powerdown")
    assert machine.process is not None
    status = machine.process.wait(300)
    assert status == 0, f"the emulator ended with status {status}"
    assert wrong == [], "\n".join(wrong)


def main(words: Sequence[str] | None = None) -> int:
    """Run the cycles that the command line asks for; return 1 where one failed."""
    given = _arguments(words)
    good = True
    with tempfile.TemporaryDirectory(prefix="soak-", dir=given.directory) as name:
        directory = Path(name)
        emulator = Emulator("emulator", tuple(given.command.split()))
        _say(f"booting in {directory}")
        with running(emulator, GUESTS["disk"](), directory, OPTIONS) as machine:
            load = Load(machine)
            for cycle in CYCLES:
                good = good and _cycles(cycle, getattr(given, cycle), machine, load)
            if good:
                _say(f"the guest's work: {load.done()} rounds")
                _finish(machine, load)
        if good:
            assert_clean(directory / "system.qcow2")
            _say("the image is clean")
    _say("all good" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
