"""The MC146818 real-time clock of a PC, with 128 bytes of CMOS memory.

Specification: Motorola MC146818A datasheet; the century is in byte 0x32, where ACPI's FADT says it is, and also read
and written as byte 0x37, its place on the IBM PS/2.  Index and data ports are at 0x70 and 0x71; the line is IRQ 8.

The time is guest time plus the base time of the machine plus an offset that changes when the guest sets the clock.  The
divider chain that makes seconds and periodic interrupts is the same sum, so its phase is kept unless the guest resets
it.  Flags of register C are worked out from the time that passed since somebody looked; a timer is armed only for an
interrupt that is enabled and not flagged yet.  So a guest that is slow to read register C gets one interrupt for all
ticks that it missed, as from the real chip; unless the machine wants ticks to be made up for.  Then those that a guest
missed follow when it has read the register, not too many in a row.

Square wave output and daylight saving are kept as bits and do nothing: the former has no wire, and the latter follows
rules of 1987.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.clock import NANOSECONDS, Clock, muldiv
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, blob, flag, integer, uint

CMOS_SIZE = 128

# Ports.
PORT_INDEX = 0  # write only; bit 7, the NMI mask of the chip set, is ignored
PORT_DATA = 1

# Bytes of the memory with a meaning.
SECONDS = 0x00
SECONDS_ALARM = 0x01
MINUTES = 0x02
MINUTES_ALARM = 0x03
HOURS = 0x04
HOURS_ALARM = 0x05
DAY_OF_WEEK = 0x06  # 1 is Sunday
DAY_OF_MONTH = 0x07
MONTH = 0x08
YEAR = 0x09
REGISTER_A = 0x0A
REGISTER_B = 0x0B
REGISTER_C = 0x0C  # read only; reading clears it
REGISTER_D = 0x0D  # read only
CENTURY = 0x32
CENTURY_PS2 = 0x37

TIME_BYTES = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY))
ALARM_BYTES = (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM)
ALARM_ANY = 0xC0  # alarm bytes from here on match every time

A_UPDATE_IN_PROGRESS = 0x80  # read only
A_RATE = 0x0F
A_DIVIDER_SHIFT = 4
A_RESET = 0x26  # divider for 32,768 Hz, rate 1024 Hz
DIVIDER_RUNNING = (0, 1, 2)  # three time bases, of which this machine has the last
DIVIDER_RESET = (6, 7)

B_SET = 0x80
B_PERIODIC = 0x40
B_ALARM = 0x20
B_UPDATE = 0x10
B_SQUARE_WAVE = 0x08
B_BINARY = 0x04
B_24_HOUR = 0x02
B_RESET = B_24_HOUR
B_CLEARED_BY_RESET = B_PERIODIC | B_ALARM | B_UPDATE | B_SQUARE_WAVE

C_IRQ = 0x80
C_PERIODIC = 0x40
C_ALARM = 0x20
C_UPDATE = 0x10
C_SOURCES = C_PERIODIC | C_ALARM | C_UPDATE

D_VALID = 0x80
HOUR_PM = 0x80

DAY = 86_400
DIVIDER_HZ = 32_768
UPDATE_IN_PROGRESS_NS = 244_140
"""How long before an update the UIP bit announces it: 8 ticks of the divider."""
FIRST_UPDATE_NS = NANOSECONDS // 2
"""How far into a second the divider chain starts after a reset."""

_DAYS_TO_EPOCH = 719_468  # from 0000-03-01, the start of the era of _civil, to 1970-01-01
_DAYS_PER_ERA = 146_097  # 400 years
_OFFSET_LIMIT = 1 << 80
_MADE_UP_IN_A_ROW = 20
"""Most missed ticks that follow one another before the next one of the divider."""
_MISSED_LIMIT = (1 << 32) - 1


def days_from_civil(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar; month and day may be out of range."""
    year += (month - 1) // 12
    month = (month - 1) % 12
    year -= month < 2
    day_of_year = (153 * ((month + 10) % 12) + 2) // 5  # of a year that begins in March
    era, year_of_era = divmod(year, 400)
    days = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year + day - 1
    return era * _DAYS_PER_ERA + days - _DAYS_TO_EPOCH


