"""The chips of the mainboard as objects of the tree, in the order and with the numbers that QEMU's `pc` gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pyvm.firmware.machine_info import GPE0_BASE, GPE0_SIZE, PM_BASE, SCI_IRQ, SMBUS_BASE
from pyvm.machine.board import (
    DMA_HIGH,
    DMA_LOW,
    DMA_PAGES,
    KEYBOARD_IRQ,
    MOUSE_IRQ,
    PIC_ELCR,
    PIC_MASTER,
    PIC_SLAVE,
    PIT_PORT,
    RTC_IRQ,
    RTC_PORT,
    SERIAL_PORTS,
)
from pyvm.machine.chip_globals import POWER_CHIP, chip_number
from pyvm.machine.qom.cpu import cpu_object
from pyvm.machine.qom.devices import BusObject, DeviceObject
from pyvm.machine.qom.machine import rtc_time
from pyvm.machine.qom.regions import add_pci_regions, add_smram_regions
from pyvm.memory import FOUR_GIB
from pyvm.qom.tree import Property, QomObject
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.devices.pci.function import PciFunction
    from pyvm.machine.pc import Pc
    from pyvm.machine.qom.plugged import PluggedObjects

_HELPER_OF_FIRST_CPU = 1
_EEPROMS = 8
_ELCR_MASKS = (0xF8, 0xDE)
_HPET_INTERRUPTS = 4
_PIRQ_PAGE = 8
_PCI_HOLE_END = 0xFEC00000


@record
class Layout:
    """Where chips are in the tree."""

    named: dict[str, QomObject] = field(default_factory=dict)
    """By pyvm's names for them."""
    numbered: list[tuple[int, QomObject]] = field(default_factory=list)
    """Those in `/machine/unattached`, by their number there."""
    buses: dict[str, BusObject] = field(default_factory=dict)
    """By the names that `-device` uses."""


def board_chips(pc: Pc, plugged: PluggedObjects) -> Layout:
    """Return the objects of a board that is complete."""
    return _Chips(pc, plugged).layout


def pci_address(function: PciFunction) -> dict[str, Callable[[], Any]]:
    """Return the functions that fetch where a PCI function is."""
    return {
        "addr": lambda: function.slot << 3 | function.fn,
        "legacy-addr": lambda: f"{function.slot:02x}.{function.fn}",
        "romfile": str,
    }


