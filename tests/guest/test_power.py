"""Sleep and waking, watchdogs, panic and the generation identifier, by the drivers of a real kernel."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from images import debian
from images.build import Image, cache_directory
from images.modules import _decompressed as decompressed
from images.modules import module_name
from pyvm import Machine
from pyvm.agent import AgentFailure
from pyvm.api import MachineError
from tests.guest.conftest import GuestFactory
from tests.guest.support import BOOT, SOON, boot_id, complaints, until

GUARDS = (
    *("-device", "i6300esb,id=dog", "-device", "ib700,id=old-dog"),
    *("-device", "pvpanic", "-device", "pvpanic-pci", "-device", "vmgenid,id=life"),
)
SWAP_SIZE = 512 << 20
DRIVERS = ("i6300esb", "ib700wdt", "pvpanic", "pvpanic-pci", "pvpanic-mmio")


@pytest.fixture(scope="module")
def drivers(generic: Image) -> dict[str, bytes]:
    """Return drivers of the guest's kernel by their names; the guest does not have them all."""
    package, version = next(item for item in generic.packages.items() if item[0].startswith("linux-image-"))
    path = debian.Apt(cache_directory()).fetch(debian.Package(package, version, ()))
    places = tuple(f"/{name}.ko" for name in DRIVERS)
    found = debian.files(path, lambda path: any(place in path for place in places))
    return {module_name(file.path).replace("_", "-"): decompressed(file.path, file.data or b"") for file in found}


def insert(vm: Machine, drivers: dict[str, bytes], name: str, parameters: str = "") -> None:
    """Load a driver in the guest, anew where it was there."""
    vm.write_file(f"/tmp/{name}.ko", drivers[name])
    vm.run(f"rmmod {name} 2>/dev/null; insmod /tmp/{name}.ko {parameters}", SOON)


def sleep(vm: Machine) -> None:
    """Let the guest suspend itself to RAM."""
    vm.agent.suspend_ram()
    vm.wait_event("SUSPEND", SOON)


def status(vm: Machine) -> str:
    found: str = vm.qmp("query-status")["status"]
    return found


class TestSuspendToRam:
    def test_the_clock_wakes_the_guest(self, guest: GuestFactory) -> None:
        vm = guest(smp=2)
        before, seconds = boot_id(vm), 4
        while not self._sleeps_until(vm, seconds):
            seconds *= 2
            assert seconds < SOON
        assert boot_id(vm) == before
        assert "PM: suspend exit" in vm.run("dmesg").text
        assert vm.run("nproc").text.strip() == "2"
        assert complaints(vm.run("dmesg").text) == []

    @staticmethod
    def _sleeps_until(vm: Machine, seconds: int) -> bool:
        """Let the guest sleep until its clock wakes it; False if a busy host has made that come before the sleep."""
        start = int(vm.run("date +%s").text)
        vm.run(f"echo +{seconds} > /sys/class/rtc/rtc0/wakealarm")
        vm.agent.suspend_ram()
        try:
            vm.wait_event("SUSPEND", seconds + SOON / 4)
        except MachineError:
            return False
        try:
            vm.wait_event("WAKEUP", seconds + SOON / 4)
        except MachineError:
            vm.qmp("system_wakeup")
            vm.wait_event("WAKEUP", SOON)
            vm.wait_agent(SOON)
            return False
        vm.wait_agent(SOON)
        # The guest knows how long it has slept: its clock went on.
        assert int(vm.run("date +%s").text) - start >= seconds - 1
        return True

    def test_an_alarm_that_was_taken_back_does_not(self, guest: GuestFactory) -> None:
        vm = guest()
        vm.run("echo +2 > /sys/class/rtc/rtc0/wakealarm; echo 0 > /sys/class/rtc/rtc0/wakealarm")
        sleep(vm)
        with pytest.raises(Exception, match="WAKEUP"):
            vm.wait_event("WAKEUP", 2.5)
        vm.qmp("system_wakeup")
        vm.wait_agent(SOON)

    @pytest.mark.parametrize("input_event", ["key", "button"])
    def test_a_key_wakes_the_guest(self, guest: GuestFactory, input_event: str) -> None:
        vm = guest()
        before = boot_id(vm)
        sleep(vm)
        if input_event == "key":
            vm.qmp("send-key", keys=[{"type": "qcode", "data": "ctrl"}])
        else:
            vm.qmp("input-send-event", events=[{"type": "btn", "data": {"down": True, "button": "left"}}])
            if status(vm) == "suspended":  # a driver that lets its mouse sleep does not want to be woken by it
                vm.qmp("system_wakeup")
        vm.wait_event("WAKEUP", SOON)
        vm.wait_agent(SOON)
        assert boot_id(vm) == before

    def test_the_power_button_does_not_wake_it_as_under_qemu(self, guest: GuestFactory) -> None:
        vm = guest()
        sleep(vm)
        vm.qmp("system_powerdown")
        vm.wait_event("POWERDOWN", SOON)
        assert status(vm) == "suspended"
        for command in ("stop", "cont"):
            vm.qmp(command)
            assert status(vm) == "suspended"
        vm.qmp("system_wakeup")
        vm.wait_agent(SOON)

    def test_many_times(self, guest: GuestFactory) -> None:
        vm = guest(smp=2)
        before = boot_id(vm)
        for _ in range(5):
            sleep(vm)
            vm.qmp("system_wakeup")
            vm.wait_agent(SOON)
        assert boot_id(vm) == before
        assert complaints(vm.run("dmesg").text) == []


