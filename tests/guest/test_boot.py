"""Debian's kernel comes up with 1, 2 and 4 CPUs, finds nothing to complain of, and its life cycle is the machine's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import Image
from pyvm import Machine
from pyvm.agent import AgentClient
from pyvm.pytest_plugin import unwatch
from tests.guest.conftest import GuestFactory, ProcessFactory
from tests.guest.support import BOOT, SOON, agent_options, boot_id, boot_options, complaints, rebooting, until


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1cpu", "2cpus", "4cpus"])
def vm(request: pytest.FixtureRequest, boot_shared: GuestFactory) -> Iterator[Machine]:
    vm = boot_shared(smp=request.param, device=["virtio-rng-pci", "virtio-balloon-pci"])
    yield vm
    vm.stop()
    unwatch(request.node, [vm])


@pytest.fixture
def cpus(request: pytest.FixtureRequest) -> int:
    count = request.node.callspec.params["vm"]
    assert isinstance(count, int)
    return count


def interrupts(vm: Machine) -> dict[str, list[int]]:
    """Return how often each CPU has taken each interrupt, by the name or number in /proc/interrupts."""
    lines = vm.run("cat /proc/interrupts").text.splitlines()
    count = len(lines[0].split())
    rows = [line.split() for line in lines[1:]]
    return {row[0].rstrip(":"): [int(word) for word in row[1 : 1 + count] if word.isdigit()] for row in rows}


class TestGuest:
    """One guest for each number of CPUs."""

    def test_cpus_are_online(self, vm: Machine, cpus: int) -> None:
        assert vm.run("nproc").text == str(cpus)
        assert vm.run("cat /sys/devices/system/cpu/online").text == ("0" if cpus == 1 else f"0-{cpus - 1}")
        assert vm.run("cat /sys/devices/system/cpu/present").text == ("0" if cpus == 1 else f"0-{cpus - 1}")
        assert sorted(vcpu.logical_id for vcpu in vm.agent.get_vcpus() if vcpu.online) == list(range(cpus))
        assert len(vm.qmp("query-cpus-fast")) == cpus

    def test_kernel_complains_of_nothing(self, vm: Machine) -> None:
        dmesg = vm.run("dmesg").text
        assert "Run /init as init process" in dmesg
        assert complaints(dmesg) == []
        # ACPI and Machine Check leave nothing behind that only a higher log level shows.
        assert vm.run("dmesg -r | grep -E '^<[0-2]>' || true").text == ""
        assert vm.run("cat /proc/sys/kernel/tainted").text == "0"

    def test_memory_is_all_there(self, vm: Machine) -> None:
        ranges = re.findall(r"BIOS-e820: \[mem (0x\w+)-(0x\w+)\] usable", vm.run("dmesg").text)
        usable = sum(int(end, 16) + 1 - int(start, 16) for start, end in ranges)
        assert 512 << 20 > usable > (512 << 20) - (1 << 20)

    def test_every_cpu_works_and_takes_interrupts(self, vm: Machine, cpus: int) -> None:
        before = interrupts(vm)
        for cpu in range(cpus):
            script = "i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; cut -d ' ' -f 39 /proc/self/stat; sleep 0.1"
            assert vm.run(["taskset", "-c", str(cpu), "sh", "-c", script]).text == str(cpu)
        after = interrupts(vm)
        assert all(new > old for new, old in zip(after["LOC"], before["LOC"], strict=True))
        if cpus > 1:
            assert all(count > 0 for count in after["RES"]), after["RES"]
            assert all(count > 0 for count in after["CAL"]), after["CAL"]
        for name in ("ERR", "MIS", "SPU", "NMI"):
            assert sum(after[name]) == 0, (name, after[name])

    def test_interrupts_of_devices_arrive(self, vm: Machine) -> None:
        text = vm.run("cat /proc/interrupts").text
        for name in ("timer", "i8042", "ttyS0", "rtc0", "virtio.*-virtqueues"):
            (line,) = re.findall(rf"^.* {name}$", text, re.MULTILINE)[:1]
            if name != "rtc0":
                assert sum(int(word) for word in line.split()[1:] if word.isdigit()) > 0, line
        assert re.search(r"9:.*IO-APIC +9-fasteoi +acpi", text)
        assert re.search(r"PCI-MSI.*virtio\d-", text)

    def test_clock_source_is_the_tsc(self, vm: Machine) -> None:
        # The kernel makes sure of the TSC's frequency in the first seconds.
        def current() -> bool:
            return vm.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").text == "tsc"

        until(current, "clock source tsc")
        available = vm.run("cat /sys/devices/system/clocksource/clocksource0/available_clocksource").text
        assert {"tsc", "hpet", "acpi_pm"} <= set(available.split())

    def test_time_advances_as_on_the_host(self, vm: Machine) -> None:
        def look() -> tuple[int, int, int]:
            """Return the guest's time, and the host's before and behind it."""
            return time.time_ns(), vm.agent.get_time(), time.time_ns()

        early, guest, late = look()
        # The guest takes whole seconds from the RTC as it boots.
        assert abs(guest - late) < 5e9
        vm.run("sleep 2")
        later_early, later_guest, later_late = look()
        assert later_early - late - 0.1e9 < later_guest - guest < later_late - early + 0.1e9
        uptime = [float(vm.run("cut -d ' ' -f 1 /proc/uptime").text) for _ in range(2)]
        assert uptime[1] >= uptime[0] > 2

    def test_sleeps_are_as_long_as_they_should_be(self, vm: Machine) -> None:
        script = (
            "a=$(cut -d ' ' -f 1 /proc/uptime); for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done;"
            "echo $a; cut -d ' ' -f 1 /proc/uptime"
        )

        def at_once() -> bool:
            """A busy host may be late now and then."""
            start, end = map(float, vm.run(script).text.split())
            assert end - start >= 0.5
            return end - start < 3

        until(at_once, "ten short sleeps")

    def test_stopped_guest_has_stopped_time(self, vm: Machine) -> None:
        start = time.monotonic()
        before = float(vm.run("cut -d ' ' -f 1 /proc/uptime").text)
        vm.pause()
        assert vm.qmp("query-status") == {"running": False, "singlestep": False, "status": "paused"}
        time.sleep(3)
        vm.resume()
        assert vm.qmp("query-status")["running"] is True
        after = float(vm.run("cut -d ' ' -f 1 /proc/uptime").text)
        assert after - before < time.monotonic() - start - 2.5
        vm.agent.set_time(time.time_ns())

    def test_pci_devices_have_drivers(self, vm: Machine) -> None:
        script = (
            "cd /sys/bus/pci/devices; for d in *; do "
            'echo "$d $(cat $d/vendor):$(cat $d/device) $(cat $d/class) '
            '$(basename "$(readlink $d/driver)")"; done'
        )
        devices = [line.split(" ") for line in vm.run(script).text.splitlines()]
        assert [device[:3] for device in devices[:4]] == [
            ["0000:00:00.0", "0x8086:0x1237", "0x060000"],
            ["0000:00:01.0", "0x8086:0x7000", "0x060100"],
            ["0000:00:01.1", "0x8086:0x7010", "0x010180"],
            ["0000:00:01.3", "0x8086:0x7113", "0x068000"],
        ]
        virtio = [device for device in devices if device[1].startswith("0x1af4")]
        assert sorted(device[1][7:] for device in virtio) == ["0x1002", "0x1003", "0x1005"]
        assert {device[3] for device in virtio} == {"virtio-pci"}
        drivers = vm.run("cd /sys/bus/virtio/devices; for d in *; do basename $(readlink $d/driver); done").text
        assert sorted(drivers.splitlines()) == ["virtio_balloon", "virtio_console", "virtio_rng"]

    def test_platform_devices_have_drivers(self, vm: Machine) -> None:
        assert vm.run("cat /sys/class/rtc/rtc0/name").text.startswith("rtc_cmos")
        assert vm.run("cat /sys/bus/serio/devices/serio0/description").text == "i8042 KBD port"
        assert "ACPI: button: Power Button [PWRF]" in vm.run("dmesg").text
        assert "ttyS0" in vm.run("cat /sys/class/tty/console/active").text
        ports = vm.run("cat /proc/ioports").text
        for name in ("ACPI PM1a_EVT_BLK", "ACPI PM_TMR", "ACPI GPE0_BLK", "rtc0", "serial", "PCI conf1", "fpu"):
            assert name in ports, name
        memory = vm.run("cat /proc/iomem").text
        for name in ("HPET 0", "IOAPIC 0", "Local APIC", "System RAM", "PCI Bus 0000:00"):
            assert name in memory, name

    def test_rtc_is_read_and_set(self, vm: Machine) -> None:
        def shows_the_time_of_the_host(early: float) -> bool:
            shown = int(vm.run("cat /sys/class/rtc/rtc0/since_epoch").text)
            return early - 3 < shown < time.time() + 3

        assert shows_the_time_of_the_host(time.time())
        vm.monitor.events()
        vm.run("date -u -s '2031-02-03 04:05:06' && hwclock -w -u")
        vm.wait_event("RTC_CHANGE", SOON)
        assert vm.run("cat /sys/class/rtc/rtc0/date").text == "2031-02-03"
        assert vm.run("cat /sys/class/rtc/rtc0/time").text.startswith("04:05:")
        now = time.time()
        vm.agent.set_time(time.time_ns())
        assert shows_the_time_of_the_host(now)

    def test_rtc_alarm_comes(self, vm: Machine) -> None:
        before = sum(interrupts(vm)["8"])
        vm.run("echo +2 > /sys/class/rtc/rtc0/wakealarm")
        until(lambda: sum(interrupts(vm)["8"]) > before, "the RTC's alarm")

    def test_processes_are_scheduled_on_all_cpus(self, vm: Machine, cpus: int) -> None:
        # More work than CPUs, with pipes and signals between: what a scheduler and its IPIs are for.
        script = "for i in 1 2 3 4 5 6 7 8; do (seq 2000 | md5sum) & done; wait"
        sums = vm.run(script, SOON).text.splitlines()
        assert len(sums) == 8
        assert len(set(sums)) == 1
        assert len([row for row in vm.agent.get_cpustats() if row.user + row.system > 0]) == cpus


class TestLife:
    """What ends a guest or starts it again."""

    @pytest.mark.slow
    def test_reboots(self, guest: GuestFactory) -> None:
        vm = guest(smp=2)
        with rebooting(vm):
            vm.reset()
        with rebooting(vm):
            vm.agent.shutdown("reboot", silence=0.2)
        with rebooting(vm):
            vm.console_write("echo b > /proc/sysrq-trigger\n")
        assert vm.run("nproc").text == "2"
        assert complaints(vm.run("dmesg").text) == []

    @pytest.mark.parametrize(("how", "guest"), [("t", True), ("k", True), ("p", True), ("a", True)])
    def test_every_way_of_resetting_resets(self, boot: GuestFactory, how: str, guest: bool) -> None:
        """Triple fault, keyboard controller, PCI reset register, ACPI reset register."""
        vm = boot("-no-reboot", append=f"reboot={how}")
        vm.console_write("reboot -f\n")
        event = vm.wait_event("SHUTDOWN", SOON)
        assert event["data"] == {"guest": guest, "reason": "guest-reset"}
        vm.wait(SOON)

    def test_power_off_in_the_guest_ends_the_process(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        socket = tmp_path / "ga.sock"
        process = pyvm(*boot_options(demo), *agent_options(socket))
        with AgentClient(str(socket)).wait(BOOT) as agent:
            qmp = process.qmp
            agent.shutdown()
            event = qmp.wait_event("SHUTDOWN", timeout=SOON)
            assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
        assert process.end() == (0, "", "")

    def test_power_button_is_pressed(self, guest: GuestFactory) -> None:
        vm = guest(smp=2)
        before = sum(interrupts(vm)["9"])
        # The guest's acpid switches off; what it is told to do instead shows that it was the button.
        vm.run("printf '#!/bin/sh\\necho pressed > /tmp/button\\n' > /etc/acpi/PWRF/00000080")
        vm.powerdown()
        vm.wait_event("POWERDOWN")
        until(lambda: vm.run("cat /tmp/button", check=False).text == "pressed", "the power button's handler")
        assert sum(interrupts(vm)["9"]) > before
        vm.run("printf '#!/bin/sh\\nexec poweroff\\n' > /etc/acpi/PWRF/00000080")
        vm.powerdown()
        event = vm.wait_event("SHUTDOWN", SOON)
        assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
        vm.wait(SOON)

    def test_halted_guest_stays(self, guest: GuestFactory) -> None:
        vm = guest()
        vm.agent.shutdown("halt")
        vm.wait_console("System halted", SOON)
        assert vm.qmp("query-status")["running"] is True
        assert "SHUTDOWN" not in [event["event"] for event in vm.monitor.events()]

    def test_guest_that_panics_and_reboots(self, boot: GuestFactory) -> None:
        vm = boot(append="panic=1")
        before = boot_id(vm)
        vm.console_write("echo c > /proc/sysrq-trigger\n")
        vm.wait_console("Kernel panic - not syncing: sysrq triggered crash", SOON)
        vm.wait_event("RESET", SOON)
        vm.wait_agent(BOOT)
        assert boot_id(vm) != before
