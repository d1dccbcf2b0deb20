"""A 16550A UART.

National Semiconductor PC16550D datasheet (June 1995), section 8 (registers); ISA serial port of a PC, 8 ports each.

Bytes travel as fast as the host takes them; the programmed rate only measures waiting times.  What the guest writes
to the transmitter is handed to the back end in runs: at a line's end, when a run is long, or a millisecond after its
first byte.  The transmitter counts as empty as soon as the guest looks, so a driver fills the FIFO again in the same
interrupt, and a burst into the FIFO costs no interrupt edges of its own.  Where the back end takes nothing more the
transmitter stays full, and a guest that writes all the same (Linux's console does after 10 ms) is stored up to a bound.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.clock import NANOSECONDS, Clock
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, blob, flag, optional, sequence, uint

# Registers by port offset.  With LCR_DLAB set, 0 and 1 are the divisor latch.
RBR_THR: Final = 0  # read: receiver buffer; write: transmitter holding
IER: Final = 1
IIR_FCR: Final = 2  # read: interrupt identification; write: FIFO control
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5  # read-only
MSR: Final = 6  # read-only
SCR: Final = 7
PORT_COUNT: Final = 8

IER_RECEIVE: Final = 1 << 0
IER_TRANSMIT: Final = 1 << 1
IER_LINE: Final = 1 << 2
IER_MODEM: Final = 1 << 3
IER_WRITABLE: Final = 0x0F

IIR_NONE: Final = 0x01
IIR_MODEM: Final = 0x00
IIR_TRANSMIT: Final = 0x02
IIR_RECEIVE: Final = 0x04
IIR_LINE: Final = 0x06
IIR_TIMEOUT: Final = 0x0C
IIR_FIFO: Final = 0xC0

FCR_ENABLE: Final = 1 << 0
FCR_CLEAR_RECEIVER: Final = 1 << 1
FCR_CLEAR_TRANSMITTER: Final = 1 << 2
FCR_TRIGGER_SHIFT: Final = 6
FCR_KEPT: Final = 0xC9
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

LCR_LENGTH: Final = 0x03  # character length less 5
LCR_STOP: Final = 1 << 2
LCR_PARITY: Final = 1 << 3
LCR_BREAK: Final = 1 << 6
LCR_DLAB: Final = 1 << 7

MCR_DTR: Final = 1 << 0
MCR_RTS: Final = 1 << 1
MCR_OUT1: Final = 1 << 2
MCR_OUT2: Final = 1 << 3
MCR_LOOP: Final = 1 << 4
MCR_WRITABLE: Final = 0x1F

LSR_DATA_READY: Final = 1 << 0
LSR_OVERRUN: Final = 1 << 1
LSR_BREAK: Final = 1 << 4
LSR_THR_EMPTY: Final = 1 << 5
LSR_TRANSMITTER_EMPTY: Final = 1 << 6
LSR_FIFO_ERROR: Final = 1 << 7
LSR_ERRORS: Final = LSR_OVERRUN | LSR_BREAK

MSR_DELTA: Final = 0x0F  # of the four lines below, shifted by four
MSR_RING_ENDED: Final = 1 << 2  # the delta of RI is its trailing edge only
MSR_CTS: Final = 1 << 4
MSR_DSR: Final = 1 << 5
MSR_RI: Final = 1 << 6
MSR_DCD: Final = 1 << 7
MSR_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD

FIFO_SIZE: Final = 16
CLOCK_HZ: Final = 1_843_200
DIVISOR_RESET: Final = 12  # 9600 baud
TIMEOUT_CHARACTERS: Final = 4

RUN_LENGTH: Final = 256
RUN_DELAY: Final = 1_000_000  # ns
BACKLOG_LIMIT: Final = 65536

_BREAK: Final = 0x100  # marks the null character of a break condition in the receiver FIFO
_NEWLINE: Final = 0x0A


class UartState(State):
    """Registers and FIFOs.

    `received` holds characters with bit 8 set where they stand for a break; `errors` are the error bits of LSR;
    `modem` is MSR.  `unsent` are bytes on the way to the back end; `thr_full` says that the guest has not seen the
    transmitter empty since it wrote.  Deadlines are ns of guest clock.
    """

    ier: int = uint(4)
    fcr: int = uint(8)
    lcr: int = uint(8)
    mcr: int = uint(5)
    scr: int = uint(8)
    divisor: int = uint(16, DIVISOR_RESET)
    errors: int = uint(8)
    modem: int = uint(8, MSR_CONNECTED)
    received: list[int] = sequence(uint(9), FIFO_SIZE)
    timeout: bool = flag()
    timeout_deadline: int | None = optional(uint(64))
    unsent: bytes = blob(BACKLOG_LIMIT)
    thr_full: bool = flag()
    thr_interrupt: bool = flag()


class Uart16550:
    """One serial port: 8 ports, accesses of one byte.  `chardev` is the other end of the line."""

    def __init__(self, irq: IrqLine, clock: Clock, chardev: Chardev | None) -> None:
        self._irq = irq
        self._clock = clock
        self._chardev = chardev
        self._received: deque[int] = deque()
        self._starved = False
        self._unsent = bytearray()
        self._blocked = False
        self._sending = False
        self._send_timer = clock.timer(self._send_due)
        self._timeout_timer = clock.timer(self._timeout_due)
        self._set_registers(UartState())
        if chardev is not None:
            chardev.attach(self)

    def _set_registers(self, state: UartState) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._scr = state.scr
        self._divisor = state.divisor
        self._errors = state.errors
        self._modem = state.modem
        self._timeout = state.timeout
        self._thr_full = state.thr_full
        self._thr_interrupt = state.thr_interrupt

    # -- registers --------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register."""
        if offset == LSR:
            return self._read_lsr()
        if offset == RBR_THR:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_receiver()
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == MSR:
            return self._read_msr()
        return {LCR: self._lcr, MCR: self._mcr, SCR: self._scr}.get(offset, 0xFF)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        value &= 0xFF
        if offset == RBR_THR:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._write_thr(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0x00FF | value << 8
            else:
                self._write_ier(value & IER_WRITABLE)
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._write_lcr(value)
        elif offset == MCR:
            self._write_mcr(value & MCR_WRITABLE)
        elif offset == SCR:
            self._scr = value

    def _read_lsr(self) -> int:
        if self._thr_full and not self._blocked:
            self._thr_emptied()
        value = self._errors
        if self._received:
            value |= LSR_DATA_READY
        if not self._thr_full:
            value |= LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY
        if self._errors:
            if self._fcr & FCR_ENABLE and (self._errors & LSR_BREAK or any(c & _BREAK for c in self._received)):
                value |= LSR_FIFO_ERROR
            self._errors = 0
            self._update_irq()
        return value

    def _read_iir(self) -> int:
        if self._thr_full and not self._blocked:
            self._thr_emptied()
        cause = self._cause()
        if cause == IIR_TRANSMIT:
            self._thr_interrupt = False
            self._update_irq()
        return cause | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def _read_msr(self) -> int:
        value = self._modem
        if value & MSR_DELTA:
            self._modem &= ~MSR_DELTA
            self._update_irq()
        return value

    def _write_ier(self, value: int) -> None:
        # Enabling the transmitter interrupt while the transmitter is empty raises it at once.
        if value & ~self._ier & IER_TRANSMIT and not self._blocked:
            self._thr_full = False
        if value & ~self._ier & IER_TRANSMIT and not self._thr_full:
            self._thr_interrupt = True
        self._ier = value
        self._update_irq()

    def _write_fcr(self, value: int) -> None:
        toggled = (value ^ self._fcr) & FCR_ENABLE
        self._fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        if toggled or value & FCR_CLEAR_RECEIVER:
            self._clear_receiver()
        # Clearing the transmitter drops nothing: what was written has left the FIFO as far as the guest is concerned.
        if (toggled or value & FCR_CLEAR_TRANSMITTER) and self._thr_full and not self._blocked:
            self._thr_emptied()
        self._update_irq()
        self._accept_input()

    def _write_lcr(self, value: int) -> None:
        started = value & ~self._lcr & LCR_BREAK
        self._lcr = value
        if started and self._mcr & MCR_LOOP:
            self._put(_BREAK)
            self._update_irq()

    def _write_mcr(self, value: int) -> None:
        self._mcr = value
        lines = MSR_CONNECTED
        if value & MCR_LOOP:
            pairs = ((MCR_DTR, MSR_DSR), (MCR_RTS, MSR_CTS), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            lines = sum(line for output, line in pairs if value & output)
        changed = (lines ^ self._modem) >> 4
        if lines & MSR_RI:
            changed &= ~MSR_RING_ENDED
        self._modem = lines | self._modem & MSR_DELTA | changed
        self._update_irq()
        self._drive_modem()
        self._accept_input()

    def _drive_modem(self) -> None:
        if self._chardev is not None and not self._mcr & MCR_LOOP:
            self._chardev.set_modem_control(bool(self._mcr & MCR_DTR), bool(self._mcr & MCR_RTS))

    # -- interrupts -------------------------------------------------------------------------------------------------

    def _cause(self) -> int:
        """Return the pending interrupt of the highest priority as IIR shows it."""
        enabled = self._ier
        if enabled & IER_LINE and self._errors:
            return IIR_LINE
        if enabled & IER_RECEIVE:
            if len(self._received) >= self._trigger():
                return IIR_RECEIVE
            if self._timeout:
                return IIR_TIMEOUT
        if enabled & IER_TRANSMIT and self._thr_interrupt:
            return IIR_TRANSMIT
        if enabled & IER_MODEM and self._modem & MSR_DELTA:
            return IIR_MODEM
        return IIR_NONE

    def _trigger(self) -> int:
        return TRIGGER_LEVELS[self._fcr >> FCR_TRIGGER_SHIFT] if self._fcr & FCR_ENABLE else 1

    def _update_irq(self) -> None:
        self._irq.set(self._cause() != IIR_NONE)

    # -- transmitter ------------------------------------------------------------------------------------------------

    def _write_thr(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._put(value)
            self._thr_interrupt = True
            self._update_irq()
            return
        if self._thr_interrupt:
            self._thr_interrupt = False
            self._update_irq()
        self._thr_full = True
        if self._chardev is None:
            self._arm_send_timer()
            return
        if len(self._unsent) < BACKLOG_LIMIT:
            self._unsent.append(value)
        if value == _NEWLINE or len(self._unsent) >= RUN_LENGTH:
            self._send()
        self._arm_send_timer()

    def _arm_send_timer(self) -> None:
        if self._send_timer.deadline is None and not self._blocked:
            waits = self._ier & IER_TRANSMIT and not self._fcr & FCR_ENABLE
            delay = self._character_time() if waits else RUN_DELAY
            self._send_timer.arm(self._clock.now() + min(delay, RUN_DELAY))

    def _send_due(self) -> None:
        self._send()
        if self._thr_full and not self._blocked:
            self._thr_emptied()

    def _thr_emptied(self) -> None:
        self._thr_full = False
        self._thr_interrupt = True
        self._update_irq()

    def _send(self) -> None:
        # A back end may call writable() from within write().
        if self._chardev is None or self._blocked or self._sending:
            return
        self._sending = True
        try:
            while self._unsent:
                taken = self._chardev.write(bytes(self._unsent))
                if taken <= 0:
                    self._blocked = True
                    break
                del self._unsent[:taken]
        finally:
            self._sending = False

    def flush(self) -> None:
        """Hand over what the guest has sent so far: for the machine to call when guest time stops."""
        self._send()

    def writable(self) -> None:
        """The back end takes bytes again."""
        self._blocked = False
        self._send()
        if self._thr_full and not self._blocked:
            self._thr_emptied()

    # -- receiver ---------------------------------------------------------------------------------------------------

    def _capacity(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _put(self, character: int) -> None:
        """One character arrives on the line."""
        if len(self._received) >= self._capacity():
            self._errors |= LSR_OVERRUN
            return
        self._received.append(character)
        if len(self._received) == 1:
            self._show_errors()

    def _show_errors(self) -> None:
        """A character's error shows in LSR when it is the next to be read."""
        if self._received and self._received[0] & _BREAK:
            self._received[0] &= 0xFF
            self._errors |= LSR_BREAK

    def _read_receiver(self) -> int:
        if not self._received:
            return 0
        value = self._received.popleft()
        self._timeout = False
        if self._received:
            self._show_errors()
            if self._timeout_timer.deadline is None and self._fcr & FCR_ENABLE:
                self._timeout_timer.arm(self._clock.now() + TIMEOUT_CHARACTERS * self._character_time())
            self._update_irq()
        else:
            # The line goes down before more comes in, so that what comes makes an edge.
            self._update_irq()
            self._accept_input()
        return value & 0xFF

    def _timeout_due(self) -> None:
        if self._received:
            self._timeout = True
            self._update_irq()

    def _clear_receiver(self) -> None:
        self._received.clear()
        self._timeout = False
        self._timeout_timer.cancel()
        self._errors = 0

    def _accept_input(self) -> None:
        if self._starved and self.can_receive() and self._chardev is not None:
            self._starved = False
            self._chardev.accept_input()

    def _character_time(self) -> int:
        """Return how long a character takes on a line of the programmed rate, in ns."""
        bits = 1 + 5 + (self._lcr & LCR_LENGTH) + bool(self._lcr & LCR_PARITY) + (2 if self._lcr & LCR_STOP else 1)
        return bits * max(self._divisor, 1) * 16 * NANOSECONDS // CLOCK_HZ

    def can_receive(self) -> int:
        """Return how many bytes the receiver FIFO has room for; none while the line is looped back."""
        room = 0 if self._mcr & MCR_LOOP else self._capacity() - len(self._received)
        if room <= 0:
            self._starved = True
            return 0
        return room

    def receive(self, data: bytes) -> None:
        """Take characters from the host.

        Nothing more follows for now, so a FIFO below its trigger level counts as timed out at once.
        """
        for character in data:
            self._put(character)
        self._timeout = bool(self._fcr & FCR_ENABLE and self._received)
        self._update_irq()

    def event(self, event: ChardevEvent) -> None:
        """Receive a break; the modem lines do not follow the peer's coming and going."""
        if event is ChardevEvent.BREAK and not self._mcr & MCR_LOOP:
            self._put(_BREAK)
            self._timeout = bool(self._fcr & FCR_ENABLE)
            self._update_irq()

    def chardev_replaced(self, chardev: Chardev) -> None:
        """Go on with another peer on the line; what the one before did not take goes to this one."""
        self._chardev = chardev
        self._blocked = False
        chardev.attach(self)
        self._drive_modem()
        self._send()

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on; bytes that were sent before are not lost."""
        self._send()
        self._set_registers(UartState())
        self._received.clear()
        self._timeout_timer.cancel()
        self._thr_full = self._blocked
        self._update_irq()
        self._accept_input()

    def save(self) -> UartState:
        """Return registers, FIFOs and unsent bytes."""
        return UartState(
            ier=self._ier,
            fcr=self._fcr,
            lcr=self._lcr,
            mcr=self._mcr,
            scr=self._scr,
            divisor=self._divisor,
            errors=self._errors,
            modem=self._modem,
            received=list(self._received),
            timeout=self._timeout,
            timeout_deadline=self._timeout_timer.deadline,
            unsent=bytes(self._unsent),
            thr_full=self._thr_full,
            thr_interrupt=self._thr_interrupt,
        )

    def load(self, state: UartState) -> None:
        """Take over a saved state, drive the interrupt and send what was unsent."""
        state.check()
        capacity = FIFO_SIZE if state.fcr & FCR_ENABLE else 1
        if len(state.received) > capacity or any(c & _BREAK and c & 0xFF for c in state.received):
            raise StateError("UartState.received: does not fit the FIFO")
        if state.errors & ~LSR_ERRORS or state.fcr & ~FCR_KEPT or state.timeout > bool(state.received):
            raise StateError("UartState: bits that are never set")
        self._set_registers(state)
        self._received = deque(state.received)
        self._unsent = bytearray(state.unsent)
        self._blocked = False
        self._timeout_timer.cancel()
        if state.timeout_deadline is not None:
            self._timeout_timer.arm(state.timeout_deadline)
        self._send_timer.cancel()
        if self._unsent or self._thr_full:
            self._arm_send_timer()
        self._update_irq()
        self._starved = True
        self._accept_input()
