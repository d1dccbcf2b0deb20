"""CPUs, memory modules and PCI devices that come and go while the machine exists: by the monitor, and by registers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine.memory_backends import MemoryBackend
from pyvm.machine.pc import Pc
from pyvm.memory import GuestMemoryError
from pyvm.runstate import RunState, ShutdownCause
from tests.system.machine_rig import Machine

MIB, GIB = 1 << 20, 1 << 30
BASE = ("-nodefaults", "-display", "none", "-S")
ROOM = ("-m", "16,slots=2,maxmem=1G")
PLACES = ("-smp", "2,maxcpus=4")
CPU = "qemu64-x86_64-cpu"


def backend(name: str, size: str = "8M") -> tuple[str, str]:
    return "-object", f"memory-backend-ram,id={name},size={size}"


@contextmanager
def made_machine() -> Iterator[Machine]:
    options = (*ROOM, *PLACES, *backend("m0"), *backend("m1", "256M"), *backend("odd", "3M"), *backend("big", "2G"))
    with Machine(*options, "-device", "pci-bridge,id=br,chassis_nr=1", base=BASE) as made:
        made.pc.clock.set(1_000_000_000)
        made.pc.lifecycle.states.set(RunState.RUNNING)
        made.pc.lifecycle.states.set(RunState.PAUSED)
        yield made


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine whose guest has run, with places for CPUs and memory."""
    with made_machine() as made:
        yield made


@pytest.fixture(scope="module")
def refusing() -> Iterator[Machine]:
    """The same, for what changes nothing."""
    with made_machine() as made:
        yield made


def add(machine: Machine, driver: str, **properties: Any) -> str:
    """Return what is wrong with a device, nothing where it was plugged in."""
    reply = machine.ask("device_add", {"driver": driver, **{key.replace("_", "-"): v for key, v in properties.items()}})
    return "" if "return" in reply else str(reply["error"]["desc"])


def cpu(machine: Machine, core: int, **properties: Any) -> str:
    return add(machine, CPU, socket_id=0, core_id=core, thread_id=0, **properties)


