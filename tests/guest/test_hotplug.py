"""CPUs, memory and PCI devices that come to and go from a Linux that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from images.build import Image
from pyvm import Machine
from pyvm.qmp_client import QmpError
from tests.guest.conftest import GuestFactory
from tests.guest.support import SOON, complaints, rebooting, until

MIB = 1 << 20
CPU = "qemu64-x86_64-cpu"
INSERTION, EJECTION = 1, 3
IN_PROGRESS = 0x84
"""What _OST says: about what, and that it is not done yet."""
BLOCK = 128 * MIB
"""What Linux plugs in and out at a time."""


@pytest.fixture
def roomy(guest: GuestFactory) -> Machine:
    """A guest with places for CPUs and memory, and a PCI bridge with nothing behind it."""
    return guest(m="512,slots=4,maxmem=2G", smp="1,maxcpus=3", device="pci-bridge,id=br0,chassis_nr=1")


def shell(vm: Machine, command: str) -> str:
    return vm.run(command).text.strip()


def deleted(vm: Machine, name: str) -> dict[str, Any]:
    """Wait until a device has gone; return the data of the event."""
    while True:
        data: dict[str, Any] = vm.wait_event("DEVICE_DELETED", SOON)["data"]
        if data.get("device") == name:
            return data


def reported(vm: Machine, source: int) -> dict[str, Any]:
    """Wait until the guest has said what became of a request, and is done with it; return what it said."""
    while True:
        info: dict[str, Any] = vm.wait_event("ACPI_DEVICE_OST", SOON)["data"]["info"]
        if info["source"] == source and info["status"] != IN_PROGRESS:
            return info


def online(vm: Machine, wanted: int) -> None:
    """Let the guest use all CPUs that it has."""

    def all_online() -> bool:
        found = vm.agent.execute("guest-get-vcpus", {})
        absent = [{"logical-id": cpu["logical-id"], "online": True} for cpu in found if not cpu["online"]]
        if absent:
            vm.agent.execute("guest-set-vcpus", {"vcpus": absent})
        return len(found) == wanted and not absent

    until(all_online, f"{wanted} CPUs", SOON)


class TestProcessors:
    def test_cpus_come_and_go_under_load(self, roomy: Machine) -> None:
        vm = roomy
        work = "gzip -c /bin/busybox | gunzip | md5sum > /tmp/new && mv /tmp/new /tmp/sum"
        vm.agent.exec("/bin/sh", ["-c", f"while {work}; do :; done"])
        for core in (2, 1, 2):
            name = f"cpu{core}"
            vm.qmp("device_add", driver=CPU, id=name, **{"socket-id": 0, "core-id": core, "thread-id": 0})
            place = {"slot": str(core), "slot-type": "CPU"}
            assert reported(vm, INSERTION) == {"device": name, **place, "source": INSERTION, "status": 0}
            online(vm, 2)
            number = shell(vm, "sed 's/.*[,-]//' /sys/devices/system/cpu/online")
            assert shell(vm, f"taskset {1 << int(number):x} cut -d' ' -f39 /proc/self/stat") == number
            assert len(vm.agent.execute("guest-get-cpustats", {})) == 2
            vm.qmp("device_del", id=name)
            assert deleted(vm, name)["path"] == f"/machine/peripheral/{name}"
            assert shell(vm, "cat /sys/devices/system/cpu/present") == "0"
            assert reported(vm, EJECTION) == {**place, "source": EJECTION, "status": 0}
        found = until(lambda: shell(vm, "cat /tmp/sum 2>/dev/null || true"), "a result", SOON)
        assert found == shell(vm, "md5sum < /bin/busybox")
        assert complaints(vm.run("dmesg").text) == []


class TestMemory:
    def test_modules_come_and_go(self, roomy: Machine) -> None:
        vm = roomy
        for size in (BLOCK, 2 * BLOCK):
            vm.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "m", "size": size})
            vm.qmp("device_add", driver="pc-dimm", id="d", memdev="m")
            place = {"slot": "0", "slot-type": "DIMM"}
            assert reported(vm, INSERTION) == {"device": "d", **place, "source": INSERTION, "status": 0}
            before = self._total(vm)
            self._use_all(vm)
            assert self._total(vm) - before == size // 1024
            shell(vm, "dd if=/dev/urandom of=/tmp/big bs=1M count=16 2>/dev/null")
            assert shell(vm, "md5sum < /tmp/big") == shell(vm, "md5sum < /tmp/big; rm /tmp/big")
            vm.qmp("device_del", id="d")
            deleted(vm, "d")
            assert self._total(vm) == before
            vm.qmp("object-del", id="m")
        assert complaints(vm.run("dmesg").text) == []

    @staticmethod
    def _total(vm: Machine) -> int:
        return int(shell(vm, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))

    @staticmethod
    def _use_all(vm: Machine) -> None:
        """Let the guest use its new memory, for what can be moved out of it again."""
        for block in vm.agent.execute("guest-get-memory-blocks", {}):
            if not block["online"]:
                assert block["can-offline"]
                state = f"/sys/devices/system/memory/memory{block['phys-index']}/state"
                shell(vm, f"echo online_movable > {state}")

    def test_the_agent_takes_memory_into_use(self, roomy: Machine) -> None:
        vm = roomy
        vm.qmp("object-add", **{"qom-type": "memory-backend-memfd", "id": "m", "size": BLOCK})
        vm.qmp("device_add", driver="pc-dimm", id="d", memdev="m")
        reported(vm, INSERTION)
        (new,) = [block for block in vm.agent.execute("guest-get-memory-blocks", {}) if not block["online"]]
        wanted = [{"phys-index": new["phys-index"], "online": True}]
        answer = vm.agent.execute("guest-set-memory-blocks", {"mem-blks": wanted})
        assert answer == [{"phys-index": new["phys-index"], "response": "success"}]


class TestPciDevices:
    @pytest.mark.parametrize("bus", ["pci.0", "br0"])
    def test_devices_come_and_go(self, roomy: Machine, tmp_path: Path, bus: str) -> None:
        vm = roomy
        image = tmp_path / "disk"
        image.write_bytes(bytes(MIB) + b"plugged in" + bytes(MIB - 10))
        vm.qmp(
            "blockdev-add", **{"driver": "raw", "node-name": "n", "file": {"driver": "file", "filename": str(image)}}
        )
        vm.qmp("netdev_add", type="user", id="net")
        vm.qmp("device_add", driver="virtio-blk-pci", id="disk", drive="n", bus=bus)
        vm.qmp("device_add", driver="virtio-net-pci", id="nic", netdev="net", bus=bus)
        vm.qmp("device_add", driver="virtio-rng-pci", id="rng", bus=bus)
        until(lambda: "vda" in shell(vm, "ls /sys/block"), "a disk", SOON)
        until(lambda: "eth0" in shell(vm, "ls /sys/class/net"), "a network card", SOON)
        assert shell(vm, "dd if=/dev/vda bs=1M skip=1 count=1 2>/dev/null | head -c 10") == "plugged in"
        for name in ("disk", "nic", "rng"):
            vm.qmp("device_del", id=name)
            deleted(vm, name)
        assert "vda" not in shell(vm, "ls /sys/block")
        assert complaints(vm.run("dmesg").text) == []

    def test_a_bridge_comes_with_what_is_behind_it_and_goes_with_it(self, roomy: Machine) -> None:
        vm = roomy
        behind = "0000:02:01.0"

        def driven() -> str:
            return shell(vm, f"ls -d /sys/bus/pci/devices/{behind}/driver 2>/dev/null || true")

        def let_go() -> bool:
            """Take the driver from the device; whether it could be pulled out then.

            The guest looks at all buses after each change, and what it looks for because of the last one finds the
            device of the next, which the look because of that one then finds once more after it was removed.
            """
            shell(vm, f"cd /sys/bus/pci/devices; [ ! -e {behind} ] || echo 1 > {behind}/remove")
            try:
                vm.qmp("device_del", id="rng")
            except QmpError as error:
                if "in use" not in str(error):
                    raise
                return False
            return True

        for name in ("late", "later"):
            vm.monitor.execute("device_add", {"driver": "pci-bridge", "id": name, "chassis_nr": 2})
            until(lambda: "0000:02" in shell(vm, "ls /sys/class/pci_bus"), "a bus", SOON)
            for _ in range(2):
                vm.qmp("device_add", driver="virtio-rng-pci", id="rng", bus=name, addr="1")
                until(driven, "a driver", SOON)
                until(let_go, "a device without a driver", SOON)
                deleted(vm, "rng")
            vm.qmp("device_add", driver="virtio-rng-pci", id="rng", bus=name, addr="1")
            until(driven, "a driver", SOON)
            with pytest.raises(QmpError, match="in use, and the guest cannot be asked to free it on bus"):
                vm.qmp("device_del", id="rng")
            vm.qmp("device_del", id=name)
            deleted(vm, "rng")
            deleted(vm, name)
        assert complaints(vm.run("dmesg").text) == []

    def test_a_card_for_older_systems_comes_and_goes(self, vm_factory: GuestFactory, generic: Image) -> None:
        vm = vm_factory(
            "-device", "pci-bridge,id=br0,chassis_nr=1", kernel=str(generic.kernel), initrd=str(generic.initrd),
            m=512, append=generic.append, wait_agent=True, fresh=False,
        )  # fmt: skip
        vm.qmp("netdev_add", type="user", id="net")
        for bus in ("pci.0", "br0"):
            vm.qmp("device_add", driver="e1000", id="nic", netdev="net", bus=bus)
            until(lambda: "eth0" in shell(vm, "ls /sys/class/net"), "a network card", SOON)
            assert "e1000" in shell(vm, "readlink /sys/class/net/eth0/device/driver")
            shell(vm, "ifconfig eth0 10.0.2.15 up")
            until(lambda: vm.run("ping -c 1 -W 1 10.0.2.2", SOON, check=False).ok, "an answer", SOON)
            vm.qmp("device_del", id="nic")
            deleted(vm, "nic")
            assert "eth0" not in shell(vm, "ls /sys/class/net")
        assert complaints(vm.run("dmesg").text) == []

    def test_the_guest_lets_a_device_go_by_itself(self, roomy: Machine) -> None:
        vm = roomy
        vm.qmp("device_add", driver="virtio-rng-pci", id="rng", addr="9")
        until(lambda: shell(vm, "ls -d /sys/bus/pci/devices/0000:00:09.0 2>/dev/null || true"), "a device", SOON)
        shell(vm, "echo 0 > /sys/bus/pci/slots/9/power")
        deleted(vm, "rng")

    def test_ports_come_and_go(self, roomy: Machine) -> None:
        vm = roomy
        vm.qmp("chardev-add", id="c", backend={"type": "ringbuf", "data": {"size": 64}})
        vm.qmp("device_add", driver="virtserialport", id="port", chardev="c", name="org.test.port")
        until(lambda: "org.test.port" in shell(vm, "cat /sys/class/virtio-ports/*/name"), "a port", SOON)
        vm.qmp("device_del", id="port")
        deleted(vm, "port")
        until(lambda: "org.test.port" not in shell(vm, "cat /sys/class/virtio-ports/*/name"), "no port", SOON)


def test_after_a_reset_the_guest_starts_with_what_came(roomy: Machine) -> None:
    vm = roomy
    vm.qmp("device_add", driver=CPU, id="cpu1", **{"socket-id": 0, "core-id": 1, "thread-id": 0})
    vm.qmp("object-add", **{"qom-type": "memory-backend-ram", "id": "m", "size": BLOCK})
    vm.qmp("device_add", driver="pc-dimm", id="d", memdev="m")
    vm.qmp("device_add", driver="virtio-rng-pci", id="rng", addr="9")
    with rebooting(vm):
        vm.reset()
    assert shell(vm, "cat /sys/devices/system/cpu/online") == "0-1"
    assert shell(vm, "ls -d /sys/bus/pci/devices/0000:00:09.0")
    assert len(vm.agent.execute("guest-get-memory-blocks", {})) == 5
    assert complaints(vm.run("dmesg").text) == []
