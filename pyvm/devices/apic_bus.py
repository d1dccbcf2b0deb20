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
_MAX_ROUTES = 256
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
        self._routes: dict[tuple[int, int], tuple[ApicReceiver, int]] = {}
        self.on_eoi: Callable[[int], None] = lambda vector: None
        """Told the vector when a local APIC ends a level-triggered interrupt: the input of the I/O APIC."""

    def attach(self, lapic: ApicReceiver) -> None:
        """Add a local APIC.  Raises ValueError where its ID is taken."""
        if lapic.apic_id in self._lapics:
            raise ValueError(f"APIC ID {lapic.apic_id} is in use")
        self._lapics[lapic.apic_id] = lapic
        self.forget_routes()
        self._lapics = dict(sorted(self._lapics.items()))

    def detach(self, lapic: ApicReceiver) -> None:
        """Take a local APIC away, as when its processor is unplugged."""
        del self._lapics[lapic.apic_id]
        self.forget_routes()

    def forget_routes(self) -> None:
        """Look for the receivers of messages anew: a local APIC answers to other destinations now."""
        self._routes.clear()

    def deliver(
        self, destination: int, logical: bool, mode: DeliveryMode, vector: int, level_triggered: bool = False
    ) -> bool:
        """Send a message; return whether any local APIC accepted it.

        `destination` is a physical APIC ID, a logical destination where `logical`, or :data:`BROADCAST`.
        """
        return self._send(self._receivers(destination, logical), mode, vector, level_triggered)

    def _receivers(self, destination: int, logical: bool) -> Sequence[ApicReceiver]:
        if destination == BROADCAST:
            return list(self._lapics.values())
        if logical:
            return [lapic for lapic in self._lapics.values() if lapic.matches_logical(destination)]
        lapic = self._lapics.get(destination)
        return () if lapic is None else (lapic,)

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
        route = self._routes.get((address, data))
        if route is not None:
            route[0].receive(DeliveryMode.FIXED, route[1], False)
            return
        if address >> 20 != MSI_BASE:
            return
        level_triggered = bool(data & MSI_LEVEL_TRIGGERED)
        if level_triggered and not data & MSI_LEVEL_ASSERT:
            return
        destination = widen_destination(address >> 12 & 0xFF)
        # As processors do, whatever the redirection hint says: Linux relies on it.
        logical = bool(address & MSI_LOGICAL)
        mode, vector = DELIVERY_MODES[data >> 8 & 7], data & 0xFF
        self.deliver(destination, logical, mode, vector, level_triggered)
        if mode == DeliveryMode.FIXED and not level_triggered:
            self._note_route((address, data), self._receivers(destination, logical), vector)

    def _note_route(self, message: tuple[int, int], receivers: Sequence[ApicReceiver], vector: int) -> None:
        if len(receivers) == 1:
            if len(self._routes) == _MAX_ROUTES:
                self._routes.clear()
            self._routes[message] = receivers[0], vector