@pytest.fixture
def guarded(vm_factory: GuestFactory, generic: Image) -> Callable[[], Machine]:
    """Return a guest with Debian's kernel for real hardware, and with all that watches over it."""
    words: dict[str, Any] = {"kernel": str(generic.kernel), "initrd": str(generic.initrd), "m": 512}
    return lambda: vm_factory(*GUARDS, append=generic.append, wait_agent=True, fresh=False, **words)


class TestWatchdogs:
    @pytest.mark.parametrize(
        ("driver", "parameters", "other"),
        [("i6300esb", "heartbeat=5", "ib700wdt"), ("ib700wdt", "timeout=6", "i6300esb")],
    )
    def test_a_silent_guest_is_noticed(
        self, guarded: Callable[[], Machine], drivers: dict[str, bytes], driver: str, parameters: str, other: str
    ) -> None:
        vm = guarded()
        vm.run(f"rmmod {other} 2>/dev/null", check=False)
        insert(vm, drivers, driver, parameters)
        vm.qmp("watchdog-set-action", action="pause")
        # Patted in time it keeps quiet, and when it was stopped.
        vm.run(
            "exec 3> /dev/watchdog; for i in 1 2 3 4 5 6; do sleep 1.2; echo . >&3; done; echo V >&3; exec 3>&-", SOON
        )
        assert "WATCHDOG" not in [event["event"] for event in vm.monitor.events()]
        vm.agent.exec("/bin/sh", ["-c", "exec 3> /dev/watchdog; sleep 1000"])
        assert vm.wait_event("WATCHDOG", SOON)["data"] == {"action": "pause"}
        vm.wait_event("STOP", SOON)
        assert status(vm) == "watchdog"

    def test_an_nmi(self, guarded: Callable[[], Machine], drivers: dict[str, bytes]) -> None:
        vm = guarded()
        vm.qmp("watchdog-set-action", action="inject-nmi")
        before = vm.run("grep NMI: /proc/interrupts").text
        insert(vm, drivers, "i6300esb", "heartbeat=2")
        vm.agent.exec("/bin/sh", ["-c", "exec 3> /dev/watchdog; sleep 1000"])
        vm.wait_event("WATCHDOG", SOON)
        until(lambda: vm.run("grep NMI: /proc/interrupts").text != before, "an NMI")


