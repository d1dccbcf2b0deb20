"""The whole machine as typed records: what the command line, ``-readconfig`` and Python scripts ask for.

The records say what is wanted, checked as far as that is possible without opening anything; the machine is built from
them.  ``origin`` fields hold the option as typed, for errors that only the building can find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pyvm.errors import ConfigError
from pyvm.options import Value
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.chardev.options import ChardevOptions
    from pyvm.firmware.smbios_fields import SmbiosFields
    from pyvm.machine.saved.fork import ForkedMachine
    from pyvm.migration.snapshot import Snapshot
    from pyvm.sandbox import SandboxConfig
    from pyvm.vnc.options import VncOptions

MIB = 1 << 20
DEFAULT_MEMORY = 128 * MIB
MAIN_MEMORY = "pc.ram"
"""What the main memory's back end is called, where the user has not made one."""
DEFAULT_CPU = "qemu64"
SERIAL_PORTS = 4


class MachineType:
    """A machine that ``-machine`` can name."""

    __slots__ = ("alias", "description", "max_cpus", "name")

    def __init__(self, name: str, description: str, max_cpus: int, alias: str | None = None) -> None:
        self.name = name
        self.description = description
        self.max_cpus = max_cpus
        self.alias = alias


_PC = "Standard PC (i440FX + PIIX, 1996)"
DEFAULT_MACHINE = "pc-i440fx-7.2"
# Older versions differ in what a live migration carries, which pyvm has no partner for; the hardware is the same.
_PC_VERSIONS = ("7.2", "7.1", "7.0", "6.2", "6.1", "6.0", "5.2", "5.1", "5.0", "4.2")
MACHINE_TYPES: dict[str, MachineType] = {
    version: MachineType(version, _PC, 255, alias="pc" if version == DEFAULT_MACHINE else None)
    for version in (f"pc-i440fx-{number}" for number in _PC_VERSIONS)
}
MACHINE_TYPES["none"] = MachineType("none", "empty machine", 1)


@record
class BoardConfig:
    """The machine type and its properties."""

    type: str = DEFAULT_MACHINE
    """A key of MACHINE_TYPES: the name without aliases."""
    acpi: bool = True
    hpet: bool = True
    fd_bootchk: bool = True
    """Whether a floppy disk boots only if its boot sector has the signature of one."""
    memory_backend: str | None = None
    """ID of the memory backend object that is the main memory."""


@record
class MemoryConfig:
    """Guest RAM."""

    size: int = DEFAULT_MEMORY
    """In bytes."""
    slots: int = 0
    """Sockets for memory modules that may be plugged in later."""
    max_size: int = 0
    """In bytes, what `size` may grow to; equal to `size` where nothing can be plugged in."""


@record
class SmpConfig:
    """How many CPUs there are, and how they sit in sockets."""

    cpus: int = 1
    max_cpus: int = 1
    sockets: int = 1
    dies: int = 1
    cores: int = 1
    threads: int = 1


@record
class CpuConfig:
    """The CPUs' kind."""

    option: str = DEFAULT_CPU
    """A model and what is switched on or off in it, as ``-cpu`` takes it: ``qemu64,+avx,-x2apic``."""
    origin: str = ""

    @property
    def model(self) -> str:
        """The model alone."""
        return self.option.partition(",")[0]


@record
class BootConfig:
    """What starts when the machine is switched on."""

    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    bios: str | None = None
    """A firmware file that runs instead of the built-in services."""
    order: str = "cad"
    once: str | None = None
    """What `order` is until the first reset."""
    menu: bool = False
    splash_time: int | None = None
    """How long the boot menu waits for a key, in milliseconds."""
    splash: str | None = None
    """A picture that a firmware shows meanwhile."""
    reboot_timeout: int = -1
    """After how many milliseconds a machine that has found nothing to boot tries again; -1: never."""
    strict: bool = False


@record
class DeviceConfig:
    """One ``-device``: a model, an ID, where it is plugged in, and properties still to be checked against the model."""

    driver: str
    id: str | None = None
    bus: str | None = None
    properties: dict[str, Value] = field(default_factory=dict)
    typed: bool = False
    """Whether the values came from JSON and so have types of their own."""
    origin: str = ""


@record
class ChardevConfig:
    """One character device back end."""

    options: ChardevOptions
    origin: str = ""

    @property
    def id(self) -> str:
        """The back end's name."""
        return self.options.id


@record
class MonitorConfig:
    """One monitor on a back end."""

    chardev: str
    mode: Literal["readline", "control"] = "control"
    pretty: bool = False
    origin: str = ""


