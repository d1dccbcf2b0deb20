"""A machine that has ended holds nothing of the host any more, before the garbage collector has looked at it."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.api import Machine
from pyvm.errors import ConfigError

BARE = ("-S", "-display", "none", "-nodefaults", "-m", "32")
EVERYTHING = (
    *("-vga", "std", "-device", "virtio-serial-pci", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"),
    *("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n", "-object", "iothread,id=io"),
    *("-drive", "if=none,id=d,file=null-co://,format=raw", "-device", "virtio-blk-pci,drive=d,iothread=io"),
    *("-fda", "null-co://", "-cdrom", "null-co://"),
)


def held() -> Counter[str]:
    """Return what files this process has open, and mapped, by their names."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[f"open {os.readlink(f'/proc/self/fd/{name}').partition(':[')[0]}"] += 1
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) > 5 and "memfd:" in words[5]:
            first, _, last = words[0].partition("-")
            found[f"mapped {words[5].strip()}"] += int(last, 16) - int(first, 16)
    return found


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["bare", "everything"])
def test_a_stopped_machine_holds_nothing(options: tuple[str, ...]) -> None:
    kept, found = [], []
    for _ in range(3):
        with Machine(*BARE, *options, agent=bool(options)) as machine:
            machine.qmp("query-status")
        kept.append(machine)
        found.append(held())
    assert found[2] - found[0] == Counter()  # what the first one loaded stays: libraries


def test_a_machine_that_ended_by_itself_holds_nothing() -> None:
    found = []
    for _ in range(2):
        machine = Machine(*BARE, "-vga", "std").start()
        machine.quit()
        machine.wait()
        machine.stop()
        found.append(held())
    assert found[1] - found[0] == Counter()


def test_a_machine_that_could_not_be_made_holds_nothing() -> None:
    found = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="Can't create IDE unit 7"):
            Machine(*BARE, *EVERYTHING, "-device", "ide-cd,unit=7").start()
        found.append(held())
    assert found[1] - found[0] == Counter()


@pytest.mark.parametrize("capability", ["multifd", "xbzrle"])
def test_machines_that_one_moved_between_hold_nothing(tmp_path: Path, capability: str) -> None:
    found = []
    machine = Machine(*BARE, "-vga", "std").start()
    for _ in range(3):
        uri = f"unix:{tmp_path}/move"
        target = Machine(*BARE, "-vga", "std", "-incoming", uri).start()
        for each in (machine, target):
            each.qmp("migrate-set-capabilities", capabilities=[{"capability": capability, "state": True}])
        machine.qmp("migrate", uri=uri)
        while (status := machine.qmp("query-migrate")["status"]) != "completed":
            assert status != "failed"
            time.sleep(0.01)
        machine.stop()
        machine = target
        found.append(held())
    machine.stop()
    assert found[2] - found[0] == Counter()
