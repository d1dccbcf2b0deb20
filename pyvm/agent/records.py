"""What the agent answers, as records.

Specification: QEMU Guest Agent Protocol Reference 8.2.  Field names are the manual's with dashes as underscores; the
answer as it came, with members that a newer agent may have added, is in :attr:`Record.raw`.  An answer comes from the
guest, so every field is checked to be of its type.
"""

from __future__ import annotations

import types
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from pyvm.agent.errors import AgentProtocolError
from pyvm.records import record


class Record:
    """Base of all answers that have members."""

    __slots__ = ("raw",)
    __record_members__: ClassVar[dict[str, Any]] = {}
    wire_names: ClassVar[dict[str, str]] = {}
    """Members whose name on the wire is not the field's with dashes."""

    raw: dict[str, Any]
    """The answer as it came; records that differ in nothing else are equal."""

    def __post_init__(self) -> None:
        self.raw = {}

    @classmethod
    def from_json(cls, value: Any, path: str = "") -> Self:
        """Make the record of an answer; raises AgentProtocolError where a member is missing or of another type."""
        path = path or cls.__name__
        if not isinstance(value, dict):
            raise AgentProtocolError(f"{path}: expected an object")
        members: dict[str, Any] = {}
        for name, (wire, hint, required) in _members(cls).items():
            if wire in value:
                members[name] = decode(hint, value[wire], f"{path}.{wire}")
            elif required:
                raise AgentProtocolError(f"{path}.{wire} is missing")
        made = cls(**members)
        made.raw = value
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the record as the agent takes it, without members that are not set."""
        values = {wire: getattr(self, name) for name, (wire, _, _) in _members(type(self)).items()}
        return {wire: value for wire, value in values.items() if value is not None}


_MEMBERS: dict[type[Record], dict[str, tuple[str, Any, bool]]] = {}


def _members(cls: type[Record]) -> dict[str, tuple[str, Any, bool]]:
    """Return for each field its name on the wire, its type, and whether it must be there."""
    known = _MEMBERS.get(cls)
    if known is not None:
        return known
    hints = get_type_hints(cls)
    members = {}
    for name in cls.__record_members__:
        hint = hints[name]
        members[name] = (cls.wire_names.get(name, name.replace("_", "-")), hint, type(None) not in get_args(hint))
    _MEMBERS[cls] = members
    return members


def decode(hint: Any, value: Any, path: str) -> Any:
    """Return `value` as the type `hint` says: a scalar, a record, a list of those, or one of those or None."""
    origin = get_origin(hint)
    if origin is types.UnionType:
        inner = next(option for option in get_args(hint) if option is not type(None))
        return decode(inner, value, path)
    if origin is list:
        if not isinstance(value, list):
            raise AgentProtocolError(f"{path}: expected a list")
        (item,) = get_args(hint)
        return [decode(item, element, f"{path}[{index}]") for index, element in enumerate(value)]
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise AgentProtocolError(f"{path}: expected {hint.__name__}, got {type(value).__name__}")
    return value


@record
class GuestAgentCommandInfo(Record):
    """A command that the agent knows."""

    name: str
    enabled: bool
    success_response: bool = True


@record
class GuestAgentInfo(Record):
    """The agent's version and commands."""

    wire_names = {"supported_commands": "supported_commands"}  # noqa: RUF012 - declared by the base class

    version: str
    supported_commands: list[GuestAgentCommandInfo]


@record
class GuestFileRead(Record):
    """Bytes read from a file."""

    count: int
    buf_b64: str
    eof: bool


@record
class GuestFileWrite(Record):
    """How much was written to a file."""

    count: int
    eof: bool


@record
class GuestFileSeek(Record):
    """Where in a file the next access happens."""

    position: int
    eof: bool


@record
class GuestFilesystemTrimResult(Record):
    """What trimming did to one file system; sizes in bytes."""

    path: str
    error: str | None = None
    trimmed: int | None = None
    minimum: int | None = None


@record
class GuestFilesystemTrimResponse(Record):
    """What trimming did."""

    paths: list[GuestFilesystemTrimResult]


@record
class GuestIpAddress(Record):
    """An address of a network interface."""

    ip_address: str
    ip_address_type: str
    prefix: int


@record
class GuestNetworkInterfaceStat(Record):
    """Counters of a network interface."""

    rx_bytes: int
    rx_packets: int
    rx_errs: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errs: int
    tx_dropped: int


@record
class GuestNetworkInterface(Record):
    """A network interface."""

    name: str
    hardware_address: str | None = None
    ip_addresses: list[GuestIpAddress] | None = None
    statistics: GuestNetworkInterfaceStat | None = None


@record
class GuestLogicalProcessor(Record):
    """A CPU."""

    logical_id: int
    online: bool
    can_offline: bool | None = None


@record
class GuestPCIAddress(Record):
    """Where on PCI a controller is; -1 where unknown."""

    domain: int
    bus: int
    slot: int
    function: int


@record
class GuestCCWAddress(Record):
    """Where on a channel subsystem a disk is."""

    cssid: int
    ssid: int
    subchno: int
    devno: int


