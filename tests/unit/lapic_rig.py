"""What the tests of the local APIC share: processors that note what they hear, and local APICs on one bus."""

from __future__ import annotations

from pyvm.devices.apic_bus import ApicBus, DeliveryMode
from pyvm.devices.lapic import Lapic
from pyvm.native import LapicVectors
from tests.unit.late_clock import LateClock

MASKED = 1 << 16
ENABLE = 0x100
LVT_TIMER = 0x320


class Cpu:
    """A processor that notes what its local APIC tells it."""

    def __init__(self) -> None:
        self.pending = False
        self.changes: list[bool] = []
        self.events: list[object] = []
        self.vectors = LapicVectors(self.set_interrupt)

    def set_interrupt(self, pending: bool) -> None:
        """Note a change."""
        self.pending = pending
        self.changes.append(pending)

    def nmi(self) -> None:
        """Note an NMI."""
        self.events.append("nmi")

    def init(self) -> None:
        """Note an INIT."""
        self.events.append("init")

    def startup(self, vector: int) -> None:
        """Note a start-up IPI."""
        self.events.append(vector)


class Rig:
    """Local APICs on one bus, enabled by software; ExtINT gives vectors from a list."""

    def __init__(self, cpus: int = 1, *, enable: bool = True, tsc_hz: int = 1_000_000_000, first_id: int = 0) -> None:
        self.clock = LateClock()
        self.bus = ApicBus()
        self.ended: list[int] = []
        self.bus.on_eoi = self.ended.append
        self.pic: list[int] = []
        self.cpus = [Cpu() for _ in range(cpus)]
        self.lapics = [
            Lapic(first_id + index, self.clock, self.bus, cpu, self.inta, tsc_hz=tsc_hz, bsp=index == 0)
            for index, cpu in enumerate(self.cpus)
        ]
        self.cpu, self.lapic = self.cpus[0], self.lapics[0]
        if enable:
            for index, lapic in enumerate(self.lapics):
                lapic.write(0xF0, 4, ENABLE | 0xFF)
                lapic.write(0xD0, 4, 1 << 24 + index)

    def inta(self) -> int:
        """Give the next vector of the 8259A pair, whose INTR then follows."""
        vector = self.pic.pop(0)
        self.lapic.set_lint0(bool(self.pic))
        return vector

    def send(self, vector: int, *, level: bool = False, to: int = 0) -> bool:
        """Send a fixed interrupt as a device would."""
        return self.bus.deliver(to, False, DeliveryMode.FIXED, vector, level)

    def ipi(self, low: int, destination: int = 0, sender: int = 0) -> None:
        """Write the ICR of one local APIC."""
        self.lapics[sender].write(0x310, 4, destination << 24)
        self.lapics[sender].write(0x300, 4, low)

    def requested(self) -> list[list[int]]:
        """Return the vectors in each IRR."""
        return [vectors(lapic, 0x200) for lapic in self.lapics]


def vectors(lapic: Lapic, bank: int) -> list[int]:
    """Return the vectors whose bits are set in IRR, ISR or TMR."""
    words = [lapic.read(bank + 0x10 * word, 4) for word in range(8)]
    return [vector for vector in range(256) if words[vector // 32] >> vector % 32 & 1]
