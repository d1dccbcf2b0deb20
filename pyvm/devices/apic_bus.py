"""Interrupt messages between local APICs, the I/O APIC and devices that send MSIs.

Specification: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, sections 11.6 (IPIs and their
destinations), 11.8.1 (lowest priority) and 11.11 (message signalled interrupts).

The bus holds nothing to save: a message is delivered within the call that sends it.  Of several local APICs that could
take a lowest-priority message, the one with the lowest arbitration priority gets it, and among equals the one with the
lowest ID.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Protocol

BROADCAST = 0xFFFF_FFFF
"""The destination that means every local APIC."""
_BROADCAST_8BIT = 0xFF  # what xAPIC registers, redirection entries and MSI addresses have room for

# MSI address and data.
MSI_BASE = 0xFEE
MSI_LOGICAL = 1 << 2
MSI_LEVEL_ASSERT = 1 << 14
MSI_LEVEL_TRIGGERED = 1 << 15


class DeliveryMode(enum.IntEnum):
    """What a message makes its destination do."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    RESERVED = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


DELIVERY_MODES = tuple(DeliveryMode)
"""The modes by their code, for registers with the mode in three bits."""


class ApicReceiver(Protocol):
    """What the bus needs to know of a local APIC."""

    @property
    def apic_id(self) -> int:
        """The APIC ID, which never changes."""

    @property
    def accepts_fixed(self) -> bool:
        """Whether it is enabled, so that it takes fixed and lowest-priority messages."""

    def matches_logical(self, destination: int) -> bool:
        """Return whether a logical destination, not the broadcast one, includes this local APIC."""

    def arbitration_priority(self) -> int:
        """Return the arbitration priority register: the lower, the readier to take an interrupt."""

    def receive(self, mode: DeliveryMode, vector: int, level_triggered: bool) -> bool:
        """Take a message; return whether it was accepted."""


def widen_destination(destination: int) -> int:
    """Return an 8-bit destination as the bus takes it: all ones is a broadcast."""
    return BROADCAST if destination == _BROADCAST_8BIT else destination


class ApicBus:
    """Message delivery among local APICs."""

    def __init__(self) -> None:
        self._lapics: dict[int, ApicReceiver] = {}
        self.on_eoi: Callable[[int], None] = lambda vector: None
        """Told the vector when a local APIC ends a level-triggered interrupt: the input of the I/O APIC."""

    def attach(self, lapic: ApicReceiver) -> None:
        """Add a local APIC.  Raises ValueError where its ID is taken."""
        if lapic.apic_id in self._lapics:
            raise ValueError(f"APIC ID {lapic.apic_id} is in use")
        self._lapics[lapic.apic_id] = lapic
        self._lapics = dict(sorted(self._lapics.items()))

    def detach(self, lapic: ApicReceiver) -> None:
        """Take a local APIC away, as when its processor is unplugged."""
        del self._lapics[lapic.apic_id]

    def deliver(
        self, destination: int, logical: bool, mode: DeliveryMode, vector: int, level_triggered: bool = False
    ) -> bool:
        """Send a message; return whether any local APIC accepted it.

        `destination` is a physical APIC ID, a logical destination where `logical`, or :data:`BROADCAST`.
        """
        if not logical and destination != BROADCAST:
            lapic = self._lapics.get(destination)
            return lapic is not None and lapic.receive(mode, vector, level_triggered)
        if destination == BROADCAST:
            targets = list(self._lapics.values())
        else:
            targets = [lapic for lapic in self._lapics.values() if lapic.matches_logical(destination)]
        return self._send(targets, mode, vector, level_triggered)

    def broadcast(self, mode: DeliveryMode, vector: int, *, exclude: ApicReceiver | None = None) -> bool:
        """Send an edge-triggered message to all local APICs but `exclude`; return whether any accepted it."""
        targets = [lapic for lapic in self._lapics.values() if lapic is not exclude]
        return self._send(targets, mode, vector, False)

    @staticmethod
    def _send(targets: Sequence[ApicReceiver], mode: DeliveryMode, vector: int, level_triggered: bool) -> bool:
        if mode == DeliveryMode.LOWEST_PRIORITY:
            ready = [lapic for lapic in targets if lapic.accepts_fixed]
            if not ready:
                return False
            chosen = min(ready, key=lambda lapic: lapic.arbitration_priority())
            return chosen.receive(mode, vector, level_triggered)
        accepted = False
        for lapic in targets:
            accepted |= lapic.receive(mode, vector, level_triggered)
        return accepted

    def msi(self, address: int, data: int) -> None:
        """Send the message that a write of `data` to `address` stands for; other addresses are ignored."""
        if address >> 20 != MSI_BASE:
            return
        level_triggered = bool(data & MSI_LEVEL_TRIGGERED)
        if level_triggered and not data & MSI_LEVEL_ASSERT:
            return
        self.deliver(
            widen_destination(address >> 12 & 0xFF),
            # As processors do, whatever the redirection hint says: Linux relies on it.
            bool(address & MSI_LOGICAL),
            DELIVERY_MODES[data >> 8 & 7],
            data & 0xFF,
            level_triggered,
        )
