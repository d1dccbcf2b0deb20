"""What the tests of the block layer's commands share: a monitor's bench whose machine has disks, and images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyvm.block.backend import BlockBackend
from pyvm.block.create import create_image
from pyvm.clock import ManualClock
from pyvm.config import DriveConfig, MachineConfig, ObjectConfig
from pyvm.machine.storage import Storage, StorageEvents
from pyvm.monitor.events import EventBus
from tests.unit.monitor_support import Bench, Client

SIZE = 1 << 20


class Device:
    """A device that has a drive.  With `tray`, a CD-ROM drive; `locked`, its guest has the tray locked."""

    def __init__(self, *, tray: bool = False, locked: bool = False) -> None:
        self.has_tray = tray
        self.tray_open = False
        self.medium_locked = locked
        self.said: list[str] = []

    def media_changed(self, loaded: bool) -> None:
        if self.has_tray:
            self.tray_open = not loaded
        self.said.append("loaded" if loaded else "gone")

    def eject_requested(self, force: bool) -> None:
        self.said.append("force" if force else "ask")
        if force:
            self.medium_locked = False

    def resized(self) -> None:
        self.said.append("resized")


def make_storage(events: EventBus, config: MachineConfig | None = None) -> Storage:
    """Return the disks of a machine that `config` describes."""

    def call(function: Callable[..., None], *arguments: Any) -> None:
        function(*arguments)

    lock = threading.RLock()
    wiring = StorageEvents(events.emit, lambda: None, call)
    return Storage(config or MachineConfig(), lock, ManualClock(), wiring, warn=lambda line: None)


class Disks:
    """A client of a machine with disks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = Bench()
        self.storage = make_storage(self.bench.events, MachineConfig(objects=[ObjectConfig("iothread", "io0")]))
        self.bench.machine.storage = self.storage
        self.client: Client = self.bench.client()

    # ---- Images

    def raw(self, name: str, size: int = SIZE) -> str:
        """Make a raw image; return its path."""
        path = self.folder / name
        path.write_bytes(bytes(size))
        return str(path)

    def qcow2(self, name: str, backing: str | None = None, **options: Any) -> str:
        """Make a qcow2 image; return its path."""
        path = str(self.folder / name)
        create_image(path, "qcow2", SIZE, options, backing, "qcow2" if backing else None, check_backing=False)
        return path

    # ---- Drives and devices

    def drive(self, name: str, path: str = "", device: Device | None = None, **options: Any) -> BlockBackend:
        """Make a drive, empty where `path` is; and plug `device` in with the ID ``dev-`` and its name."""
        config = DriveConfig(name, file=path, format="raw" if path else None, interface="none", empty=not path)
        for key, value in options.items():
            setattr(config, key, value)
        backend = self.storage.add_drive(config)
        if device is not None:
            self.plug(backend, device, f"dev-{name}")
        return backend

    def node_disk(self, node: str, device: Device, identifier: str) -> BlockBackend:
        """Plug a device in that uses a node by its name."""
        backend = self.storage.backend(node)
        self.plug(backend, device, identifier)
        return backend

    def plug(self, backend: BlockBackend, device: Device, identifier: str) -> None:
        """Let a device use a drive."""
        backend.removable = device.has_tray or (backend.node is None)
        backend.only_reads = device.has_tray
        backend.attach(device, identifier)
        backend.io_status_enabled = True

    # ---- Commands

    def run(self, command: str, **arguments: Any) -> Any:
        """Execute a command with ``_`` for ``-`` in the names of its arguments; return its result."""
        return self.client.execute(command, **_wire(arguments))

    def fails(self, command: str, **arguments: Any) -> str:
        """Execute a command that fails; return why."""
        return self.client.error(command, _wire(arguments))

    def events(self, command: str, **arguments: Any) -> list[tuple[str, Any]]:
        """Execute a command that succeeds; return the events on the way."""
        *events, reply = self.client.ask({"execute": command, "arguments": _wire(arguments)})
        assert reply in ({"return": {}}, {"return": ""})
        return [(event["event"], event["data"]) for event in events]

    def human(self, line: str) -> str:
        """Execute a line of the human monitor; return what it shows."""
        *_, reply = self.client.ask({"execute": "human-monitor-command", "arguments": {"command-line": line}})
        text: str = reply["return"]
        return text.replace("\r\n", "\n")

    def node(self, name: str) -> dict[str, Any]:
        """Return what there is to tell of a node."""
        nodes = self.run("query-named-block-nodes")
        return next(node for node in nodes if node["node-name"] == name)

    def add(self, name: str, path: str, driver: str = "raw", **options: Any) -> None:
        """Open a file as a node, with the file's node called ``NAME-file``."""
        file = {"driver": "file", "filename": path, "node-name": f"{name}-file"}
        self.run("blockdev-add", driver=driver, node_name=name, file=file, **options)

    def close(self) -> None:
        """Close everything; nothing may be left."""
        self.storage.close()
        assert not self.storage.graph.nodes


