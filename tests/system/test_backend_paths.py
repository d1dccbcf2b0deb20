"""Drives of devices without an ID are named by the device's path, as in QEMU 7.2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.machine_rig import Machine


def options(*numbers: int) -> list[str]:
    return [word for number in numbers for word in ("-blockdev", f"null-co,node-name=n{number}")]


def names(machine: Machine) -> dict[str, Any]:
    """Return the `qdev` of each drive by its node, or its own name where it is empty."""
    return {
        info.get("inserted", {}).get("node-name") or info["device"] or "empty": info.get("qdev")
        for info in machine.execute("query-block")
    }


def test_devices_without_an_id() -> None:
    devices = ("-device", "virtio-blk-pci,drive=n1", "-device", "virtio-scsi-pci", "-device", "scsi-cd")
    more = ("-device", "scsi-hd,drive=n2", "-device", "virtio-blk-pci,drive=n3,id=v3")
    with Machine(*options(1, 2, 3), *devices, *more) as machine:
        assert names(machine) == {
            "n1": "/machine/peripheral-anon/device[0]/virtio-backend",
            "empty": "/machine/peripheral-anon/device[2]",
            "n2": "/machine/peripheral-anon/device[3]",
            "n3": "/machine/peripheral/v3/virtio-backend",
        }
        path = "/machine/peripheral-anon/device[2]"
        machine.execute("blockdev-open-tray", id=path)
        assert machine.take_events()[-1] == ("DEVICE_TRAY_MOVED", {"device": "", "id": path, "tray-open": True})
        stats = machine.execute("query-blockstats")
        assert {info["qdev"] for info in stats} == set(names(machine).values())


def test_drives_of_the_board(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    drive = f"if=ide,file={image},format=raw,id=disk,node-name=dn"
    with Machine("-drive", drive, base=("-display", "none", "-S", "-m", "16")) as machine:
        found = names(machine)
        (floppy,) = (path for name, path in found.items() if name.startswith("floppy"))
        assert machine.get(floppy, "type") == "floppy"
        assert all(path is not None and path.startswith("/machine/unattached/device[") for path in found.values())
        assert "ide-hd" in {machine.get(path, "type") for path in found.values()}


def test_devices_that_come_later() -> None:
    with Machine(*options(1), "-device", "virtio-scsi-pci,id=s") as machine:
        machine.execute("device_add", driver="scsi-hd", drive="n1", bus="s.0")
        assert names(machine) == {"n1": "/machine/peripheral-anon/device[0]"}
