"""The mainboard: the chips of an i440FX PC, at their addresses and on their interrupt lines.

Everything soldered on is wired here: interrupt controllers, timers, clock, keyboard controller, serial ports, PCI host
bridge and south bridge, power management and firmware configuration.  What is plugged into it comes from
:mod:`pyvm.machine.plug.plugging`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.devices.acpi.pm import AcpiPm, SleepKind
from pyvm.devices.apic_bus import ApicBus
from pyvm.devices.dma8237 import DmaPair
from pyvm.devices.fwcfg import FwCfg
from pyvm.devices.hpet import Hpet
from pyvm.devices.i8042 import I8042
from pyvm.devices.ide.piix3 import COMMAND_PORTS, CONTROL_PORTS, Piix3Ide
from pyvm.devices.ide.piix3 import IRQS as IDE_IRQS
from pyvm.devices.ioapic import IoApic
from pyvm.devices.lapic import Lapic
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.i440fx import I440fx
from pyvm.devices.pci.piix3 import Piix3, ResetControl
from pyvm.devices.pci.piix4_pm import Piix4Pm
from pyvm.devices.pci.piix4_smbus import SmbusHost
from pyvm.devices.pic import PicPair
from pyvm.devices.pit import Pit
from pyvm.devices.port92 import Port92
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.devices.rtc import Rtc
from pyvm.devices.serial import Uart16550
from pyvm.firmware.machine_info import GPE0_BASE, GPE0_SIZE, HPET_BASE, IOAPIC_BASE, SCI_IRQ, SMI_PORT
from pyvm.irq import IrqLine, SharedIrq
from pyvm.machine.shadow import Shadow
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev
    from pyvm.clock import Clock
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.memory import GuestMemory, IoSpace
    from pyvm.state import State

ISA_IRQS = 16
IOAPIC_PINS = 24
IOAPIC_TIMER_PIN = 2
PIC_MASTER, PIC_SLAVE, PIC_ELCR = 0x20, 0xA0, 0x4D0
PIT_PORT, SPEAKER_PORT = 0x40, 0x61
RTC_PORT = 0x70
KEYBOARD_DATA, KEYBOARD_COMMAND = 0x60, 0x64
FAST_A20_PORT = 0x92
PCI_ADDRESS_PORT, PCI_DATA_PORT = 0xCF8, 0xCFC
FW_CFG_PORT, FW_CFG_DMA_PORT = 0x510, 0x514
DMA_LOW, DMA_HIGH, DMA_PAGES = 0x00, 0xC0, 0x80
SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))
"""Port and IRQ of COM1 to COM4."""

KEYBOARD_IRQ, RTC_IRQ, MOUSE_IRQ = 1, 8, 12

_OWN_PART = re.compile(
    r"(lapic|serial)\d+|ioapic|pic|pit|rtc|hpet|acpi_pm|smbus|reset_control|pci|i440fx|piix3|piix3_ide|piix4_pm|keyboard"
    r"|mouse|i8042|port92|dma|fw_cfg|floppy|vga|(cpu|memory|pci)_hotplug|ib700|pvpanic|vmgenid"
)
"""Names of components that are not IDs of devices."""


class Component(Protocol):
    """A part of the machine that has state."""

    def reset(self) -> None:
        """Return to the state after power-on."""

    def save(self) -> State:
        """Return all migratable state."""

    def load(self, state: Any) -> None:
        """Take over a saved state; raises StateError."""


@record(frozen=True)
class BoardEvents:
    """What chips ask of the machine; called on the vCPU thread or in the main loop, with the machine lock held."""

    reset: Callable[[], None]
    sleep: Callable[[SleepKind], None]
    rtc_change: Callable[[int], None]


class Board:
    """The chips.  `components` names every part with state, in the order in which they are reset, saved and loaded."""

    def __init__(
        self,
        clock: Clock,
        memory: GuestMemory,
        mmio: IoSpace,
        ports: IoSpace,
        vcpus: VcpuSet,
        events: BoardEvents,
        *,
        rtc_base: Callable[[], int],
        hpet: bool,
        firmware: bytes | None = None,
        rtc_make_up: bool = False,
    ) -> None:
        self.clock = clock
        self.memory = memory
        self.mmio = mmio
        self.ports = ports
        self.vcpus = vcpus
        self.components: dict[str, Component] = {}
        self.device_memory = ExitStack()
        """Gives back the memory of devices, which processors map."""
        self._events = events
        self._wire_interrupts()
        self._wire_timers(rtc_base, rtc_make_up, hpet)
        self._wire_pci()
        self._wire_isa()
        self.shadow = Shadow(vcpus, memory, mmio, self.host_bridge, firmware)
        self.device_memory.callback(self.shadow.close)
        self.fw_cfg = FwCfg(memory)
        self._keep("fw_cfg", self.fw_cfg)
        ports.add(FW_CFG_PORT, 2, self.fw_cfg.read, self.fw_cfg.write, "fw_cfg", max_access=2)
        ports.add(FW_CFG_DMA_PORT, 8, self.fw_cfg.dma_read, self.fw_cfg.dma_write, "fw_cfg dma", max_access=4)
        self.serials: dict[int, Uart16550] = {}

    def _keep(self, name: str, component: Component) -> None:
        self.components[name] = component

    @staticmethod
    def name_for(identifier: str) -> str:
        """Return the name of the component with that ID, which may be what the board calls a part of its own."""
        return f"peripheral/{identifier}" if _OWN_PART.fullmatch(identifier) else identifier

    # ---- Interrupts

    def _wire_interrupts(self) -> None:
        """PIC to LINT0 of the boot processor, each ISA line to PIC and IOAPIC, local APICs to their vCPUs."""
        self.apic_bus = ApicBus()
        self.pic = PicPair(IrqLine(self._drive_lint0))
        self.ioapic = IoApic(self.apic_bus)
        self.apic_bus.on_eoi = self.ioapic.eoi
        self.lapics: dict[int, Lapic] = {}
        """Those of the vCPUs that are there, by index."""
        self._all_lapics: dict[int, Lapic] = {}
        """And those of the vCPUs that ever were there."""
        self.vcpus.attach_lapics(self._all_lapics)
        self.irq_counts = [0] * ISA_IRQS
        """How often each ISA interrupt was raised."""
        self.isa_irqs = [SharedIrq(self._isa_sink(irq)) for irq in range(ISA_IRQS)]
        for index in self.vcpus.present:
            self.add_lapic(index)
        self._keep("ioapic", self.ioapic)
        self._keep("pic", self.pic)
        self.mmio.add(IOAPIC_BASE, 0x1000, self.ioapic.read, self.ioapic.write, "ioapic", min_access=4, max_access=4)
        for base, chip, name in ((PIC_MASTER, self.pic.master, "pic1"), (PIC_SLAVE, self.pic.slave, "pic2")):
            self.ports.add(base, 2, chip.read, chip.write, name, max_access=1)
        self.ports.add(PIC_ELCR, 2, self.pic.elcr_read, self.pic.elcr_write, "elcr", max_access=1)

    def add_lapic(self, index: int) -> None:
        """Put the local APIC of a vCPU onto the bus."""
        lapic = self._all_lapics.get(index)
        if lapic is None:
            port, apic_id = self.vcpus.port(index), self.vcpus.apic_ids[index]
            lapic = Lapic(apic_id, self.clock, self.apic_bus, port, self.pic.acknowledge)
            self._all_lapics[index] = lapic
        else:
            self.apic_bus.attach(lapic)
            lapic.reset()
        self.lapics[index] = lapic
        self._keep(f"lapic{index}", lapic)

    def remove_lapic(self, index: int) -> None:
        """Take the local APIC of a vCPU off the bus."""
        lapic = self.lapics.pop(index)
        lapic.reset()
        self.apic_bus.detach(lapic)
        del self.components[f"lapic{index}"]

    def _drive_lint0(self, level: bool) -> None:
        self.lapics[0].set_lint0(level)

    def _isa_sink(self, irq: int) -> Callable[[bool], None]:
        # The PIT's IRQ 0 is wired to pin 2 of the IOAPIC; IRQ 2 is the cascade of the PICs and reaches neither.
        pin = IOAPIC_TIMER_PIN if irq == 0 else irq

        def sink(level: bool) -> None:
            if level:
                self.irq_counts[irq] += 1
            self.pic.set_irq(irq, level)
            self.ioapic.set_irq(pin, level)

        return sink

    def isa_irq(self, irq: int) -> IrqLine:
        """Return a new line into one of the 16 ISA interrupts."""
        return self.isa_irqs[irq].driver()

    # ---- Timers

    def _wire_timers(self, rtc_base: Callable[[], int], rtc_make_up: bool, hpet: bool) -> None:
        self.pit = Pit(self.clock, self.isa_irq(0))
        self.rtc = Rtc(self.clock, self.isa_irq(RTC_IRQ), rtc_base, make_up=rtc_make_up)
        self.rtc.on_change = self._events.rtc_change
        self._keep("pit", self.pit)
        self._keep("rtc", self.rtc)
        self.ports.add(PIT_PORT, 4, self.pit.read, self.pit.write, "pit", max_access=1)
        self.ports.add(SPEAKER_PORT, 1, self.pit.port61_read, self.pit.port61_write, "port61", max_access=1)
        self.ports.add(RTC_PORT, 2, self.rtc.read, self.rtc.write, "rtc", max_access=1)
        if hpet:
            isa_pins = set(range(ISA_IRQS)) - {IOAPIC_TIMER_PIN}
            lines = [
                self.isa_irq(pin) if pin in isa_pins else IrqLine(self._ioapic_sink(pin)) for pin in range(IOAPIC_PINS)
            ]
            self.hpet = Hpet(self.clock, lambda pin, level: lines[pin].set(level), self._legacy_replacement)
            self._keep("hpet", self.hpet)
            self.mmio.add(HPET_BASE, 0x400, self.hpet.read, self.hpet.write, "hpet")

    def _ioapic_sink(self, pin: int) -> Callable[[bool], None]:
        return lambda level: self.ioapic.set_irq(pin, level)

    def _legacy_replacement(self, active: bool) -> None:
        """The HPET takes over IRQ 0 and IRQ 8."""
        self.pit.set_irq0_disabled(active)
        self.rtc.set_irq_disabled(active)

    # ---- PCI

    def _wire_pci(self) -> None:
        self.piix3 = Piix3([self.isa_irq(irq) for irq in range(ISA_IRQS)])
        self.pci = PciBus(self.ports, self.mmio, self.piix3.route_intx, self.apic_bus.msi)
        self.host_bridge = I440fx(self.memory.size)
        self.acpi = AcpiPm(self.clock, self.isa_irq(SCI_IRQ), self._events.sleep)
        self.rtc.on_alarm = self.acpi.rtc_alarm
        smbus = SmbusHost()
        power = Piix4Pm(self.acpi, smbus)
        self.ide = Piix3Ide(self.memory, (self.isa_irq(IDE_IRQS[0]), self.isa_irq(IDE_IRQS[1])))
        self.pci.attach(self.host_bridge, 0)
        self.pci.attach(self.piix3, 1, 0)
        self.pci.attach(self.ide, 1, 1)
        self.pci.attach(power, 1, 3)
        self.reset_control = ResetControl(self._events.reset)
        self.pci.reset_control = self.reset_control
        self._keep("acpi_pm", self.acpi)
        self._keep("smbus", smbus)
        self._keep("reset_control", self.reset_control)
        self._keep("pci", self.pci)
        self._keep("i440fx", self.host_bridge)
        self._keep("piix3", self.piix3)
        self._keep("piix3_ide", self.ide)
        self._keep("piix4_pm", power)
        self.ports.add(PCI_ADDRESS_PORT, 4, self.pci.address_read, self.pci.address_write, "pci address", max_access=4)
        self.ports.add(PCI_DATA_PORT, 4, self.pci.data_read, self.pci.data_write, "pci data", max_access=4)
        self.ports.add(GPE0_BASE, GPE0_SIZE, self.acpi.gpe_read, self.acpi.gpe_write, "acpi gpe0", max_access=4)
        for number, channel in enumerate(self.ide.channels):
            read, write = channel.command_read, channel.command_write
            self.ports.add(COMMAND_PORTS[number], 8, read, write, f"ide{number}", max_access=4, stream=channel)
            read, write = channel.control_read, channel.control_write
            self.ports.add(CONTROL_PORTS[number], 1, read, write, f"ide{number} control", max_access=1)
        self.ports.add(SMI_PORT, 2, self.acpi.apm_read, self.acpi.apm_write, "apm", max_access=1)

    # ---- ISA

    def _wire_isa(self) -> None:
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        controller = I8042(
            self.isa_irq(KEYBOARD_IRQ),
            self.isa_irq(MOUSE_IRQ),
            self.keyboard,
            self.mouse,
            on_a20=self.vcpus.set_a20,
            on_reset=self._events.reset,
        )
        # Both gates drive the one A20 line; whichever was written last has it, as on QEMU's board.
        port92 = Port92(on_a20=self.vcpus.set_a20, on_reset=self._events.reset)
        self.dma = dma = DmaPair(self.memory)
        self._keep("keyboard", self.keyboard)
        self._keep("mouse", self.mouse)
        self._keep("i8042", controller)
        self._keep("port92", port92)
        self._keep("dma", dma)
        self.ports.add(KEYBOARD_DATA, 1, controller.data_read, controller.data_write, "i8042 data", max_access=1)
        self.ports.add(KEYBOARD_COMMAND, 1, controller.status_read, controller.command_write, "i8042", max_access=1)
        self.ports.add(FAST_A20_PORT, 1, port92.read, port92.write, "port92", max_access=1)
        self.ports.add(DMA_LOW, 16, dma.low.read, dma.low.write, "dma1", max_access=1)
        self.ports.add(DMA_HIGH, 32, dma.high.read, dma.high.write, "dma2", max_access=1)
        self.ports.add(DMA_PAGES, 16, dma.page_read, dma.page_write, "dma pages", max_access=1)

    def add_serial(self, number: int, chardev: Chardev | None) -> None:
        """Solder on COM1 (0) to COM4 (3), the other end of whose line is `chardev`."""
        base, irq = SERIAL_PORTS[number]
        uart = Uart16550(self.isa_irq(irq), self.clock, chardev)
        self.serials[number] = uart
        self._keep(f"serial{number}", uart)
        self.ports.add(base, 8, uart.read, uart.write, f"serial{number}", max_access=1)

    def has_serial(self, number: int) -> bool:
        """Whether COM1 (0) to COM4 (3) is there."""
        return number in self.serials

    # ---- All of it

    def reset(self) -> None:
        """Reset every chip."""
        for component in self.components.values():
            component.reset()

    def flush(self) -> None:
        """Hand over what serial ports have taken and not passed on yet."""
        for uart in self.serials.values():
            uart.flush()

    def nmi(self) -> None:
        """Press the NMI button: LINT1 of every local APIC."""
        for lapic in self.lapics.values():
            lapic.lint1_nmi()
