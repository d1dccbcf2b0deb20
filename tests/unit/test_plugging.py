"""Plugging devices in: what fits, and the one line that says why something does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvm.chardev.ringbuf import RingbufChardev
from pyvm.commandline import parse_arguments
from pyvm.devices.isa_debug_exit import IsaDebugExit
from pyvm.devices.virtio.pci import VirtioPci
from pyvm.errors import ConfigError
from pyvm.machine.pc import Pc

BARE = ["-S", "-display", "none", "-nodefaults", "-m", "32"]
NULL = ["-chardev", "null,id=c"]
SERIAL = ["-device", "virtio-serial-pci,id=v"]


@contextmanager
def pc(*options: str) -> Iterator[Pc]:
    """A machine with just these devices."""
    machine = Pc(parse_arguments([*BARE, *options]))
    try:
        yield machine
    finally:
        machine.close()


def refusal(*options: str) -> str:
    """Return what is said where devices do not fit."""
    with pytest.raises(ConfigError) as error, pc(*options):
        pass
    message = str(error.value)
    assert "\n" not in message
    return message


def devices(*specifications: str) -> list[str]:
    return [word for specification in specifications for word in ("-device", specification)]


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return str(path)


# ---- What fits


def test_slots_are_given_out_in_order_and_on_request() -> None:
    with pc(
        *devices("virtio-rng-pci,id=a", "virtio-rng-pci,id=b,addr=5.1", "virtio-rng-pci,id=c,addr=5,multifunction=on")
    ) as machine:
        plugged = machine._plugger.plugged.identifiers
        places = {}
        for name in "abc":
            function = plugged[name]
            assert isinstance(function, VirtioPci)
            places[name] = (function.slot, function.fn)
        assert places == {"a": (2, 0), "b": (5, 1), "c": (5, 0)}
        assert {"a", "a/virtio", "b", "c"} <= set(machine.board.components)


def test_ports_find_their_bus() -> None:
    two = ["-device", "virtio-serial-pci,id=w"]
    ports = devices("virtserialport,id=p,name=org.x,bus=v.0", "virtconsole,id=q", "virtserialport,id=r,bus=w.0,nr=7")
    with pc(*NULL, *SERIAL, *two, *ports) as machine:
        plugged = machine._plugger.plugged
        assert list(plugged.serial_buses) == ["v.0", "w.0"]
        assert [port.nr for port in plugged.serial_buses["v.0"].ports.values()] == [1]
        assert sorted(port.nr for port in plugged.serial_buses["w.0"].ports.values()) == [0, 7]


def test_the_bus_of_what_names_none_is_the_youngest() -> None:
    bridge = ("pci-bridge,id=b,chassis_nr=1", "virtio-scsi-pci,bus=b")
    hosts = devices("virtio-scsi-pci,id=s", *bridge, "virtio-scsi-pci", "scsi-cd,id=c", "ide-cd", "ide-cd")
    with pc("-drive", "if=ide,file=null-co://,format=raw", *hosts) as machine:
        disks = machine._plugger.disks
        assert list(disks.scsi_buses) == ["s.0", "scsi.0", "scsi.1"]
        assert [len(bus.units) for bus in disks.scsi_buses.values()] == [0, 0, 1]
        channels = machine.board.ide.channels
        assert [[drive.present for drive in channel.drives] for channel in channels] == [[True, False], [True, True]]


def test_debug_exit_ends_the_machine_with_its_status() -> None:
    with pc(*devices("isa-debug-exit,id=x,iobase=0xf4,iosize=4")) as machine:
        assert isinstance(machine._plugger.plugged.identifiers["x"], IsaDebugExit)
        machine.ports.write(0xF4, 4, 0x10)
        assert machine.lifecycle.exit_status == 0x21


def test_disks_by_device_and_by_drive(image: str) -> None:
    with pc("-drive", f"file={image},if=none,id=d,format=raw", *devices("virtio-blk-pci,drive=d,id=disk")) as machine:
        assert machine.storage.drives["d"].backend.device is machine._plugger.plugged.virtio[0]
    with pc("-drive", f"file={image},format=raw") as machine:
        assert [disk.interface for disk in machine._plugger.disks.bootable] == ["virtio"]


def test_disks_on_every_bus(image: str) -> None:
    drives = [word for name in "abcde" for word in ("-drive", f"file={image},if=none,id={name},format=raw,readonly=on")]
    models = (
        "ide-cd,drive=a,bus=ide.1",
        "virtio-scsi-pci,id=s",
        "scsi-hd,drive=b,bootindex=3",
        "scsi-cd,drive=c,scsi-id=1",
    )
    with pc(*drives, *devices(*models, "floppy,drive=d", "virtio-blk,drive=e")) as machine:
        places = [(disk.kind, disk.interface, disk.channel, disk.unit) for disk in machine._plugger.disks.bootable]
        assert places == [
            ("cdrom", "ide", 1, 0),
            ("disk", "scsi", 0, 0),
            ("cdrom", "scsi", 0, 1),
            ("floppy", "floppy", 0, 0),
            ("disk", "virtio", 0, 0),
        ]
        assert machine.board.rtc.cmos(0x10) == 0x50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ide-hd,drive=d,bus=ide.2", "Bus 'ide.2' not found"),
        ("ide-hd,drive=d,unit=2", "Can't create IDE unit 2, bus supports only 2 units"),
        ("ide-hd", "drive property not set"),
        ("ide-hd,drive=x", "Property 'ide-hd.drive' can't find value 'x'"),
        ("ide-hd,drive=d,cyls=5", "cyls, heads and secs must be given together"),
        ("ide-hd,drive=d,bios-chs-trans=x", "Parameter 'bios-chs-trans' does not accept value 'x'"),
        ("scsi-hd,drive=d", "No 'SCSI' bus found for device 'scsi-hd'"),
        ("floppy,unit=2", "Can't create floppy unit 2, bus supports only 2 units"),
        ("virtio-scsi,iothread=t", "Device 't' not found"),
    ],
)
def test_disks_that_cannot_be_plugged_in(image: str, words: str, message: str) -> None:
    drive = ("-drive", f"file={image},if=none,id=d,format=raw")
    with pytest.raises(ConfigError) as caught, pc("-nodefaults", *drive, *devices(words)):
        pass
    assert str(caught.value) == f"-device {words}: {message}"


def test_serial_ports_take_the_next_free_place() -> None:
    with pc(*devices("isa-serial,index=1", "isa-serial", "isa-serial")) as machine:
        assert sorted(machine.board.serials) == [0, 1, 2]
        assert machine.ports.read(0x3FD, 1) == 0x60
        assert machine.ports.read(0x2EF, 1) == 0xFF


def test_a_debug_console_writes_to_its_back_end() -> None:
    with pc(
        "-chardev", "ringbuf,id=c,size=16", *devices("isa-debugcon,chardev=c,iobase=0x402,readback=0x55")
    ) as machine:
        machine.ports.write(0x402, 1, ord("x"))
        assert machine.ports.read(0x402, 1) == 0x55
        ring = machine.chardev_set.find("c")
        assert isinstance(ring, RingbufChardev)
        assert ring.read(16) == b"x"


# ---- What does not


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["warp-drive"], "-device warp-drive: 'warp-drive' is not a valid device model name"),
        (["virtio-rng-pci,bus=isa.0"], "-device virtio-rng-pci,bus=isa.0: Device 'virtio-rng-pci' can't go on ISA bus"),
        (["isa-serial,bus=pci.0"], "-device isa-serial,bus=pci.0: Device 'isa-serial' can't go on PCI bus"),
        (["isa-serial,chardev=x"], "-device isa-serial,chardev=x: Property 'isa-serial.chardev' can't find value 'x'"),
        (["virtserialport"], "-device virtserialport: No 'virtio-serial-bus' bus found for device 'virtserialport'"),
        (["virtio-serial-pci", "virtserialport,bus=w.0"], "-device virtserialport,bus=w.0: Bus 'w.0' not found"),
        (
            ["virtio-serial-pci", "virtserialport,nr=1", "virtserialport,nr=1"],
            "-device virtserialport,nr=1: virtio-serial-bus: A port already exists at id 1",
        ),
        (
            ["virtio-serial-pci,max_ports=1", "virtserialport"],
            "-device virtserialport: virtio-serial-bus: Out-of-range port id specified, max. allowed: 0",
        ),
        (
            ["virtio-balloon-pci", "virtio-balloon-pci"],
            "-device virtio-balloon-pci: Only one balloon device is supported",
        ),
        (["virtio-blk-pci"], "-device virtio-blk-pci: drive property not set"),
        (
            ["virtio-blk-pci,drive=x"],
            "-device virtio-blk-pci,drive=x: Property 'virtio-blk-device.drive' can't find value 'x'",
        ),
        (["virtio-rng-pci,rng=r"], "-device virtio-rng-pci,rng=r: Device 'r' not found"),
        (
            ["virtio-rng-pci,addr=1"],
            "-device virtio-rng-pci,addr=1: PCI: slot 1 function 0 not available for virtio-rng-pci, in use by PIIX3",
        ),
        (
            ["virtio-rng-pci,addr=20"],
            "-device virtio-rng-pci,addr=20: Property 'virtio-rng-pci.addr' doesn't take value '20'",
        ),
        (["virtio-rng-pci,warp=1"], "-device virtio-rng-pci,warp=1: Property 'virtio-rng-pci.warp' not found"),
        (["virtio-rng-pci,vectors=5000"], "-device virtio-rng-pci,vectors=5000: MSI-X cannot have 5000 vectors"),
        (
            ["isa-debug-exit", "isa-debug-exit"],
            "-device isa-debug-exit: I/O: isa-debug-exit at 0x501 would overlap isa-debug-exit at 0x501",
        ),
        (["isa-debugcon"], "-device isa-debugcon: Can't create debugcon device, empty char device"),
        (["isa-serial"] * 5, "-device isa-serial: Max. supported number of ISA serial ports is 4."),
        (["isa-serial,index=7"], "-device isa-serial,index=7: serial port 7 is taken or does not exist"),
        (
            ["virtio-rng-pci"] * 33,
            "-device virtio-rng-pci: PCI: no slot/function available for virtio-rng-pci, all in use or reserved",
        ),
    ],
)
def test_refusals(options: list[str], message: str) -> None:
    assert refusal(*devices(*options)) == message


def test_a_back_end_serves_one_device() -> None:
    assert "'c'" in refusal(*NULL, *SERIAL, *devices("virtserialport,chardev=c", "virtserialport,chardev=c"))
    assert "'c'" in refusal(*NULL, "-serial", "chardev:c", *SERIAL, *devices("virtserialport,chardev=c"))


def test_a_drive_serves_one_device(image: str) -> None:
    drive = ["-drive", f"file={image},if=none,id=d,format=raw"]
    for other in ("virtio-blk-pci,drive=d", "floppy,drive=d"):
        message = refusal(*drive, *devices("floppy,drive=d", other))
        assert message == f"-device {other}: Drive 'd' is already in use by another device"
    automatic = ["-drive", f"file={image},if=ide,id=d,format=raw"]
    message = refusal(*automatic, *devices("virtio-blk-pci,drive=d"))
    assert message.startswith("-device virtio-blk-pci,drive=d: Drive 'd' is already in use because it has been auto")


def test_images_that_cannot_be_opened(tmp_path: Path) -> None:
    absent = tmp_path / "absent.img"
    message = refusal("-drive", f"file={absent},if=virtio,format=raw")
    assert message.startswith("-drive ")
    assert f"'{absent}'" in message
    assert "No such file or directory" in message
    other = tmp_path / "other.qcow2"
    other.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(4088))
    assert "Unsupported cluster size" in refusal("-drive", f"file={other},if=virtio")


def test_a_random_source_that_cannot_be_opened() -> None:
    options = ["-object", "rng-random,id=r,filename=/nonexistent", *devices("virtio-rng-pci,rng=r")]
    message = "Could not open '/nonexistent': No such file or directory"
    assert refusal(*options) == f"-object rng-random,id=r,filename=/nonexistent: {message}"