@record
class GuestDiskAddress(Record):
    """The hardware under a disk or partition."""

    pci_controller: GuestPCIAddress
    bus_type: str
    bus: int
    target: int
    unit: int
    serial: str | None = None
    dev: str | None = None
    ccw_address: GuestCCWAddress | None = None


@record
class GuestDiskSmart(Record):
    """Health of a disk; the fields of an NVMe disk's log page 02h."""

    type: str
    critical_warning: int | None = None
    temperature: int | None = None
    available_spare: int | None = None
    available_spare_threshold: int | None = None
    percentage_used: int | None = None
    data_units_read_lo: int | None = None
    data_units_read_hi: int | None = None
    data_units_written_lo: int | None = None
    data_units_written_hi: int | None = None
    host_read_commands_lo: int | None = None
    host_read_commands_hi: int | None = None
    host_write_commands_lo: int | None = None
    host_write_commands_hi: int | None = None
    controller_busy_time_lo: int | None = None
    controller_busy_time_hi: int | None = None
    power_cycles_lo: int | None = None
    power_cycles_hi: int | None = None
    power_on_hours_lo: int | None = None
    power_on_hours_hi: int | None = None
    unsafe_shutdowns_lo: int | None = None
    unsafe_shutdowns_hi: int | None = None
    media_errors_lo: int | None = None
    media_errors_hi: int | None = None
    number_of_error_log_entries_lo: int | None = None
    number_of_error_log_entries_hi: int | None = None


@record
class GuestDiskInfo(Record):
    """A disk or partition."""

    name: str
    partition: bool
    dependencies: list[str] | None = None
    address: GuestDiskAddress | None = None
    alias: str | None = None
    smart: GuestDiskSmart | None = None


@record
class GuestFilesystemInfo(Record):
    """A mounted file system; sizes in bytes."""

    name: str
    mountpoint: str
    type: str
    disk: list[GuestDiskAddress]
    used_bytes: int | None = None
    total_bytes: int | None = None


@record
class GuestMemoryBlock(Record):
    """A block of memory that can be switched on and off."""

    phys_index: int
    online: bool
    can_offline: bool | None = None


@record
class GuestMemoryBlockResponse(Record):
    """What switching a block of memory did."""

    phys_index: int
    response: str
    error_code: int | None = None


@record
class GuestMemoryBlockInfo(Record):
    """The size of a block of memory, in bytes."""

    size: int


@record
class GuestExecStatus(Record):
    """How a program in the guest is doing."""

    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str | None = None
    err_data: str | None = None
    out_truncated: bool | None = None
    err_truncated: bool | None = None


@record
class GuestExec(Record):
    """A program that was started."""

    pid: int


@record
class GuestHostName(Record):
    """The guest's name for itself."""

    host_name: str


@record
class GuestUser(Record):
    """Somebody logged in; the time is in seconds since the epoch."""

    user: str
    login_time: float
    domain: str | None = None


@record
class GuestTimezone(Record):
    """The guest's time zone; the offset is in seconds east of UTC."""

    offset: int
    zone: str | None = None


@record
class GuestOSInfo(Record):
    """The guest's operating system."""

    kernel_release: str | None = None
    kernel_version: str | None = None
    machine: str | None = None
    id: str | None = None
    name: str | None = None
    pretty_name: str | None = None
    version: str | None = None
    version_id: str | None = None
    variant: str | None = None
    variant_id: str | None = None


@record
class GuestDeviceId(Record):
    """What a device is known by."""

    type: str
    vendor_id: int | None = None
    device_id: int | None = None


@record
class GuestDeviceInfo(Record):
    """A device driver (Windows guests)."""

    driver_name: str
    driver_date: int | None = None
    driver_version: str | None = None
    id: GuestDeviceId | None = None


@record
class GuestAuthorizedKeys(Record):
    """Public keys that may log in."""

    keys: list[str]


@record
class GuestDiskStats(Record):
    """Counters of a disk; ticks are milliseconds."""

    read_sectors: int | None = None
    read_ios: int | None = None
    read_merges: int | None = None
    write_sectors: int | None = None
    write_ios: int | None = None
    write_merges: int | None = None
    discard_sectors: int | None = None
    discard_ios: int | None = None
    discard_merges: int | None = None
    flush_ios: int | None = None
    read_ticks: int | None = None
    write_ticks: int | None = None
    discard_ticks: int | None = None
    flush_ticks: int | None = None
    ios_pgr: int | None = None
    total_ticks: int | None = None
    weight_ticks: int | None = None


@record
class GuestDiskStatsInfo(Record):
    """A disk and its counters."""

    name: str
    major: int
    minor: int
    stats: GuestDiskStats


@record
class GuestCpuStats(Record):
    """What a CPU did with its time, in ms."""

    type: str
    cpu: int
    user: int
    nice: int
    system: int
    idle: int
    iowait: int | None = None
    irq: int | None = None
    softirq: int | None = None
    steal: int | None = None
    guest: int | None = None
    guestnice: int | None = None
