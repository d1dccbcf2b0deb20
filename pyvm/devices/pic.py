"""The pair of 8259A interrupt controllers of a PC, with the edge/level control registers of the PIIX3.

Specifications: Intel 8259A datasheet (order number 231468); Intel 82371SB (PIIX3) datasheet, sections 2.5.2 (interrupt
controller) and 2.5.4 (ELCR).  The master answers at ports 0x20-0x21 and the slave at 0xa0-0xa1; the slave's INT drives
input 2 of the master, whose INT is the INTR line of the machine (LINT0 of the local APICs).

As in the PIIX3, bit LTIM of ICW1 has no effect: ELCR chooses edge or level for each input.  An edge stays latched in
IRR when its line falls before the acknowledge cycle; spurious interrupts 7 and 15 come from level inputs that went
away and from requests that were masked too late.
"""

from __future__ import annotations

from pyvm.irq import IrqLine
from pyvm.state import State, StateError, flag, integer, record, uint

# Port 0: ICW1, OCW2 and OCW3 on writing; IRR, ISR or the poll word on reading.
ICW1_ICW4_NEEDED = 0x01
ICW1_SINGLE = 0x02
ICW1_SELECT = 0x10  # set: ICW1; clear: OCW2 or OCW3
OCW3_SELECT = 0x08
OCW3_READ_ISR = 0x01
OCW3_READ_SELECT = 0x02
OCW3_POLL = 0x04
OCW3_SPECIAL_MASK = 0x20
OCW3_SPECIAL_MASK_ENABLE = 0x40
POLL_INTERRUPT = 0x80

# Bits 7-5 of OCW2.
OCW2_ROTATE_AEOI_CLEAR = 0
OCW2_EOI = 1
OCW2_NOP = 2
OCW2_SPECIFIC_EOI = 3
OCW2_ROTATE_AEOI_SET = 4
OCW2_ROTATE_EOI = 5
OCW2_SET_PRIORITY = 6
OCW2_ROTATE_SPECIFIC_EOI = 7

# Port 1: ICW2 to ICW4 while initialising; the mask (OCW1, IMR) otherwise.
ICW2_BASE = 0xF8
ICW4_AUTO_EOI = 0x02
ICW4_SPECIAL_FULLY_NESTED = 0x10

CASCADE = 2
SPURIOUS = 7

# Inputs whose trigger mode ELCR cannot change are edge triggered: 0, 1, 2 and 8, 13.
ELCR_MASTER = 0xF8
ELCR_SLAVE = 0xDE

STEP_READY, STEP_ICW2, STEP_ICW3, STEP_ICW4 = range(4)


class PicState(State):
    """One 8259A."""

    irr: int = uint(8)
    isr: int = uint(8)
    imr: int = uint(8)
    lines: int = uint(8)
    elcr: int = uint(8)
    base: int = uint(8)
    lowest: int = integer(0, 7, 7)
    step: int = integer(STEP_READY, STEP_ICW4)
    single: bool = flag()
    icw4_needed: bool = flag()
    read_isr: bool = flag()
    poll: bool = flag()
    special_mask: bool = flag()
    auto_eoi: bool = flag()
    rotate_auto_eoi: bool = flag()
    special_fully_nested: bool = flag()


class PicPairState(State):
    """Both chips."""

    master: PicState = record(PicState)
    slave: PicState = record(PicState)