def _wire(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        key if key.startswith(("bps", "iops")) else key.replace("_", "-"): value for key, value in arguments.items()
    }


# ---- One call of each command

REFUSED = ("block_passwd", "x-blockdev-change")
"""Commands that never succeed."""


def prepare(events: EventBus, folder: Path) -> tuple[Storage, dict[str, dict[str, Any]]]:
    """Return disks for one call of each command of the block layer, and the arguments of it."""
    storage = make_storage(events, MachineConfig(objects=[ObjectConfig("iothread", "io0")]))
    paths = {name: str(folder / name) for name in ("d", "overlay", "top", "new", "iso")}
    for name, backing in (("d", None), ("overlay", paths["d"]), ("top", paths["d"])):
        create_image(paths[name], "qcow2", SIZE, {}, backing, "qcow2" if backing else None, check_backing=False)
    (folder / "iso").write_bytes(bytes(SIZE))
    storage.add_drive(DriveConfig("d", file=paths["d"], format="qcow2", interface="none"))
    storage.add_node({"driver": "null-co", "node-name": "n"})
    file = {"driver": "file", "filename": paths["overlay"]}
    storage.add_node({"driver": "qcow2", "node-name": "o", "backing": None, "file": file})
    file = {"driver": "file", "filename": paths["top"]}
    storage.add_node({"driver": "qcow2", "node-name": "top", "backing": {"driver": "null-co"}, "file": file})
    cd, tray = storage.empty_backend(), Device(tray=True)
    cd.removable = cd.only_reads = True
    cd.attach(tray, "cd")
    tray.tray_open = True
    node = storage.drives["d"].backend.shown_node.name
    limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    null = {"driver": "null-co", "node-name": "n"}
    return storage, {
        "eject": {"id": "cd"},
        "blockdev-open-tray": {"id": "cd"},
        "blockdev-close-tray": {"id": "cd"},
        "blockdev-remove-medium": {"id": "cd"},
        "blockdev-insert-medium": {"id": "cd", "node-name": "n"},
        "blockdev-change-medium": {"id": "cd", "filename": paths["iso"], "format": "raw"},
        "change": {"device": "d", "target": paths["iso"], "arg": "raw"},
        "block_set_io_throttle": {"device": "d", **limits},
        "block-latency-histogram-set": {"id": "cd", "boundaries": [1]},
        "block_resize": {"device": "d", "size": 2 * SIZE},
        "blockdev-snapshot-sync": {"device": "d", "snapshot-file": paths["new"]},
        "blockdev-snapshot": {"node": node, "overlay": "o"},
        "change-backing-file": {"device": "top", "image-node-name": "top", "backing-file": "x"},
        "blockdev-add": {"driver": "null-co", "node-name": "m"},
        "blockdev-reopen": {"options": [null]},
        "x-blockdev-reopen": null,
        "blockdev-del": {"node-name": "n"},
        "block-set-write-threshold": {"node-name": "n", "write-threshold": 1},
        "x-blockdev-set-iothread": {"node-name": "n", "iothread": "io0"},
        "block_passwd": {"device": "d", "password": "p"},
        "x-blockdev-change": {"parent": "n", "child": "file"},
    }
