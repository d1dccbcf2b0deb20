"""The 8254 programmable interval timer of a PC, and port 61 with the speaker gate.

Specifications: Intel 8254 datasheet (order number 231164); Intel 82371SB (PIIX3) datasheet, section 2.5.3 (NMI status
and control register, port 61).  The timer answers at ports 0x40-0x43.  Channel 0 drives IRQ 0 and channel 1 stood for
the memory refresh; their gates are tied high.  Channel 2 drives the speaker; port 61 holds its gate and shows its
output.

All three counters run from one clock of 1.193182 MHz, which is guest time in other units: tick n of that clock is at
n / 1193182 s.  Counting elements and outputs are computed from guest time when somebody looks; only channel 0 has a
timer, armed for the next rise of its output.  Nothing on a PC takes IRQ 0 as level triggered, so the line falls just
before it rises again, where the output of modes 2 to 4 fell a little earlier.

After power-on the channels run as a PC's firmware leaves them: mode 3 with the longest period, channel 2 not gated.
Late ticks are dealt with as `pyvm.devices.ticks` says.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.clock import NANOSECONDS, Clock, muldiv
from pyvm.devices.ticks import MINIMUM_GAP, next_tick
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, array, flag, integer, optional, record, uint

FREQUENCY = 1_193_182
"""Ticks a second."""

# Ports.
PORT_COUNTER_0 = 0
PORT_CONTROL = 3  # write only; reads as 0

# The control word, and the read-back command, which is the control word of "channel 3".
CONTROL_BCD = 0x01
CHANNEL_READ_BACK = 3
READ_BACK_NO_COUNT = 0x20
READ_BACK_NO_STATUS = 0x10

# Bits 5-4 of the control word: how a count crosses the byte-wide port.
ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_WORD = range(4)

# Counter modes.
TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFTWARE_STROBE, HARDWARE_STROBE = range(6)
PERIODIC_MODES = (RATE, SQUARE)
TRIGGERED_MODES = (ONE_SHOT, HARDWARE_STROBE)

# The status byte; its low six bits are those of the control word.
STATUS_OUT = 0x80
STATUS_NULL_COUNT = 0x40

# Port 61.
PORT61_GATE2 = 0x01
PORT61_WRITABLE = 0x0F  # gate, speaker data, and the two NMI enables, which have no source here
PORT61_REFRESH = 0x10
PORT61_OUT2 = 0x20
REFRESH_TICKS = 18  # channel 1 refreshes memory every 15.085 us

_GAP_TICKS = -muldiv(-MINIMUM_GAP, FREQUENCY, NANOSECONDS)
_TICK_LIMIT = 1 << 63


class PitChannelState(State):
    """One counter; `start`, `pending_at` and `frozen` are in ticks of the PIT clock.

    `start` is when the counting element held `count`, None while it stands still; then `frozen` ticks have passed.
    `pending` is a count that was written and waits for `pending_at`, or for a trigger.  `held` is what the counting
    element shows between a control word and the first count (`loaded` is false).
    """

    mode: int = integer(TERMINAL_COUNT, HARDWARE_STROBE, SQUARE)
    access: int = integer(ACCESS_LOW, ACCESS_WORD, ACCESS_WORD)
    bcd: bool = flag()
    gate: bool = flag(True)
    count: int = integer(1, 0x10000, 0x10000)
    loaded: bool = flag(True)
    start: int | None = optional(integer(-_TICK_LIMIT, _TICK_LIMIT))
    frozen: int = integer(0, _TICK_LIMIT)
    held: int = uint(16)
    pending: int | None = optional(integer(1, 0x10000))
    pending_at: int = integer(-_TICK_LIMIT, _TICK_LIMIT)
    write_low: int | None = optional(uint(8))
    read_high: bool = flag()
    latched_count: int | None = optional(uint(16))
    latched_status: int | None = optional(uint(8))


class PitState(State):
    """The three counters, port 61, and channel 0's interrupt; `deadline` is in ns of guest time."""

    channels: list[PitChannelState] = array(record(PitChannelState), 3)
    port61: int = uint(4)
    line: bool = flag()
    rise_due: bool = flag()
    deadline: int | None = optional(uint(63))
    irq0_disabled: bool = flag()