@record
class DriveConfig:
    """One ``-drive``, or what stands for one: a disk image, and the device for it unless `interface` is ``none``."""

    id: str
    file: str = ""
    """The image's file name; empty where `options` say it all, or there is no medium."""
    format: str | None = None
    """The image format, or None to find out."""
    interface: Literal["virtio", "ide", "floppy", "none"] = "virtio"
    bus: int = 0
    unit: int = 0
    """Where it is on that interface: the bus (IDE channel), and the place on it."""
    media: Literal["disk", "cdrom"] = "disk"
    empty: bool = False
    """Whether there is no medium."""
    options: dict[str, Any] = field(default_factory=dict)
    """What is for the block nodes alone, with dots in the names: ``node-name``, ``file.locking``."""
    readonly: bool = False
    writeback: bool = True
    """Whether the guest sees a volatile write cache; without it each write is flushed."""
    direct: bool = False
    no_flush: bool = False
    """Whether the guest's flushes are ignored."""
    discard: bool = False
    """Whether discarded blocks are given back to the host."""
    detect_zeroes: Literal["off", "on", "unmap"] = "off"
    werror: Literal["ignore", "report", "stop", "enospc"] = "enospc"
    rerror: Literal["ignore", "report", "stop"] = "report"
    aio: str | None = None
    snapshot: bool = False
    """Whether what the guest writes goes to a temporary file."""
    copy_on_read: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    """I/O limits by QEMU's names: ``bps-total``, ``iops-read-max`` and the like."""
    throttle_group: str | None = None
    account_invalid: bool = True
    account_failed: bool = True
    stats_intervals: list[int] = field(default_factory=list)
    """Seconds."""
    origin: str = ""


@record
class NetdevConfig:
    """One network back end: its options as the schema has them."""

    options: dict[str, Any]
    listed: bool = True
    """Whether it can be taken away by its ID; not so where it came by ``-net``."""
    origin: str = ""

    @property
    def is_legacy_port(self) -> bool:
        """Whether it is a port of the hub that ``-net`` plugs everything into."""
        return not self.listed and self.options["type"] == "hubport"


@record
class BlockdevConfig:
    """One ``-blockdev``: the options of a block node, those of its children inside."""

    options: dict[str, Any]
    typed: bool = False
    """Whether the values came from JSON and so have types of their own."""
    origin: str = ""


@record
class ObjectConfig:
    """One ``-object``."""

    type: str
    id: str
    properties: dict[str, Any] = field(default_factory=dict)
    """Of the JSON types that the schema says."""
    origin: str = ""


@record
class GlobalConfig:
    """A property's new default for all devices of a model."""

    driver: str
    property: str
    value: str


@record
class FwCfgConfig:
    """A file that the guest finds in fw_cfg."""

    name: str
    content: bytes


ROM_FOLDER = "genroms/"
"""Where firmware finds option ROMs in fw_cfg."""


@record
class OptionRomConfig:
    """A ROM that the firmware finds in fw_cfg and runs."""

    name: str
    content: bytes
    bootindex: int | None = None
    """Its place in the order in which the firmware tries to boot."""


@record
class RtcConfig:
    """What the guest's battery-backed clock shows."""

    base: Literal["utc", "localtime"] | int = "utc"
    """Or the seconds since the epoch that the clock starts at."""
    clock: Literal["host", "rt", "vm"] = "host"
    driftfix: Literal["none", "slew"] = "none"


@record
class ActionConfig:
    """What happens when the guest reboots, shuts down, panics, or its watchdog fires."""

    reboot: Literal["reset", "shutdown"] = "reset"
    shutdown: Literal["poweroff", "pause"] = "poweroff"
    panic: Literal["pause", "shutdown", "exit-failure", "none"] = "shutdown"
    watchdog: Literal["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"] = "reset"


@record
class PassedFdConfig:
    """A descriptor that was inherited, for a set that files are opened from; `fd` is this process's own duplicate."""

    fd: int
    set_id: int
    opaque: str | None = None


@record
class NumaConfig:
    """One description of NUMA nodes: a NumaOptions of the schema."""

    options: dict[str, Any]
    origin: str = ""


@record
class TraceConfig:
    """Which trace events are told from the start."""

    patterns: list[tuple[str, str]] = field(default_factory=list)
    """Names or patterns, with a minus in front where they are switched off, and what comes before a complaint."""
    file: str | None = None
    """Where they are written, by default standard error."""
    items: frozenset[str] = frozenset()
    """What else is written there, by the names that ``-d`` takes."""
    ranges: list[tuple[int, int]] | None = None
    """First and last linear address of the guest code that is written of; None for all."""


