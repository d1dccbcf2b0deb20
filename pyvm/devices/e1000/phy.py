"""The transceiver of an 8254x, a Marvell Alaska (8254x manual, 13.4.7; IEEE 802.3, clause 22 and annex 28).

The other end of the cable always offers everything, so that the outcome is a gigabit with full duplex.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvm.clock import Clock

REGISTERS = 32

# Registers
CONTROL, STATUS, ID1, ID2, ADVERTISED, PARTNER, EXPANSION = range(7)
CONTROL_1000, STATUS_1000, EXTENDED_STATUS = 9, 10, 15
SPECIFIC_CONTROL, SPECIFIC_STATUS, INTERRUPT_ENABLE, INTERRUPT_STATUS = 16, 17, 18, 19
EXTENDED_CONTROL, ERRORS, GLOBAL_STATUS, PAGE, WINDOW = 20, 21, 22, 29, 30

CONTROL_RESET, CONTROL_LOOPBACK, CONTROL_AUTO, CONTROL_RESTART = 1 << 15, 1 << 14, 1 << 12, 1 << 9
STATUS_COMPLETE, STATUS_LINK = 1 << 5, 1 << 2
SPECIFIC_RESOLVED, SPECIFIC_LINK = 1 << 11, 1 << 10
_SPECIFIC_GIGABIT_FULL = 0xA000
_PARTNER_ACKNOWLEDGES = 0x4000
_PARTNER_OFFERS = 0x01E0 | _PARTNER_ACKNOWLEDGES | 0x0001
_PARTNER_GIGABIT = 0x3C00
_EXPANSION_CAPABLE = 0x0001

_RESET_VALUES = {
    CONTROL: 0x1140,
    STATUS: 0x7949,
    ID1: 0x0141,
    ADVERTISED: 0x0DE1,
    CONTROL_1000: 0x0E00,
    EXTENDED_STATUS: 0x3000,
    SPECIFIC_CONTROL: 0x0360,
    EXTENDED_CONTROL: 0x0D60,
}
_WRITABLE = frozenset(
    (CONTROL, ADVERTISED, 7, CONTROL_1000, SPECIFIC_CONTROL, INTERRUPT_ENABLE, EXTENDED_CONTROL, PAGE, WINDOW)
)
_NEGOTIATION = 500_000_000
"""How long two ends take to agree, in nanoseconds: drivers count on hearing of the link after they asked for one."""


class Phy:
    """The transceiver; `changed` is told when the link comes or goes."""

    def __init__(self, clock: Clock, identity: int, changed: Callable[[], None], *, negotiates: bool = True) -> None:
        """`identity` is the second half of its identifier; without `negotiates` it agrees with its partner at once."""
        self._clock = clock
        self._identity = identity
        self._changed = changed
        self._delay = _NEGOTIATION if negotiates else 0
        self._timer = clock.timer(self._agreed)
        self.cable = True
        """Whether there is a partner."""
        self.values = [0] * REGISTERS
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on, where a link is there if there is a cable."""
        self._timer.cancel()
        self.values = [_RESET_VALUES.get(number, 0) for number in range(REGISTERS)]
        self.values[ID2] = self._identity
        if self.cable:
            self._show_link()

    @property
    def link(self) -> bool:
        """Whether there is a link now."""
        return bool(self.values[STATUS] & STATUS_LINK)

    @property
    def loopback(self) -> bool:
        """Whether frames come back instead of leaving."""
        return bool(self.values[CONTROL] & CONTROL_LOOPBACK)

    @property
    def deadline(self) -> int | None:
        """When the two ends will have agreed, None where nothing is being negotiated."""
        return self._timer.deadline

    def read(self, number: int) -> int:
        """Return a register; some are cleared by that."""
        value = self.values[number]
        if number in (INTERRUPT_STATUS, ERRORS):
            self.values[number] = 0
        return value

    def write(self, number: int, value: int) -> None:
        """Write a register, if it can be written."""
        if number == CONTROL:
            self._control(value)
        elif number in _WRITABLE:
            self.values[number] = value

    def _control(self, value: int) -> None:
        if value & CONTROL_RESET:
            advertised = self.values[ADVERTISED], self.values[CONTROL_1000]
            self.reset()
            self.values[ADVERTISED], self.values[CONTROL_1000] = advertised
            value = self.values[CONTROL] | CONTROL_RESTART
        self.values[CONTROL] = value & ~(CONTROL_RESET | CONTROL_RESTART)
        if value & CONTROL_RESTART and value & CONTROL_AUTO:
            self._negotiate()

    def _negotiate(self) -> None:
        if not self.cable:
            return
        if not self._delay:
            self._agreed()
            return
        self._hide_link()
        self._timer.arm(self._clock.now() + self._delay)
        self._changed()

    def _agreed(self) -> None:
        if self.cable:
            self._show_link()
            self._changed()

    def set_cable(self, there: bool) -> None:
        """A cable comes or goes."""
        self.cable = there
        if not there:
            self._timer.cancel()
            self._hide_link()
            self._changed()
        elif self.values[CONTROL] & CONTROL_AUTO:
            self._negotiate()
        else:
            self._agreed()

    def _show_link(self) -> None:
        values = self.values
        values[STATUS] |= STATUS_LINK | STATUS_COMPLETE
        values[PARTNER], values[EXPANSION] = _PARTNER_OFFERS, _EXPANSION_CAPABLE
        values[STATUS_1000] = _PARTNER_GIGABIT
        values[SPECIFIC_STATUS] = _SPECIFIC_GIGABIT_FULL | SPECIFIC_RESOLVED | SPECIFIC_LINK

    def _hide_link(self) -> None:
        values = self.values
        values[STATUS] &= ~(STATUS_LINK | STATUS_COMPLETE)
        values[PARTNER] = values[EXPANSION] = values[STATUS_1000] = 0
        values[SPECIFIC_STATUS] &= ~(SPECIFIC_RESOLVED | SPECIFIC_LINK)

    def load(self, values: Sequence[int], deadline: int | None) -> None:
        """Take over checked registers, and when the ends will have agreed."""
        self.values = list(values)
        self.values[ID1], self.values[ID2] = _RESET_VALUES[ID1], self._identity
        self._timer.cancel()
        if not self.cable:
            self._hide_link()
        elif deadline is not None:
            self._timer.arm(deadline)
