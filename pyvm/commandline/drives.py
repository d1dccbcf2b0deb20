"""Disks: `-drive`, `-hda` and the like, `-cdrom`, `-fda`, and `-blockdev`.

A `-drive` is a drive with a place on an interface, and a tree of block nodes behind it; what is not known here as a
parameter of the drive is for the nodes.  Unlike QEMU's, a `-drive` without ``if=`` is a virtio disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyvm.block.limit_names import LIMIT_NAMES
from pyvm.commandline.files import check_readable
from pyvm.commandline.reader import CommandLine
from pyvm.config import BlockdevConfig, DriveConfig, MachineConfig
from pyvm.options import Options, parse, warn

_INTERFACES = ("ide", "scsi", "floppy", "pflash", "mtd", "sd", "virtio", "xen", "none")
_MISSING_INTERFACES = ("pflash",)
_UNITS = {"ide": 2, "scsi": 7}
"""How many drives a bus has; any number where nothing is said."""
_BUSES = {"ide": 2, "floppy": 1, "scsi": 0, "mtd": 0, "sd": 0, "xen": 0}
"""How many buses the board has, where that is limited."""
_FLOPPY_DRIVES = 2
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
_WITH_ERROR_ACTIONS = ("ide", "scsi", "virtio", "none")
_OLD_LIMITS = {"": "total", "_rd": "read", "_wr": "write"}


def _aliases() -> dict[str, str]:
    aliases = {"readonly": "read-only", "group": "throttling.group", "iops_size": "throttling.iops-size"}
    for unit in ("bps", "iops"):
        for old, new in _OLD_LIMITS.items():
            aliases[f"{unit}{old}"] = f"throttling.{unit}-{new}"
            aliases[f"{unit}{old}_max"] = f"throttling.{unit}-{new}-max"
            aliases[f"{unit}{old}_max_length"] = f"throttling.{unit}-{new}-max-length"
    return aliases


_ALIASES = _aliases()
_CACHE_OPTIONS = ("cache.writeback", "cache.direct", "cache.no-flush")
_OF_THE_DRIVE = frozenset(
    {
        *("id", "if", "bus", "unit", "index", "media", "file", "format", "driver", "read-only", "snapshot", "cache"),
        *("aio", "copy-on-read", "werror", "rerror", "discard", "detect-zeroes", "throttling.group"),
        *("stats-account-invalid", "stats-account-failed"),
        *_CACHE_OPTIONS,
        *(f"throttling.{name}" for name in LIMIT_NAMES),
    }
)
"""What does not go to the block nodes as it is."""


def configure_drives(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records about block nodes and drives.  Raises ConfigError."""
    for options in line.groups["blockdev"]:
        tree = options.nested()
        config.blockdevs.append(BlockdevConfig(tree, options.typed, options.origin))
    for options in line.groups["drive"]:
        config.drives.append(_drive(options, config, snapshot="snapshot" in line.flags))


def parse_drive(text: str, present: Sequence[DriveConfig], origin: str) -> DriveConfig:
    """Return the drive that one text describes, beside those that are there.  Raises ConfigError."""
    config = MachineConfig(drives=list(present))
    return _drive(_parse(text, origin), config, snapshot=False)


def parse_node(text: str, origin: str) -> dict[str, Any]:
    """Return options for a node alone, as they were typed.  Raises ConfigError."""
    return dict(_parse(text, origin))


def _parse(text: str, origin: str) -> Options:
    from pyvm.commandline.groups import GROUPS

    return parse(GROUPS["drive"], text, origin)


def _at(config: MachineConfig, interface: str, bus: int, unit: int) -> DriveConfig | None:
    """Return the drive in a place."""
    for drive in config.drives:
        if (drive.interface, drive.bus, drive.unit) == (interface, bus, unit):
            return drive
    return None


def _drive(options: Options, config: MachineConfig, *, snapshot: bool) -> DriveConfig:
    options = _without_aliases(options)
    interface = options.string("if") or "virtio"
    if interface not in _INTERFACES:
        raise options.error(f"unsupported bus type '{interface}'")
    if interface in _MISSING_INTERFACES:
        raise options.error(f"if={interface} is not supported by pyvm yet")
    media = options.string("media") or "disk"
    if media not in ("disk", "cdrom"):
        raise options.error(f"'{media}' invalid media")
    bus, unit = _place(options, config, interface)
    identifier = options.identifier()
    drive = DriveConfig(
        _make_id(interface, bus, unit, media) if identifier is None else identifier,
        interface=interface,  # type: ignore[arg-type]  # others were refused with their place
        bus=bus,
        unit=unit,
        media=media,  # type: ignore[arg-type]
        origin=options.origin,
    )
    if any(drive.id == other.id for other in config.drives):
        raise options.error(f"Duplicate ID '{drive.id}' for drive")
    drive.readonly = options.boolean("read-only") or media == "cdrom"
    drive.snapshot = options.boolean("snapshot", snapshot) and not drive.readonly
    drive.copy_on_read = _copy_on_read(options, drive)
    _cache(drive, options)
    _errors(drive, options, interface)
    _requests(drive, options)
    _limits(drive, options)
    _image(drive, options)
    return drive


def _without_aliases(options: Options) -> Options:
    """Return the options with their present names."""
    renamed = Options(options.group, options.origin, [], typed=options.typed)
    for key, value in options.pairs:
        name = _ALIASES.get(key, key)
        if name != key and name in options:
            raise options.error(f"'{name}' and its alias '{key}' can't be used at the same time")
        renamed.pairs.append((name, value))
    return renamed


# ---- Places