@record
class MachineConfig:
    """Everything that the person at the prompt asked for."""

    board: BoardConfig = field(default_factory=BoardConfig)
    accelerator: Literal["tcg", "qtest"] = "tcg"
    """What runs guest code; with qtest nothing does, and guest time stands still until a client of it says so."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    smp: SmpConfig = field(default_factory=SmpConfig)
    cpu: CpuConfig = field(default_factory=CpuConfig)
    boot: BootConfig = field(default_factory=BootConfig)
    rtc: RtcConfig = field(default_factory=RtcConfig)
    actions: ActionConfig = field(default_factory=ActionConfig)
    chardevs: list[ChardevConfig] = field(default_factory=list)
    objects: list[ObjectConfig] = field(default_factory=list)
    blockdevs: list[BlockdevConfig] = field(default_factory=list)
    drives: list[DriveConfig] = field(default_factory=list)
    default_drives: list[DriveConfig] = field(default_factory=list)
    """Drives without a medium that are there because nothing else was said: a CD-ROM drive and a floppy drive."""
    netdevs: list[NetdevConfig] = field(default_factory=list)
    devices: list[DeviceConfig] = field(default_factory=list)
    globals: list[GlobalConfig] = field(default_factory=list)
    fw_cfg: list[FwCfgConfig] = field(default_factory=list)
    option_roms: list[OptionRomConfig] = field(default_factory=list)
    smbios: SmbiosFields | None = None
    acpi_tables: list[bytes] = field(default_factory=list)
    """Whole tables that the guest finds beside those of the machine."""
    """What the guest is to read in the tables that name the machine."""
    passed_fds: list[PassedFdConfig] = field(default_factory=list)
    numa: list[NumaConfig] = field(default_factory=list)
    """What was said of NUMA nodes, in order."""
    traces: TraceConfig = field(default_factory=TraceConfig)
    single_instructions: bool = False
    """Whether guest code is translated by one instruction at a time."""
    serials: list[str | None] = field(default_factory=list)
    """The chardev of each serial port of the board; None: there is no such port."""
    text_console: bool = False
    """Whether the person's console is the first serial port, so that firmware shows its text there, too."""
    vga: Literal["std", "none"] = "std"
    debugcon: str | None = None
    """The chardev of the debug console, where there is one."""
    gdb: str | None = None
    """The chardev with the debugger, where one may come."""
    qtest: str | None = None
    """The chardev with the client that drives devices, where there is one."""
    qtest_log: str | None = None
    """The file that notes what it says, or `none`; None: standard error."""
    monitors: list[MonitorConfig] = field(default_factory=list)
    name: str | None = None
    process_name: str | None = None
    debug_threads: bool = False
    """Whether threads carry names that a process list can show."""
    uuid: str | None = None
    start_paused: bool = False
    preconfig: bool = False
    """Whether the machine waits for `x-exit-preconfig` before it is made."""
    daemonize: bool = False
    pidfile: str | None = None
    loadvm: str | None = None
    """The snapshot of the whole machine in its disks that this one goes on from."""
    incoming: str | None = None
    """The URI that a migration comes in from, or `defer`; None where the machine starts by itself."""
    forked: ForkedMachine | None = None
    """The machine that this one is made of."""
    saved: Snapshot | None = None
    """What is in the folder `restore`, where that was read already."""
    restore_disks: Literal["images", "overlay"] = "images"
    """Whether the restored machine goes on with its images, or with temporary ones on top of what was saved."""
    restore_clock: Literal["keep", "step"] = "keep"
    """Whether guest time goes on where it stood, or as if the machine had run all the time."""
    restore: str | None = None
    """The folder with the saved machine that this one goes on from."""
    vnc: list[VncOptions] = field(default_factory=list)
    """The displays for VNC viewers."""
    sandbox: SandboxConfig | None = None
    """Which system calls the host refuses from then on; None: it refuses none."""
    escape_character: int = 1
    """What introduces a command on a multiplexed terminal; Ctrl-A."""
    nodefaults: bool = False
    message_timestamps: bool = False
    message_guest_name: bool = False
    ready: Callable[[], None] = lambda: None
    """The machine calls this once all its sockets listen and before the guest runs."""

    def chardev(self, name: str) -> ChardevConfig:
        """Return the back end with this ID; raises ConfigError where there is none."""
        for chardev in self.chardevs:
            if chardev.id == name:
                return chardev
        raise ConfigError(f'chardev "{name}" not found')