def refusal(*options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Pc(parse_arguments([*BASE, *options])).close()
    return str(caught.value)


def eject_module(machine: Machine, slot: int) -> None:
    machine.pc.ports.write(0xA00, 4, slot)
    machine.pc.ports.write(0xA14, 1, 8)
    machine.run()


def eject_cpu(machine: Machine, index: int) -> None:
    machine.pc.ports.write(0xAF00, 4, index)
    machine.pc.ports.write(0xAF04, 1, 8)
    machine.run()


def gpe(machine: Machine) -> int:
    """Return the general-purpose events that are pending, and end them."""
    pending = machine.pc.ports.read(0xAFE0, 2)
    machine.pc.ports.write(0xAFE0, 2, pending)
    return pending


# ---- CPUs


def test_a_cpu_comes_and_goes(machine: Machine) -> None:
    machine.pc.ports.write(0xAF00, 4, 0)
    assert cpu(machine, 3, id="c3") == ""
    assert gpe(machine) == 1 << 2
    listed = [(item["cpu-index"], item["qom-path"]) for item in machine.execute("query-cpus-fast")]
    assert listed[2:] == [(3, "/machine/peripheral/c3")]
    assert machine.execute("query-hotpluggable-cpus")[0]["qom-path"] == "/machine/peripheral/c3"
    assert machine.get("/machine/peripheral/c3", "apic-id") == 3
    assert machine.get("/machine/peripheral/c3", "hotplugged") is True
    assert cpu(machine, 3) == "CPU[3] with APIC ID 3 exists"
    assert 3 in machine.pc.board.lapics
    machine.execute("device_del", id="c3")
    assert gpe(machine) == 1 << 2
    assert machine.take_events() == []
    eject_cpu(machine, 3)
    assert machine.take_events() == [
        ("DEVICE_DELETED", {"path": "/machine/peripheral/c3/lapic"}),
        ("DEVICE_DELETED", {"device": "c3", "path": "/machine/peripheral/c3"}),
    ]
    assert 3 not in machine.pc.board.lapics
    assert len(machine.execute("query-cpus-fast")) == 2
    assert cpu(machine, 3, id="c3") == ""


def test_a_cpu_that_the_machine_came_with_goes(machine: Machine) -> None:
    path = "/machine/unattached/device[2]"
    error = f"acpi: device unplug request for not supported device type: {CPU}"
    assert machine.error("device_del", id=path) == error, "the guest does not know the registers yet"
    machine.pc.ports.write(0xAF00, 4, 0)
    machine.execute("device_del", id=path)
    eject_cpu(machine, 1)
    assert machine.take_events() == [("DEVICE_DELETED", {"path": f"{path}/lapic"}), ("DEVICE_DELETED", {"path": path})]
    assert machine.error("device_del", id=path) == f"DeviceNotFound: Device '{path}' not found"
    assert machine.error("device_del", id="/machine/unattached/device[0]") == "Boot CPU is unpluggable"


def test_what_the_guest_says_is_passed_on(machine: Machine) -> None:
    assert [item["slot-type"] for item in machine.execute("query-acpi-ospm-status")] == ["DIMM", "DIMM"]
    write = machine.pc.ports.write
    write(0xAF00, 4, 0)
    assert cpu(machine, 2, id="c2") == ""
    write(0xAF00, 4, 2)
    for command, value in ((1, 1), (2, 0x80)):
        write(0xAF05, 1, command)
        write(0xAF08, 4, value)
    info = {"device": "c2", "slot": "2", "slot-type": "CPU", "source": 1, "status": 0x80}
    assert machine.take_events() == [("ACPI_DEVICE_OST", {"info": info})]
    assert info in machine.execute("query-acpi-ospm-status")


@pytest.mark.parametrize(
    ("properties", "error"),
    [
        ({"socket-id": 1, "core-id": 0, "thread-id": 0}, "Invalid CPU socket-id: 1 must be in range 0:0"),
        ({"socket-id": 0}, "CPU core-id is not set"),
        (
            {"apic-id": 9},
            "Invalid CPU [socket: 2, die: 0, core: 1, thread: 0] with APIC ID 9, valid index range 0:3",
        ),
        ({"apic-id": 1}, "CPU[1] with APIC ID 1 exists"),
        ({"bus": "pci.0"}, f"Device '{CPU}' can't go on PCI bus"),
    ],
)
def test_cpus_that_cannot_be_plugged_in(refusing: Machine, properties: dict[str, Any], error: str) -> None:
    assert add(refusing, CPU, **properties) == error
    assert refusing.pc.cpus.count == 2


def test_cpus_of_the_command_line() -> None:
    with Machine("-m", "16", *PLACES, "-device", f"{CPU},core-id=3,socket-id=0,thread-id=0", base=BASE) as machine:
        assert [item["cpu-index"] for item in machine.execute("query-cpus-fast")] == [0, 1, 3]
        present = [unit.present for unit in machine.pc.tables.info.processors]
        assert present == [True, True, False, True]
        assert machine.pc.board.rtc.cmos(0x5F) == 2
        assert machine.get("/machine/peripheral-anon/device[0]", "hotplugged") is False


def test_firmware_hears_of_cpus_at_the_next_reset(machine: Machine) -> None:
    assert cpu(machine, 2) == ""
    assert machine.pc.board.rtc.cmos(0x5F) == 2
    with machine.pc.lock:
        machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert [unit.present for unit in machine.pc.tables.info.processors] == [True, True, True, False]


# ---- Memory


def test_a_module_comes_and_goes(machine: Machine) -> None:
    memory = machine.pc.memory
    assert add(machine, "pc-dimm", id="d", memdev="m1") == ""
    assert gpe(machine) == 1 << 3
    (device,) = machine.execute("query-memory-devices")
    assert device["data"] == {
        "id": "d", "memdev": "/objects/m1", "hotplugged": True, "hotpluggable": True,
        "addr": 4 * GIB, "size": 256 * MIB, "slot": 0, "node": 0,
    }  # fmt: skip
    assert machine.execute("query-memory-size-summary")["plugged-memory"] == 256 * MIB
    assert machine.get("/machine/peripheral/d", "memdev") == "/objects/m1"
    assert machine.get("/machine/peripheral/d", "addr") == 4 * GIB
    memory.write(4 * GIB + 100, b"there")
    backing = machine.pc.model.objects.find("m1")
    assert isinstance(backing, MemoryBackend)
    assert backing.mapping[100:105] == b"there"
    assert machine.error("object-del", id="m1") == "object 'm1' is in use, can not be deleted"
    machine.execute("device_del", id="d")
    machine.execute("device_del", id="d")
    assert gpe(machine) == 1 << 3
    eject_module(machine, 0)
    assert machine.take_events() == [("DEVICE_DELETED", {"device": "d", "path": "/machine/peripheral/d"})]
    with pytest.raises(GuestMemoryError):
        memory.read(4 * GIB, 1)
    assert machine.execute("query-memory-devices") == []
    machine.execute("object-del", id="m1")


def test_a_module_comes_again_many_times(machine: Machine) -> None:
    for _ in range(120):
        assert add(machine, "pc-dimm", id="d", memdev="m0") == ""
        eject_module(machine, 0)
        assert ("DEVICE_DELETED", {"device": "d", "path": "/machine/peripheral/d"}) in machine.take_events()


def test_pages_of_a_module_are_given_back(machine: Machine) -> None:
    assert add(machine, "pc-dimm", memdev="m0") == ""
    memory = machine.pc.memory
    for gpa in (0x100000, 4 * GIB + 0x5000):
        memory.write(gpa, b"x" * 8192)
        memory.discard(gpa, 4096)
        assert memory.read(gpa, 8192) == bytes(4096) + b"x" * 4096
    assert memory.total == 24 * MIB


@pytest.mark.parametrize(
    ("properties", "error"),
    [
        ({}, "'memdev' property must be set"),
        ({"memdev": "zz"}, "Device 'zz' not found"),
        ({"memdev": "m0", "slot": 2}, "invalid slot number 2, valid range is [0-1]"),
        ({"memdev": "m0", "slot": "x"}, "Parameter 'slot' expects integer"),
        ({"memdev": "odd"}, "backend memory size must be multiple of 0x200000"),
        (
            {"memdev": "big"},
            "not enough space, currently 0x0 in use of total space for memory devices 0x3f000000",
        ),
        ({"memdev": "m0", "addr": 4 * GIB + 1}, "address must be aligned to 0x200000 bytes"),
        (
            {"memdev": "m0", "addr": 2 * GIB},
            "can't add memory device [0x80000000:0x800000], usable range for memory devices [0x100000000:0xbf000000]",
        ),
        ({"memdev": "m0", "node": 1}, "'DIMM property node has value 1' which exceeds the number of numa nodes: 1"),
        ({"memdev": "m0", "bus": "pci.0"}, "Device 'pc-dimm' can't go on PCI bus"),
    ],
)
def test_modules_that_cannot_be_plugged_in(refusing: Machine, properties: dict[str, Any], error: str) -> None:
    assert add(refusing, "pc-dimm", **properties) == error
    assert refusing.pc.memory.modules == []


def test_modules_side_by_side(machine: Machine) -> None:
    assert add(machine, "pc-dimm", id="a", memdev="m0", slot=1) == ""
    assert add(machine, "pc-dimm", memdev="m0") == "can't use already busy memdev: m0"
    assert add(machine, "pc-dimm", memdev="m1", slot=1) == "slot 1 is busy"
    busy = "address range conflicts with memory device id='a'"
    assert add(machine, "pc-dimm", memdev="m1", addr=4 * GIB) == busy
    assert add(machine, "pc-dimm", memdev="m1") == ""
    places = [(item["data"]["slot"], item["data"]["addr"]) for item in machine.execute("query-memory-devices")]
    assert places == [(1, 4 * GIB), (0, 4 * GIB + 8 * MIB)]
    machine.pc.memory.write(4 * GIB + 8 * MIB, b"second")
    assert machine.pc.memory.read(4 * GIB, 6) == bytes(6)
    assert add(machine, "pc-dimm", memdev="odd") == "no free slots available"


def test_modules_of_the_command_line() -> None:
    options = (*ROOM, *backend("m0"), "-device", "pc-dimm,memdev=m0,id=d")
    with Machine(*options, base=BASE) as machine:
        (device,) = machine.execute("query-memory-devices")
        assert device["data"]["hotplugged"] is False
        info = machine.pc.tables.info
        assert info.memory_slots == 2
        assert info.affinity.pluggable == ((4 * GIB, 3 * GIB - 16 * MIB, 0),)
        assert info.pci_hole64[0] == 7 * GIB
        assert "node 0 size: 24 MB\nnode 0 plugged: 8 MB\n" in machine.pc.model.numa_text()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ("-m", "16", *backend("m0"), "-device", "pc-dimm,memdev=m0"),
            "-device pc-dimm,memdev=m0: no slots where allocated, please specify the 'slots' option",
        ),
        (
            ("-m", "512,slots=2,maxmem=2000G"),
            "Address space limit 0xffffffffff < 0x2f4ffffffff phys-bits too low (40)",
        ),
        (
            ("-m", "16", "-device", f"{CPU},socket-id=7"),
            f"-device {CPU},socket-id=7: Invalid CPU socket-id: 7 must be in range 0:0",
        ),
    ],
)
def test_what_the_command_line_cannot_have(options: tuple[str, ...], error: str) -> None:
    assert refusal(*options) == error