def _place(options: Options, config: MachineConfig, interface: str) -> tuple[int, int]:
    """Return the bus and the unit that a drive is at."""
    units = _UNITS.get(interface, 0)
    index = options.number("index") if "index" in options else None
    bus = options.number("bus")
    unit = options.number("unit") if "unit" in options else None
    if index is not None:
        if bus or unit is not None:
            raise options.error("index cannot be used with bus and unit")
        bus, unit = divmod(index, units) if units else (0, index)
    if unit is None:
        unit = 0
        while _at(config, interface, bus, unit) is not None:
            unit += 1
            if units and unit >= units:
                bus, unit = bus + 1, 0
    if units and unit >= units:
        raise options.error(f"unit {unit} too big (max is {units - 1})")
    if _at(config, interface, bus, unit) is not None:
        shown = -1 if index is None else index
        raise options.error(f"drive with bus={bus}, unit={unit} (index={shown}) exists")
    too_far = interface == "floppy" and unit >= _FLOPPY_DRIVES
    if too_far or (interface in _BUSES and bus >= _BUSES[interface]):
        raise options.error(f"machine type does not support if={interface},bus={bus},unit={unit}")
    return bus, unit


def _make_id(interface: str, bus: int, unit: int, media: str) -> str:
    kind = ("-cd" if media == "cdrom" else "-hd") if interface in ("ide", "scsi") else ""
    return f"{interface}{bus}{kind}{unit}" if interface in _UNITS else f"{interface}{kind}{unit}"


# ---- What is done with requests


def _copy_on_read(options: Options, drive: DriveConfig) -> bool:
    wanted = options.boolean("copy-on-read")
    if wanted and drive.readonly:
        warn(f"{options.origin}: warning: disabling copy-on-read on read-only drive")
        return False
    return wanted


def _cache(drive: DriveConfig, options: Options) -> None:
    mode = options.string("cache")
    if mode is not None and mode not in _CACHE_MODES:
        raise options.error("invalid cache option")
    writeback, direct, no_flush = _CACHE_MODES[mode or "writeback"]
    drive.writeback = options.boolean("cache.writeback", writeback)
    drive.direct = options.boolean("cache.direct", direct)
    drive.no_flush = options.boolean("cache.no-flush", no_flush)
    drive.aio = options.string("aio")
    if drive.aio is not None and drive.aio not in ("threads", "native", "io_uring"):
        raise options.error("invalid aio option")


def _errors(drive: DriveConfig, options: Options, interface: str) -> None:
    for name, choices in _ERROR_ACTIONS.items():
        value = options.string(name)
        if value is None:
            continue
        if interface not in _WITH_ERROR_ACTIONS:
            raise options.error(f"{name} is not supported by this bus type")
        if value not in choices:
            raise options.error(f"'{value}' invalid {'read' if name == 'rerror' else 'write'} error action")
        setattr(drive, name, value)


def _requests(drive: DriveConfig, options: Options) -> None:
    discard = options.string("discard") or "ignore"
    if discard not in ("ignore", "off", "unmap", "on"):
        raise options.error("Invalid discard option")
    drive.discard = discard in ("unmap", "on")
    detect = options.string("detect-zeroes") or "off"
    if detect not in ("off", "on", "unmap"):
        raise options.error(f"invalid parameter value: {detect}")
    # Without discard, zeros that were found cannot be given back.
    drive.detect_zeroes = "on" if detect == "unmap" and not drive.discard else detect  # type: ignore[assignment]
    drive.account_invalid = options.boolean("stats-account-invalid", True)
    drive.account_failed = options.boolean("stats-account-failed", True)
    for name, _ in options:
        if _is_interval(name):
            length = options.number(name)
            if not 0 < length < 1 << 32:
                raise options.error(f"Invalid interval length: {length}")
            drive.stats_intervals.append(length)


def _is_interval(name: str) -> bool:
    return name.startswith("stats-intervals.") and name.removeprefix("stats-intervals.").isdigit()


def _limits(drive: DriveConfig, options: Options) -> None:
    for name in LIMIT_NAMES:
        if f"throttling.{name}" in options:
            drive.limits[name] = options.number(f"throttling.{name}")
    drive.throttle_group = options.string("throttling.group")
    if drive.limits:
        from pyvm.block.errors import BlockError
        from pyvm.block.throttling import Limits

        try:
            Limits(drive.limits).check()
        except BlockError as error:
            raise options.error(str(error)) from None


# ---- The image


def _image(drive: DriveConfig, options: Options) -> None:
    drive.file = options.string("file") or ""
    drive.format = _format(options)
    drive.options = {key: value for key, value in options if key not in _OF_THE_DRIVE and not _is_interval(key)}
    drive.empty = not drive.file and not drive.options and drive.format is None
    if drive.empty and (drive.interface == "virtio" or (drive.interface == "ide" and drive.media == "disk")):
        raise options.error("Device needs media, but drive is empty")
    if drive.file and "file.filename" in drive.options:
        raise options.error("Can't specify 'file' and 'filename' options at the same time")
    protocol, colon, _ = drive.file.partition(":")
    if drive.file and (not colon or "/" in protocol) and not drive.file.startswith("/dev/fdset/"):
        check_readable(drive.file, f"{options.origin}: Could not open '{drive.file}'")


def _format(options: Options) -> str | None:
    from pyvm.block.options import DRIVERS

    given: Any = options.string("driver")
    if options.string("format") is not None:
        if given is not None:
            raise options.error("Cannot specify both 'driver' and 'format'")
        given = options.string("format")
    if given is None:
        return None
    driver = DRIVERS.get(given)
    if driver is None:
        raise options.error(f"Unknown driver '{given}'")
    if not driver.module:
        from pyvm.block.open import ONLY_FORMATS

        only = f" (only {ONLY_FORMATS})" if driver.kind == "format" else ""
        raise options.error(f"{driver.kind} '{given}' is not supported by pyvm yet{only}")
    return str(given)