class PitChannel:
    """One counter.  The argument `tick` is the present in ticks of the PIT clock."""

    def __init__(self) -> None:
        self._s = PitChannelState()

    def reset(self, tick: int, *, gate: bool) -> None:
        """Return to mode 3 with the longest period."""
        self._s = PitChannelState(gate=gate, start=tick if gate else None)

    def save(self) -> PitChannelState:
        """Return a copy of the state."""
        return self._s.copy()

    def load(self, state: PitChannelState) -> None:
        """Take over a checked `state`."""
        self._s = state.copy()

    def settle(self, tick: int) -> None:
        """Take up a count that was written in the middle of a period that is over now."""
        s = self._s
        if s.pending is None or s.start is None or s.mode not in PERIODIC_MODES or tick < s.pending_at:
            return
        s.start, s.count = self._start_of_pending(s.start, s.pending), s.pending
        s.pending = None

    def _start_of_pending(self, start: int, pending: int) -> int:
        s = self._s
        if (s.pending_at - start) % s.count == 0:
            return s.pending_at
        return s.pending_at - (pending + 1) // 2  # square wave: the low half comes next

    def _end_of_cycle(self, start: int, tick: int) -> int:
        """Return the tick at which a periodic mode takes up a new count: the next reload of the counting element."""
        s = self._s
        phase = (tick - start) % s.count
        high = (s.count + 1) // 2
        if s.mode == SQUARE and phase < high and tick >= start:
            return tick - phase + high
        return tick - phase + s.count

    def control(self, value: int, tick: int) -> None:
        """Take a control word: counting stops until a count is written."""
        mode = value >> 1 & 7
        self._s = PitChannelState(
            mode=mode if mode <= HARDWARE_STROBE else mode - 4,
            access=value >> 4 & 3,
            bcd=bool(value & CONTROL_BCD),
            gate=self._s.gate,
            count=self._s.count,
            loaded=False,
            held=self.element(tick),
        )

    def write(self, value: int, tick: int) -> None:
        """Take a byte of a count."""
        s = self._s
        if s.access == ACCESS_LOW:
            self._load(value, tick)
        elif s.access == ACCESS_HIGH:
            self._load(value << 8, tick)
        elif s.write_low is None:
            s.write_low = value
            if s.mode == TERMINAL_COUNT:
                s.held = self.element(tick)
                s.loaded = False
                s.start = None
        else:
            low, s.write_low = s.write_low, None
            self._load(value << 8 | low, tick)

    def _load(self, raw: int, tick: int) -> None:
        s = self._s
        if s.bcd:
            count = sum((raw >> 4 * digit & 15) * 10**digit for digit in range(4)) or 10000
        else:
            count = raw or 0x10000
        self.settle(tick)
        if s.loaded and s.start is not None and s.mode in PERIODIC_MODES:
            s.pending_at = self._end_of_cycle(s.start, tick)
            s.pending = count
        elif s.mode in TRIGGERED_MODES and s.start is not None:
            s.pending = count
        else:
            s.count = count
            s.frozen = 0
            # The next clock pulse moves the count into the counting element.
            s.start = tick + 1 if s.gate and s.mode not in TRIGGERED_MODES else None
        s.loaded = True

    def set_gate(self, level: bool, tick: int) -> None:
        """Drive the gate."""
        s = self._s
        if level == s.gate:
            return
        self.settle(tick)
        s.gate = level
        if not s.loaded:
            return
        if s.mode in (TERMINAL_COUNT, SOFTWARE_STROBE):
            if level:
                s.start = tick - s.frozen
            elif s.start is not None:
                s.frozen, s.start = max(tick - s.start, 0), None
        elif level:
            s.count, s.pending = s.pending or s.count, None
            s.start = tick + 1
        elif s.mode in PERIODIC_MODES and s.start is not None:
            s.frozen, s.start = max(tick - s.start, 0), None

    def output(self, tick: int) -> bool:
        """Return the level of the counter's OUT pin."""
        self.settle(tick)
        s = self._s
        if not s.loaded:
            return s.mode != TERMINAL_COUNT
        elapsed = s.frozen if s.start is None else tick - s.start
        if s.mode == TERMINAL_COUNT:
            return elapsed >= s.count
        if s.mode == SOFTWARE_STROBE:
            return elapsed != s.count
        if s.start is None or elapsed < 0:
            return True
        if s.mode == RATE:
            return s.count == 1 or elapsed % s.count != s.count - 1
        if s.mode == SQUARE:
            return elapsed % s.count < (s.count + 1) // 2
        if s.mode == ONE_SHOT:
            return elapsed >= s.count
        return elapsed != s.count

    def element(self, tick: int) -> int:
        """Return the counting element as a guest reads it, 16 bits, binary or BCD."""
        self.settle(tick)
        s = self._s
        if not s.loaded:
            return s.held
        elapsed = s.frozen if s.start is None else max(tick - s.start, 0)
        if s.mode == RATE:
            value = s.count - elapsed % s.count
        elif s.mode == SQUARE:
            phase = elapsed % s.count
            high = (s.count + 1) // 2
            value = (s.count & ~1) - 2 * (phase if phase < high else phase - high)
        else:
            value = s.count - elapsed
        if not s.bcd:
            return value & 0xFFFF
        digits = value % 10000
        return sum(digits // 10**place % 10 << 4 * place for place in range(4))

    def latch_count(self, tick: int) -> None:
        """Hold the count for the guest to read; a count held already stays."""
        if self._s.latched_count is None:
            self._s.latched_count = self.element(tick)

    def latch_status(self, tick: int) -> None:
        """Hold the status byte for the guest to read; one held already stays."""
        s = self._s
        if s.latched_status is None:
            status = s.access << 4 | s.mode << 1 | s.bcd
            if self.output(tick):
                status |= STATUS_OUT
            if not s.loaded or s.pending is not None or (s.start is not None and tick < s.start):
                status |= STATUS_NULL_COUNT
            s.latched_status = status

    def read(self, tick: int) -> int:
        """Return the next byte: held status, held count, or the counting element as it is."""
        s = self._s
        if s.latched_status is not None:
            status, s.latched_status = s.latched_status, None
            return status
        value = s.latched_count if s.latched_count is not None else self.element(tick)
        if s.access == ACCESS_WORD:
            high, s.read_high = s.read_high, not s.read_high
            done = high
        else:
            high, done = s.access == ACCESS_HIGH, True
        if done:
            s.latched_count = None
        return value >> 8 if high else value & 0xFF

    def next_rise(self, tick: int) -> int | None:
        """Return the next tick at which the output rises, with the gate as it is and no new count."""
        s = self._s
        if not s.loaded or s.start is None:
            return None
        if s.mode in PERIODIC_MODES:
            return next_tick(s.start, s.count, tick, _GAP_TICKS) if s.count > 1 else None
        if s.mode in (TERMINAL_COUNT, ONE_SHOT):
            rise = s.start + s.count
        else:
            rise = s.start + s.count + 1
        return rise if rise > tick else None

    def reload_due(self) -> int | None:
        """Return the tick at which a periodic mode takes up a new count, None where none waits."""
        s = self._s
        return s.pending_at if s.pending is not None and s.start is not None and s.mode in PERIODIC_MODES else None


class Pit:
    """The three counters and port 61; `output` is IRQ 0."""

    def __init__(self, clock: Clock, output: IrqLine) -> None:
        self._clock = clock
        self._output = output
        self._timer = clock.timer(self._due)
        self._rise_due = False
        self._irq0_disabled = False
        self._port61 = 0
        self._channels = [PitChannel() for _ in range(3)]
        self.reset()

    def _tick(self) -> int:
        return muldiv(self._clock.now(), FREQUENCY, NANOSECONDS)

    def reset(self) -> None:
        """Return to the state in which a PC's firmware leaves the timer."""
        tick = self._tick()
        for index, channel in enumerate(self._channels):
            channel.reset(tick, gate=index != 2)
        self._port61 = 0
        self._irq0_disabled = False
        self._output.set(False)
        self._arm(tick)

    def save(self) -> PitState:
        """Return a copy of the state."""
        return PitState(
            channels=[channel.save() for channel in self._channels],
            port61=self._port61,
            line=self._output.level,
            rise_due=self._rise_due,
            deadline=self._timer.deadline,
            irq0_disabled=self._irq0_disabled,
        )

    def load(self, state: PitState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        state.check()
        for index, (channel, saved) in enumerate(zip(self._channels, state.channels, strict=True)):
            gate = bool(state.port61 & PORT61_GATE2) if index == 2 else True
            if saved.gate != gate:
                raise StateError(f"PitState.channels[{index}].gate: {saved.gate} does not fit the machine's wiring")
            channel.load(saved)
        self._port61 = state.port61
        self._irq0_disabled = state.irq0_disabled
        self._rise_due = state.rise_due
        self._output.set(state.line)
        if state.deadline is None:
            self._timer.cancel()
        else:
            self._timer.arm(state.deadline)

    def set_irq0_disabled(self, disabled: bool) -> None:
        """Cut channel 0 off from IRQ 0, as HPET does while it replaces the timer; the counter itself runs on."""
        self._irq0_disabled = disabled
        if disabled:
            self._output.set(False)
        self._arm(self._tick())

    def _arm(self, tick: int) -> None:
        """Have the timer run when channel 0's output rises next, or when it takes up a new count if that is first."""
        channel = self._channels[0]
        channel.settle(tick)
        rise = channel.next_rise(tick)
        events = [event for event in (rise, channel.reload_due()) if event is not None]
        if self._irq0_disabled or not events:
            self._timer.cancel()
            return
        first = min(events)
        self._rise_due = first == rise
        self._timer.arm(-muldiv(-first, NANOSECONDS, FREQUENCY))

    def _due(self) -> None:
        if self._rise_due:
            self._raise_irq0()
        self._arm(self._tick())

    def _raise_irq0(self) -> None:
        if not self._irq0_disabled:
            self._output.set(False)
            self._output.set(True)

    def _catch_up(self) -> None:
        """Deliver a rise that is due before the guest changes channel 0."""
        deadline = self._timer.deadline
        if deadline is not None and deadline <= self._clock.now():
            self._timer.cancel()
            self._due()

    def read(self, offset: int, size: int) -> int:
        """Read a byte of a counter."""
        index = offset & 3
        return self._channels[index].read(self._tick()) if index != PORT_CONTROL else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a byte of a count, or a control word."""
        index = offset & 3
        value &= 0xFF
        tick = self._tick()
        if index == PORT_CONTROL:
            index = value >> 6
            if index == CHANNEL_READ_BACK:
                self._read_back(value, tick)
                return
            if value >> 4 & 3 == ACCESS_LATCH:
                self._channels[index].latch_count(tick)
                return
            change = self._channels[index].control
        else:
            change = self._channels[index].write
        if index == 0:
            self._change_channel0(change, value, tick)
        else:
            change(value, tick)

    def _change_channel0(self, change: Callable[[int, int], None], value: int, tick: int) -> None:
        self._catch_up()
        channel = self._channels[0]
        was_high = channel.output(tick)
        change(value, tick)
        if not channel.output(tick):
            self._output.set(False)
        elif not was_high:
            self._raise_irq0()
        self._arm(tick)

    def _read_back(self, command: int, tick: int) -> None:
        for index, channel in enumerate(self._channels):
            if command & 2 << index:
                if not command & READ_BACK_NO_COUNT:
                    channel.latch_count(tick)
                if not command & READ_BACK_NO_STATUS:
                    channel.latch_status(tick)

    def port61_read(self, offset: int, size: int) -> int:
        """Read port 61: gate, speaker data, refresh toggle and the output of channel 2."""
        tick = self._tick()
        value = self._port61
        if tick // REFRESH_TICKS & 1:
            value |= PORT61_REFRESH
        if self._channels[2].output(tick):
            value |= PORT61_OUT2
        return value

    def port61_write(self, offset: int, size: int, value: int) -> None:
        """Write port 61: gate of channel 2 and speaker data."""
        self._port61 = value & PORT61_WRITABLE
        self._channels[2].set_gate(bool(value & PORT61_GATE2), self._tick())
