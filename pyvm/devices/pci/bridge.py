"""A PCI-to-PCI bridge: one function that leads to another bus (PCI-to-PCI Bridge Architecture Specification 1.2).

Configuration cycles for its range of bus numbers, and accesses to its windows of ports and memory, pass to the
secondary bus.  The bridge is transparent for interrupts and for the memory accesses of devices.  It is QEMU's
`pci-bridge` without its hot-plug controller, so all 32 slots of the secondary bus can be used.
"""

from __future__ import annotations

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import PciFunction, Window
from pyvm.memory import IoSpace

VENDOR = 0x1B36
DEVICE = 0x0001
_CLASS = 0x060400
_HEADER_BRIDGE = 0x01

# Configuration space of a bridge (section 3.2.5)
PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS, SECONDARY_LATENCY = 0x18, 0x19, 0x1A, 0x1B
IO_BASE, IO_LIMIT = 0x1C, 0x1D
MEMORY_BASE, MEMORY_LIMIT = 0x20, 0x22
PREFETCH_BASE, PREFETCH_LIMIT = 0x24, 0x26
PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER = 0x28, 0x2C
BRIDGE_CONTROL = 0x3E

IO_GRANULARITY = 1 << 12
MEMORY_GRANULARITY = 1 << 20
_PREFETCH_64 = 0x0001
CONTROL_RESET = 0x40
_CONTROL_WRITABLE = 0x0063
"""Parity and SERR response, master abort mode, reset."""

_CAP_SLOT_ID = 0x04
_FIRST_IN_CHASSIS = 0x20
PINS = 4


class SecondaryBus(PciBus):
    """The bus behind a bridge."""

    def __init__(self, bridge: PciBridge, ports: IoSpace, mmio: IoSpace) -> None:
        super().__init__(ports, mmio, self._swizzle, self._message)
        self._bridge = bridge

    def _swizzle(self, slot: int, pin: int, level: bool) -> None:
        """Pins of the secondary bus come out at those of the bridge, turned by the slot (section 9.1)."""
        parent = self._bridge.bus
        if isinstance(parent, PciBus):
            parent.route_intx(self._bridge.slot, (slot + pin) % PINS, level)

    def _message(self, address: int, data: int) -> None:
        if self._bridge.bus is not None:
            self._bridge.bus.send_msi(address, data)

    def place(self, window: Window) -> int | None:
        """Return where a window is, None where the bridge does not let accesses through to it."""
        address = window.locate()
        if address is None or not self.reaches(address, window.size, io=window.io):
            return None
        return address

    def reaches(self, address: int, size: int, *, io: bool) -> bool:
        """Whether this bridge, and all before it, pass accesses on."""
        parent = self._bridge.bus
        if not self._bridge.forwards(address, size, io=io) or parent is None:
            return False
        return not isinstance(parent, SecondaryBus) or parent.reaches(address, size, io=io)

    def remap(self) -> None:
        """The bridge lets other addresses through than before."""
        for function in self.functions():
            self.update_mappings(function)
            if isinstance(function, PciBridge):
                function.secondary_bus.remap()


class PciBridge(PciFunction):
    """The bridge.  `chassis` is the number that its slots are known by, 1 to 255.

    Raises ValueError for 0, which is nobody's number.
    """

    def __init__(self, name: str, ports: IoSpace, mmio: IoSpace, *, chassis: int) -> None:
        if not chassis:
            raise ValueError(
                "Bridge chassis not specified. Each bridge is required to be assigned a unique chassis id > 0."
            )
        super().__init__(name, vendor=VENDOR, device=DEVICE, class_code=_CLASS, interrupt_pin=1)
        self.secondary_bus = SecondaryBus(self, ports, mmio)
        self._set(c.SUBSYSTEM_VENDOR_ID, 4, 0)  # these are other registers of a bridge
        self.config[c.HEADER_TYPE] = _HEADER_BRIDGE
        for register in (PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS, SECONDARY_LATENCY):
            self.set_writable(register, 1, 0xFF)
        for register in (IO_BASE, IO_LIMIT):
            self.set_writable(register, 1, 0xF0)
        for register in (MEMORY_BASE, MEMORY_LIMIT):
            self.set_writable(register, 2, 0xFFF0)
        for register in (PREFETCH_BASE, PREFETCH_LIMIT):
            self._set(register, 2, _PREFETCH_64)
            self.set_writable(register, 2, 0xFFF0)
        for register in (PREFETCH_BASE_UPPER, PREFETCH_LIMIT_UPPER):
            self.set_writable(register, 4, 0xFFFFFFFF)
        self.set_writable(BRIDGE_CONTROL, 2, _CONTROL_WRITABLE)
        self.add_capability(_CAP_SLOT_ID, bytes((_FIRST_IN_CHASSIS, chassis)))

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The numbers of the primary bus, of the secondary one, and of the last one behind that."""
        return self.config[PRIMARY_BUS], self.config[SECONDARY_BUS], self.config[SUBORDINATE_BUS]

    def io_range(self) -> tuple[int, int]:
        """Return the first and the last port that pass."""
        base, limit = self.config[IO_BASE] & 0xF0, self.config[IO_LIMIT] & 0xF0
        return base << 8, limit << 8 | IO_GRANULARITY - 1

    def memory_range(self) -> tuple[int, int]:
        """Return the first and the last address of memory that pass."""
        base, limit = self._get(MEMORY_BASE, 2) & 0xFFF0, self._get(MEMORY_LIMIT, 2) & 0xFFF0
        return base << 16, limit << 16 | MEMORY_GRANULARITY - 1

    def prefetchable_range(self) -> tuple[int, int]:
        """Return the first and the last address of prefetchable memory that pass."""
        base, limit = self._get(PREFETCH_BASE, 2) & 0xFFF0, self._get(PREFETCH_LIMIT, 2) & 0xFFF0
        upper_base, upper_limit = self._get(PREFETCH_BASE_UPPER, 4), self._get(PREFETCH_LIMIT_UPPER, 4)
        return upper_base << 32 | base << 16, upper_limit << 32 | limit << 16 | MEMORY_GRANULARITY - 1

    def forwards(self, address: int, size: int, *, io: bool) -> bool:
        """Whether accesses to these ports, or to this memory, pass to the secondary bus."""
        if not self.command & (c.COMMAND_IO if io else c.COMMAND_MEMORY):
            return False
        ranges = (self.io_range(),) if io else (self.memory_range(), self.prefetchable_range())
        return any(first <= address and address + size - 1 <= last for first, last in ranges)

    def on_config_write(self, offset: int, size: int) -> None:
        """Reset what is behind the bridge while software says so."""
        if offset <= BRIDGE_CONTROL < offset + size and self.config[BRIDGE_CONTROL] & CONTROL_RESET:
            self.secondary_bus.reset()

    def _config_changed(self) -> None:
        super()._config_changed()
        self.secondary_bus.remap()

    def reset(self) -> None:
        """Return to the state after power-on, with all behind."""
        self.secondary_bus.reset()
        super().reset()