def test_a_machine_with_modules_is_saved(tmp_path: Path) -> None:
    options = (*ROOM, *backend("m0"), "-device", "pc-dimm,memdev=m0,id=d")
    path = str(tmp_path / "saved")
    with Machine(*options, base=BASE) as machine:
        machine.pc.memory.write(4 * GIB + 0x1234, b"kept")
        machine.pc.memory.write(0x200000, b"low")
        with machine.pc.lock:
            machine.pc.save_snapshot(path, [])
    with Machine(*options, "-incoming", f"file:{path}", base=BASE) as machine:
        assert machine.pc.memory.read(4 * GIB + 0x1234, 4) == b"kept"
        assert machine.pc.memory.read(0x200000, 3) == b"low"
        machine.pc.memory.discard(0x200000, 4096)
        assert machine.pc.memory.read(0x200000, 3) == bytes(3)


# ---- PCI


def test_a_pci_device_leaves_when_the_guest_lets_it_go(machine: Machine) -> None:
    write, read = machine.pc.ports.write, machine.pc.ports.read
    assert add(machine, "virtio-rng-pci", id="r", bus="br", addr="3") == ""
    assert gpe(machine) == 1 << 1
    write(0xAE10, 4, 1)
    assert read(0xAE00, 4) == 1 << 3
    machine.execute("device_del", id="r")
    machine.execute("device_del", id="r")
    assert gpe(machine) == 1 << 1
    assert read(0xAE04, 4) == 1 << 3
    assert machine.take_events() == []
    write(0xAE08, 4, 1 << 3)
    assert machine.pc.plugger.plugged.pci_buses["br"].function_at(3) is None, "it is gone at once"
    machine.run()
    assert machine.take_events() == [
        ("DEVICE_DELETED", {"path": "/machine/peripheral/r/virtio-backend"}),
        ("DEVICE_DELETED", {"device": "r", "path": "/machine/peripheral/r"}),
    ]
    assert read(0xAE04, 4) == 0


