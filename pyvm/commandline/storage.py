"""Options that add things to the board: objects, drives, devices, and new defaults for device properties."""

from __future__ import annotations

from pyvm.commandline.board import check_readable
from pyvm.commandline.objects import make_object
from pyvm.commandline.reader import CommandLine
from pyvm.config import DeviceConfig, DriveConfig, GlobalConfig, MachineConfig
from pyvm.errors import ConfigError
from pyvm.options import Options

_INTERFACES = ("ide", "scsi", "floppy", "pflash", "mtd", "sd", "virtio", "xen", "none")
_FORMATS = """
    blkdebug blklogwrites blkverify bochs cloop compress copy-before-write copy-on-read dmg file ftp ftps gluster
    host_cdrom host_device http https iscsi luks nbd nfs null-aio null-co nvme parallels preallocate qcow qcow2 qed
    quorum replication ssh rbd throttle vdi vhdx vmdk vpc vvfat
"""
# Mode to (writeback, direct, no_flush).
_CACHE_MODES = {
    "none": (True, True, False),
    "writeback": (True, False, False),
    "unsafe": (True, False, True),
    "writethrough": (False, False, False),
    "directsync": (False, True, False),
    "off": (True, True, False),
}
_ERROR_ACTIONS = {"werror": ("ignore", "report", "stop", "enospc"), "rerror": ("ignore", "report", "stop")}


def configure(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records about objects, drives, devices and globals."""
    seen: set[tuple[str, str]] = set()
    for options in line.groups["object"]:
        record = make_object(options)
        _once(seen, "object", record.id, options)
        config.objects.append(record)
    for options in line.groups["drive"]:
        drive = _drive(options, len(config.drives))
        _once(seen, "drive", drive.id, options)
        config.drives.append(drive)
    for options in line.groups["device"]:
        device = _device(options)
        if device.id is not None:
            _once(seen, "device", device.id, options)
        config.devices.append(device)
    config.globals = [_global(options) for options in line.groups["global"]]
    for options in line.groups["audiodev"]:
        if options.required("driver") != "none":
            raise options.error(f"audio driver '{options.get('driver')}' is not supported by pyvm yet (only none)")
        options.required("id")
    _check_memory_backend(line, config)


def _once(seen: set[tuple[str, str]], kind: str, identifier: str, options: Options) -> None:
    if (kind, identifier) in seen:
        raise options.error(f"Duplicate ID '{identifier}' for {kind}")
    seen.add((kind, identifier))


def _device(options: Options) -> DeviceConfig:
    driver = options.get("driver")
    if not isinstance(driver, str) or not driver:
        raise options.error("Parameter 'driver' is missing")
    properties = {key: value for key, value in options if key not in ("driver", "id", "bus")}
    return DeviceConfig(driver, options.identifier(), options.string("bus"), properties, options.typed, options.origin)


def _global(options: Options) -> GlobalConfig:
    return GlobalConfig(options.required("driver"), options.required("property"), options.required("value"))


def _drive(options: Options, number: int) -> DriveConfig:
    interface = options.string("if") or "ide"
    if interface not in _INTERFACES:
        raise options.error(f"unsupported bus type '{interface}'")
    if interface not in ("virtio", "none"):
        raise options.error(f"if={interface} is not supported by pyvm yet (use if=virtio or if=none)")
    file = options.string("file")
    if file is None:
        raise options.error("Device needs media, but drive is empty" if interface == "virtio" else "no file given")
    identifier = options.identifier()
    if identifier is None:
        identifier = f"{interface}{number}"
    drive = DriveConfig(identifier, file, _format(options), "virtio" if interface == "virtio" else "none")
    drive.origin = options.origin
    drive.readonly = options.boolean("read-only")
    drive.index = options.number("index", high=255) if "index" in options else None
    _check_drive_limits(options)
    _cache(drive, options)
    drive.discard = options.choice("discard", ("ignore", "off", "unmap", "on"), "ignore") in ("unmap", "on")
    drive.detect_zeroes = options.choice("detect-zeroes", ("off", "on", "unmap"), "off")  # type: ignore[assignment]
    if drive.detect_zeroes == "unmap" and not drive.discard:
        raise options.error("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    for name, choices in _ERROR_ACTIONS.items():
        value = options.string(name)
        if value is not None and value not in choices:
            raise options.error(f"'{value}' invalid {'read' if name == 'rerror' else 'write'} error action")
        if value is not None:
            setattr(drive, name, value)
    check_readable(file, f"{options.origin}: Could not open '{file}'")
    return drive


def _format(options: Options) -> str | None:
    given = options.string("format") or options.string("driver")
    if given in (None, "raw", "qcow2"):
        return given
    if given in _FORMATS.split():
        raise options.error(f"format '{given}' is not supported by pyvm yet (only raw and qcow2)")
    raise options.error(f"Unknown driver '{given}'")


def _check_drive_limits(options: Options) -> None:
    """Refuse parameters that a drive of pyvm has in one setting only."""
    media = options.string("media")
    if media == "cdrom":
        raise options.error("media=cdrom is not supported by pyvm yet")
    if media not in (None, "disk"):
        raise options.error(f"'{media}' invalid media")
    for name in ("snapshot", "copy-on-read"):
        if options.boolean(name):
            raise options.error(f"{name}=on is not supported by pyvm yet")
    for name in ("bus", "unit", "node-name", "serial"):
        if name in options:
            raise options.error(f"'{name}' is not supported by pyvm yet")
    options.choice("aio", ("threads", "native", "io_uring"), "threads")


def _cache(drive: DriveConfig, options: Options) -> None:
    mode = options.string("cache")
    if mode is not None and mode not in _CACHE_MODES:
        raise options.error("invalid cache option")
    writeback, direct, no_flush = _CACHE_MODES[mode or "writeback"]
    drive.writeback = options.boolean("cache.writeback", writeback)
    drive.direct = options.boolean("cache.direct", direct)
    drive.no_flush = options.boolean("cache.no-flush", no_flush)


def _check_memory_backend(line: CommandLine, config: MachineConfig) -> None:
    """Let the main memory's back end give its size where ``-m`` does not; the two must agree."""
    name = config.board.memory_backend
    if name is None:
        return
    backends = [item for item in config.objects if item.id == name and item.type.startswith("memory-backend-")]
    if not backends:
        raise ConfigError(f"Memory backend '{name}' not found")
    size = int(backends[0].properties["size"])
    if not line.last("memory").string("size"):
        config.memory.size = size
        config.memory.max_size = max(size, config.memory.max_size) if config.memory.slots else size
    if config.memory.size != size:
        raise ConfigError("Machine memory size does not match the size of the memory backend")