def civil_from_days(days: int) -> tuple[int, int, int]:
    """Return year, month and day of the date `days` after 1970-01-01."""
    era, day_of_era = divmod(days + _DAYS_TO_EPOCH, _DAYS_PER_ERA)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    month = (month + 2) % 12 + 1
    return era * 400 + year + (month <= 2), month, day


def _passed(event: int | None, time: int) -> bool:
    return event is not None and event <= time


def _first_from(
    start: tuple[int, int, int], hours: list[int], minutes: list[int], seconds: list[int]
) -> tuple[int, int, int] | None:
    """Return the first time of day at or after `start` made of the given values, None where there is none that day."""
    for hour in (value for value in hours if value >= start[0]):
        if hour > start[0]:
            return hour, minutes[0], seconds[0]
        for minute in (value for value in minutes if value >= start[1]):
            if minute > start[1]:
                return hour, minute, seconds[0]
            for second in (value for value in seconds if value >= start[2]):
                return hour, minute, second
    return None


class RtcState(State):
    """The memory, and the clock: `offset` and `seen` are in ns.

    `seen` is the time up to which the flags are right, on the scale of the RTC's own time.
    """

    cmos: bytes = blob(CMOS_SIZE, exact=True)
    index: int = uint(7)
    offset: int = integer(-_OFFSET_LIMIT, _OFFSET_LIMIT)
    seen: int = integer(-_OFFSET_LIMIT, _OFFSET_LIMIT)
    irq_disabled: bool = flag()
    missed: int = uint(32)
    """Periodic ticks that the guest has not had, where they are made up for."""
    made_up: int = uint(8)
    """How many of them came since the last tick of the divider."""


