"""The cycles: each function does one thing to a guest that works, and undoes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.agent_machine import PATIENCE, Session
from pyvm.agent import AgentFailure
from pyvm.agent import records as r

BLOCK = 128 << 20
"""What Linux plugs in and out at a time."""
FROZEN_SECONDS = 0.3
TRIES = 10
"""How often a guest is asked for memory that it could not free at once."""


@dataclass(frozen=True)
class Cycle:
    """One kind of cycle."""

    count: int
    """How many there are by default."""
    about: str
    run: Callable[[Session], None]


def _deleted(s: Session, name: str) -> None:
    while s.event("DEVICE_DELETED").get("device") != name:
        pass


def plug_cpu(s: Session) -> None:
    """A CPU comes, works, and goes."""
    free = next(slot for slot in s.qmp.execute("query-hotpluggable-cpus") if "qom-path" not in slot)
    s.qmp.execute("device_add", {"driver": free["type"], "id": "cpu", **free["props"]})
    before = len(s.agent.get_vcpus())

    def present() -> list[r.GuestLogicalProcessor]:
        return [cpu for cpu in s.agent.get_vcpus() if cpu.logical_id >= 2]

    assert s.until(present), f"no new CPU beside {before}"
    (cpu,) = present()
    s.agent.set_vcpus([r.GuestLogicalProcessor(cpu.logical_id, True)])
    assert s.until(lambda: s.shell("nproc") == "3"), "the new CPU is not used"
    assert s.shell(f"taskset {1 << cpu.logical_id:x} cut -d' ' -f39 /proc/self/stat") == str(cpu.logical_id)
    s.qmp.execute("device_del", {"id": "cpu"})
    _deleted(s, "cpu")
    assert s.until(lambda: s.shell("nproc") == "2"), "the CPU is still used"


def _came_first(s: Session, name: str, other: str) -> bool:
    """Wait for one of two events; return whether it was the first of them."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for event in s.qmp.events():
            if event["event"] in (name, other):
                return bool(event["event"] == name)
        time.sleep(0.1)
    raise AssertionError(f"neither {name} nor {other}")


def _total(s: Session) -> int:
    return int(s.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo"))


def plug_memory(s: Session) -> None:
    """Memory comes, is used, and goes."""
    before = _total(s)
    s.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "m", "size": BLOCK})
    s.qmp.execute("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "m"})

    def new() -> list[r.GuestMemoryBlock]:
        return [block for block in s.agent.get_memory_blocks() if block.phys_index >= 32]

    assert s.until(new), "no new memory"
    for block in new():
        s.shell(f"echo online_movable > /sys/devices/system/memory/memory{block.phys_index}/state || true")
    assert s.until(lambda: _total(s) - before == BLOCK >> 10), f"{_total(s) - before} KiB more"
    s.shell("dd if=/dev/zero of=/dev/shm/fill bs=1M count=64 status=none; rm /dev/shm/fill")
    s.qmp.events()
    for _ in range(TRIES):
        s.qmp.execute("device_del", {"id": "dimm"})
        if _came_first(s, "DEVICE_DELETED", "MEM_UNPLUG_ERROR"):
            break
        time.sleep(0.5)  # a page of it was in use for a moment, which Linux may say
    else:
        raise AssertionError("the guest does not let the memory go")
    assert s.until(lambda: _total(s) == before), f"{_total(s) - before} KiB are left"
    s.qmp.execute("object-del", {"id": "m"})


def sleep(s: Session) -> None:
    """Suspend to RAM, and wake."""
    before = s.boot_id()
    s.qmp.events()
    s.agent.suspend_ram()
    s.event("SUSPEND")
    assert s.until(lambda: s.qmp.execute("query-status")["status"] == "suspended")
    s.qmp.execute("system_wakeup")
    s.event("WAKEUP")
    s.back()
    assert s.boot_id() == before, "the guest has booted anew"


def freeze(s: Session) -> None:
    """Freeze the file system while there is much to be written, and thaw it."""
    assert s.agent.fsfreeze_freeze() >= 1
    assert s.agent.fsfreeze_status() == "frozen"
    time.sleep(FROZEN_SECONDS)
    assert s.agent.fsfreeze_thaw() >= 1
    assert s.agent.fsfreeze_status() == "thawed"


def hibernate(s: Session) -> None:
    """Suspend to disk; another emulator goes on."""
    before = s.boot_id()
    s.qmp.events()
    s.agent.suspend_disk(silence=0)
    s.event("SUSPEND_DISK")
    assert s.event("SHUTDOWN")["reason"] == "guest-shutdown"
    assert s.process is not None
    assert s.process.wait(PATIENCE) == 0
    s.restart()
    s.back()

    def resumed() -> bool:
        try:
            return s.boot_id() == before
        except AgentFailure:  # it asked the system that is gone
            return False

    assert s.until(resumed), "the guest has booted anew"


CYCLES = {
    "cpus": Cycle(20, "cycles of a CPU plugged in and out", plug_cpu),
    "memory": Cycle(20, "cycles of memory plugged in and out", plug_memory),
    "sleep": Cycle(50, "cycles of suspend-to-RAM", sleep),
    "freeze": Cycle(100, "cycles of file systems frozen and thawed", freeze),
    "hibernate": Cycle(5, "cycles of suspend-to-disk", hibernate),
}
