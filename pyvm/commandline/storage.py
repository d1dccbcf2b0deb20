"""Options that add things to the board: objects, drives, devices, and new defaults for device properties."""

from __future__ import annotations

from typing import Any

from pyvm.commandline.objects import make_object
from pyvm.commandline.reader import CommandLine
from pyvm.config import MAIN_MEMORY, DeviceConfig, DriveConfig, GlobalConfig, MachineConfig, ObjectConfig
from pyvm.errors import ConfigError
from pyvm.options import Options

# A device of one of these models stands for the default drive.
_CDROM_MODELS = ("ide-cd", "ide-hd", "scsi-cd", "scsi-hd")
_FLOPPY_MODELS = ("isa-fdc", "floppy")


def configure(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records about objects, drives, devices and globals."""
    seen: set[tuple[str, str]] = set()
    for options in line.groups["object"]:
        record = make_object(options)
        _once(seen, "object", record.id, options)
        config.objects.append(record)
    if line.groups["drive"] or line.groups["blockdev"]:
        from pyvm.commandline.drives import configure_drives

        configure_drives(line, config)
    for options in line.groups["device"]:
        device = _device(options)
        if device.id is not None:
            _once(seen, "device", device.id, options)
        config.devices.append(device)
    _add_default_drives(config)
    config.globals = [_global(options) for options in line.groups["global"]]
    for options in line.groups["audiodev"]:
        if options.required("driver") != "none":
            raise options.error(f"audio driver '{options.get('driver')}' is not supported by pyvm yet (only none)")
        options.required("id")
    _add_memory_backend(line, config)
    _check_memory_backend(line, config)


def _once(seen: set[tuple[str, str]], kind: str, identifier: str, options: Options) -> None:
    if (kind, identifier) in seen:
        raise options.error(f"Duplicate ID '{identifier}' for {kind}")
    seen.add((kind, identifier))


def _add_default_drives(config: MachineConfig) -> None:
    """Add a CD-ROM and a floppy drive where nothing stands against it, as QEMU's `pc` has them."""
    if config.nodefaults or config.board.type == "none":
        return
    models = {device.driver for device in config.devices}
    places = {(drive.interface, drive.bus, drive.unit) for drive in config.drives}
    if not models.intersection(_CDROM_MODELS) and ("ide", 1, 0) not in places:
        cdrom = DriveConfig("ide1-cd0", interface="ide", bus=1, media="cdrom", empty=True, readonly=True)
        config.default_drives.append(cdrom)
    if not models.intersection(_FLOPPY_MODELS) and ("floppy", 0, 0) not in places:
        config.default_drives.append(DriveConfig("floppy0", interface="floppy", empty=True))


def _device(options: Options) -> DeviceConfig:
    driver = options.get("driver")
    if not isinstance(driver, str) or not driver:
        raise options.error("Parameter 'driver' is missing")
    properties = {key: value for key, value in options if key not in ("driver", "id", "bus")}
    return DeviceConfig(driver, options.identifier(), options.string("bus"), properties, options.typed, options.origin)


def _global(options: Options) -> GlobalConfig:
    return GlobalConfig(options.required("driver"), options.required("property"), options.required("value"))


def _add_memory_backend(line: CommandLine, config: MachineConfig) -> None:
    """Make the main memory's back end that ``-mem-path`` and ``-mem-prealloc`` stand for."""
    path, prealloc = line.value("mem-path"), "mem-prealloc" in line.flags
    if path is None and not prealloc:
        return
    if config.board.memory_backend is not None:
        if path is not None:
            raise ConfigError("'-mem-path' can't be used together with '-machine memory-backend'")
        return
    if any(item.id == MAIN_MEMORY for item in config.objects):
        raise ConfigError(f"Duplicate ID '{MAIN_MEMORY}' for object")
    properties: dict[str, Any] = {"size": config.memory.size, "prealloc": prealloc}
    kind = "memory-backend-ram"
    if path is not None:
        properties["mem-path"], kind = path, "memory-backend-file"
    config.objects.append(ObjectConfig(kind, MAIN_MEMORY, properties, "-mem-path" if path else "-mem-prealloc"))
    config.board.memory_backend = MAIN_MEMORY


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
