"""The PIIX3 PCI-ISA bridge: bus 0 slot 1 function 0, which leads PCI interrupts to ISA IRQs, and its reset register.

Intel 82371FB (PIIX) and 82371SB (PIIX3) PCI ISA IDE Xcelerator (order number 290550), section 2.2 (ISA bridge
configuration registers) and 2.5.5 (reset control register).  Interrupt controllers, timer and DMA controllers of the
same chip are devices of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pyvm.devices.pci import constants as c
from pyvm.devices.pci.function import PciFunction, PciFunctionState
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, uint

VENDOR: Final = 0x8086
DEVICE: Final = 0x7000
CLASS: Final = 0x060100

PIRQRC: Final = 0x60  # 4 bytes, PIRQA to PIRQD
PIRQ_COUNT: Final = 4
PIRQRC_DISABLE: Final = 1 << 7
PIRQRC_IRQ: Final = 0x0F
PIRQRC_WRITABLE: Final = PIRQRC_DISABLE | PIRQRC_IRQ
ROUTABLE_IRQS: Final = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})

_KEPT: Final = (  # offset, size, reset value: registers that are kept and have no effect here
    (0x4C, 1, 0x4D),  # ISA I/O recovery timer
    (0x4E, 2, 0x0003),  # X-bus chip select
    (0x69, 1, 0x02),  # top of memory
    (0x6A, 2, 0x0000),  # miscellaneous status
    (0x70, 2, 0x0080),  # motherboard device IRQ routing 0, 1
    (0x76, 2, 0x0C0C),  # motherboard device DMA control 0, 1
    (0x78, 2, 0x0002),  # programmable chip select
    (0x80, 1, 0x00),  # APIC base address relocation
    (0x82, 1, 0x00),  # deterministic latency control
    (0xA0, 1, 0x08),  # SMI control
    (0xA2, 2, 0x0000),  # SMI enable
    (0xA4, 4, 0x0000),  # system event enable
    (0xA8, 1, 0x0F),  # fast off timer
    (0xAA, 2, 0x0000),  # SMI request
    (0xAC, 1, 0x00),  # clock scale, STPCLK low
    (0xAE, 1, 0x00),  # clock scale, STPCLK high
)

RESET_HARD: Final = 1 << 1  # which kind of reset the CPU reset bit makes
RESET_CPU: Final = 1 << 2  # write: reset now


def swizzle(slot: int, pin: int) -> int:
    """Return the PIRQ (0 = PIRQA) that INTx pin `pin` (0 = INTA) of `slot` is wired to on an i440FX board."""
    return (slot + pin - 1) & 3


class Piix3(PciFunction):
    """The ISA bridge.  `irqs` are its lines into the 16 ISA IRQs, wired-OR with those of ISA devices outside."""

    def __init__(self, irqs: Sequence[IrqLine]) -> None:
        super().__init__("PIIX3", vendor=VENDOR, device=DEVICE, class_code=CLASS)
        self._irqs = irqs
        self._asserted = [0] * PIRQ_COUNT
        self.config[c.STATUS : c.STATUS + 2] = c.STATUS_DEVSEL_MEDIUM.to_bytes(2, "little")
        self.config[c.HEADER_TYPE] = c.HEADER_MULTIFUNCTION
        for offset, size, reset in _KEPT:
            self.set_writable(offset, size, (1 << (8 * size)) - 1, reset)
        for pirq in range(PIRQ_COUNT):
            self.set_writable(PIRQRC + pirq, 1, PIRQRC_WRITABLE, PIRQRC_DISABLE)

    def route_intx(self, slot: int, pin: int, level: bool) -> None:
        """Hear that INTx pin `pin` (0 = INTA) of `slot` changed: what the bus calls."""
        pirq = swizzle(slot, pin)
        self._asserted[pirq] = max(0, self._asserted[pirq] + (1 if level else -1))
        self._drive()

    def irq_of(self, pirq: int) -> int | None:
        """Return the ISA IRQ that `pirq` (0 = PIRQA) is led to now."""
        register = self.config[PIRQRC + pirq]
        irq = register & PIRQRC_IRQ
        return None if register & PIRQRC_DISABLE or irq not in ROUTABLE_IRQS else irq

    def _drive(self) -> None:
        active = {self.irq_of(pirq) for pirq in range(PIRQ_COUNT) if self._asserted[pirq]}
        for irq in ROUTABLE_IRQS:
            self._irqs[irq].set(irq in active)

    def on_config_write(self, offset: int, size: int) -> None:
        """Follow a changed routing."""
        if offset < PIRQRC + PIRQ_COUNT and offset + size > PIRQRC:
            self._drive()

    def reset(self) -> None:
        """Route nothing; what is asserted on the bus stays so until its device lets go."""
        super().reset()
        self._drive()

    def load(self, state: PciFunctionState) -> None:
        """Take over a saved state; the levels of the PIRQs come from the devices' own states."""
        super().load(state)
        self._drive()


class ResetControlState(State):
    """The reset control register."""

    value: int = uint(8)


class ResetControl:
    """The byte at port 0xcf9."""

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """Read the register; the reset bit reads 0."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register; the machine resets where the CPU reset bit is set."""
        self._value = value & RESET_HARD
        if value & RESET_CPU:
            self._on_reset()

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._value = 0

    def save(self) -> ResetControlState:
        """Return the register."""
        return ResetControlState(self._value)

    def load(self, state: ResetControlState) -> None:
        """Take over the register."""
        state.check()
        if state.value & ~RESET_HARD:
            raise StateError("ResetControlState.value: bits that are never set")
        self._value = state.value
