"""The watchdog timer of the Intel 6300ESB, a PCI function: two stages, and then whatever the machine does about it.

Intel 6300ESB I/O Controller Hub datasheet (order number 300641), chapter "Watchdog Timer": configuration and lock
registers in configuration space, preload values and reload register in memory behind BAR 0.  Preload values and
reload bits are taken only right after the two unlock values were written to the reload register.

The first stage would interrupt by an IOAPIC of the chip's own, or by SMI: a PC of this kind has neither, so the stage
just ends.  What the end of the second one means is the machine's policy, unless the guest disabled it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from pyvm.clock import NANOSECONDS, Clock, muldiv
from pyvm.devices.pci.function import BarKind, PciFunction, PciFunctionState
from pyvm.devices.properties import PCI_PROPERTIES, Properties
from pyvm.state import State, optional, record, uint

VENDOR: Final = 0x8086
DEVICE: Final = 0x25AB
CLASS: Final = 0x088000  # a base system peripheral of another kind

# Configuration space.
CONFIGURATION: Final = 0x60  # 16 bits
CONFIG_INTERRUPT: Final = 3 << 0  # of the first stage: 0 IOAPIC, 2 SMI, 3 none
CONFIG_FAST: Final = 1 << 2  # counts microseconds, else milliseconds
CONFIG_NO_OUTPUT: Final = 1 << 5  # the end of the second stage does nothing
CONFIG_WRITABLE: Final = CONFIG_INTERRUPT | CONFIG_FAST | CONFIG_NO_OUTPUT
LOCK: Final = 0x68  # 8 bits
LOCK_LOCKED: Final = 1 << 0  # the register is read-only until the next reset
LOCK_ENABLE: Final = 1 << 1
LOCK_FREE_RUN: Final = 1 << 2  # start again after the second stage
LOCK_WRITABLE: Final = LOCK_LOCKED | LOCK_ENABLE | LOCK_FREE_RUN

# Memory registers.
PRELOAD_1: Final = 0x00  # 20 bits, write-only, locked
PRELOAD_2: Final = 0x04  # 20 bits, write-only, locked
INTERRUPT_STATUS: Final = 0x08  # the interrupt that never comes
RELOAD: Final = 0x0C  # 16 bits
REGISTERS_SIZE: Final = 0x10
PRELOAD_MASK: Final = 0xFFFFF
UNLOCK_FIRST: Final = 0x80
UNLOCK_SECOND: Final = 0x86
RELOAD_PING: Final = 1 << 8  # start the first stage again
RELOAD_TIMEOUT: Final = 1 << 9  # the second stage has ended since somebody cleared this by a one
RELOAD_TIMEOUT_MISPLACED: Final = 1 << 12  # where Linux's driver looks for the same

PCI_HZ: Final = 33_000_000
_SLOW_SHIFT: Final = 15  # preload to PCI clocks
_FAST_SHIFT: Final = 5
_SHORTEST: Final = 100_000  # ns; a guest that lets stages of no length follow one another does not busy the host


class I6300EsbState(State):
    """The function; preloads; how far the unlock sequence is; whether it has timed out; stage and when that ends."""

    function: PciFunctionState = record(PciFunctionState)
    preload1: int = uint(20)
    preload2: int = uint(20)
    unlocked: int = uint(2)
    timed_out: int = uint(1)
    stage: int = uint(2)
    deadline: int | None = optional(uint(64))


class I6300Esb(PciFunction):
    """The watchdog.  `on_timeout` is called when its second stage has ended."""

    PROPERTIES: ClassVar[Properties] = PCI_PROPERTIES

    def __init__(self, clock: Clock, on_timeout: Callable[[], None]) -> None:
        super().__init__("i6300esb", vendor=VENDOR, device=DEVICE, class_code=CLASS)
        self._clock = clock
        self._on_timeout = on_timeout
        self._timer = clock.timer(self._stage_over)
        self._timed_out = False
        self.set_writable(CONFIGURATION, 2, CONFIG_WRITABLE)
        self.set_writable(LOCK, 1, LOCK_WRITABLE)
        self.add_bar(0, REGISTERS_SIZE, BarKind.MEMORY, name="i6300esb", read=self.read, write=self.write, max_access=4)
        self._start_over()

    def _start_over(self) -> None:
        """Forget what software made of the watchdog; the function stays where it is on the bus."""
        self._timer.cancel()
        self.config[CONFIGURATION : CONFIGURATION + 2] = bytes(2)
        self.config[LOCK] = 0
        self._preload1 = self._preload2 = PRELOAD_MASK
        self._stage = 1
        self._unlocked = 0
        self.write_mask[LOCK] = LOCK_WRITABLE

    # -- stages -----------------------------------------------------------------------------------------------------

    def _enter(self, stage: int) -> None:
        """Begin a stage; nothing happens while the watchdog is off."""
        if not self.config[LOCK] & LOCK_ENABLE:
            return
        self._stage = stage
        shift = _FAST_SHIFT if self.config[CONFIGURATION] & CONFIG_FAST else _SLOW_SHIFT
        clocks = (self._preload1 if stage == 1 else self._preload2) << shift
        self._timer.arm(self._clock.now() + max(muldiv(clocks, NANOSECONDS, PCI_HZ), _SHORTEST))

    def _stage_over(self) -> None:
        if self._stage == 1:
            self._enter(2)
            return
        again = self.config[LOCK] & LOCK_FREE_RUN
        if not self.config[CONFIGURATION] & CONFIG_NO_OUTPUT:
            self._timed_out = True
            # The machine may go on, and then the guest must start its watchdog anew.
            self._start_over()
            self._on_timeout()
        elif again:
            self._enter(1)

    # -- registers --------------------------------------------------------------------------------------------------

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space; the lock register starts and stops the watchdog."""
        before = self.config[LOCK] & LOCK_ENABLE
        super().config_write(offset, size, value)
        enabled = self.config[LOCK] & LOCK_ENABLE
        if self.config[LOCK] & LOCK_LOCKED:
            self.write_mask[LOCK] = 0
        if enabled and not before:
            self._enter(1)
        elif before and not enabled:
            self._timer.cancel()

    def read(self, offset: int, size: int) -> int:
        """Read the registers behind BAR 0."""
        flags = (RELOAD_TIMEOUT | RELOAD_TIMEOUT_MISPLACED) if self._timed_out else 0
        image = bytes(RELOAD) + flags.to_bytes(REGISTERS_SIZE - RELOAD, "little")
        return int.from_bytes(image[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the registers behind BAR 0: the unlock sequence, and then one of the others."""
        if offset == RELOAD and value == UNLOCK_FIRST:
            self._unlocked = 1
        elif offset == RELOAD and value == UNLOCK_SECOND and self._unlocked == 1:
            self._unlocked = 2
        else:
            unlocked, self._unlocked = self._unlocked, 0
            if unlocked == 2:
                self._write_unlocked(offset, size, value)

    def _write_unlocked(self, offset: int, size: int, value: int) -> None:
        if offset == RELOAD and size >= 2:
            if value & RELOAD_PING:
                self._enter(1)
            if value & (RELOAD_TIMEOUT | RELOAD_TIMEOUT_MISPLACED):
                self._timed_out = False
        elif offset == PRELOAD_1 and size == 4:
            self._preload1 = value & PRELOAD_MASK
        elif offset == PRELOAD_2 and size == 4:
            self._preload2 = value & PRELOAD_MASK

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on; that it has timed out is still known."""
        self._start_over()
        super().reset()

    def save(self) -> I6300EsbState:  # type: ignore[override]
        """Return all registers and the stage."""
        return I6300EsbState(
            super().save(),
            self._preload1,
            self._preload2,
            self._unlocked,
            int(self._timed_out),
            self._stage,
            self._timer.deadline,
        )

    def load(self, state: I6300EsbState) -> None:  # type: ignore[override]
        """Take over a saved state; raises StateError where it is not one."""
        state.check()
        self.write_mask[LOCK] = LOCK_WRITABLE
        super().load(state.function)
        self._preload1, self._preload2 = state.preload1, state.preload2
        self._unlocked = state.unlocked
        self._timed_out = bool(state.timed_out)
        self._stage = 2 if state.stage == 2 else 1
        self.write_mask[LOCK] = 0 if self.config[LOCK] & LOCK_LOCKED else LOCK_WRITABLE
        self._timer.cancel()
        if state.deadline is not None and self.config[LOCK] & LOCK_ENABLE:
            self._timer.arm(state.deadline)