class Rtc:
    """The clock and its memory.

    `now` returns the time that the machine gives its clock at guest time 0, in seconds since 1970, UTC or local.
    `on_change` is told by how many seconds the RTC differs from that base after the guest set it, and `on_alarm` that
    an alarm interrupted, which wakes a sleeping machine.
    """

    def __init__(self, clock: Clock, irq: IrqLine, now: Callable[[], int], *, make_up: bool = False) -> None:
        """`make_up` says whether periodic interrupts that a guest was too slow for come later."""
        self._clock = clock
        self._irq = irq
        self._base = now
        self._timer = clock.timer(self._due)
        self._cmos = bytearray(CMOS_SIZE)
        self._cmos[REGISTER_A] = A_RESET
        self._cmos[REGISTER_B] = B_RESET
        self._cmos[REGISTER_D] = D_VALID
        self._index = 0
        self._offset = 0
        self._irq_disabled = False
        self._make_up = make_up
        self._missed = 0
        self._made_up = 0
        self.on_change: Callable[[int], None] = lambda seconds: None
        self.on_alarm: Callable[[], None] = lambda: None
        self._seen = self._time()
        self._show_time()

    def reset(self) -> None:
        """Disable and clear all interrupts; time and memory stay, as they have a battery."""
        self._sync()
        self._cmos[REGISTER_B] &= ~B_CLEARED_BY_RESET
        self._cmos[REGISTER_C] = 0
        self._index = 0
        self._irq_disabled = False
        self.forget_missed()
        self._update_irq()
        self._arm()

    def save(self) -> RtcState:
        """Return a copy of the state."""
        if self._counting:
            self._show_time()
        return RtcState(
            bytes(self._cmos), self._index, self._offset, self._seen, self._irq_disabled, self._missed, self._made_up
        )

    def load(self, state: RtcState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        state.check()
        cmos = state.cmos
        if cmos[REGISTER_A] & A_UPDATE_IN_PROGRESS or cmos[REGISTER_D] != D_VALID:
            raise StateError("RtcState.cmos: read-only bits of registers A and D are wrong")
        if bool(cmos[REGISTER_C] & C_IRQ) != bool(cmos[REGISTER_C] & cmos[REGISTER_B] & C_SOURCES):
            raise StateError("RtcState.cmos: register C does not fit register B")
        if (state.missed or state.made_up) and not self._make_up:
            raise StateError("RtcState.missed: missed ticks are not made up for")
        self._cmos[:] = cmos
        self._index = state.index
        self._offset = state.offset
        self._seen = state.seen
        self._irq_disabled = state.irq_disabled
        self._missed = state.missed
        self._made_up = state.made_up
        self._drive_irq()
        self._arm()

    def cmos(self, index: int) -> int:
        """Return byte `index` of the memory, 0..127, without the effects of a guest's access."""
        if self._counting:
            self._show_time()
        return self._cmos[index]

    def set_cmos(self, index: int, value: int) -> None:
        """Set byte `index` of the memory; for the machine to describe itself to firmware, not to set the clock."""
        self._cmos[index] = value

    def forget_missed(self) -> None:
        """Make up for no tick that the guest missed up to now."""
        self._missed = self._made_up = 0

    def until_alarm(self) -> int | None:
        """Return in how many ns the alarm interrupts, None where it will not."""
        time = self._time()
        alarm = self._next_alarm(time) if self._cmos[REGISTER_B] & B_ALARM else None
        return None if alarm is None else alarm - time

    def set_irq_disabled(self, disabled: bool) -> None:
        """Cut the clock off from IRQ 8, as HPET does in legacy replacement mode."""
        self._irq_disabled = disabled
        self._drive_irq()

    # Time.

    @property
    def _divider_running(self) -> bool:
        return self._cmos[REGISTER_A] >> A_DIVIDER_SHIFT & 7 in DIVIDER_RUNNING

    @property
    def _counting(self) -> bool:
        """Whether seconds are counted, so that the time bytes follow the clock."""
        return self._divider_running and not self._cmos[REGISTER_B] & B_SET

    def _machine_time(self) -> int:
        return self._base() * NANOSECONDS + self._clock.now()

    def _time(self) -> int:
        """Return the RTC's time, in ns since 1970; its phase within the second is that of the divider chain."""
        return self._machine_time() + self._offset

    def _set_time(self, time: int) -> None:
        self._offset = max(-_OFFSET_LIMIT, min(time - self._machine_time(), _OFFSET_LIMIT))
        self._seen = time

    def _show_time(self) -> None:
        """Bring the time bytes in line with the clock."""
        days, second = divmod(self._time() // NANOSECONDS, DAY)
        year, month, day = civil_from_days(days)
        cmos = self._cmos
        cmos[SECONDS] = self._encode(second % 60)
        cmos[MINUTES] = self._encode(second // 60 % 60)
        cmos[HOURS] = self._encode_hour(second // 3600)
        cmos[DAY_OF_WEEK] = self._encode((days + 4) % 7 + 1)
        cmos[DAY_OF_MONTH] = self._encode(day)
        cmos[MONTH] = self._encode(month)
        cmos[YEAR] = self._encode(year % 100)
        cmos[CENTURY] = self._encode(year // 100 % 100)

    def _take_time(self) -> None:
        """Set the clock to what the time bytes say, keeping the phase; impossible dates are carried over."""
        cmos = self._cmos
        year = self._decode(cmos[CENTURY]) * 100 + self._decode(cmos[YEAR])
        days = days_from_civil(year, self._decode(cmos[MONTH]), self._decode(cmos[DAY_OF_MONTH]))
        second = self._decode_hour(cmos[HOURS]) * 3600 + self._decode(cmos[MINUTES]) * 60 + self._decode(cmos[SECONDS])
        before = self._offset
        self._set_time((days * DAY + second) * NANOSECONDS + self._time() % NANOSECONDS)
        if self._offset != before:
            self.on_change((self._offset + NANOSECONDS // 2) // NANOSECONDS)

    def _encode(self, value: int) -> int:
        return value if self._cmos[REGISTER_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._cmos[REGISTER_B] & B_BINARY else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self._cmos[REGISTER_B] & B_24_HOUR:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (HOUR_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._cmos[REGISTER_B] & B_24_HOUR:
            return self._decode(value)
        return self._decode(value & ~HOUR_PM) % 12 + (12 if value & HOUR_PM else 0)

    # Flags and interrupts.

    def _period(self) -> int:
        """Return the period of periodic interrupts in ticks of the divider, 0 where they are off."""
        rate = self._cmos[REGISTER_A] & A_RATE
        if rate == 0 or not self._divider_running:
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _next_periodic(self, time: int) -> int | None:
        """Return when after `time` the next periodic tick is, on the same scale."""
        period = self._period()
        if period == 0:
            return None
        tick = (muldiv(time, DIVIDER_HZ, NANOSECONDS) // period + 1) * period
        return -muldiv(-tick, NANOSECONDS, DIVIDER_HZ)

    def _next_update(self, time: int) -> int | None:
        """Return when after `time` the next second begins."""
        return (time // NANOSECONDS + 1) * NANOSECONDS if self._counting else None

    def _next_alarm(self, time: int) -> int | None:
        """Return when after `time` the time of day matches the alarm next."""
        if not self._counting:
            return None
        hours, minutes, seconds = self._alarm_times()
        if not (hours and minutes and seconds):
            return None
        day, after = divmod(time // NANOSECONDS + 1, DAY)
        found = _first_from((after // 3600, after // 60 % 60, after % 60), hours, minutes, seconds)
        if found is None:
            day += 1
            found = (hours[0], minutes[0], seconds[0])
        hour, minute, second = found
        return (day * DAY + hour * 3600 + minute * 60 + second) * NANOSECONDS

    def _alarm_times(self) -> tuple[list[int], list[int], list[int]]:
        """Return the hours, minutes and seconds that the alarm bytes match, in order."""
        hour, minute, second = (self._cmos[index] for index in ALARM_BYTES)
        return (
            [value for value in range(24) if hour >= ALARM_ANY or self._encode_hour(value) == hour],
            [value for value in range(60) if minute >= ALARM_ANY or self._encode(value) == minute],
            [value for value in range(60) if second >= ALARM_ANY or self._encode(value) == second],
        )

    def _sync(self) -> None:
        """Bring the flags of register C up to date."""
        time = self._time()
        seen, self._seen = self._seen, time
        flags = self._cmos[REGISTER_C]
        if not flags & C_PERIODIC and _passed(self._next_periodic(seen), time):
            flags |= C_PERIODIC
            self._made_up = 0
            self._count_missed(seen, time, had=1)
        elif flags & C_PERIODIC:
            self._count_missed(seen, time, had=0)
        if seen // NANOSECONDS != time // NANOSECONDS:
            if not flags & C_UPDATE and _passed(self._next_update(seen), time):
                flags |= C_UPDATE
            if not flags & C_ALARM and _passed(self._next_alarm(seen), time):
                flags |= C_ALARM
                if self._cmos[REGISTER_B] & B_ALARM:
                    self.on_alarm()
        self._cmos[REGISTER_C] = flags

    def _count_missed(self, seen: int, time: int, had: int) -> None:
        """Add the ticks between two times to those that the guest missed; it has `had` of them."""
        period = self._period()
        if self._make_up and period and self._cmos[REGISTER_B] & B_PERIODIC:
            first, last = (muldiv(moment, DIVIDER_HZ, NANOSECONDS) // period for moment in (seen, time))
            self._missed = min(max(self._missed + last - first - had, 0), _MISSED_LIMIT)

    def _update_irq(self) -> None:
        """Set IRQF where an enabled source is flagged."""
        sources = self._cmos[REGISTER_C] & C_SOURCES
        self._cmos[REGISTER_C] = sources | (C_IRQ if sources & self._cmos[REGISTER_B] else 0)
        self._drive_irq()

    def _drive_irq(self) -> None:
        self._irq.set(bool(self._cmos[REGISTER_C] & C_IRQ) and not self._irq_disabled)

    def _arm(self) -> None:
        """Wait for the next event that would interrupt: enabled, and not flagged yet."""
        waiting = self._cmos[REGISTER_B] & ~self._cmos[REGISTER_C]
        events = []
        if waiting & B_PERIODIC:
            events.append(self._next_periodic(self._seen))
        if waiting & B_UPDATE:
            events.append(self._next_update(self._seen))
        if waiting & B_ALARM:
            events.append(self._next_alarm(self._seen))
        times = [event for event in events if event is not None]
        if times:
            self._timer.arm(min(times) - self._offset - self._base() * NANOSECONDS)
        else:
            self._timer.cancel()

    def _due(self) -> None:
        self._sync()
        self._update_irq()
        self._arm()

    # Registers.

    def read(self, offset: int, size: int) -> int:
        """Read the data port; the index port cannot be read and returns all ones."""
        if offset != PORT_DATA:
            return 0xFF
        index = CENTURY if self._index == CENTURY_PS2 else self._index
        if index == REGISTER_A:
            return self._cmos[REGISTER_A] | (A_UPDATE_IN_PROGRESS if self._update_is_near() else 0)
        if index == REGISTER_C:
            return self._read_flags()
        if index in TIME_BYTES and self._counting:
            self._show_time()
        return self._cmos[index]

    def _update_is_near(self) -> bool:
        return self._counting and self._time() % NANOSECONDS >= NANOSECONDS - UPDATE_IN_PROGRESS_NS

    def _read_flags(self) -> int:
        self._sync()
        self._update_irq()
        flags = self._cmos[REGISTER_C]
        self._cmos[REGISTER_C] = 0
        self._drive_irq()
        if flags & C_PERIODIC and self._missed and self._made_up < _MADE_UP_IN_A_ROW:
            self._missed -= 1
            self._made_up += 1
            self._cmos[REGISTER_C] = C_PERIODIC
            self._update_irq()
        self._arm()
        return flags

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the index port or the data port."""
        if offset == PORT_INDEX:
            self._index = value & 0x7F
        elif offset == PORT_DATA:
            index = CENTURY if self._index == CENTURY_PS2 else self._index
            self._write_byte(index, value & 0xFF)

    def _write_byte(self, index: int, value: int) -> None:
        if index in (REGISTER_C, REGISTER_D):
            return
        if index in TIME_BYTES:
            if self._counting:
                self._change_running_time(index, value)
            else:
                self._cmos[index] = value
        elif index in ALARM_BYTES or index in (REGISTER_A, REGISTER_B):
            self._change_control(index, value)
        else:
            self._cmos[index] = value

    def _change_running_time(self, index: int, value: int) -> None:
        self._sync()
        self._show_time()
        self._cmos[index] = value
        self._take_time()
        self._update_irq()
        self._arm()

    def _change_control(self, index: int, value: int) -> None:
        """Write register A or B or an alarm byte; the clock may stop or start by that."""
        self._sync()
        was_running, was_counting = self._divider_running, self._counting
        old_period = self._period()
        if was_counting:
            self._show_time()
        if index == REGISTER_A:
            value &= ~A_UPDATE_IN_PROGRESS
        elif index == REGISTER_B and value & B_SET:
            value &= ~B_UPDATE
        self._cmos[index] = value
        if self._divider_running and not was_running:
            time = self._time()
            self._set_time(time - time % NANOSECONDS + FIRST_UPDATE_NS)
        if self._counting and not was_counting:
            self._take_time()
        period = self._period()
        if not period or not self._cmos[REGISTER_B] & B_PERIODIC:
            self.forget_missed()
        elif old_period not in (0, period):
            # The time that was missed is as long as before.
            self._missed = min(self._missed * old_period // period, _MISSED_LIMIT)
        self._update_irq()
        self._arm()