def test_a_reset_takes_what_was_to_leave(machine: Machine) -> None:
    assert add(machine, "virtio-rng-pci", id="r") == ""
    machine.execute("device_del", id="r")
    with machine.pc.lock:
        machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    assert [name for name, _ in machine.take_events()] == ["DEVICE_DELETED", "DEVICE_DELETED", "RESET"]
    assert add(machine, "virtio-rng-pci", id="r") == ""


def test_what_the_board_came_with_stays(machine: Machine) -> None:
    machine.pc.ports.write(0xAE10, 4, 0)
    assert machine.pc.ports.read(0xAE0C, 4) == 0xFFFF_FFF8
    machine.execute("device_del", id="br")
    machine.pc.ports.write(0xAE08, 4, 0xFFFF_FFFF)
    machine.run()
    assert machine.take_events() == []
    assert machine.pc.board.pci.function_at(1) is not None


class TestBridgesThatCameLater:
    """The guest has no number for what is behind them: it is told to look at everything, and asked for nothing."""

    @pytest.fixture
    def machine(self, machine: Machine) -> Machine:
        assert machine.ask("device_add", {"driver": "pci-bridge", "id": "late", "chassis_nr": 2}) == {"return": {}}
        machine.pc.ports.write(0xAE10, 4, 0)
        assert machine.pc.ports.read(0xAE00, 4), "the bridge itself is told of as any device"
        assert add(machine, "virtio-rng-pci", bus="late", id="r", addr="2") == ""
        return machine

    @staticmethod
    def look(machine: Machine) -> int:
        """Return whether there is something to find anywhere; that is told once."""
        return machine.pc.ports.read(0xAE18, 4)

    def test_devices_come_and_go(self, machine: Machine) -> None:
        assert gpe(machine) == 1 << 1
        assert machine.pc.ports.read(0xAE00, 4) == 0
        assert [self.look(machine), self.look(machine)] == [1, 0]
        machine.execute("device_del", id="r")
        machine.run()
        assert machine.take_events() == [
            ("DEVICE_DELETED", {"path": "/machine/peripheral/r/virtio-backend"}),
            ("DEVICE_DELETED", {"device": "r", "path": "/machine/peripheral/r"}),
        ]
        assert machine.pc.plugger.plugged.pci_buses["late"].function_at(2) is None
        assert self.look(machine) == 1
        assert add(machine, "virtio-rng-pci", bus="late", id="r", addr="2") == ""

    def test_what_a_driver_has_stays(self, machine: Machine) -> None:
        (device,) = (device for device in machine.pc.plugger.plugged.devices if device.config.id == "r")
        function: Any = device.made
        function.config_write(4, 2, 1 << 2)  # bus master
        error = "Device 'r' is in use, and the guest cannot be asked to free it on bus 'late'"
        assert machine.error("device_del", id="r") == error
        function.config_write(4, 2, 0)
        machine.execute("device_del", id="r")
        machine.run()
        assert machine.pc.plugger.plugged.pci_buses["late"].function_at(2) is None

    def test_what_is_behind_goes_first(self, machine: Machine) -> None:
        machine.execute("device_del", id="late")
        slot = machine.pc.ports.read(0xAE04, 4)
        assert slot
        assert machine.take_events() == []
        machine.pc.ports.write(0xAE08, 4, slot)
        machine.run()
        assert [data.get("device") for _, data in machine.take_events()] == [None, "r", "late"]
        assert "late" not in machine.pc.plugger.plugged.pci_buses


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("virtio-rng-pci,acpi-index=16384",), "acpi-index should be less or equal to 16383"),
        (("virtio-rng-pci,acpi-index=5",) * 2, "a PCI device with acpi-index = 5 already exist"),
    ],
)
def test_indexes_that_devices_cannot_have(options: tuple[str, ...], error: str) -> None:
    words = [word for option in options for word in ("-device", option)]
    assert refusal("-m", "16", *words) == f"-device {options[-1]}: {error}"


def test_the_guest_asks_for_the_index_of_a_device(machine: Machine) -> None:
    machine.execute("device_add", driver="virtio-rng-pci", id="r", acpi_index=7, addr="9")
    machine.pc.ports.write(0xAE10, 4, 0)
    machine.pc.ports.write(0xAE14, 4, 1 << 9)
    assert machine.pc.ports.read(0xAE14, 4) == 7


def test_a_further_function_of_a_slot_comes_too_late(machine: Machine) -> None:
    assert add(machine, "virtio-rng-pci", id="r", addr="9.1") == ""
    assert add(machine, "virtio-rng-pci", addr="2.1") == (
        "PCI: slot 2 function 0 already occupied by pci-bridge, new func virtio-rng-pci cannot be exposed to guest."
    )
