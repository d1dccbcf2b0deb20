"""The IDE function of the PIIX3: bus 0 slot 1 function 1, two channels with a bus-master engine each.

Intel 82371FB (PIIX) and 82371SB (PIIX3) PCI ISA IDE Xcelerator (order number 290550), sections 2.3 (configuration
registers) and 2.7 (bus-master registers).  Timing registers are kept and have no effect: data always moves as fast as
it can.  The legacy ports are decoded whatever IDETIM says, as QEMU does it.
"""

from __future__ import annotations

from typing import Final

from pyvm.devices.ide.busmaster import PORTS, BusMaster, BusMasterState
from pyvm.devices.ide.channel import UNITS, Channel, ChannelState
from pyvm.devices.pci import constants as c
from pyvm.devices.pci.function import BarKind, PciFunction, PciFunctionState
from pyvm.irq import IrqLine
from pyvm.memory import GuestMemory
from pyvm.state import StateError, array, record

VENDOR: Final = 0x8086
DEVICE: Final = 0x7010
CLASS: Final = 0x010180  # IDE in compatibility mode, bus master

BAR: Final = 4
BAR_SIZE: Final = 16
IDETIM: Final = 0x40  # 2 x 16 bits: timing of the channels; bit 15 says that the channel is decoded
SIDETIM: Final = 0x44  # 8 bits: timing of the slaves
_DEVICE_REGISTERS: Final = 0x40
"""From here on, all registers are kept."""

CHANNELS: Final = 2
COMMAND_PORTS: Final = (0x1F0, 0x170)
CONTROL_PORTS: Final = (0x3F6, 0x376)
IRQS: Final = (14, 15)


class Piix3IdeState(PciFunctionState):
    """Configuration space, engines and channels."""

    bus_masters: list[BusMasterState] = array(record(BusMasterState), CHANNELS)
    channels: list[ChannelState] = array(record(ChannelState), CHANNELS)


class Piix3Ide(PciFunction):
    """The function.  The machine maps the ports of `channels` at :data:`COMMAND_PORTS` and :data:`CONTROL_PORTS`."""

    def __init__(self, memory: GuestMemory, irqs: tuple[IrqLine, IrqLine]) -> None:
        super().__init__("PIIX3_IDE", vendor=VENDOR, device=DEVICE, class_code=CLASS)
        self.config[c.STATUS : c.STATUS + 2] = (c.STATUS_DEVSEL_MEDIUM | c.STATUS_FAST_BACK).to_bytes(2, "little")
        size = c.CONFIG_SIZE - _DEVICE_REGISTERS
        self.set_writable(_DEVICE_REGISTERS, size, (1 << (8 * size)) - 1)
        self.bus_masters = tuple(BusMaster(memory, self._may_master) for _ in range(CHANNELS))
        self.channels = tuple(
            Channel(irq, engine, UNITS * index + 1)
            for index, (irq, engine) in enumerate(zip(irqs, self.bus_masters, strict=True))
        )
        self.add_bar(
            BAR, BAR_SIZE, BarKind.IO, name="piix3 bus master", read=self.bm_read, write=self.bm_write, max_access=4
        )

    def _may_master(self) -> bool:
        return self.bus_master

    def bm_read(self, offset: int, size: int) -> int:
        """Read bus-master registers: 8 ports for each channel."""
        return self.bus_masters[offset // PORTS].read(offset % PORTS, size)

    def bm_write(self, offset: int, size: int, value: int) -> None:
        """Write bus-master registers."""
        self.bus_masters[offset // PORTS].write(offset % PORTS, size, value)

    def on_config_write(self, offset: int, size: int) -> None:
        """Let engines go on that have waited for the function to become a bus master."""
        if offset <= c.COMMAND < offset + size:
            for engine in self.bus_masters:
                engine.kick()

    def reset(self) -> None:
        """Return to the state after power-on."""
        super().reset()
        for channel in self.channels:
            channel.reset()
        for engine in self.bus_masters:
            engine.reset()

    def save(self) -> Piix3IdeState:
        """Return the states of the function, its engines, channels and drives."""
        base = super().save()
        return Piix3IdeState(
            config=base.config,
            intx=base.intx,
            msix=base.msix,
            bus_masters=[engine.save() for engine in self.bus_masters],
            channels=[channel.save() for channel in self.channels],
        )

    def load(self, state: PciFunctionState) -> None:
        """Take over a state; drives start again what they were doing.  Raises StateError."""
        if not isinstance(state, Piix3IdeState):
            raise StateError(f"{self.name}: the state is of another kind of function")
        state.check()
        for engine, saved in zip(self.bus_masters, state.bus_masters, strict=True):
            engine.check(saved)
        for channel, channel_state in zip(self.channels, state.channels, strict=True):
            channel.check(channel_state)
        super().load(state)
        for engine, saved in zip(self.bus_masters, state.bus_masters, strict=True):
            engine.load(saved)
        for channel, channel_state in zip(self.channels, state.channels, strict=True):
            channel.load(channel_state)
