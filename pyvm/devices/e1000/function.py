"""An 8254x on PCI: configuration space, the registers in memory, and the window onto them in I/O space.

8254x manual, 4.1 and 13.2.
"""

from __future__ import annotations

from typing import Any

from pyvm.clock import Clock
from pyvm.devices.e1000.card import E1000, MODELS
from pyvm.devices.pci.constants import COMMAND
from pyvm.devices.pci.function import BarKind, PciFunction, PciFunctionState
from pyvm.devices.properties import Properties, Property
from pyvm.memory import GuestMemory
from pyvm.net.nic import NicClient
from pyvm.state import uint

_INTEL = 0x8086
_ETHERNET_CONTROLLER = 0x020000
_REVISION = 3
_REGISTERS_SIZE = 128 << 10
_WINDOW_SIZE = 64
_ADDRESS, _DATA = 0, 4
"""IOADDR and IODATA."""

PROPERTIES: Properties = {
    "mac": Property("macaddr", None, "Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56"),
    "netdev": Property("netdev", None, "ID of a netdev to use as a backend"),
    "bootindex": Property("int32", None, "place in the order in which the firmware tries to boot"),
    "autonegotiation": Property("bool", True, "on/off"),
    "mitigation": Property("bool", True, "on/off"),
}


class E1000FunctionState(PciFunctionState):
    """Migratable state of the function; the card has its own record."""

    window: int = uint(32)


class E1000Function(PciFunction):
    """A card on PCI; `model` is one of :data:`pyvm.devices.e1000.card.MODELS`."""

    def __init__(
        self,
        model: str,
        clock: Clock,
        memory: GuestMemory,
        client: NicClient,
        *,
        mitigation: bool = True,
        autonegotiation: bool = True,
    ) -> None:
        kind = MODELS[model]
        super().__init__(
            model,
            vendor=_INTEL,
            device=kind.device,
            class_code=_ETHERNET_CONTROLLER,
            revision=_REVISION,
            interrupt_pin=1,
        )
        self.device = E1000(
            *(kind, clock, memory, client, self.intx), mitigation=mitigation, negotiates=autonegotiation
        )
        self._window = 0
        card = self.device
        self.add_bar(
            *(0, _REGISTERS_SIZE, BarKind.MEMORY),
            name=f"{model} registers",
            read=card.read,
            write=card.write,
            min_access=4,
            max_access=4,
        )
        self.add_bar(
            *(1, _WINDOW_SIZE, BarKind.IO),
            name=f"{model} window",
            read=self.window_read,
            write=self.window_write,
            min_access=4,
            max_access=4,
        )

    def window_read(self, offset: int, size: int) -> int:
        """Read the register that IOADDR names, or IOADDR."""
        if offset == _ADDRESS:
            return self._window
        return self.device.read(self._window, size) if offset == _DATA and self._window < _REGISTERS_SIZE else 0

    def window_write(self, offset: int, size: int, value: int) -> None:
        """Write the register that IOADDR names, or IOADDR."""
        if offset == _ADDRESS:
            self._window = value & 0xFFFFFFFF
        elif offset == _DATA and self._window < _REGISTERS_SIZE:
            self.device.write(self._window, size, value)

    def on_config_write(self, offset: int, size: int) -> None:
        """Follow whether the function may access RAM."""
        if offset <= COMMAND < offset + size:
            self.device.set_dma(self.bus_master)

    def reset(self) -> None:
        """Return function and card to the state after power-on."""
        super().reset()
        self._window = 0
        self.device.reset()
        self.device.set_dma(self.bus_master)

    def save(self) -> E1000FunctionState:
        """Return the function's state."""
        plain = super().save()
        return E1000FunctionState(plain.config, plain.intx, plain.msix, self._window)

    def load(self, state: Any) -> None:
        """Take over a state.  Raises StateError where it is of another kind of function."""
        super().load(state)
        self._window = state.window
        self.device.adopt_dma(self.bus_master)
