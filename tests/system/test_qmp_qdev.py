"""Commands about devices, on a real machine: their properties, plugging and unplugging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyvm.runstate import RunState, ShutdownCause
from tests.system.machine_rig import Machine, shared


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(
        "-device", "virtio-serial-pci,id=vs", "-device", "virtio-scsi-pci,id=scsi0", "-chardev", "null,id=c0",
        "-blockdev", "null-co,node-name=n,size=1048576", "-smp", "1,maxcpus=4",
    ) as made:  # fmt: skip
        yield made


def add(machine: Machine, driver: str, **properties: Any) -> str:
    """Plug a device in; return what is wrong, or nothing."""
    arguments = {name.replace("_", "-"): value for name, value in properties.items()}
    reply = machine.ask("device_add", {"driver": driver, **arguments})
    if "error" not in reply:
        return ""
    error = reply["error"]
    return f"{error['class']}: {error['desc']}".removeprefix("GenericError: ")


def test_properties_of_a_model() -> None:
    found = {item["name"]: item for item in shared().execute("device-list-properties", typename="virtio-rng-pci")}
    assert found["addr"] == {
        "name": "addr",
        "type": "int32",
        "description": "Slot and optional function number, example: 06.0 or 06",
        "default-value": -1,
    }
    assert found["rng"] == {"name": "rng", "type": "link<rng-backend>"}
    assert found["period"]["default-value"] == 65536
    assert not {"type", "realized", "hotplugged", "hotpluggable", "parent_bus"} & set(found)
    for name, error in (
        ("nope", "DeviceNotFound: Device 'nope' not found"),
        ("device", "Parameter 'typename' expects a non-abstract device type"),
        ("iothread", "Parameter 'typename' expects a non-abstract device type"),
    ):
        assert shared().error("device-list-properties", typename=name) == error


def test_plugging_in_before_the_guest_runs(machine: Machine) -> None:
    assert add(machine, "virtio-rng-pci", id="r0", addr=5, vectors=3) == ""
    assert add(machine, "virtio-blk-pci", id="b0", drive="n", addr="0x1e.0") == ""
    assert machine.get("/machine/peripheral/r0", "hotplugged") is True
    assert machine.get("/machine/peripheral/b0", "legacy-addr") == "1e.0"
    assert [item["path"] for item in machine.execute("x-query-virtio")][:2] == [
        "/machine/peripheral/b0/virtio-backend",
        "/machine/peripheral/r0/virtio-backend",
    ]
    (bus,) = machine.execute("query-pci")
    devices = {device["qdev_id"]: device for device in bus["devices"]}
    assert all(region["address"] == -1 for region in devices["r0"]["regions"])
    # The firmware finds it when the guest is about to run.
    machine.pc.model.before_run()
    (bus,) = machine.execute("query-pci")
    devices = {device["qdev_id"]: device for device in bus["devices"]}
    assert all(region["address"] > 0 for region in devices["r0"]["regions"])


@pytest.mark.parametrize(
    ("driver", "properties", "error"),
    [
        ("nope", {}, "'nope' is not a valid device model name"),
        ("iothread", {}, "'iothread' is not a valid device model name"),
        ("device", {}, "Parameter 'driver' expects a non-abstract device type"),
        ("VGA", {}, "Parameter 'driver' expects a pluggable device type"),
        ("PIIX4_PM", {}, "Parameter 'driver' expects a pluggable device type"),
        ("i8042", {}, "Bus 'isa.0' does not support hotplugging"),
        ("virtio-rng-device", {}, "No 'virtio-bus' bus found for device 'virtio-rng-device'"),
        ("virtio-rng-pci", {"id": "a/b"}, "Parameter 'id' expects an identifier"),
        ("virtio-rng-pci", {"id": "vs"}, "Duplicate device ID 'vs'"),
        ("virtio-rng-pci", {"foo": 1}, "Property 'virtio-rng-pci.foo' not found"),
        ("virtio-rng-pci", {"bus": "zz"}, "Bus 'zz' not found"),
        ("virtio-rng-pci", {"bus": "isa.0"}, "Device 'virtio-rng-pci' can't go on ISA bus"),
        ("virtio-rng-pci", {"addr": "99"}, "Property 'virtio-rng-pci.addr' doesn't take value '99'"),
        (
            "virtio-rng-pci",
            {"addr": 2},
            "PCI: slot 2 function 0 not available for virtio-rng-pci, in use by virtio-serial-pci,id=vs",
        ),
        ("virtio-rng-pci", {"rng": "zz"}, "DeviceNotFound: Device 'zz' not found"),
        ("virtio-rng-pci", {"multifunction": 1}, "Parameter 'multifunction' expects 'on' or 'off'"),
        ("virtio-rng-pci", {"vectors": "x"}, "Parameter 'vectors' expects integer"),
        ("virtio-rng-pci", {"ats": True}, "ats=on is not supported by pyvm yet (only 'off')"),
        ("virtio-blk-pci", {}, "drive property not set"),
        ("virtio-blk-pci", {"drive": "zz"}, "Property 'virtio-blk-device.drive' can't find value 'zz'"),
        ("isa-serial", {}, "Bus 'isa.0' does not support hotplugging"),
        ("ide-hd", {}, "Bus 'ide.1' does not support hotplugging"),
        ("ide-hd", {"bus": "ide.0"}, "Bus 'ide.0' does not support hotplugging"),
        ("floppy", {}, "Bus 'floppy-bus.0' does not support hotplugging"),
        ("virtserialport", {"bus": "zz"}, "Bus 'zz' not found"),
        ("virtserialport", {"chardev": "zz"}, "Property 'virtserialport.chardev' can't find value 'zz'"),
        ("max-x86_64-cpu", {}, "Invalid CPU type, expected cpu type: 'qemu64-x86_64-cpu'"),
        ("qemu64-x86_64-cpu", {}, "CPU socket-id is not set"),
        ("qemu64-x86_64-cpu", {"socket-id": 9}, "Invalid CPU socket-id: 9 must be in range 0:0"),
        ("qemu64-x86_64-cpu", {"socket-id": "x"}, "Parameter 'socket-id' expects integer"),
        ("qemu64-x86_64-cpu", {"zz": 1}, "Property 'qemu64-x86_64-cpu.zz' not found"),
        (
            "qemu64-x86_64-cpu",
            {"socket-id": 0, "core-id": 0, "thread-id": 0},
            "CPU[0] with APIC ID 0 exists",
        ),
    ],
)
def test_what_cannot_be_plugged_in(machine: Machine, driver: str, properties: dict[str, Any], error: str) -> None:
    assert add(machine, driver, **properties) == error
    assert len(machine.pc.plugger.plugged.devices) == 2


def test_an_id_that_is_no_string_names_nothing() -> None:
    with Machine() as machine:
        for number in (1, True, None):
            machine.execute("device_add", driver="virtio-rng-pci", id=number)
        assert machine.execute("qom-list", path="/machine/peripheral") == [{"name": "type", "type": "string"}]


@pytest.mark.parametrize("name", ["", "/machine/peripheral"])
def test_what_is_no_device_cannot_go(machine: Machine, name: str) -> None:
    assert machine.error("device_del", id=name) == f"{name} is not a hotpluggable device"


def test_a_device_without_a_driver() -> None:
    assert shared().error("device_add", id="x") == "Parameter 'driver' is missing"


def test_a_property_that_has_one_setting_only(machine: Machine) -> None:
    assert add(machine, "virtio-rng-pci", id="r", ats="off", ioeventfd=True, romfile="") == ""


def test_ports_come_and_go_at_any_time(machine: Machine) -> None:
    machine.pc.lifecycle.states.set(RunState.RUNNING)
    machine.pc.lifecycle.states.set(RunState.PAUSED)
    assert add(machine, "virtserialport", id="p0", bus="vs.0", nr=3, chardev="c0") == ""
    assert add(machine, "virtserialport", id="p1", nr=3) == "virtio-serial-bus: A port already exists at id 3"
    error = "Property 'virtserialport.chardev' can't take value 'c0': Device 'c0' is in use"
    assert add(machine, "virtserialport", id="p1", chardev="c0") == error
    assert machine.get("/machine/peripheral/p0", "parent_bus") == "/machine/peripheral/vs/virtio-backend/vs.0"
    machine.execute("device_del", id="p0")
    assert machine.take_events() == [("DEVICE_DELETED", {"device": "p0", "path": "/machine/peripheral/p0"})]
    assert machine.error("device_del", id="p0") == "DeviceNotFound: Device 'p0' not found"
    assert add(machine, "virtserialport", id="p0", chardev="c0") == ""


def test_scsi_units_come_and_go_at_any_time(machine: Machine) -> None:
    machine.pc.lifecycle.states.set(RunState.RUNNING)
    machine.pc.lifecycle.states.set(RunState.PAUSED)
    assert add(machine, "scsi-hd", id="sd", drive="n", bus="scsi0.0", lun=1) == ""
    assert machine.get("/machine/peripheral/scsi0/virtio-backend/scsi0.0", "child[0]") == "/machine/peripheral/sd"
    machine.execute("device_del", id="/machine/peripheral/sd")
    assert machine.take_events() == [("DEVICE_DELETED", {"device": "sd", "path": "/machine/peripheral/sd"})]
    assert add(machine, "scsi-hd", id="again", drive="n") == ""


def test_the_drive_of_a_scsi_unit_goes_with_it() -> None:
    drive = ("-drive", "if=none,id=d,file=null-co://,format=raw")
    with Machine(*drive, "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d,id=sd") as machine:
        machine.execute("device_del", id="sd")
        assert machine.execute("query-block") == []
        assert add(machine, "scsi-hd", drive="d") == "Property 'scsi-hd.drive' can't find value 'd'"


def test_a_device_is_put_off_its_bus_only_before_the_guest_ran(machine: Machine) -> None:
    machine.pc.lifecycle.states.set(RunState.RUNNING)
    machine.pc.lifecycle.states.set(RunState.PAUSED)
    error = machine.error("qom-set", path="/machine/peripheral/vs", property="realized", value=False)
    assert error == "Bus 'pci.0' does not support hotplugging"


def test_a_pci_device_leaves_at_the_next_reset(machine: Machine) -> None:
    assert add(machine, "virtserialport", id="p0") == ""
    assert add(machine, "virtio-blk-pci", id="b0", drive="n", bootindex=1) == ""
    for name in ("vs", "b0"):
        machine.execute("device_del", id=name)
        assert machine.error("device_del", id=name) == f"Device {name} is already in the process of unplug"
    assert machine.take_events() == []
    with machine.pc.lock:
        machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
    names = [(name, data.get("device", data.get("path"))) for name, data in machine.take_events()]
    assert names == [
        ("DEVICE_DELETED", "/machine/peripheral/vs/virtio-backend"),
        ("DEVICE_DELETED", "vs"),
        ("DEVICE_DELETED", "/machine/peripheral/b0/virtio-backend"),
        ("DEVICE_DELETED", "b0"),
        ("RESET", None),
    ]
    assert set(machine.pc.plugger.plugged.identifiers) == {"scsi0"}
    assert machine.pc.plugger.disks.boot_order() == b""
    assert add(machine, "virtio-blk-pci", id="b0", drive="n", bootindex=1) == ""
    assert add(machine, "virtserialport") == "No 'virtio-serial-bus' bus found for device 'virtserialport'"


def test_a_device_off_its_bus(machine: Machine) -> None:
    path = "/machine/peripheral/scsi0"
    machine.execute("qom-set", path=path, property="realized", value=False)
    assert machine.get(path, "realized") is False
    assert add(machine, "scsi-hd", drive="n", bus="scsi0.0") == "Bus 'scsi0.0' does not support hotplugging"
    assert add(machine, "virtio-rng-pci", id="r", addr="3") == ""
    error = machine.error("qom-set", path=path, property="realized", value=True)
    assert error == "PCI: slot 3 function 0 not available for virtio-scsi-pci, in use by virtio-rng-pci,id=r"
    machine.execute("device_del", id="scsi0")
    machine.pc.model.before_run()
    assert "scsi0" not in machine.pc.plugger.plugged.identifiers


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("zz", "DeviceNotFound: Device 'zz' not found"),
        ("/machine/nope", "DeviceNotFound: Device '/machine/nope' not found"),
        ("/machine", "/machine is not a hotpluggable device"),
        ("/objects/pc.ram", "/objects/pc.ram is not a hotpluggable device"),
        ("/machine/unattached/device[9]", "Bus 'isa.0' does not support hotplugging"),
        ("/machine/i440fx", "Bus 'main-system-bus' does not support hotplugging"),
        ("/machine/unattached/device[0]", "Boot CPU is unpluggable"),
    ],
)
def test_what_cannot_be_taken_out(name: str, error: str) -> None:
    assert shared().error("device_del", id=name) == error


def test_devices_without_an_id_keep_their_numbers() -> None:
    with Machine("-device", "virtio-serial-pci,id=vs") as machine:
        for _ in range(3):
            assert add(machine, "virtserialport") == ""
        machine.execute("device_del", id="/machine/peripheral-anon/device[1]")
        assert machine.take_events() == [("DEVICE_DELETED", {"path": "/machine/peripheral-anon/device[1]"})]
        assert add(machine, "virtserialport") == ""
        names = {item["name"] for item in machine.execute("qom-list", path="/machine/peripheral-anon")}
        assert names == {"type", "device[0]", "device[2]", "device[3]"}
