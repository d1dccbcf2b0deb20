"""What firmware is told about the machine it describes: one plain record from which all tables are made."""

from __future__ import annotations

from pyvm import __version__
from pyvm.firmware.affinity import Affinity
from pyvm.firmware.smbios_fields import SmbiosFields
from pyvm.memory import FOUR_GIB
from pyvm.records import field, record

LAPIC_BASE = 0xFEE00000
IOAPIC_BASE = 0xFEC00000
IOAPIC_ID = 0
HPET_BASE = 0xFED00000

PM_BASE = 0x600
PM_SIZE = 0x40
SMBUS_BASE = 0x700
SMBUS_SIZE = 0x10
GPE0_BASE = 0xAFE0
GPE0_SIZE = 4
PCI_HOTPLUG_BASE = 0xAE00
CPU_HOTPLUG_BASE = 0xAF00
MEMORY_HOTPLUG_BASE = 0x0A00
SMI_PORT = 0xB2
RESET_PORT = 0xCF9
SCI_IRQ = 9

PCI_IRQS = (5, 9, 10, 11)
"""ISA interrupts that PCI devices may share; the interrupt controllers see them as level-triggered, active high."""

PIRQ_ROUTES = (10, 10, 11, 11)
"""Which interrupts the PIIX3 routes PIRQA..PIRQD to when firmware is done."""

PCI_HOLE_END = IOAPIC_BASE
PM_SLOT = 1
"""PCI slot of the PIIX3/PIIX4: its INTA is the SCI, whatever the PIRQ routing says."""


@record(frozen=True)
class SerialPort:
    """One UART as firmware describes it; `number` counts from 1."""

    number: int
    base: int
    irq: int


@record(frozen=True)
class Processor:
    """One possible vCPU; one that is not `present` may be plugged in later."""

    apic_id: int
    present: bool = True


@record(frozen=True)
class HotplugBus:
    """A PCI bus into which devices may be plugged while the system runs."""

    number: int = 0
    """How the registers of hot-plugging call it; 0 is the root bus."""
    fixed: tuple[int, ...] = ()
    """Slots that hold what cannot be taken out, bridges left aside."""
    bridges: tuple[tuple[int, HotplugBus], ...] = ()
    """Slot of each bridge, and the bus behind it."""


@record(frozen=True)
class SystemStrings:
    """The strings by which a machine names itself (SMBIOS), and the product's UUID."""

    manufacturer: str = "QEMU"
    product: str = "Standard PC (i440FX + PIIX, 1996)"
    version: str = "pc-i440fx-7.2"
    serial: str = ""
    sku: str = ""
    family: str = ""
    uuid: bytes = bytes(16)
    bios_vendor: str = "pyvm"
    bios_version: str = __version__
    bios_date: str = "04/01/2014"


@record(frozen=True)
class MachineInfo:
    """The machine that the tables describe.  Sizes and addresses are in bytes."""

    processors: tuple[Processor, ...]
    low_ram_end: int
    """End of the RAM below 4 GiB; the PCI hole starts there."""
    high_ram_end: int = FOUR_GIB
    """End of the RAM from 4 GiB up, or 4 GiB."""
    serial_ports: tuple[SerialPort, ...] = ()
    i8042: bool = True
    hpet: bool = True
    fw_cfg: bool = True
    vga: bool = False
    sleep_s3: bool = True
    sleep_s4: bool = True
    cores_per_socket: int = 1
    threads_per_core: int = 1
    cpu_signature: int = 0
    """CPUID leaf 1 EAX."""
    cpu_features: int = 0
    """CPUID leaf 1 EDX."""
    pci_hole64_size: int = 2 << 30
    pci_bus: HotplugBus = field(default_factory=lambda: HotplugBus(fixed=(0, PM_SLOT)))
    memory_slots: int = 0
    """Slots for memory modules that may be plugged in later."""
    memory_window: tuple[int, int] = (0, 0)
    """Start and length of where such modules may be; they are above all other RAM."""
    affinity: Affinity = field(default_factory=Affinity)
    """Which processors and which memory are near to each other."""
    panic_port: int = 0
    """The port of a panic device, 0 where there is none."""
    generation_id: bool = False
    """Whether there is memory with an identifier of this machine's life."""
    system: SystemStrings = field(default_factory=SystemStrings)
    smbios: SmbiosFields = field(default_factory=SmbiosFields)
    """What the user wants to be read in the SMBIOS tables."""
    acpi_tables: tuple[bytes, ...] = ()
    """Whole tables of the user's."""
    oem_id: str = "BOCHS"
    oem_table_id: str = "BXPC"

    @property
    def ram_size(self) -> int:
        """All RAM."""
        return self.low_ram_end + self.high_ram_end - FOUR_GIB

    @property
    def pci_hole64(self) -> tuple[int, int]:
        """Start and end of the 64-bit PCI window: behind all memory that may ever be there, on a whole GiB."""
        start = (max(self.high_ram_end, sum(self.memory_window)) + (1 << 30) - 1) & -(1 << 30)
        return start, start + self.pci_hole64_size

    @property
    def sockets(self) -> int:
        """How many processor sockets there are."""
        per_socket = max(1, self.cores_per_socket * self.threads_per_core)
        return -(-len(self.processors) // per_socket)
