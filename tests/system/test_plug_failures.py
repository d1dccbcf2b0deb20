"""Devices that find no place leave nothing behind, and every device has a component of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.machine.board import Board
from tests.system.machine_rig import Machine

_PLACES = ("-m", "16,slots=2,maxmem=1G", "-smp", "1,maxcpus=2")
_GUARDS = ("ib700", "pvpanic", "vmgenid", "pci-bridge,id=br,chassis_nr=1,addr=6")


def devices(*specifications: str) -> list[str]:
    return [word for specification in specifications for word in ("-device", specification)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(
        "-netdev", "user,id=n0", "-blockdev", "null-co,node-name=n,size=1048576",
        "-drive", "driver=null-co,size=1048576,if=none,id=d",
        "-object", "rng-builtin,id=r", *devices("virtio-rng-pci,id=here,addr=5", "virtio-scsi-pci,id=s,addr=4"),
    ) as made:  # fmt: skip
        yield made


def plug(machine: Machine, driver: str, **properties: Any) -> str:
    """Plug a device in; return what is wrong, or nothing."""
    reply = machine.ask("device_add", {"driver": driver, **properties})
    return str(reply["error"]["desc"]) if "error" in reply else ""


def known(machine: Machine) -> tuple[object, ...]:
    """Return all that a device changes when it is plugged in."""
    plugger = machine.pc.plugger
    plugged = plugger.plugged
    return (
        sorted(machine.pc.board.components),
        [client.name for client in machine.pc.network.clients],
        list(plugged.serial_buses),
        list(plugger.disks.scsi_buses),
        plugged.balloon,
        dict(plugged.vsock_hosts),
        len(plugged.virtio),
        len(plugged.cards),
        len(plugged.devices),
        [function.name for function in machine.pc.board.pci.functions()],
        [disk.name for disk in plugger.disks.bootable],
        len(list(machine.pc.storage.backends())),
        [backend.device for backend in machine.pc.storage.backends() if backend.name == "d"],
    )


@pytest.mark.parametrize(
    ("driver", "properties"),
    [
        ("virtio-net-pci", {"netdev": "n0", "mac": "52:54:00:00:00:99"}),
        ("e1000", {"netdev": "n0"}),
        ("virtio-balloon-pci", {}),
        ("virtio-serial-pci", {}),
        ("virtio-scsi-pci", {}),
        ("virtio-blk-pci", {"drive": "n"}),
        ("virtio-blk-pci", {"drive": "d", "bootindex": 3}),
        ("virtio-rng-pci", {"rng": "r"}),
        ("virtio-vsock-pci", {"guest-cid": 3}),
        ("i6300esb", {}),
        ("pci-bridge", {"chassis_nr": 2}),
    ],
)
def test_a_device_without_a_place(machine: Machine, tmp_path: Path, driver: str, properties: dict[str, Any]) -> None:
    if "guest-cid" in properties:
        properties = {**properties, "uds": str(tmp_path / "sock")}
    before = known(machine)
    assert "not available" in plug(machine, driver, id="x", addr=5, **properties)
    assert known(machine) == before
    assert not list(tmp_path.iterdir())
    assert plug(machine, driver, id="x", addr=7, **properties) == ""


@pytest.mark.parametrize(
    ("driver", "properties", "error"),
    [
        ("virtio-blk-pci", {"drive": "n", "logical_block_size": 3}, "logical_block_size"),
        ("virtio-blk-pci", {"drive": "n", "bootindex": 1}, "The bootindex 1 has already been used"),
        ("scsi-hd", {"drive": "n", "bootindex": 1}, "The bootindex 1 has already been used"),
        ("scsi-hd", {"drive": "n", "scsi-id": 3, "lun": 0}, "lun already used"),
        ("scsi-hd", {"drive": "d", "scsi-id": 3, "lun": 0}, "lun already used"),
        ("scsi-hd", {"drive": "first"}, "Permission conflict on node 'first'"),
        ("virtio-blk-pci", {"drive": "first"}, "Permission conflict on node 'first'"),
    ],
)
def test_a_disk_that_cannot_be(machine: Machine, driver: str, properties: dict[str, Any], error: str) -> None:
    machine.execute("blockdev-add", **{"driver": "null-co", "node-name": "first", "size": 512})
    assert plug(machine, "scsi-hd", id="taken", drive="first", bootindex=1, **{"scsi-id": 3, "lun": 0}) == ""
    before = known(machine)
    assert error in plug(machine, driver, id="x", **properties)
    assert known(machine) == before
    if properties["drive"] != "first":
        assert plug(machine, "virtio-blk-pci", id="x", drive=properties["drive"]) == ""


def test_ids_that_are_names_of_the_board() -> None:
    with Machine(*_PLACES, *devices("i6300esb,id=rtc", "virtio-rng-pci,id=pci_hotplug", "e1000,id=lapic1")) as machine:
        components = machine.pc.board.components
        named = {id(device.made) for device in machine.pc.plugger.plugged.devices}
        assert {"rtc", "pci_hotplug"} <= components.keys()
        assert {name for name, part in components.items() if id(part) in named} == {
            "peripheral/rtc",
            "peripheral/pci_hotplug",
            "peripheral/lapic1",
        }
        assert components["rtc"] is machine.pc.board.rtc


def test_the_names_of_the_board_are_known() -> None:
    with Machine(*_PLACES, "-vga", "std", "-serial", "null", *devices(*_GUARDS)) as machine:
        components = machine.pc.board.components
        own = {name for name in components if name not in machine.pc.plugger.plugged.identifiers}
        assert {"rtc", "serial0", "vga", "ib700", "vmgenid", "memory_hotplug", "floppy"} <= own
        assert [name for name in sorted(own) if Board.name_for(name) == name] == []


def test_devices_without_an_id_in_the_same_slot_of_two_buses() -> None:
    bridge = "pci-bridge,id=br,chassis_nr=1,addr=6"
    twins = ("virtio-rng-pci,addr=3", "virtio-rng-pci,addr=3,bus=br")
    with Machine(*devices(bridge, *twins)) as machine:
        parts = machine.pc.board.components.values()
        for device in machine.pc.plugger.plugged.devices:
            assert any(part is device.made for part in parts)


def test_nothing_comes_or_goes_while_the_machine_moves(machine: Machine) -> None:
    machine.execute("migrate-set-parameters", **{"max-bandwidth": 4096})
    machine.execute("migrate", uri="exec:cat >/dev/null")
    try:
        assert plug(machine, "virtio-rng-pci") == "device_add not allowed while migrating"
        assert machine.error("device_del", id="here") == "device_del not allowed while migrating"
        assert plug(machine, "virtio-rng-pci", nonsense=1) == "device_add not allowed while migrating"
        # What cannot be at any time is said first.
        assert plug(machine, "i8042") == "Bus 'isa.0' does not support hotplugging"
        assert plug(machine, "virtio-rng-pci", bus="zz") == "Bus 'zz' not found"
        assert machine.error("device_del", id="zz") == "DeviceNotFound: Device 'zz' not found"
    finally:
        machine.execute("migrate_cancel")