class TestPanic:
    @pytest.mark.parametrize("driver", ["pvpanic-mmio", "pvpanic-pci"])
    def test_a_panic_is_told(self, guarded: Callable[[], Machine], drivers: dict[str, bytes], driver: str) -> None:
        vm = guarded()
        insert(vm, drivers, "pvpanic")
        insert(vm, drivers, driver)
        vm.qmp("set-action", panic="pause")
        vm.agent.exec("/bin/sh", ["-c", "sleep 1; echo c > /proc/sysrq-trigger"])
        assert vm.wait_event("GUEST_PANICKED", SOON)["data"] == {"action": "pause"}
        vm.wait_event("STOP", SOON)
        assert status(vm) == "guest-panicked"


class TestGenerationId:
    def test_a_restored_guest_is_told(self, guarded: Callable[[], Machine]) -> None:
        def notices(vm: Machine) -> int:
            return int(vm.run("cat /sys/firmware/acpi/interrupts/gpe05").text.split()[0])

        first = guarded()
        second = guarded()
        assert second.qmp("query-vm-generation-id") != first.qmp("query-vm-generation-id")
        assert "vmgenid" in second.run("readlink /sys/bus/acpi/devices/QEMUVGID:00/driver").text
        until(lambda: notices(second), "the event")


def test_a_halted_guest_stays(guest: GuestFactory) -> None:
    vm = guest()
    vm.monitor.events()
    vm.agent.shutdown("halt", silence=1.0)
    vm.wait_console("reboot: System halted", SOON)
    assert status(vm) == "running"
    assert not {"SHUTDOWN", "RESET", "STOP"} & {event["event"] for event in vm.monitor.events()}


def test_the_clock_of_the_machine(guest: GuestFactory) -> None:
    """The agent sets the system's clock and the machine's, and monitors are told."""
    vm = guest()
    later = time.time_ns() + 3600 * 10**9
    vm.agent.set_time(later)
    offset = vm.wait_event("RTC_CHANGE", SOON)["data"]["offset"]
    assert 3590 <= offset <= 3700
    assert abs(vm.agent.get_time() - later) < SOON * 10**9
    assert vm.qmp("rtc-reset-reinjection") == {}


def make_swap(path: Path) -> None:
    """Make a disk that is a swap area: version 1 of Linux, pages of 4 KiB."""
    with path.open("wb") as file:
        file.truncate(SWAP_SIZE)
        file.seek(1024)
        file.write(struct.pack("<II", 1, SWAP_SIZE // 4096 - 1))
        file.seek(4096 - 10)
        file.write(b"SWAPSPACE2")


def test_suspend_to_disk(boot: GuestFactory, tmp_path: Path) -> None:
    """The guest writes itself to its swap area; another machine with the same disk goes on from there."""
    make_swap(tmp_path / "swap")
    drive = ("-drive", f"file={tmp_path / 'swap'},format=raw,if=virtio")
    vm = boot(*drive, smp=2)
    before = boot_id(vm)
    vm.run("swapon /dev/vda && echo kept > /tmp/kept")
    vm.agent.suspend_disk(silence=SOON)
    vm.wait_event("SUSPEND_DISK", SOON)
    assert vm.wait_event("SHUTDOWN", SOON)["data"] == {"guest": True, "reason": "guest-shutdown"}
    vm.wait(SOON)
    second = boot(*drive, smp=2)
    second.agent.exec("/bin/sh", ["-c", "cat /sys/block/vda/dev > /sys/power/resume"])

    def resumed() -> bool:
        try:
            return boot_id(second) == before
        except AgentFailure:  # it asked the kernel that is gone
            return False

    until(resumed, "the guest of before", BOOT)
    assert second.run("cat /tmp/kept; nproc").text == "kept\n2"
    assert complaints(second.run("dmesg").text) == []
