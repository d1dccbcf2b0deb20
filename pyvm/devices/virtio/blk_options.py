"""What the user may choose of a virtio block device: QEMU's properties, their checks, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.constants import MAX_QUEUE_SIZE, MAX_QUEUES
from pyvm.records import record

SECTOR = 512

# Feature bits (5.2.3)
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

CONFIG_SIZE = 60
CONFIG_SIZE_BASIC = 36
CONFIG_SIZE_DISCARD = 48
MAX_RANGE_SECTORS = (1 << 22) - 1
"""Most sectors of one discard or write-zeroes request: 2 GiB."""
_MAX_BLOCK_SIZE = 2 << 20

PROPERTIES: Properties = {
    "drive": Property("drive", None, "node name or ID of the block device to use as a backend"),
    "serial": Property("str", None, "serial number, at most 20 bytes"),
    "num-queues": Property("uint16", 65535, "request queues; 65535: one for each vCPU"),
    "queue-size": Property("uint16", 256, "entries of each queue, a power of two"),
    "seg-max-adjust": Property("bool", True, "let the longest request follow the size of the queue"),
    "request-merging": Property("bool", True, "carry out neighbouring requests as one"),
    "config-wce": Property("bool", True, "the driver may switch the write cache"),
    "write-cache": Property("OnOffAuto", "auto", "whether the disk has a write cache at first; auto: on"),
    "discard": Property("bool", True, "offer discard"),
    "write-zeroes": Property("bool", True, "offer write zeroes"),
    "logical_block_size": Property("size", 0, "smallest unit the driver may address; 0: 512"),
    "physical_block_size": Property("size", 0, "unit in which the disk works best; 0: 512"),
    "min_io_size": Property("size", 0, "smallest transfer that is not slow, in bytes"),
    "opt_io_size": Property("size", 0, "best transfer, in bytes"),
    "discard_granularity": Property("size", 0xFFFFFFFF, "unit of discards, in bytes; 4294967295: a block"),
    "report-discard-granularity": Property("bool", True, "tell the driver the unit of discards"),
    "max-discard-sectors": Property("uint32", MAX_RANGE_SECTORS, "most sectors of one discard"),
    "max-write-zeroes-sectors": Property("uint32", MAX_RANGE_SECTORS, "most sectors of one write zeroes"),
    "cyls": Property("uint32", 0, "geometry: cylinders"),
    "heads": Property("uint32", 0, "geometry: heads"),
    "secs": Property("uint32", 0, "geometry: sectors per track"),
    "bootindex": Property("int32", None, "place in the order in which the firmware tries to boot"),
    "iothread": Property("link<iothread>", None, "ID of the iothread object that carries out the requests"),
    "share-rw": Property("bool", False, "let others write to the same image"),
    "werror": Property("BlockdevOnError", "auto", "on write errors: report, ignore, enospc, stop or auto"),
    "rerror": Property("BlockdevOnError", "auto", "on read errors: report, ignore, enospc, stop or auto"),
}


_ONE_QUEUE_PER_CPU = 0xFFFF
_NO_GRANULARITY = 0xFFFFFFFF
_NOT_OPTIONS = frozenset({"drive", "bootindex", "iothread", "share-rw", "werror", "rerror"})
"""Properties that concern the back end or the machine."""


def keywords(values: Mapping[str, Any], *, cpus: int) -> dict[str, Any]:
    """Return the fields of :class:`BlkOptions` for property values, in a machine with `cpus` vCPUs."""
    options = {name.replace("-", "_"): values[name] for name in PROPERTIES if name not in _NOT_OPTIONS}
    if options["num_queues"] == _ONE_QUEUE_PER_CPU:
        options["num_queues"] = cpus
    if options["discard_granularity"] == _NO_GRANULARITY:
        options["discard_granularity"] = None
    cache = options["write_cache"]
    options["write_cache"] = None if cache == "auto" else cache == "on"
    return options


def check_block_size(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a block size: a power of two of 512 B to 2 MiB."""
    if value & (value - 1):
        raise ValueError(f"Property .{name} doesn't take value '{value}', it's not a power of 2")
    if not SECTOR <= value <= _MAX_BLOCK_SIZE:
        limits = f"minimum: {SECTOR}, maximum: {_MAX_BLOCK_SIZE}"
        raise ValueError(f"Property .{name} doesn't take value {value} ({limits})")