class Pic:
    """One 8259A; `output` is its INT pin, `elcr_mask` says which inputs may be level triggered."""

    def __init__(self, output: IrqLine, elcr_mask: int, *, is_master: bool) -> None:
        self._output = output
        self._elcr_mask = elcr_mask
        self._is_master = is_master
        self._s = PicState()

    def reset(self) -> None:
        """Return to the state after power-on; the input lines stay as their devices drive them."""
        self._s = PicState(lines=self._s.lines)
        self._update()

    def save(self) -> PicState:
        """Return a copy of the state."""
        return self._s.copy()

    def load(self, state: PicState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        self.check(state)
        self._s = state.copy()
        self._update()

    def check(self, state: PicState) -> None:
        """Raise StateError where `state` is none that this chip can be in."""
        state.check()
        if state.elcr & ~self._elcr_mask:
            raise StateError(f"PicState.elcr: {state.elcr:#x} has a level-triggered input that cannot be one")
        if state.base & ~ICW2_BASE:
            raise StateError(f"PicState.base: {state.base:#x} is no multiple of 8")

    def set_input(self, pin: int, level: bool) -> None:
        """Drive input `pin`, 0..7."""
        s = self._s
        bit = 1 << pin
        if level:
            if s.lines & bit and not s.elcr & bit:
                return
            s.lines |= bit
            s.irr |= bit
        else:
            s.lines &= ~bit
            if not s.elcr & bit:
                return
            s.irr &= ~bit
        self._update()

    def _rank(self, requests: int) -> int:
        """Return the priority of the best of `requests`: 0 is the highest, 8 stands for none."""
        if not requests:
            return 8
        shift = (self._s.lowest + 1) & 7
        turned = (requests >> shift | requests << (8 - shift)) & 0xFF
        return (turned & -turned).bit_length() - 1

    def pending(self) -> int:
        """Return the input to serve next, or -1 where none may interrupt."""
        s = self._s
        requests = s.irr & ~s.imr
        if not requests:
            return -1
        in_service = s.isr
        if s.special_mask:
            in_service &= ~s.imr
        if s.special_fully_nested and self._is_master:
            in_service &= ~(1 << CASCADE)  # the slave sorts its own requests
        rank = self._rank(requests)
        if rank >= self._rank(in_service):
            return -1
        return (rank + s.lowest + 1) & 7

    def _update(self) -> None:
        self._output.set(self.pending() >= 0)

    def acknowledge(self) -> int:
        """Make an acknowledge cycle; return the input served, or -1 for a spurious one."""
        s = self._s
        pin = self.pending()
        if pin < 0:
            return -1
        bit = 1 << pin
        if not s.elcr & bit:
            s.irr &= ~bit
        if not s.auto_eoi:
            s.isr |= bit
        elif s.rotate_auto_eoi:
            s.lowest = pin
        # INT falls in each cycle, so that the master sees another edge if the slave has more requests.
        self._output.set(False)
        self._update()
        return pin

    def vector(self, pin: int) -> int:
        """Return the interrupt vector of input `pin`."""
        return self._s.base | pin

    def read(self, offset: int, size: int) -> int:
        """Read port 0 (IRR, ISR or poll word) or 1 (mask)."""
        s = self._s
        if s.poll:
            s.poll = False
            pin = self.acknowledge()
            return POLL_INTERRUPT | pin if pin >= 0 else 0
        if offset & 1:
            return s.imr
        return s.isr if s.read_isr else s.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """Write port 0 (ICW1, OCW2, OCW3) or 1 (ICW2-4, mask)."""
        if offset & 1:
            self._write_data(value & 0xFF)
        elif value & ICW1_SELECT:
            self._initialise(value)
        elif value & OCW3_SELECT:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value >> 5 & 7, value & 7)

    def _initialise(self, icw1: int) -> None:
        """ICW1 clears everything but ELCR, and the edge detectors wait for a new edge."""
        old = self._s
        self._s = PicState(
            lines=old.lines,
            elcr=old.elcr,
            irr=old.lines & old.elcr,
            step=STEP_ICW2,
            single=bool(icw1 & ICW1_SINGLE),
            icw4_needed=bool(icw1 & ICW1_ICW4_NEEDED),
        )
        self._update()

    def _write_data(self, value: int) -> None:
        s = self._s
        if s.step == STEP_READY:
            s.imr = value
            self._update()
        elif s.step == STEP_ICW2:
            s.base = value & ICW2_BASE
            s.step = STEP_ICW3 if not s.single else self._step_after_icw3()
        elif s.step == STEP_ICW3:
            s.step = self._step_after_icw3()  # the wiring of the pair is fixed
        else:
            s.auto_eoi = bool(value & ICW4_AUTO_EOI)
            s.special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
            s.step = STEP_READY

    def _step_after_icw3(self) -> int:
        return STEP_ICW4 if self._s.icw4_needed else STEP_READY

    def _write_ocw3(self, value: int) -> None:
        s = self._s
        if value & OCW3_POLL:
            s.poll = True
        elif value & OCW3_READ_SELECT:
            s.read_isr = bool(value & OCW3_READ_ISR)
        if value & OCW3_SPECIAL_MASK_ENABLE:
            s.special_mask = bool(value & OCW3_SPECIAL_MASK)
            self._update()

    def _write_ocw2(self, command: int, pin: int) -> None:
        s = self._s
        if command in (OCW2_EOI, OCW2_ROTATE_EOI):
            # In special mask mode a masked input stays in service.
            rank = self._rank(s.isr & ~s.imr if s.special_mask else s.isr)
            if rank == 8:
                return
            pin = (rank + s.lowest + 1) & 7
            s.isr &= ~(1 << pin)
            if command == OCW2_ROTATE_EOI:
                s.lowest = pin
        elif command in (OCW2_SPECIFIC_EOI, OCW2_ROTATE_SPECIFIC_EOI):
            s.isr &= ~(1 << pin)
            if command == OCW2_ROTATE_SPECIFIC_EOI:
                s.lowest = pin
        elif command == OCW2_SET_PRIORITY:
            s.lowest = pin
        elif command != OCW2_NOP:
            s.rotate_auto_eoi = command == OCW2_ROTATE_AEOI_SET
        self._update()

    @property
    def elcr(self) -> int:
        """The edge/level control register: a set bit makes an input level triggered."""
        return self._s.elcr

    @elcr.setter
    def elcr(self, value: int) -> None:
        s = self._s
        value &= self._elcr_mask
        became_level = value & ~s.elcr
        s.elcr = value
        s.irr = s.irr & ~became_level | s.lines & became_level
        self._update()