class _Chips:
    """One walk over the board."""

    def __init__(self, pc: Pc, plugged: PluggedObjects) -> None:
        self._pc = pc
        self._plugged = plugged
        self._next = 0
        self.layout = Layout()
        self._on_pci: list[QomObject] = []
        self._on_isa: list[QomObject] = []
        self._make_buses()
        self._add_cpus()
        self._add_bridges()
        self._add_isa_chips()
        self._add_south_bridge()

    # ---- Buses

    def _make_buses(self) -> None:
        buses = self.layout.buses
        named = self.layout.named

        def hotplug() -> str:
            return named["pm"].path

        base = Property("acpi-pcihp-bsel", "uint32", lambda: 0)
        buses["main-system-bus"] = BusObject("System", lambda: {0: named["fw_cfg"], 1: named["host"]})
        buses["pci.0"] = BusObject("PCI", self._pci_devices, hotplug=hotplug, extra=(base,))
        buses["isa.0"] = BusObject("ISA", self._isa_devices)
        for number in range(2):
            name = f"ide.{number}"
            buses[name] = BusObject("IDE", self._on(name))
        buses["floppy-bus.0"] = BusObject("floppy-bus", self._on("floppy-bus.0"))

    def _on(self, name: str) -> Callable[[], Mapping[int, QomObject]]:
        return lambda: dict(enumerate(self._plugged.on_bus(name)))

    def _pci_devices(self) -> Mapping[int, QomObject]:
        return dict(enumerate([*self._on_pci, *self._plugged.on_bus("pci.0")]))

    def _isa_devices(self) -> Mapping[int, QomObject]:
        return dict(enumerate([*self._on_isa, *self._plugged.on_bus("isa.0")]))

    # ---- Numbers

    def _number(self, name: str, chip: QomObject) -> QomObject:
        self.layout.named[name] = chip
        self.layout.numbered.append((self._next, chip))
        self._next += 1
        return chip

    def _skip(self, count: int = 1) -> None:
        """Leave numbers to chips that QEMU has and pyvm does not."""
        self._next += count

    def _pci(self, name: str, kind: str, function: PciFunction, **values: Any) -> DeviceObject:
        chip = DeviceObject(
            kind,
            values,
            bus=self.layout.buses["pci.0"],
            getters=pci_address(function),
        )
        add_pci_regions(chip, function, kind)
        self._on_pci.append(chip)
        self._number(name, chip)
        return chip

    def _isa(self, name: str, kind: str, values: Mapping[str, Any] | None = None, **rest: Any) -> DeviceObject:
        chip = DeviceObject(kind, values, bus=self.layout.buses["isa.0"], **rest)
        self._on_isa.append(chip)
        self._number(name, chip)
        return chip

    # ---- Chips

    def _add_cpus(self) -> None:
        for index in range(self._pc.config.smp.cpus):
            self._number(f"cpu{index}", cpu_object(self._pc, index))
            if index == 0:
                self._skip(_HELPER_OF_FIRST_CPU)

    def _add_bridges(self) -> None:
        board, named, buses = self._pc.board, self.layout.named, self.layout.buses
        system = buses["main-system-bus"]
        named["fw_cfg"] = DeviceObject("fw_cfg_io", bus=system)
        info = self._pc.tables.info
        low, (start, end) = info.low_ram_end, info.pci_hole64
        holes = {
            "pci-hole-start": low,
            "pci-hole-end": _PCI_HOLE_END,
            "pci-hole64-start": max(start, FOUR_GIB),
            "pci-hole64-end": end,
            "pci-hole64-size": info.pci_hole64_size,
        }
        host = named["host"] = DeviceObject("i440FX-pcihost", holes, bus=system)
        host.add("pci.0", buses["pci.0"])
        named["ioapic"] = host.add("ioapic", DeviceObject("ioapic", bus=system))
        add_smram_regions(self._pci("i440fx", "i440FX", board.host_bridge))
        piix3 = self._pci("piix3", "PIIX3", board.piix3, multifunction=True)
        piix3.add("isa.0", buses["isa.0"])

    def _add_isa_chips(self) -> None:
        pc, named = self._pc, self.layout.named
        system = self.layout.buses["main-system-bus"]
        for name, base, page, shift in (("dma1", DMA_LOW, DMA_PAGES, 0), ("dma2", DMA_HIGH, DMA_PAGES + _PIRQ_PAGE, 1)):
            self._isa(name, "i8257", {"base": base, "page-base": page, "pageh-base": -1, "dshift": shift})
        for number, base in enumerate((PIC_MASTER, PIC_SLAVE)):
            pic = {"master": number == 0, "iobase": base, "elcr_addr": PIC_ELCR + number}
            self._isa(f"pic{number + 1}", "isa-i8259", {**pic, "elcr_mask": _ELCR_MASKS[number]})
        for name, display in self._plugged.built_in("VGA"):
            self._on_pci.append(display)
            self._number(name, display)
        if pc.config.board.hpet:
            self._number("hpet", DeviceObject("hpet", {"hpet-intcap": _HPET_INTERRUPTS}, bus=system))
        clock = {"irq": RTC_IRQ, "iobase": RTC_PORT, "base_year": 0}
        date = Property("date", "struct tm", lambda: rtc_time(pc.board.rtc))
        self._isa("rtc", "mc146818rtc", clock, extra=(date,))
        self._isa("pit", "isa-pit", {"iobase": PIT_PORT})
        self._skip()  # the speaker
        self._add_serial_ports()
        floppy = self._isa("fdc", "isa-fdc")
        floppy.add("floppy-bus.0", self.layout.buses["floppy-bus.0"])
        for name, drive in self._plugged.built_in("floppy"):
            self._number(name, drive)
        keyboard = self._isa("i8042", "i8042", {"kbd-irq": KEYBOARD_IRQ, "mouse-irq": MOUSE_IRQ})
        named["keyboard"] = keyboard.add("ps2kbd", DeviceObject("ps2-kbd", bus=system))
        named["mouse"] = keyboard.add("ps2mouse", DeviceObject("ps2-mouse", bus=system))
        self._skip(2)  # VMware's port and mouse
        self._isa("port92", "port92")

    def _add_serial_ports(self) -> None:
        pc = self._pc
        for number, label in enumerate(pc.config.serials):
            if label is None:
                continue
            base, irq = SERIAL_PORTS[number]
            values = {"index": number, "iobase": base, "irq": irq, "chardev": label}
            port = self._isa(f"serial{number}", "isa-serial", values)
            port.add("serial", DeviceObject("serial", {"chardev": label}))
        if not pc.config.nodefaults:
            self._skip()  # the parallel port

    def _add_south_bridge(self) -> None:
        board = self._pc.board
        ide = self._pci("ide", "piix3-ide", board.ide)
        for number in range(2):
            ide.add(f"ide.{number}", self.layout.buses[f"ide.{number}"])
        for name, drive in self._plugged.built_in("ide-hd", "ide-cd"):
            self._number(name, drive)
        function = next(function for function in board.pci.functions() if function.name == "PIIX4_PM")
        asleep = {name: chip_number(self._pc.config, POWER_CHIP, name) for name in ("disable_s3", "disable_s4")}
        power = self._pci("pm", POWER_CHIP, function, smb_io_base=SMBUS_BASE, **asleep)
        for item in _power_registers():
            power.own(item)
        power.add("i2c", BusObject("i2c-bus"))
        self._skip(_EEPROMS)


def _power_registers() -> Iterator[Property]:
    values = (
        ("acpi_enable_cmd", "uint8", 0xF1),
        ("acpi_disable_cmd", "uint8", 0xF0),
        ("sci_int", "uint16", SCI_IRQ),
        ("gpe0_blk", "uint32", GPE0_BASE),
        ("gpe0_blk_len", "uint32", GPE0_SIZE),
        ("pm_io_base", "uint32", PM_BASE),
    )
    for name, kind, value in values:
        yield Property(name, kind, partial(int, value))