@record(frozen=True)
class BlkOptions:
    """QEMU's properties of the device, 0 or None where not set; sizes in bytes.  Raises ValueError for impossible ones.

    `write_cache` is the cache mode at power-on; None: that of the back end.
    """

    serial: str | None = None
    num_queues: int = 1
    queue_size: int = 256
    seg_max_adjust: bool = True
    request_merging: bool = True
    config_wce: bool = True
    write_cache: bool | None = None
    discard: bool = True
    write_zeroes: bool = True
    logical_block_size: int = 0
    physical_block_size: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    discard_granularity: int | None = None
    report_discard_granularity: bool = True
    max_discard_sectors: int = MAX_RANGE_SECTORS
    max_write_zeroes_sectors: int = MAX_RANGE_SECTORS
    cyls: int = 0
    heads: int = 0
    secs: int = 0

    def __post_init__(self) -> None:
        _check_queues(self.num_queues, self.queue_size)
        logical, physical = self.logical, self.physical
        check_block_size("logical_block_size", logical)
        check_block_size("physical_block_size", physical)
        if logical > physical:
            raise ValueError("logical_block_size > physical_block_size not supported")
        _check_io_size("min_io_size", self.min_io_size, logical, 0xFFFF)
        _check_io_size("opt_io_size", self.opt_io_size, logical, 0xFFFFFFFF)
        if self.discard_granularity and self.discard_granularity % logical:
            raise ValueError("discard_granularity must be a multiple of logical_block_size")
        _check_sectors("max-discard-sectors", self.max_discard_sectors)
        _check_sectors("max-write-zeroes-sectors", self.max_write_zeroes_sectors)
        given = (self.cyls, self.heads, self.secs)
        if any(given):
            for name, value, limit in zip(("cyls", "heads", "secs"), given, (65535, 255, 255), strict=True):
                if not 1 <= value <= limit:
                    raise ValueError(f"{name} must be between 1 and {limit}")

    @property
    def logical(self) -> int:
        """Return the smallest unit that the driver may address."""
        return self.logical_block_size or SECTOR

    @property
    def physical(self) -> int:
        """Return the unit in which the disk works best."""
        return self.physical_block_size or SECTOR

    @property
    def discard_alignment(self) -> int:
        """Return in what units the disk gives room back."""
        if self.discard_granularity is None or not self.report_discard_granularity:
            return self.logical
        return self.discard_granularity

    @property
    def features(self) -> int:
        """Return the feature bits that follow from the options alone."""
        features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY
        features |= F_CONFIG_WCE if self.config_wce else 0
        features |= F_MQ if self.num_queues > 1 else 0
        features |= F_DISCARD if self.discard else 0
        return features | (F_WRITE_ZEROES if self.write_zeroes else 0)

    @property
    def config_size(self) -> int:
        """Return the length of the configuration space, which ends with what the features need."""
        if self.write_zeroes:
            return CONFIG_SIZE
        return CONFIG_SIZE_DISCARD if self.discard else CONFIG_SIZE_BASIC


def _check_queues(num_queues: int, queue_size: int) -> None:
    if num_queues <= 0:
        raise ValueError("num-queues property must be larger than 0")
    if num_queues > MAX_QUEUES:
        raise ValueError(f"num-queues property must be at most {MAX_QUEUES}")
    if queue_size <= 2:
        raise ValueError(f"invalid queue-size property ({queue_size}), must be > 2")
    if queue_size & (queue_size - 1) or queue_size > MAX_QUEUE_SIZE:
        raise ValueError(f"invalid queue-size property ({queue_size}), must be a power of 2 (max {MAX_QUEUE_SIZE})")


def _check_io_size(name: str, value: int, block: int, limit: int) -> None:
    if value % block:
        raise ValueError(f"{name} must be a multiple of logical_block_size")
    if not 0 <= value // block <= limit:
        raise ValueError(f"{name} must not exceed {limit} logical blocks")


def _check_sectors(name: str, value: int) -> None:
    if not 0 < value <= MAX_RANGE_SECTORS:
        raise ValueError(f"invalid {name} property ({value}), must be between 1 and {MAX_RANGE_SECTORS}")
