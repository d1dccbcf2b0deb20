"""pvpanic: a register by which a guest says that it has crashed, as an ISA port or behind a BAR of a PCI function.

QEMU documentation, docs/specs/pvpanic: reading gives the events that the device knows, writing tells of one.  What a
crash means is the machine's policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from pyvm.devices.pci.function import BarKind, PciFunction
from pyvm.devices.properties import PCI_PROPERTIES, Properties, Property
from pyvm.state import State

DEFAULT_PORT: Final = 0x505
PORT_FILE: Final = "etc/pvpanic-port"
"""The fw_cfg file with the number of the port, 16 bits."""

PANICKED: Final = 1 << 0
CRASH_LOADED: Final = 1 << 1  # a kernel that saves a dump takes over

PCI_VENDOR: Final = 0x1B36
PCI_DEVICE: Final = 0x0011
_PCI_CLASS: Final = 0x088000
_PCI_REVISION: Final = 1
_BAR_SIZE: Final = 16  # the smallest there is

_EVENTS = Property("uint8", PANICKED | CRASH_LOADED, "events that the guest is told of: 1 crashed, 2 crash kernel runs")


class PanicRegister:
    """The register; `on_panic` and `on_crash_loaded` are called when the guest says so."""

    def __init__(self, events: int, on_panic: Callable[[], None], on_crash_loaded: Callable[[], None]) -> None:
        self._events = events
        self._on_panic = on_panic
        self._on_crash_loaded = on_crash_loaded

    def read(self, offset: int, size: int) -> int:
        """Read which events there are."""
        return self._events if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Take an event; of two at once the worse one counts."""
        if offset:
            return
        if value & PANICKED:
            self._on_panic()
        elif value & CRASH_LOADED:
            self._on_crash_loaded()


class PvPanicState(State):
    """Nothing: the device has no memory."""


class PvPanic(PanicRegister):
    """The ISA device: one port, to be mapped at the machine's choice."""

    PROPERTIES: ClassVar[Properties] = {
        "ioport": Property("uint16", DEFAULT_PORT, "port"),
        "events": _EVENTS,
    }

    def reset(self) -> None:
        """Nothing to do."""

    def save(self) -> PvPanicState:
        """Return the empty record."""
        return PvPanicState()

    def load(self, state: PvPanicState) -> None:
        """Check the empty record."""
        state.check()


class PvPanicPci(PciFunction):
    """The PCI function: the register is the first byte behind BAR 0."""

    PROPERTIES: ClassVar[Properties] = {**PCI_PROPERTIES, "events": _EVENTS}

    def __init__(self, events: int, on_panic: Callable[[], None], on_crash_loaded: Callable[[], None]) -> None:
        super().__init__(
            "pvpanic-pci", vendor=PCI_VENDOR, device=PCI_DEVICE, class_code=_PCI_CLASS, revision=_PCI_REVISION
        )
        register = PanicRegister(events, on_panic, on_crash_loaded)
        self.add_bar(
            0, _BAR_SIZE, BarKind.MEMORY, name="pvpanic", read=register.read, write=register.write, max_access=1
        )
