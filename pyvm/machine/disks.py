"""Disk devices on their buses: what `-device` asks for, and the drives that need no device of their own.

A device names its drive; what is behind it comes from :class:`pyvm.machine.storage.Storage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from pyvm.block.backend import BlockBackend
from pyvm.block.errors import BlockError
from pyvm.config import DeviceConfig
from pyvm.devices.properties import DeviceModel, not_found
from pyvm.errors import ConfigError
from pyvm.firmware.bios.machine import BiosDisk, DiskKind
from pyvm.machine import cmos
from pyvm.machine.plug.boot_places import boot_index, place_of
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.config import DriveConfig, MachineConfig
    from pyvm.devices.floppy import FloppyController
    from pyvm.devices.pci.function import PciFunction
    from pyvm.devices.scsi.bus import ScsiBus
    from pyvm.devices.scsi.target import ScsiTarget
    from pyvm.devices.virtio.blk import VirtioBlk
    from pyvm.devices.virtio.pci import AnyVirtioDevice
    from pyvm.devices.virtio.scsi import VirtioScsi
    from pyvm.machine.board import Board
    from pyvm.machine.storage import Storage

IDE_BUSES = ("ide.0", "ide.1")
FLOPPY_BUS = "floppy-bus.0"
_UNITS = 2
_NEXT_FREE = 0xFFFFFFFF
_ISA_BRIDGE_SLOT, _IDE_FUNCTION = 1, 1
_FLOPPY_PORT, _FLOPPY_DIR_PORT, _FLOPPY_IRQ = 0x3F0, 0x3F7, 6

# Open Firmware device paths, as SeaBIOS reads them from fw_cfg.
_BOOT_PATHS = {
    "virtio": "/pci@i0cf8/scsi@{place}/disk@0,0",
    "scsi": "/pci@i0cf8/scsi@{place}/channel@0/disk@{unit:x},{lun:x}",
    "ide": "/pci@i0cf8/ide@{place}/drive@{channel}/disk@{unit}",
    "floppy": "/pci@i0cf8/isa@1/fdc@03f0/floppy@{unit}",
}
_BOOT_STRICT = "HALT"
_AUTOMATICALLY = (
    "because it has been automatically connected to another device (did you need 'if=none' in the drive options?)"
)
_PERIPHERAL = "/machine/peripheral/"


@record
class _Floppy:
    """A floppy drive that the controller will have."""

    backend: BlockBackend
    kind: str = "auto"


@record
class Disks:
    """Makes disk devices.  Errors are ConfigErrors and ValueErrors."""

    board: Board
    config: MachineConfig
    storage: Storage
    bootable: list[BiosDisk] = field(default_factory=list)
    """What firmware may boot from, in the order of plugging."""
    scsi_buses: dict[str, ScsiBus] = field(default_factory=dict)
    _boot_paths: list[tuple[int, str]] = field(default_factory=list)
    """Boot indices, and the paths by which firmware in the guest knows those devices."""
    _scsi_hosts: dict[str, tuple[PciFunction, str | None]] = field(default_factory=dict)
    _floppies: list[_Floppy | None] = field(default_factory=lambda: [None, None])

    # ---- Back ends

    def _backend(
        self,
        model: DeviceModel,
        values: dict[str, Any],
        *,
        removable: bool = False,
        only_reads: bool = False,
        path: str = "",
    ) -> BlockBackend:
        """Return the drive that a device names; a drive for media may be empty.  `path` is the device's for clients."""
        backend = self._find_backend(model, values, removable=removable)
        backend.removable = removable
        backend.only_reads = only_reads
        backend.share_rw = bool(values.get("share-rw"))
        backend.device_id = path
        return backend

    def _find_backend(self, model: DeviceModel, values: dict[str, Any], *, removable: bool) -> BlockBackend:
        name = values["drive"]
        if name is None:
            if not removable:
                raise ConfigError("drive property not set")
            return self.storage.empty_backend()
        try:
            backend = self.storage.backend(name, values.get("iothread"))
        except KeyError:
            raise not_found(model, "drive", name) from None
        except BlockError as error:
            raise ConfigError(str(error)) from None
        if backend.device is not None or any(drive and drive.backend is backend for drive in self._floppies):
            drive = self.storage.drives.get(name)
            automatic = drive is not None and drive.config.interface != "none"
            raise ConfigError(
                f"Drive '{name}' is already in use {_AUTOMATICALLY if automatic else 'by another device'}"
            )
        if not removable and backend.node is None:
            raise ConfigError("Device needs media, but drive is empty")
        for policy in ("werror", "rerror"):
            if values.get(policy, "auto") != "auto":
                setattr(backend, policy, values[policy])
        return backend

    def _boot(
        self,
        kind: DiskKind,
        backend: BlockBackend,
        values: dict[str, Any],
        interface: str,
        function: PciFunction | None,
        *,
        channel: int = 0,
        unit: int = 0,
        lun: int = 0,
    ) -> None:
        address = None if function is None else function.slot << 3 | function.fn
        index = boot_index(values)
        if index is not None:
            place = "" if function is None else place_of(function)
            path = _BOOT_PATHS[interface].format(place=place, channel=channel, unit=unit, lun=lun)
            self._boot_paths.append((index, path))
        name = backend.name or (backend.node.name if backend.node is not None else "")
        self.bootable.append(
            BiosDisk(
                kind,
                backend,
                name,
                bootindex=index,
                interface=interface,
                pci_address=address,
                channel=channel,
                unit=unit,
            )
        )

    def spare(self, backend: BlockBackend) -> None:
        """There is no place for the device that was to have a drive: another one may have it."""
        self.not_bootable(backend)
        self.storage.give_back(backend, keep_drive=True)

    def boot_order(self, others: Iterable[tuple[int, str]] = ()) -> bytes:
        """Return what has a boot index as firmware in the guest wants to have it, `others` too; empty without any."""
        lines = [path for _, path in sorted([*self._boot_paths, *others])]
        if self.config.boot.strict:
            lines.append(_BOOT_STRICT)
        return b"" if not lines else "\n".join(lines).encode() + b"\0"

    # ---- Virtio

    def make_virtio_disk(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioBlk:
        """Return a virtio block device on its drive."""
        from pyvm.devices.virtio.blk import VirtioBlk
        from pyvm.devices.virtio.blk_options import keywords

        path = f"{_PERIPHERAL}{device.id}/virtio-backend" if device.id else ""
        backend = self._backend(model, values, path=path)
        try:
            return VirtioBlk(backend, **keywords(values, cpus=self.config.smp.cpus))
        except BaseException:
            self.spare(backend)
            raise

    def plugged(self, device: AnyVirtioDevice, function: PciFunction, values: dict[str, Any]) -> None:
        """A virtio device is on the PCI bus now: firmware may boot from a disk, and units go on the bus of a host."""
        if device.name == "virtio-blk":
            self._boot("disk", cast("VirtioBlk", device).backend, values, "virtio", function)
        elif device.name == "virtio-scsi":
            self._scsi_hosts[cast("VirtioScsi", device).bus.name] = (function, values["iothread"] or None)

    # ---- IDE

    def plug_ide(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> object:
        """Put a disk or a CD-ROM drive on one of the two IDE channels."""
        number = IDE_BUSES.index(device.bus or "")
        unit = self._ide_unit(number, values["unit"])
        is_cd = model.name == "ide-cd"
        backend = self._backend(model, values, removable=is_cd, only_reads=is_cd, path=device.id or "")
        identity = {"serial": values["serial"], "model": values["model"], "version": values["ver"]}
        drive = self._ide_cd(backend, values, identity) if is_cd else self._ide_disk(backend, values, identity)
        backend.io_status_enabled = True
        self.board.ide.channels[number].attach(unit, drive)
        kind: DiskKind = "cdrom" if is_cd else "disk"
        self._boot(kind, backend, values, "ide", self.board.ide, channel=number, unit=unit)
        return drive

    def _ide_unit(self, channel: int, unit: int) -> int:
        """Return the place on a channel for a drive that is to be `unit`; raises ConfigError where there is none."""
        drives = self.board.ide.channels[channel].drives
        if unit == _NEXT_FREE:
            unit = int(drives[0].present)
        if unit >= _UNITS:
            raise ConfigError(f"Can't create IDE unit {unit}, bus supports only {_UNITS} units")
        if drives[unit].present:
            raise ConfigError(f"IDE unit {unit} is in use")
        return unit

    @staticmethod
    def _ide_cd(backend: BlockBackend, values: dict[str, Any], identity: dict[str, Any]) -> Any:
        from pyvm.devices.ide.atapi import AtapiCd

        return AtapiCd(backend, wwn=values["wwn"], **identity)

    @staticmethod
    def _ide_disk(backend: BlockBackend, values: dict[str, Any], identity: dict[str, Any]) -> Any:
        from pyvm.devices.ide.disk import IdeDisk
        from pyvm.devices.ide.geometry import Geometry

        if values["write-cache"] != "auto":
            backend.write_cache = values["write-cache"] == "on"
        given = (values["cyls"], values["heads"], values["secs"])
        if any(given) and not all(given):
            raise ValueError("cyls, heads and secs must be given together")
        return IdeDisk(
            backend,
            wwn=values["wwn"],
            geometry=Geometry(*given) if any(given) else None,
            logical_block_size=values["logical_block_size"],
            physical_block_size=values["physical_block_size"],
            rotation_rate=values["rotation_rate"],
            trim=values["discard_granularity"] != 0,
            **identity,
        )

    # ---- SCSI

    def make_scsi_host(self, name: str, values: dict[str, Any]) -> VirtioScsi:
        """Return a virtio SCSI host with an empty bus of that name."""
        from pyvm.devices.virtio.scsi import VirtioScsi, keywords

        iothread = values["iothread"] or None
        if iothread is not None and iothread not in self.storage.iothreads:
            raise ConfigError(f"Device '{iothread}' not found")
        host = VirtioScsi(bus_name=name, **keywords(values, cpus=self.config.smp.cpus))
        self.scsi_buses[name] = host.bus
        return host

    def plug_scsi(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> ScsiTarget:
        """Put a logical unit on a SCSI bus."""
        from pyvm.devices.scsi.properties import make_cd, make_disk

        bus = self.scsi_buses[device.bus or ""]
        function, iothread = self._scsi_hosts[bus.name]
        is_cd = model.name == "scsi-cd"
        backend = self._backend(
            model,
            {**values, "iothread": iothread},
            removable=is_cd or values["removable"],
            only_reads=is_cd,
            path=device.id or "",
        )
        make: Callable[[BlockBackend, dict[str, Any]], ScsiTarget] = make_cd if is_cd else make_disk
        try:
            unit = make(backend, values)
            address = bus.plug(unit, values["channel"], values["scsi-id"], values["lun"])
        except BaseException:
            self.spare(backend)
            raise
        self._boot(
            "cdrom" if is_cd else "disk", backend, values, "scsi", function, unit=address.target, lun=address.lun
        )
        name = (
            self.board.name_for(device.id)
            if device.id is not None
            else f"{bus.name}/{address.channel}:{address.target}:{address.lun}"
        )
        self.board.components[name] = unit
        return unit

    def host_unplugged(self, host: object) -> None:
        """A SCSI host is gone; nothing for another device."""
        for name in [name for name, bus in self.scsi_buses.items() if bus is getattr(host, "bus", None)]:
            del self.scsi_buses[name]
            self._scsi_hosts.pop(name, None)

    def not_bootable(self, backend: BlockBackend) -> None:
        """The device of a drive is gone: firmware cannot boot from it."""
        gone = [disk for disk in self.bootable if disk.backend is backend]
        indices = {disk.bootindex for disk in gone}
        self._boot_paths = [entry for entry in self._boot_paths if entry[0] not in indices]
        self.bootable = [disk for disk in self.bootable if disk not in gone]

    # ---- Floppy

    def plug_floppy(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> object:
        """Put a drive on the floppy controller."""
        unit = values["unit"]
        if unit == _NEXT_FREE:
            unit = self._floppies.index(None) if None in self._floppies else len(self._floppies)
        if unit >= len(self._floppies):
            raise ConfigError(f"Can't create floppy unit {unit}, bus supports only {len(self._floppies)} units")
        if self._floppies[unit] is not None:
            raise ConfigError(f"Floppy unit {unit} is in use")
        backend = self._backend(model, values, removable=True, path=device.id or "")
        self._floppies[unit] = _Floppy(backend, values["drive-type"])
        self._boot("floppy", backend, values, "floppy", None, unit=unit)
        return backend

    def floppy_unit(self, drive: object) -> int:
        """Return the number of a floppy drive on the controller, by what the drive was made into."""
        return next(unit for unit, item in enumerate(self._floppies) if item is not None and item.backend is drive)

    def add_floppy_controller(self) -> FloppyController:
        """Solder on the floppy controller, with the drives that were plugged in."""
        from pyvm.devices.floppy import FloppyController
        from pyvm.devices.floppy_media import TYPE_NAMES, DriveType

        board = self.board
        types = [None if item is None else TYPE_NAMES.get(item.kind) for item in self._floppies]
        controller = FloppyController(
            board.isa_irq(_FLOPPY_IRQ),
            board.dma,
            board.clock,
            [None if item is None else item.backend for item in self._floppies],
            types=types,
        )
        board.components["floppy"] = controller
        board.ports.add(_FLOPPY_PORT, 6, controller.read, controller.write, "fdc", max_access=1)
        board.ports.add(_FLOPPY_DIR_PORT, 1, controller.dir_read, controller.ccr_write, "fdc dir", max_access=1)
        kinds = [DriveType.NONE if drive is None else drive.kind for drive in controller.drives]
        cmos.describe_floppies(board.rtc, (kinds[0].value, kinds[1].value))
        return controller

    # ---- Drives without a device

    def device_for(self, drive: DriveConfig) -> DeviceConfig | None:
        """Return the device that a drive stands for, with its bus where the board has it by itself; None for none."""
        if drive.interface == "none":
            return None
        properties: dict[str, Any] = {"drive": drive.id}
        if drive.interface == "virtio":
            return DeviceConfig("virtio-blk-pci", properties=properties, origin=drive.origin)
        properties["unit"] = str(drive.unit)
        if drive.interface == "floppy":
            return DeviceConfig("floppy", bus=FLOPPY_BUS, properties=properties, origin=drive.origin)
        if drive.bus >= len(IDE_BUSES):
            raise ConfigError(f"{drive.origin}: machine type does not support if=ide,bus={drive.bus},unit={drive.unit}")
        driver = "ide-cd" if drive.media == "cdrom" else "ide-hd"
        return DeviceConfig(driver, bus=IDE_BUSES[drive.bus], properties=properties, origin=drive.origin)
