"""The 8042 keyboard controller with a keyboard and a mouse port.

IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and auxiliary device controller".  It also
drives the A20 gate and the processor's reset line.  Port 0x60 is the data register, port 0x64 status and command.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pyvm.devices.keycodes import SET2_TO_SET1
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, flag, sequence, uint

# Status register, read-only
STATUS_OUTPUT_FULL: Final = 1 << 0
STATUS_SYSTEM: Final = 1 << 2  # set by the self-test
STATUS_COMMAND: Final = 1 << 3  # the last write went to the command port
STATUS_UNLOCKED: Final = 1 << 4
STATUS_AUX: Final = 1 << 5  # the output buffer holds a byte from the mouse

# Command byte, RAM byte 0
CTR_KEYBOARD_IRQ: Final = 1 << 0
CTR_MOUSE_IRQ: Final = 1 << 1
CTR_SYSTEM: Final = 1 << 2
CTR_KEYBOARD_OFF: Final = 1 << 4
CTR_MOUSE_OFF: Final = 1 << 5
CTR_TRANSLATE: Final = 1 << 6
CTR_RESET: Final = CTR_KEYBOARD_IRQ | CTR_MOUSE_IRQ

# Output port
OUT_RESET: Final = 1 << 0  # low resets the processor
OUT_A20: Final = 1 << 1
OUT_KEYBOARD_IRQ: Final = 1 << 4
OUT_MOUSE_IRQ: Final = 1 << 5
OUT_ONES: Final = 0xCC
OUT_POWER_ON: Final = OUT_ONES | OUT_RESET | OUT_A20

# Commands; those marked * take a byte through the data port.
READ_RAM: Final = 0x20  # 32 of them
WRITE_RAM: Final = 0x60  # * 32 of them
TEST_PASSWORD: Final = 0xA4
MOUSE_OFF: Final = 0xA7
MOUSE_ON: Final = 0xA8
TEST_MOUSE_PORT: Final = 0xA9
SELF_TEST: Final = 0xAA
TEST_KEYBOARD_PORT: Final = 0xAB
KEYBOARD_OFF: Final = 0xAD
KEYBOARD_ON: Final = 0xAE
READ_INPUT_PORT: Final = 0xC0
READ_OUTPUT_PORT: Final = 0xD0
WRITE_OUTPUT_PORT: Final = 0xD1  # *
WRITE_KEYBOARD_BUFFER: Final = 0xD2  # *: as if the keyboard had sent it
WRITE_MOUSE_BUFFER: Final = 0xD3  # *
WRITE_MOUSE: Final = 0xD4  # *
A20_OFF: Final = 0xDD
A20_ON: Final = 0xDF
READ_TEST_INPUTS: Final = 0xE0
PULSE: Final = 0xF0  # 16 of them: zero bits pulse output port bits 0-3

SELF_TEST_PASSED: Final = 0x55
PORT_TEST_PASSED: Final = 0x00
NO_PASSWORD: Final = 0xF1
INPUT_PORT: Final = 0x80  # keyboard not locked

RAM_SIZE: Final = 32
QUEUE_LIMIT: Final = 16
_BREAK_PREFIX: Final = 0xF0
_FROM_AUX: Final = 0x100
_WITH_ARGUMENT: Final = frozenset({WRITE_OUTPUT_PORT, WRITE_KEYBOARD_BUFFER, WRITE_MOUSE_BUFFER, WRITE_MOUSE})


class I8042State(State):
    """Registers; `queue` are bytes of the controller itself, bit 8 set for the mouse's side.

    `broken` says that translation has seen the prefix of a break code.
    """

    status: int = uint(8, STATUS_COMMAND | STATUS_UNLOCKED)
    output: int = uint(8)
    ctr: int = uint(8, CTR_RESET)
    output_port: int = uint(8, OUT_POWER_ON)
    pending: int = uint(8)
    broken: bool = flag()
    queue: list[int] = sequence(uint(9), QUEUE_LIMIT)
    ram: list[int] = sequence(uint(8), RAM_SIZE)


class I8042:
    """The controller.

    `on_a20(level)` hears the level of its A20 output at the start and each change, `on_reset` each pulse of its reset
    output.
    """

    def __init__(
        self,
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        keyboard: Ps2Keyboard,
        mouse: Ps2Mouse,
        *,
        on_a20: Callable[[bool], None] = lambda level: None,
        on_reset: Callable[[], None] = lambda: None,
    ) -> None:
        self._keyboard_irq = keyboard_irq
        self._mouse_irq = mouse_irq
        self.keyboard = keyboard
        self.mouse = mouse
        self._on_a20 = on_a20
        self._on_reset = on_reset
        self._set_registers(I8042State())
        keyboard.on_output = self._fill
        mouse.on_output = self._fill
        on_a20(self.a20)

    def _set_registers(self, state: I8042State) -> None:
        self._status = state.status
        self._output = state.output
        self._ctr = state.ctr
        self._output_port = state.output_port
        self._pending = state.pending
        self._broken = state.broken
        self._queue: deque[int] = deque(state.queue)
        self._ram = bytearray(state.ram).ljust(RAM_SIZE, b"\0")

    # -- output buffer ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Take the next byte into the output buffer: the controller's own first, then the keyboard's, the mouse's."""
        if not self._status & STATUS_OUTPUT_FULL:
            value = self._next()
            if value is not None:
                self._output = value & 0xFF
                self._status = self._status & ~STATUS_AUX | STATUS_OUTPUT_FULL
                if value & _FROM_AUX:
                    self._status |= STATUS_AUX
        self._update_irqs()

    def _next(self) -> int | None:
        if self._queue:
            return self._queue.popleft()
        if not self._ctr & CTR_KEYBOARD_OFF:
            value = self._from_keyboard()
            if value is not None:
                return value
        if not self._ctr & CTR_MOUSE_OFF:
            value = self.mouse.take()
            if value is not None:
                return value | _FROM_AUX
        return None

    def _from_keyboard(self) -> int | None:
        value = self.keyboard.take()
        if not self._ctr & CTR_TRANSLATE:
            return value
        while value == _BREAK_PREFIX:
            self._broken = True
            value = self.keyboard.take()
        if value is None:
            return None
        translated = SET2_TO_SET1[value] | (0x80 if self._broken else 0)
        self._broken = False
        return translated

    def _put(self, value: int) -> None:
        if len(self._queue) < QUEUE_LIMIT:
            self._queue.append(value)
        self._fill()

    def _update_irqs(self) -> None:
        full = self._status & STATUS_OUTPUT_FULL
        aux = self._status & STATUS_AUX
        self._output_port &= ~(OUT_KEYBOARD_IRQ | OUT_MOUSE_IRQ)
        if full:
            self._output_port |= OUT_MOUSE_IRQ if aux else OUT_KEYBOARD_IRQ
        self._keyboard_irq.set(bool(full and not aux and self._ctr & CTR_KEYBOARD_IRQ))
        self._mouse_irq.set(bool(full and aux and self._ctr & CTR_MOUSE_IRQ))

    # -- ports ------------------------------------------------------------------------------------------------------

    def data_read(self, offset: int, size: int) -> int:
        """Read port 0x60: the output buffer."""
        value = self._output
        if self._status & STATUS_OUTPUT_FULL:
            # The line goes down between two bytes, so that each is an edge.
            self._status &= ~(STATUS_OUTPUT_FULL | STATUS_AUX)
            self._update_irqs()
            self._fill()
        return value

    def status_read(self, offset: int, size: int) -> int:
        """Read port 0x64: the status register."""
        return self._status

    def data_write(self, offset: int, size: int, value: int) -> None:
        """Write port 0x60: the argument of a command, or a byte for the keyboard."""
        value &= 0xFF
        self._status &= ~STATUS_COMMAND
        pending, self._pending = self._pending, 0
        if WRITE_RAM <= pending < WRITE_RAM + RAM_SIZE:
            self._write_ram(pending - WRITE_RAM, value)
        elif pending == WRITE_OUTPUT_PORT:
            self._write_output_port(value)
        elif pending == WRITE_KEYBOARD_BUFFER:
            self._put(value)
        elif pending == WRITE_MOUSE_BUFFER:
            self._put(value | _FROM_AUX)
        elif pending == WRITE_MOUSE:
            self._ctr &= ~CTR_MOUSE_OFF  # the controller lets go of the clock line to send
            self.mouse.write(value)
        else:
            self._ctr &= ~CTR_KEYBOARD_OFF
            self.keyboard.write(value)
        self._fill()

    def command_write(self, offset: int, size: int, value: int) -> None:
        """Write port 0x64: a command."""
        value &= 0xFF
        self._status |= STATUS_COMMAND
        self._pending = 0
        if value in _WITH_ARGUMENT or WRITE_RAM <= value < WRITE_RAM + RAM_SIZE:
            self._pending = value
        elif READ_RAM <= value < READ_RAM + RAM_SIZE:
            self._put(self._ctr if value == READ_RAM else self._ram[value - READ_RAM])
        elif value in (MOUSE_OFF, MOUSE_ON):
            self._set_ctr(CTR_MOUSE_OFF, value == MOUSE_OFF)
        elif value in (KEYBOARD_OFF, KEYBOARD_ON):
            self._set_ctr(CTR_KEYBOARD_OFF, value == KEYBOARD_OFF)
        elif value in (A20_OFF, A20_ON):
            self._write_output_port(self._output_port & ~OUT_A20 | OUT_A20 * (value == A20_ON))
        elif value >= PULSE:
            if not value & OUT_RESET:
                self._on_reset()
        else:
            self._query(value)

    def _query(self, value: int) -> None:
        """Carry out a command that has one byte to reply; unknown ones have none."""
        if value == SELF_TEST:
            self._status |= STATUS_SYSTEM
            self._put(SELF_TEST_PASSED)
        elif value in (TEST_MOUSE_PORT, TEST_KEYBOARD_PORT):
            self._put(PORT_TEST_PASSED)
        elif value == TEST_PASSWORD:
            self._put(NO_PASSWORD)
        elif value == READ_INPUT_PORT:
            self._put(INPUT_PORT)
        elif value == READ_OUTPUT_PORT:
            self._put(self._output_port)
        elif value == READ_TEST_INPUTS:
            clocks = self._ctr & (CTR_KEYBOARD_OFF | CTR_MOUSE_OFF)
            self._put((0 if clocks & CTR_KEYBOARD_OFF else 1) | (0 if clocks & CTR_MOUSE_OFF else 2))

    def _set_ctr(self, bit: int, level: bool) -> None:
        self._ctr = self._ctr & ~bit | bit * level
        self._fill()

    def _write_ram(self, index: int, value: int) -> None:
        if index:
            self._ram[index] = value
            return
        self._ctr = value
        self._status = self._status & ~STATUS_SYSTEM | (STATUS_SYSTEM if value & CTR_SYSTEM else 0)

    def _write_output_port(self, value: int) -> None:
        before = self._output_port
        kept = OUT_KEYBOARD_IRQ | OUT_MOUSE_IRQ
        self._output_port = value & ~kept | before & kept | OUT_RESET
        if (before ^ value) & OUT_A20:
            self._on_a20(bool(value & OUT_A20))
        if not value & OUT_RESET:
            self._on_reset()

    @property
    def a20(self) -> bool:
        """The level of the A20 output."""
        return bool(self._output_port & OUT_A20)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset controller, keyboard and mouse to their states after power-on."""
        had_a20 = self.a20
        self._set_registers(I8042State())
        self.keyboard.reset()
        self.mouse.reset()
        self._update_irqs()
        if self.a20 != had_a20:
            self._on_a20(self.a20)

    def save(self) -> I8042State:
        """Return the controller's registers; keyboard and mouse have states of their own."""
        return I8042State(
            status=self._status,
            output=self._output,
            ctr=self._ctr,
            output_port=self._output_port,
            pending=self._pending,
            broken=self._broken,
            queue=list(self._queue),
            ram=list(self._ram),
        )

    def load(self, state: I8042State) -> None:
        """Take over the registers and drive the outputs; keyboard and mouse must have been loaded before."""
        state.check()
        if len(state.ram) not in (0, RAM_SIZE):
            raise StateError(f"I8042State.ram: expected {RAM_SIZE} bytes")
        had_a20 = self.a20
        self._set_registers(state)
        self._fill()
        if self.a20 != had_a20:
            self._on_a20(self.a20)
