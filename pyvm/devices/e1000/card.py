"""The 8254x Gigabit Ethernet controller (Intel's PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's
Manual): its registers, and what they set off.

The card stands between a network client and guest RAM.  Transmitter, receiver, transceiver and EEPROM have files of
their own; :mod:`pyvm.devices.e1000.function` puts the card on PCI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvm.clock import Clock
from pyvm.devices.e1000 import registers as r
from pyvm.devices.e1000.eeprom import Eeprom, EepromState, contents
from pyvm.devices.e1000.filters import Filters
from pyvm.devices.e1000.interrupts import Interrupts
from pyvm.devices.e1000.phy import REGISTERS, Phy
from pyvm.devices.e1000.receive import Receiver, ReceiveState
from pyvm.devices.e1000.statistics import Statistics
from pyvm.devices.e1000.transmit import TransmitState, Transmitter
from pyvm.irq import IrqLine
from pyvm.memory import GuestMemory
from pyvm.net.client import Frame, Offload
from pyvm.net.nic import NicClient
from pyvm.records import record as constants
from pyvm.state import State, array, flag, optional, record, uint

_TABLES_END = r.VFTA + 4 * r.VFTA_WORDS
_STATISTICS_END = r.STATISTICS + 4 * r.STATISTICS_WORDS
_SAVED = tuple(sorted(r.PLAIN))


@constants(frozen=True)
class Model:
    """What the models differ in."""

    name: str
    device: int
    """PCI device ID."""
    phy: int
    """Second half of the transceiver's identifier."""


MODELS = {
    model.name: model
    for model in (
        Model("e1000", 0x100E, 0x0C20),
        Model("e1000-82544gc", 0x1008, 0x0C30),
        Model("e1000-82545em", 0x100F, 0x0C20),
    )
}
"""QEMU's three; the first is the 82540EM."""


class E1000State(State):
    """Migratable state; the PCI function has a record of its own."""

    registers: list[int] = array(uint(32), len(_SAVED))
    """In order of their offsets."""
    multicast: list[int] = array(uint(32), r.MTA_WORDS)
    vlans: list[int] = array(uint(32), r.VFTA_WORDS)
    addresses: list[int] = array(uint(32), 2 * r.RA_ENTRIES)
    statistics: list[int] = array(uint(32), r.STATISTICS_WORDS)
    causes: int = uint(32)
    mask: int = uint(32)
    interrupting: bool = flag()
    throttled: int | None = optional(uint(64))
    phy: list[int] = array(uint(16), REGISTERS)
    negotiated: int | None = optional(uint(64))
    management: int = uint(32)
    eeprom_read: int = uint(32)
    eeprom_request: bool = flag()
    eeprom: EepromState = record(EepromState)
    transmit: TransmitState = record(TransmitState)
    receive: ReceiveState = record(ReceiveState)


