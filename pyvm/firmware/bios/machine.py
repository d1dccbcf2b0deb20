"""What the BIOS is told about its machine: a record that the machine fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.block.vectors import Buffers
    from pyvm.clock import Clock
    from pyvm.firmware.e820 import E820Entry
    from pyvm.memory import GuestMemory, IoSpace

DiskKind = Literal["disk", "cdrom", "floppy"]
DEFAULT_ORDER = "cad"
DEFAULT_SPLASH_MS = 2500


class DiskBackend(Protocol):
    """The part of a block backend that firmware uses; failures are raised as OSError."""

    @property
    def size(self) -> int:
        """Bytes of the medium, 0 without one."""

    @property
    def read_only(self) -> bool:
        """Whether the medium cannot be written."""

    @property
    def inserted(self) -> bool:
        """Whether there is a medium."""

    def preadv(self, offset: int, buffers: Buffers) -> None:
        """Fill the buffers from `offset` on."""

    def pwritev(self, offset: int, buffers: Buffers) -> None:
        """Write the buffers from `offset` on."""


@record(frozen=True)
class BiosDisk:
    """One drive.  `bootindex` is the user's, lowest first; None leaves the place to the boot order."""

    kind: DiskKind
    backend: DiskBackend
    name: str
    bootindex: int | None = None
    interface: str = "virtio"
    """How it is attached: "ide", "scsi", "virtio" or "floppy"."""
    pci_address: int | None = None
    """The controller's bus << 8 | slot << 3 | function, for the device path of EDD."""
    channel: int = 0
    """The IDE channel."""
    unit: int = 0
    """The unit on its IDE channel or SCSI bus, or the number of a floppy drive."""


@record(frozen=True)
class OptionRom:
    """A ROM that the BIOS runs; `address` is that of its PCI function, 0 for one of no device."""

    data: bytes
    address: int = 0
    bootindex: int | None = None


@record(frozen=True)
class BootConfig:
    """What `-boot` says.  Times are in milliseconds."""

    order: str = DEFAULT_ORDER
    """Drive letters in the order in which they are tried: a floppy, c hard disk, d CD-ROM, n network."""
    once: str | None = None
    """The order at the first start of the machine, where it differs."""
    menu: bool = False
    splash_time: int | None = None
    """How long the menu's prompt is shown; None is the default time."""
    strict: bool = False
    """Whether only drives with a bootindex are tried."""
    check_floppies: bool = True
    """Whether a floppy disk boots only if its first sector has the signature of a boot sector."""
    reboot_timeout: int | None = None
    """After how long a machine that found nothing to boot starts again; None: never."""


@record
class BiosMachine:
    """The machine.  `mmio` has the VGA window at 0xa0000-0xbffff and the display's other registers."""

    memory: GuestMemory
    ports: IoSpace
    mmio: IoSpace
    clock: Clock
    disks: Sequence[BiosDisk] = ()
    e820: Sequence[E820Entry] = ()
    serial_ports: Sequence[int] = ()
    """The first port of each serial port, COM1 first; 0 where a number is missing."""
    boot: BootConfig = field(default_factory=BootConfig)
    console_on_serial: bool = False
    """Whether COM1 is a console: it shows the text of the screen and its input comes in as keys."""
    cpus: int = 1
    option_roms: Sequence[OptionRom] = ()
    kernel: Callable[[], None] | None = None
    """Loads the kernel that is booted before anything else, and has the boot processor enter it.

    Raises :class:`pyvm.firmware.errors.BootError`.
    """
    card_places: Mapping[int, int] = field(default_factory=dict)
    """The bootindex of PCI devices that boot by their ROM, by bus << 8 | slot << 3 | function."""