class PicPair:
    """Master and slave; `output` is INTR.  `master` and `slave` each have handlers for their two byte-wide ports."""

    def __init__(self, output: IrqLine) -> None:
        self.master = Pic(output, ELCR_MASTER, is_master=True)
        self.slave = Pic(IrqLine(self._cascade), ELCR_SLAVE, is_master=False)

    def _cascade(self, level: bool) -> None:
        self.master.set_input(CASCADE, level)

    def reset(self) -> None:
        """Return both chips to their state after power-on: nothing masked, vectors 0-7, edge triggered."""
        self.slave.reset()
        self.master.reset()

    def save(self) -> PicPairState:
        """Return a copy of the state."""
        return PicPairState(self.master.save(), self.slave.save())

    def load(self, state: PicPairState) -> None:
        """Take over `state`; raises StateError where it is not one."""
        state.check()
        self.master.check(state.master)
        self.slave.check(state.slave)
        self.slave.load(state.slave)
        self.master.load(state.master)
        self.master.set_input(CASCADE, self.slave.pending() >= 0)

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive ISA interrupt `irq`, 0..15; 2 is the cascade and not connected."""
        if irq >= 8:
            self.slave.set_input(irq - 8, level)
        elif irq != CASCADE:
            self.master.set_input(irq, level)

    def acknowledge(self) -> int:
        """Make the INTA cycles of the processor; return the vector, that of input 7 of a chip where it is spurious."""
        pin = self.master.acknowledge()
        if pin < 0:
            return self.master.vector(SPURIOUS)
        if pin != CASCADE:
            return self.master.vector(pin)
        pin = self.slave.acknowledge()
        return self.slave.vector(pin if pin >= 0 else SPURIOUS)

    def elcr_read(self, offset: int, size: int) -> int:
        """Read ELCR1 (offset 0) or ELCR2 (offset 1)."""
        return self.slave.elcr if offset & 1 else self.master.elcr

    def elcr_write(self, offset: int, size: int, value: int) -> None:
        """Write ELCR1 (offset 0) or ELCR2 (offset 1)."""
        if offset & 1:
            self.slave.elcr = value & 0xFF
        else:
            self.master.elcr = value & 0xFF