class E1000:
    """A card whose link is `client`; `client.mac` is the address in its EEPROM.

    Without `mitigation` interrupts are never put off; without `negotiates` the link is there as soon as it is asked
    for.  `line` is driven as long as a cause that is not masked waits.
    """

    def __init__(
        self,
        model: Model,
        clock: Clock,
        memory: GuestMemory,
        client: NicClient,
        line: IrqLine,
        *,
        mitigation: bool = True,
        negotiates: bool = True,
    ) -> None:
        self.clock = clock
        self.memory = memory
        self.client = client
        self.mitigation = mitigation
        self.registers: dict[int, int] = {}
        """Those that software reads as it wrote them."""
        self.paused = False
        self._dma = False
        self.interrupts = Interrupts(clock, line, mitigation=mitigation)
        self.phy = Phy(clock, model.phy, self._link_changed, negotiates=negotiates)
        self.filters = Filters(self.registers)
        self.statistics = Statistics()
        self._eeprom = Eeprom(contents(client.mac, model.device))
        self._reset_registers()
        self.transmitter = Transmitter(self)
        self.receiver = Receiver(self)
        self._readers = self._make_readers()
        self._writers = self._make_writers()
        client.card = self
        self.phy.set_cable(not client.link_down)
        self.reset()

    # ---- Life

    @property
    def running(self) -> bool:
        """Whether the card may use RAM."""
        return self._dma and not self.paused

    def set_dma(self, allowed: bool) -> None:
        """Say whether the bus lets the card access RAM."""
        if allowed != self._dma:
            self._dma = allowed
            self._go_on()

    def adopt_dma(self, allowed: bool) -> None:
        """Take over, with a loaded state, whether RAM may be accessed; nothing is sent before :meth:`resume`."""
        self._dma = allowed

    def pause(self) -> None:
        """Leave RAM alone: the machine is stopped."""
        self.paused = True

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self.paused = False
        self._go_on()

    def _go_on(self) -> None:
        if self.running:
            self.transmitter.run()
            self.receiver.go_on()

    def _reset_registers(self) -> None:
        self.registers.update(dict.fromkeys(r.PLAIN, 0) | r.RESET_VALUES)
        self._management = r.MDIC_READY
        self._eeprom_read = 0
        self._eeprom_request = False

    def reset(self) -> None:
        """Return to the state after power-on, with the address in the EEPROM."""
        self.phy.reset()
        self._software_reset()

    def _software_reset(self) -> None:
        self.interrupts.reset()
        self.transmitter.reset()
        self._reset_registers()
        self._eeprom.reset()
        self.statistics.reset()
        self.filters.reset(self._eeprom.mac)
        self.client.show_mac(self._eeprom.mac)
        self.receiver.reset()

    # ---- Registers

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        del size
        offset = r.OLD_PLACES.get(offset, offset) & ~3
        reader = self._readers.get(offset)
        if reader is not None:
            return reader()
        found = self.registers.get(offset)
        if found is not None:
            return found
        if r.STATISTICS <= offset < _STATISTICS_END:
            return self.statistics.read(offset)
        place = self._table(offset)
        return 0 if place is None else place[0][place[1]]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        del size
        offset = r.OLD_PLACES.get(offset, offset) & ~3
        mask = r.PLAIN.get(offset)
        if mask is not None:
            self.registers[offset] = value & mask
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value & 0xFFFFFFFF)
        elif mask is None:
            self._write_table(offset, value & 0xFFFFFFFF)

    def _table(self, offset: int) -> tuple[list[int], int] | None:
        if not r.MTA <= offset < _TABLES_END:
            return None
        filters = self.filters
        tables = ((r.MTA, filters.multicast), (r.RA, filters.addresses), (r.VFTA, filters.vlans))
        for start, table in tables:
            if start <= offset < start + 4 * len(table):
                return table, (offset - start) // 4
        return None

    def _write_table(self, offset: int, value: int) -> None:
        place = self._table(offset)
        if place is None:
            return
        table, index = place
        table[index] = value
        if table is self.filters.addresses:
            self.filters.addresses_changed()
            if index == 1:
                self.client.show_mac(self.filters.mac)

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        return {
            r.STATUS: self._status,
            r.EECD: self._eecd,
            r.EERD: lambda: self._eeprom_read,
            r.MDIC: lambda: self._management,
            r.ICR: self.interrupts.take,
            r.ICS: lambda: self.interrupts.causes,
            r.IMS: lambda: self.interrupts.mask,
        }

    def _make_writers(self) -> dict[int, Callable[[int], None]]:
        interrupts = self.interrupts
        return {
            r.CTRL: self._control,
            r.EECD: self._write_eecd,
            r.EERD: self._write_eerd,
            r.MDIC: self._write_mdic,
            r.ICR: interrupts.clear,
            r.ICS: lambda value: interrupts.raise_causes(value & r.CAUSES),
            r.IMS: lambda value: interrupts.set_mask(interrupts.mask | value & r.CAUSES),
            r.IMC: lambda value: interrupts.set_mask(interrupts.mask & ~value),
            r.ITR: lambda value: setattr(interrupts, "interval", value & r.ITR_INTERVAL),
            r.RDTR: self._write_rdtr,
            r.RCTL: lambda value: self.receiver.go_on(),
            r.RDT: lambda value: self.receiver.go_on(),
            r.TDT: lambda value: self.transmitter.run(),
            r.TCTL: lambda value: self.transmitter.run(),
        }

    def _status(self) -> int:
        up = r.STATUS_LU if self.phy.link else 0
        return r.STATUS_FD | r.STATUS_SPEED_1000 | r.STATUS_ASDV_1000 | up

    def _control(self, value: int) -> None:
        if value & r.CTRL_PHY_RST:
            self.phy.reset()
        if value & r.CTRL_RST:
            self._software_reset()

    def _write_rdtr(self, value: int) -> None:
        if value & r.RDTR_FPD and self.receiver.delay.deadline is not None:
            self.receiver.delay.expire()

    def ring_address(self, low: int) -> int:
        """Return the address of a ring by the register that has the low half."""
        return self.registers[low] | self.registers[low + 4] << 32

    # EEPROM and transceiver

    def _eecd(self) -> int:
        granted = r.EECD_REQ | r.EECD_GNT if self._eeprom_request else 0
        return self._eeprom.pins | granted | r.EECD_PRES | r.EECD_FWE_DISABLED

    def _write_eecd(self, value: int) -> None:
        self._eeprom_request = bool(value & r.EECD_REQ)
        self._eeprom.set_pins(value)

    def _write_eerd(self, value: int) -> None:
        self._eeprom_read = 0
        if value & r.EERD_START:
            address = value >> 8 & 0xFF
            words = self._eeprom.words
            self._eeprom_read = address << 8 | r.EERD_DONE
            if address < len(words):
                self._eeprom_read |= words[address] << 16

    def _write_mdic(self, value: int) -> None:
        number = value >> 16 & 0x1F
        done = value & ~(r.MDIC_READY | r.MDIC_ERROR)
        if value >> 21 & 0x1F != r.PHY_ADDRESS:
            done |= r.MDIC_ERROR
        elif value & r.MDIC_READ:
            done = done & ~r.MDIC_DATA | self.phy.read(number)
        elif value & r.MDIC_WRITE:
            self.phy.write(number, value & r.MDIC_DATA)
        self._management = done | r.MDIC_READY
        if value & r.MDIC_INTERRUPT:
            self.interrupts.raise_causes(r.CAUSE_MDAC)

    # ---- The link

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame; return False where there is no room for it now."""
        if self.phy.loopback:
            return True
        return self.receiver.receive(frame, offload)

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame of another queue of the peer; the card has one."""
        del queue
        return self.receive(frame, offload)

    def send_waiting(self) -> None:
        """The peer takes frames again."""
        self.transmitter.run()

    def link_changed(self, up: bool) -> None:
        """A cable comes or goes."""
        self.phy.set_cable(up)

    def _link_changed(self) -> None:
        self.interrupts.raise_causes(r.CAUSE_LSC)
        if self.phy.link:
            self.receiver.go_on()

    def announce(self) -> None:
        """The card has no way to ask the guest for an announcement."""

    def rx_filter(self) -> dict[str, Any] | None:
        """Clients do not ask this kind of card, as under QEMU."""
        return None

    # ---- State

    def save(self) -> E1000State:
        """Return all migratable state."""
        return E1000State(
            registers=[self.registers[offset] for offset in _SAVED],
            multicast=list(self.filters.multicast),
            vlans=list(self.filters.vlans),
            addresses=list(self.filters.addresses),
            statistics=list(self.statistics.words),
            causes=self.interrupts.causes,
            mask=self.interrupts.mask,
            interrupting=self.interrupts.asserted,
            throttled=self.interrupts.deadline,
            phy=list(self.phy.values),
            negotiated=self.phy.deadline,
            management=self._management,
            eeprom_read=self._eeprom_read,
            eeprom_request=self._eeprom_request,
            eeprom=self._eeprom.save(),
            transmit=self.transmitter.save(),
            receive=self.receiver.save(),
        )

    def load(self, state: E1000State) -> None:
        """Take over a state.  Raises StateError where it is none."""
        state.check()
        for offset, value in zip(_SAVED, state.registers, strict=True):
            self.registers[offset] = value & r.PLAIN[offset]
        filters = self.filters
        filters.multicast[:], filters.vlans[:] = state.multicast, state.vlans
        filters.addresses[:] = state.addresses
        filters.addresses_changed()
        self.client.show_mac(filters.mac)
        self.statistics.words[:] = state.statistics
        self._management, self._eeprom_read = state.management, state.eeprom_read
        self._eeprom_request = state.eeprom_request
        self._eeprom.load(state.eeprom)
        self.phy.load(state.phy, state.negotiated)
        self.transmitter.load(state.transmit)
        self.receiver.load(state.receive)
        self.interrupts.load(
            *(state.causes, state.mask, self.registers[r.ITR], state.throttled), asserted=state.interrupting
        )
