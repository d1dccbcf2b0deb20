"""The high precision event timer block: a 64-bit counter of 100 MHz and three timers, as QEMU's.

Specification: IA-PC HPET Specification 1.0a, section 2.  The block of 0x400 bytes is at 0xfed00000.  The main counter
is guest time in units of 10 ns, plus an offset.  Each timer can be periodic and 64 bits wide; none has MSIs.

Interrupts go to GSI 2, the only one a timer can be routed to, or in legacy replacement mode timer 0's to ISA interrupt
0 in the PIT's place, and timer 1's to ISA interrupt 8 in the RTC's.  `irq` is called with numbers of that kind: 0 is
ISA interrupt 0, which is also the I/O APIC's input 2, and 2 is that input alone.

A comparator that is written a little behind the counter matches at once: a guest that reads the counter, adds a delta
and writes the sum may be slowed down by the host in between, and would else wait until the counter comes round.
Late ticks are dealt with as `pyvm.devices.ticks` says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyvm.clock import Clock
from pyvm.devices.ticks import MINIMUM_GAP, next_tick
from pyvm.state import State, StateError, array, optional, record, uint

TICK_NS = 10
TIMERS = 3

# Registers of the block, 64 bits each.
CAPABILITIES = 0x000  # read only
CONFIG = 0x010
STATUS = 0x020  # write 1 to clear
COUNTER = 0x0F0
FIRST_TIMER = 0x100
TIMER_STRIDE = 0x20

# Registers of each timer; the FSB route at +0x10 does not exist and reads 0.
TIMER_CONFIG = 0x00
TIMER_COMPARATOR = 0x08

# Period in fs, vendor, legacy replacement, 64-bit counter, number of the last timer, revision.
CAPABILITIES_VALUE = TICK_NS * 1_000_000 << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS - 1) << 8 | 0x01

CONFIG_ENABLE = 0x1
CONFIG_LEGACY = 0x2
CONFIG_WRITABLE = CONFIG_ENABLE | CONFIG_LEGACY

TN_LEVEL = 1 << 1
TN_INTERRUPT = 1 << 2
TN_PERIODIC = 1 << 3
TN_PERIODIC_CAPABLE = 1 << 4  # read only
TN_64BIT_CAPABLE = 1 << 5  # read only
TN_SET_VALUE = 1 << 6  # clears itself with the next write of the comparator
TN_32BIT = 1 << 8
TN_ROUTE_SHIFT = 9
TN_WRITABLE = TN_LEVEL | TN_INTERRUPT | TN_PERIODIC | TN_SET_VALUE | TN_32BIT | 0x1F << TN_ROUTE_SHIFT
TN_ROUTES = 0x4  # bit mask of the GSIs that a timer can be routed to
TN_CONFIG_RESET = TN_ROUTES << 32 | TN_64BIT_CAPABLE | TN_PERIODIC_CAPABLE

LEGACY_ROUTES = {0: 0, 1: 8}

MASK_32 = 0xFFFF_FFFF
MASK_64 = 0xFFFF_FFFF_FFFF_FFFF
LATE_TICKS = 1 << 27
"""A comparator written up to this far (1.3 s) behind the counter matches at once."""

_GAP_TICKS = MINIMUM_GAP // TICK_NS


class HpetTimerState(State):
    """One timer; `deadline` is in ns of guest time, and `first` a value set with TN_SET_VALUE (see the code)."""

    config: int = uint(64, TN_CONFIG_RESET)
    comparator: int = uint(64, MASK_64)
    period: int = uint(64)
    first: int | None = optional(uint(64))
    deadline: int | None = optional(uint(80))


class HpetState(State):
    """The block.  `counter` is the main counter while it is halted, and what it shows beyond guest time otherwise."""

    config: int = uint(2)
    status: int = uint(TIMERS)
    counter: int = uint(64)
    timers: list[HpetTimerState] = array(record(HpetTimerState), TIMERS)


class _HpetTimer:
    """One comparator, its configuration, and the timer that waits for the match."""

    def __init__(self, clock: Clock, due: Callable[[], None]) -> None:
        self.timer = clock.timer(due)
        self.reset()

    def reset(self) -> None:
        self.config = TN_CONFIG_RESET
        self.comparator = MASK_64
        self.period = 0
        self.first: int | None = None
        self.timer.cancel()

    @property
    def mask(self) -> int:
        return MASK_32 if self.config & TN_32BIT else MASK_64

    @property
    def is_periodic(self) -> bool:
        return bool(self.config & TN_PERIODIC) and self.period != 0

    def ticks_left(self, counter: int) -> int:
        """Return how many ticks after `counter` the comparator matches next, 1 at least."""
        return ((self.comparator - counter - 1) & self.mask) + 1

    def advance(self, counter: int) -> None:
        """Add periods to a periodic comparator until it is ahead of `counter`."""
        mask = self.mask
        behind = (counter - self.comparator) & mask
        if self.is_periodic and behind <= mask >> 1:
            self.comparator = next_tick(self.comparator, self.period, self.comparator + behind, _GAP_TICKS) & mask

    def write_config(self, value: int) -> None:
        self.config = self.config & ~TN_WRITABLE | value & TN_WRITABLE
        self.comparator &= self.mask
        self.period &= self.mask

    def write_comparator(self, value: int, part: int, counter: int) -> None:
        """Take `value`, already in place, into the bits `part` of comparator, period, or both.

        Guests write the first match and then the period, and each write of the first sets both.  A host that stalls
        between the two may let the first match pass, with a period that nobody meant; the second write mends that.
        """
        periodic = self.config & TN_PERIODIC
        set_value = self.config & TN_SET_VALUE
        if not periodic or set_value:
            self.comparator = (self.comparator & ~part | value) & self.mask
        elif self.first is not None and (counter - self.first) & self.mask <= self.mask >> 1:
            self.comparator = self.first
        self.first = self.comparator if periodic and set_value else None
        if periodic:
            # Longer than half the counter's range it could not be told from a match that is past.
            self.period = (self.period & ~part | value) & self.mask >> 1
        self.config &= ~TN_SET_VALUE


class Hpet:
    """The timer block; `legacy` hears when legacy replacement, which cuts PIT and RTC off, begins and ends."""

    def __init__(self, clock: Clock, irq: Callable[[int, bool], None], legacy: Callable[[bool], None]) -> None:
        self._clock = clock
        self._irq = irq
        self._legacy = legacy
        self._config = 0
        self._status = 0
        self._counter = 0
        self._lines: set[int] = set()
        self._timers = [_HpetTimer(clock, partial(self._match, index)) for index in range(TIMERS)]

    def reset(self) -> None:
        """Halt and clear the counter, and disable all timers."""
        was_legacy = self._config & CONFIG_LEGACY
        self._config = 0
        self._status = 0
        self._counter = 0
        for timer in self._timers:
            timer.reset()
        self._drive_lines()
        if was_legacy:
            self._legacy(False)

    def save(self) -> HpetState:
        """Return a copy of the state."""
        timers = [HpetTimerState(t.config, t.comparator, t.period, t.first, t.timer.deadline) for t in self._timers]
        return HpetState(self._config, self._status, self._counter, timers)

    def load(self, state: HpetState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        state.check()
        for index, saved in enumerate(state.timers):
            mask = MASK_32 if saved.config & TN_32BIT else MASK_64
            if saved.config & ~TN_WRITABLE != TN_CONFIG_RESET:
                raise StateError(f"HpetState.timers[{index}].config: {saved.config:#x} is no timer configuration")
            if saved.comparator & ~mask or saved.period > mask >> 1:
                raise StateError(f"HpetState.timers[{index}]: comparator or period is wider than the timer")
            if state.status >> index & 1 and not saved.config & TN_LEVEL:
                raise StateError(f"HpetState.status: timer {index} is edge triggered")
        was_legacy = self._config & CONFIG_LEGACY
        self._config, self._status, self._counter = state.config, state.status, state.counter
        for timer, saved in zip(self._timers, state.timers, strict=True):
            timer.config, timer.comparator = saved.config, saved.comparator
            timer.period, timer.first = saved.period, saved.first
            if saved.deadline is None:
                timer.timer.cancel()
            else:
                timer.timer.arm(saved.deadline)
        self._drive_lines()
        if was_legacy != self._config & CONFIG_LEGACY:
            self._legacy(not was_legacy)

    def _now(self) -> int:
        """Return the main counter."""
        if not self._config & CONFIG_ENABLE:
            return self._counter
        return (self._clock.now() // TICK_NS + self._counter) & MASK_64

    # Interrupts.

    def _route(self, index: int) -> int | None:
        if self._config & CONFIG_LEGACY and index in LEGACY_ROUTES:
            return LEGACY_ROUTES[index]
        route = self._timers[index].config >> TN_ROUTE_SHIFT & 0x1F
        return route if TN_ROUTES >> route & 1 else None

    def _drive_lines(self) -> None:
        """Bring the level-triggered lines in line with status and routes."""
        active = set()
        for index, timer in enumerate(self._timers):
            route = self._route(index)
            if self._status >> index & 1 and timer.config & TN_INTERRUPT and route is not None:
                active.add(route)
        for gsi in sorted(self._lines - active):
            self._irq(gsi, False)
        for gsi in sorted(active - self._lines):
            self._irq(gsi, True)
        self._lines = active

    def _match(self, index: int) -> None:
        """The counter has reached a timer's comparator."""
        timer = self._timers[index]
        self._arm(timer)
        if not timer.config & TN_INTERRUPT or not self._config & CONFIG_ENABLE:
            return
        if timer.config & TN_LEVEL:
            self._status |= 1 << index
            self._drive_lines()
            return
        route = self._route(index)
        if route is not None and route not in self._lines:
            self._irq(route, True)
            self._irq(route, False)

    def _arm(self, timer: _HpetTimer) -> None:
        """Wait for a timer's next match, where that interrupts."""
        if not self._config & CONFIG_ENABLE:
            timer.timer.cancel()
            return
        counter = self._now()
        timer.advance(counter)
        if timer.config & TN_INTERRUPT:
            ticks = self._clock.now() // TICK_NS + timer.ticks_left(counter)
            timer.timer.arm(ticks * TICK_NS)
        else:
            timer.timer.cancel()

    def _catch_up(self, index: int) -> None:
        """Deliver a match that is due before the guest changes something."""
        timer = self._timers[index].timer
        if timer.deadline is not None and timer.deadline <= self._clock.now():
            timer.cancel()
            self._match(index)

    # Registers.

    def read(self, offset: int, size: int) -> int:
        """Read 1 to 8 bytes; what lies beyond the 64-bit register at `offset` reads 0."""
        return self._read_register(offset & ~7) >> 8 * (offset & 7)

    def _read_register(self, offset: int) -> int:
        if offset == COUNTER:
            return self._now()
        if offset == STATUS:
            return self._status
        if offset == CONFIG:
            return self._config
        if offset == CAPABILITIES:
            return CAPABILITIES_VALUE
        index, register = divmod(offset - FIRST_TIMER, TIMER_STRIDE)
        if not 0 <= index < TIMERS:
            return 0
        timer = self._timers[index]
        if register == TIMER_CONFIG:
            return timer.config
        if register == TIMER_COMPARATOR:
            if self._config & CONFIG_ENABLE and timer.timer.deadline is None:
                timer.advance(self._now())
            return timer.comparator
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 bytes at a multiple of that size; any other access is forbidden and does nothing."""
        if size not in (4, 8) or offset % size:
            return
        shift = 8 * (offset & 7)
        part = ((1 << 8 * size) - 1) << shift
        value = value << shift & part
        offset &= ~7
        if offset == CONFIG and part & CONFIG_WRITABLE:
            self._write_config(value & CONFIG_WRITABLE)
        elif offset == STATUS:
            self._status &= ~value
            self._drive_lines()
        elif offset == COUNTER:
            self._write_counter(self._now() & ~part | value)
        elif FIRST_TIMER <= offset < FIRST_TIMER + TIMERS * TIMER_STRIDE:
            index, register = divmod(offset - FIRST_TIMER, TIMER_STRIDE)
            if register == TIMER_CONFIG and part & TN_WRITABLE:
                self._write_timer_config(index, value)
            elif register == TIMER_COMPARATOR:
                self._write_comparator(index, value, part)

    def _write_config(self, value: int) -> None:
        for index in range(TIMERS):
            self._catch_up(index)
        changed = self._config ^ value
        if changed & CONFIG_ENABLE:
            now = self._clock.now() // TICK_NS
            self._counter = (self._counter - now if value & CONFIG_ENABLE else self._counter + now) & MASK_64
        self._config = value
        if changed & CONFIG_LEGACY:
            self._drive_lines()
            self._legacy(bool(value & CONFIG_LEGACY))
        if changed & CONFIG_ENABLE:
            for timer in self._timers:
                self._arm(timer)

    def _write_counter(self, value: int) -> None:
        running = self._config & CONFIG_ENABLE
        self._counter = (value - self._clock.now() // TICK_NS if running else value) & MASK_64
        for timer in self._timers:
            self._arm(timer)

    def _write_timer_config(self, index: int, value: int) -> None:
        self._catch_up(index)
        timer = self._timers[index]
        timer.write_config(value)
        if not timer.config & TN_LEVEL or not timer.config & TN_INTERRUPT:
            self._status &= ~(1 << index)
        self._drive_lines()
        self._arm(timer)

    def _write_comparator(self, index: int, value: int, part: int) -> None:
        self._catch_up(index)
        timer = self._timers[index]
        timer.write_comparator(value, part, self._now())
        if not self._config & CONFIG_ENABLE:
            return
        late = (self._now() - timer.comparator) & timer.mask
        if late <= LATE_TICKS and not timer.config & TN_PERIODIC:
            timer.timer.cancel()
            if timer.config & TN_INTERRUPT:
                timer.timer.arm(self._clock.now())
            return
        self._arm(timer)
