"""The local APIC of one processor, in xAPIC and x2APIC mode.

Specification: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, chapter 11 (APIC).  The
registers (see `pyvm.devices.lapic_regs`) are in a page at 0xfee00000, where every processor sees its own local APIC, or
in MSRs 0x800-0x83f.  It presents itself as an integrated APIC of version 0x14 with six LVT entries, as QEMU's does.

IRR, ISR, TMR and the priorities are in :class:`pyvm.native.LapicVectors`, which tells the processor whether to take an
interrupt.  While guest code runs, the vCPU thread takes interrupts from there, and ends those that are edge-triggered,
without the machine lock; all else is done here.

INTR of the 8259A pair is at LINT0.  On the bootstrap processor LINT0 comes out of reset as a PC's firmware leaves it:
unmasked in ExtINT mode ("virtual wire"), so that operating systems that know no APIC get their interrupts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from pyvm.clock import Clock
from pyvm.devices import lapic_regs as reg
from pyvm.devices.apic_bus import BROADCAST, DELIVERY_MODES, ApicBus, DeliveryMode, widen_destination
from pyvm.devices.lapic_regs import LapicState
from pyvm.devices.lapic_timer import TIMER_MODES, LapicTimer
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.native import LapicVectors

_VECTORS_SIZE = 256 // 8
_EOI_NOWHERE, _EOI_BY_PAGE, _EOI_BY_MSR = range(3)


class LapicCpu(Protocol):
    """The processor that a local APIC drives."""

    @property
    def vectors(self) -> LapicVectors:
        """Its interrupts; they say to the processor whether one waits that it would take with IF set."""

    def nmi(self) -> None:
        """Raise a non-maskable interrupt."""

    def init(self) -> None:
        """Go to the INIT state; the local APIC has reset itself already."""

    def startup(self, vector: int) -> None:
        """Leave the wait for a start-up IPI at `vector` << 12; ignored by a processor that does not wait."""


class Lapic:
    """One local APIC.

    `extint_acknowledge` makes the INTA cycles at the 8259A pair and returns the vector.  `x2apic` says whether the
    processor's CPUID offers that mode, and `bsp` whether it is the bootstrap processor (APIC ID 0 by default).
    """

    def __init__(
        self,
        apic_id: int,
        clock: Clock,
        bus: ApicBus,
        cpu: LapicCpu,
        extint_acknowledge: Callable[[], int],
        *,
        tsc_hz: int = 1_000_000_000,
        x2apic: bool = True,
        bsp: bool | None = None,
    ) -> None:
        self._apic_id = apic_id
        self._bus = bus
        self._cpu = cpu
        self._vectors = cpu.vectors
        self._extint_acknowledge = extint_acknowledge
        self._x2apic_offered = x2apic
        self._bsp = apic_id == 0 if bsp is None else bsp
        self._timer = LapicTimer(clock, self._timer_expired, tsc_hz)
        self._lint0_level = False
        self._readers = self._make_readers()
        self._writers = self._make_writers()
        self._clear()
        self._set_base(self._base_after_reset())
        self._lvt[reg.LVT_LINT0] = self._lint0_after_reset()
        bus.attach(self)

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        readers: dict[int, Callable[[], int]] = {
            reg.ID: lambda: self._apic_id if self._x2apic else (self._apic_id & 0xFF) << 24,
            reg.VERSION: lambda: reg.VERSION_VALUE,
            reg.TPR: lambda: self._vectors.tpr,
            reg.APR: self.arbitration_priority,
            reg.PPR: lambda: self._vectors.ppr,
            reg.RRD: lambda: 0,
            reg.LDR: lambda: self._logical_id,
            reg.DFR: lambda: self._dfr,
            reg.SVR: lambda: self._svr,
            reg.ESR: lambda: self._esr,
            reg.ICR_LOW: lambda: self._icr & 0xFFFFFFFF,
            reg.ICR_HIGH: lambda: self._icr >> 32,
            reg.TIMER_INITIAL: lambda: self._timer.initial,
            reg.TIMER_CURRENT: self._timer.current,
            reg.TIMER_DIVIDE: lambda: self._timer.divide,
            reg.EOI: lambda: 0,
        }
        for word in range(8):
            readers[reg.ISR + 0x10 * word] = partial(self._read_vectors, "isr", word)
            readers[reg.TMR + 0x10 * word] = partial(self._read_vectors, "tmr", word)
            readers[reg.IRR + 0x10 * word] = partial(self._read_vectors, "irr", word)
        for lvt in reg.LVTS:
            readers[lvt] = partial(self._read_lvt, lvt)
        return readers

    def _read_vectors(self, bank: str, word: int) -> int:
        vectors: bytes = getattr(self._vectors, bank)
        return int.from_bytes(vectors[4 * word : 4 * word + 4], "little")

    def _read_lvt(self, lvt: int) -> int:
        return self._lvt[lvt]

    def _make_writers(self) -> dict[int, Callable[[int], None]]:
        writers: dict[int, Callable[[int], None]] = {
            reg.EOI: self._write_eoi,
            reg.TPR: self._write_tpr,
            reg.LDR: self._write_ldr,
            reg.DFR: self._write_dfr,
            reg.SVR: self._write_svr,
            reg.ESR: self._write_esr,
            reg.ICR_LOW: self._write_icr_low,
            reg.ICR_HIGH: self._write_icr_high,
            reg.TIMER_INITIAL: self._timer.set_initial,
            reg.TIMER_DIVIDE: self._write_divide,
        }
        for lvt in reg.LVTS:
            writers[lvt] = partial(self._write_lvt, lvt)
        return writers

    def _base_after_reset(self) -> int:
        return reg.BASE_RESET | reg.BASE_ENABLE | (reg.BASE_BSP if self._bsp else 0)

    def _lint0_after_reset(self) -> int:
        return reg.LINT0_VIRTUAL_WIRE if self._bsp else reg.LVT_MASKED

    def _clear(self) -> None:
        """Set all registers but the ID and the base to their values after INIT."""
        self._vectors.clear()
        self._ldr = 0
        self._dfr = reg.DFR_RESET
        self._svr = reg.SVR_RESET
        self._esr = 0
        self._errors = 0
        self._icr = 0
        self._lvt = dict.fromkeys(reg.LVTS, reg.LVT_MASKED)
        self._extint_message = False
        self._bus.forget_routes()
        self._timer.reset()

    def reset(self) -> None:
        """Return to the state after power-on; LINT0's level stays as its device drives it."""
        self._clear()
        self._set_base(self._base_after_reset())
        self._lvt[reg.LVT_LINT0] = self._lint0_after_reset()
        self._update_lint0(rising=False)
        self._vectors.update()

    def init_reset(self) -> None:
        """Do what INIT does: as reset, but APIC ID, base and mode stay, and all of the LVT is masked."""
        self._clear()
        self._update_lint0(rising=False)
        self._vectors.update()

    def save(self) -> LapicState:
        """Return a copy of the state."""
        return LapicState(
            apic_base=self._base,
            tpr=self._vectors.tpr,
            ldr=self._ldr,
            dfr=self._dfr,
            svr=self._svr,
            isr=int.from_bytes(self._vectors.isr, "little"),
            tmr=int.from_bytes(self._vectors.tmr, "little"),
            irr=int.from_bytes(self._vectors.irr, "little"),
            esr=self._esr,
            errors=self._errors,
            icr=self._icr,
            lvt=[self._lvt[lvt] for lvt in reg.LVTS],
            lint0=self._lint0_level,
            extint_message=self._extint_message,
            timer=self._timer.save(),
        )

    def load(self, state: LapicState) -> None:
        """Take over `state` and tell the processor whether an interrupt waits; raises StateError where it is none."""
        state.check()
        self._check(state)
        self._set_base(state.apic_base)
        self._ldr = state.ldr
        self._dfr = state.dfr
        self._bus.forget_routes()
        self._svr = state.svr
        self._esr = state.esr
        self._errors = state.errors
        self._icr = state.icr
        self._lvt = dict(zip(reg.LVTS, state.lvt, strict=True))
        self._lint0_level = state.lint0
        self._extint_message = state.extint_message
        self._timer.load(state.timer)
        irr, isr, tmr = (bank.to_bytes(_VECTORS_SIZE, "little") for bank in (state.irr, state.isr, state.tmr))
        self._vectors.load(irr, isr, tmr, state.tpr, self._extint_waits())

    def _check(self, state: LapicState) -> None:
        base = state.apic_base
        if base & ~(reg.BASE_ADDRESS | reg.BASE_MODE | reg.BASE_BSP) or base & reg.BASE_MODE == reg.BASE_X2APIC:
            raise StateError(f"LapicState.apic_base: {base:#x} is no value of that MSR")
        if base & reg.BASE_X2APIC and not self._x2apic_offered:
            raise StateError("LapicState.apic_base: this processor has no x2APIC mode")
        for lvt, entry in zip(reg.LVTS, state.lvt, strict=True):
            allowed = reg.LVT_WRITABLE[lvt] | (reg.LVT_REMOTE_IRR if lvt == reg.LVT_LINT0 else 0)
            if entry & ~allowed:
                raise StateError(f"LapicState.lvt: {entry:#x} is no entry of the register at {lvt:#x}")
        if (state.isr | state.irr | state.tmr) & ((1 << reg.FIRST_LEGAL_VECTOR) - 1):
            raise StateError("LapicState: vectors below 16 cannot be in reg.IRR, reg.ISR or reg.TMR")
        timer = state.lvt[reg.LVTS.index(reg.LVT_TIMER)]
        if state.timer.mode != timer >> reg.LVT_TIMER_MODE_SHIFT or state.timer.masked != bool(timer & reg.LVT_MASKED):
            raise StateError("LapicState.timer: mode and mask differ from those of the LVT entry")

    @property
    def apic_id(self) -> int:
        """The APIC ID."""
        return self._apic_id

    @property
    def apic_base(self) -> int:
        """The MSR IA32_APIC_BASE."""
        return self._base

    def write_apic_base(self, value: int) -> bool:
        """Write IA32_APIC_BASE; False means #GP: reserved bits, or a change of mode that does not exist."""
        if value & ~(reg.BASE_ADDRESS | reg.BASE_MODE | reg.BASE_BSP) or (
            value & reg.BASE_X2APIC and not self._x2apic_offered
        ):
            return False
        old, new = self._base & reg.BASE_MODE, value & reg.BASE_MODE
        if (
            new == reg.BASE_X2APIC
            or (old == 0 and new == reg.BASE_MODE)
            or (old == reg.BASE_MODE and new == reg.BASE_ENABLE)
        ):
            return False
        if new == 0 and old != 0:
            self._clear()
        self._set_base(value)
        self._update_lint0(rising=False)
        self._vectors.update()
        return True

    def _set_base(self, value: int) -> None:
        self._base = value
        self._bus.forget_routes()
        self._enabled = bool(value & reg.BASE_ENABLE)
        self._x2apic = bool(value & reg.BASE_X2APIC)
        self._mmio = self._enabled and not self._x2apic
        self._vectors.eoi = _EOI_BY_PAGE if self._mmio else _EOI_BY_MSR if self._x2apic else _EOI_NOWHERE

    @property
    def accepts_fixed(self) -> bool:
        """Whether it is enabled by software and hardware."""
        return self._enabled and bool(self._svr & reg.SVR_ENABLE)

    def read(self, offset: int, size: int) -> int:
        """Read the register page; a register is in the low 4 of 16 bytes, and what is beside it reads 0."""
        if not self._mmio:
            return (1 << 8 * size) - 1
        if offset & 0xF:
            return 0
        reader = self._readers.get(offset)
        if reader is None:
            self._error(reg.ESR_ILLEGAL_REGISTER)
            return 0
        return reader()

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the register page; only accesses of 4 bytes or more to the start of a register do something."""
        if size < 4 or offset & 0xF or not self._mmio:
            return
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value & 0xFFFFFFFF)
        elif offset not in self._readers:
            self._error(reg.ESR_ILLEGAL_REGISTER)

    def msr_read(self, index: int) -> int | None:
        """Read an x2APIC MSR, 0x800-0x8ff; None means #GP."""
        if not self._x2apic or not reg.X2APIC_FIRST_MSR <= index <= reg.X2APIC_LAST_MSR:
            return None
        offset = index - reg.X2APIC_FIRST_MSR << 4
        if offset == reg.ICR_LOW:
            return self._icr
        if offset == reg.EOI or offset in reg.NOT_IN_X2APIC or offset not in self._readers:
            return None
        return self._readers[offset]()

    def msr_write(self, index: int, value: int) -> bool:
        """Write an x2APIC MSR, 0x800-0x8ff; False means #GP."""
        if not self._x2apic or not reg.X2APIC_FIRST_MSR <= index <= reg.X2APIC_LAST_MSR:
            return False
        offset = index - reg.X2APIC_FIRST_MSR << 4
        writable = reg.X2APIC_WRITABLE.get(offset)
        if writable is None or value & ~writable:
            return False
        if offset == reg.ICR_LOW:
            self._icr = value & ~reg.ICR_STATUS
            self._send_ipi(value >> 32)
        elif offset == reg.SELF_IPI:
            self._send_self(value)
        else:
            self._writers[offset](value)
        return True

    def arbitration_priority(self) -> int:
        """Return APR: the lower, the readier to take a lowest-priority interrupt."""
        tpr = self._vectors.tpr
        requested, in_service = (_highest(bank) >> 4 for bank in (self._vectors.irr, self._vectors.isr))
        task = tpr >> 4
        if task >= requested and task > in_service:
            return tpr
        return max(task & in_service, requested) << 4

    def read_cr8(self) -> int:
        """Return CR8: the upper half of TPR."""
        return self._vectors.tpr >> 4

    def write_cr8(self, value: int) -> None:
        """Write CR8, 0..15."""
        self._write_tpr((value & 0xF) << 4)

    def _write_tpr(self, value: int) -> None:
        self._vectors.tpr = value & 0xFF
        self._vectors.update()

    def acknowledge(self) -> int | None:
        """The processor takes an interrupt: return its vector.

        That is the spurious vector where the waiting interrupt was masked by priority in the meantime, and None where
        nothing waits any more.
        """
        vectors = self._vectors
        vector = vectors.acknowledge()
        if vector is not None:
            return vector
        if vectors.extint:
            if self._extint_message:
                self._extint_message = False
                vectors.extint = self._extint_waits()
            taken = self._extint_acknowledge()
            vectors.update()
            return taken
        return self._svr & 0xFF if any(vectors.irr) else None

    def _write_eoi(self, value: int) -> None:
        vector = self._vectors.end()
        if vector is not None:
            self._end_level(vector)

    def _end_level(self, vector: int) -> None:
        """Let the sources of a level-triggered interrupt know that it was ended."""
        lint0 = self._lvt[reg.LVT_LINT0]
        if lint0 & reg.LVT_REMOTE_IRR and lint0 & 0xFF == vector:
            self._lvt[reg.LVT_LINT0] = lint0 & ~reg.LVT_REMOTE_IRR
            self._update_lint0(rising=False)
        self._bus.on_eoi(vector)

    @property
    def _logical_id(self) -> int:
        if self._x2apic:
            return self._apic_id >> 4 << 16 | 1 << (self._apic_id & 0xF)
        return self._ldr

    def matches_logical(self, destination: int) -> bool:
        """Return whether a logical destination, not the broadcast one, includes this local APIC."""
        own = self._logical_id
        if self._x2apic:
            return destination >> 16 == own >> 16 and destination & own & 0xFFFF != 0
        if destination > 0xFF:
            return False
        own >>= 24
        if self._dfr >> 28 == reg.DFR_FLAT:
            return destination & own != 0
        return destination >> 4 == own >> 4 and destination & own & 0xF != 0

    def receive(self, mode: DeliveryMode, vector: int, level_triggered: bool) -> bool:
        """Take a message from the bus; return whether it was accepted."""
        if mode <= DeliveryMode.LOWEST_PRIORITY:
            return self._accept(vector, level_triggered)
        if not self._enabled:
            return False
        if mode == DeliveryMode.NMI:
            self._cpu.nmi()
        elif mode == DeliveryMode.INIT:
            self.init_reset()
            self._cpu.init()
        elif mode == DeliveryMode.STARTUP:
            self._cpu.startup(vector)
        elif mode == DeliveryMode.EXTINT:
            self._extint_message = self._vectors.extint = True
            self._vectors.update()
        else:
            return False  # this machine has no system management mode
        return True

    def _accept(self, vector: int, level_triggered: bool) -> bool:
        """Take a fixed interrupt into IRR."""
        if not self._enabled or not self._svr & reg.SVR_ENABLE:
            return False
        if vector < reg.FIRST_LEGAL_VECTOR:
            self._error(reg.ESR_RECEIVE_ILLEGAL_VECTOR)
            return False
        self._vectors.accept(vector, level_triggered)
        return True

    def _write_icr_low(self, value: int) -> None:
        self._icr = self._icr & BROADCAST << 32 | value & reg.ICR_WRITABLE
        self._send_ipi(widen_destination(self._icr >> 56))

    def _write_icr_high(self, value: int) -> None:
        self._icr = self._icr & 0xFFFFFFFF | (value & 0xFF000000) << 32

    def _send_ipi(self, destination: int) -> None:
        icr = self._icr
        mode = DELIVERY_MODES[icr >> reg.ICR_MODE_SHIFT & 7]
        vector = icr & 0xFF
        if mode == DeliveryMode.INIT:
            if icr & reg.ICR_LEVEL and not icr & reg.ICR_ASSERT:
                return  # INIT level de-assert, which processors since the Pentium 4 ignore
        elif mode in (DeliveryMode.RESERVED, DeliveryMode.EXTINT):
            return
        elif mode <= DeliveryMode.LOWEST_PRIORITY and vector < reg.FIRST_LEGAL_VECTOR:
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
            return
        shorthand = icr >> 18 & 3
        if shorthand == reg.SHORTHAND_NONE:
            self._bus.deliver(destination, bool(icr & reg.ICR_LOGICAL), mode, vector)
        elif shorthand == reg.SHORTHAND_SELF:
            self.receive(mode, vector, False)
        else:
            self._bus.broadcast(mode, vector, exclude=self if shorthand == reg.SHORTHAND_OTHERS else None)

    def _send_self(self, vector: int) -> None:
        if vector < reg.FIRST_LEGAL_VECTOR:
            self._error(reg.ESR_SEND_ILLEGAL_VECTOR)
        else:
            self._accept(vector, False)

    def _write_ldr(self, value: int) -> None:
        self._ldr = value & 0xFF000000
        self._bus.forget_routes()

    def _write_dfr(self, value: int) -> None:
        self._dfr = value & reg.DFR_WRITABLE | ~reg.DFR_WRITABLE & 0xFFFFFFFF
        self._bus.forget_routes()

    def _write_svr(self, value: int) -> None:
        self._svr = value & reg.SVR_WRITABLE
        if not value & reg.SVR_ENABLE:
            for lvt in reg.LVTS:
                self._write_lvt(lvt, self._lvt[lvt])

    def _write_esr(self, value: int) -> None:
        """Show the errors seen since the last write."""
        self._esr, self._errors = self._errors, 0

    def _error(self, error: int) -> None:
        if self._errors & error:
            return
        self._errors |= error
        entry = self._lvt[reg.LVT_ERROR]
        if not entry & reg.LVT_MASKED:
            self._accept(entry & 0xFF, False)

    def _write_divide(self, value: int) -> None:
        self._timer.divide = value

    def _write_lvt(self, lvt: int, value: int) -> None:
        value &= reg.LVT_WRITABLE[lvt]
        if not self._svr & reg.SVR_ENABLE:
            value |= reg.LVT_MASKED
        if lvt == reg.LVT_LINT0:
            if value & reg.LVT_LEVEL:
                value |= self._lvt[lvt] & reg.LVT_REMOTE_IRR
            self._lvt[lvt] = value
            self._update_lint0(rising=False)
            self._vectors.update()
            return
        self._lvt[lvt] = value
        if lvt == reg.LVT_TIMER:
            self._timer.configure(TIMER_MODES[value >> reg.LVT_TIMER_MODE_SHIFT & 3], bool(value & reg.LVT_MASKED))

    def _local(self, entry: int) -> None:
        """Do what an LVT entry with a delivery mode says, once."""
        if not entry & reg.LVT_MASKED:
            mode = DELIVERY_MODES[entry >> reg.LVT_MODE_SHIFT & 7]
            if mode not in (DeliveryMode.LOWEST_PRIORITY, DeliveryMode.STARTUP):
                self.receive(mode, entry & 0xFF, False)

    def set_lint0(self, level: bool) -> None:
        """Drive LINT0, where the 8259A pair's INTR is."""
        if level != self._lint0_level:
            self._lint0_level = level
            self._update_lint0(rising=level)
            self._vectors.update()

    def _extint_waits(self) -> bool:
        """Return whether the processor should make INTA cycles; without an enabled APIC LINT0 is its INTR pin."""
        if self._extint_message or not self._enabled:
            return self._extint_message or self._lint0_level
        entry = self._lvt[reg.LVT_LINT0]
        extint = not entry & reg.LVT_MASKED and entry >> reg.LVT_MODE_SHIFT & 7 == DeliveryMode.EXTINT
        return extint and self._lint0_level

    def _update_lint0(self, *, rising: bool) -> None:
        """Act on LINT0's level and entry; `rising` where the level just became active."""
        self._vectors.extint = self._extint_waits()
        entry = self._lvt[reg.LVT_LINT0]
        if not self._lint0_level or entry & reg.LVT_MASKED or not self._enabled:
            return
        mode = entry >> reg.LVT_MODE_SHIFT & 7
        if mode == DeliveryMode.FIXED and entry & reg.LVT_LEVEL:
            if not entry & reg.LVT_REMOTE_IRR and self._accept(entry & 0xFF, True):
                self._lvt[reg.LVT_LINT0] = entry | reg.LVT_REMOTE_IRR
        elif rising and mode != DeliveryMode.EXTINT:
            self._local(entry)

    def lint1_nmi(self) -> None:
        """Make an edge at LINT1, where the machine's NMI line is."""
        if not self._enabled:
            self._cpu.nmi()
        else:
            self._local(self._lvt[reg.LVT_LINT1])

    def _timer_expired(self) -> None:
        entry = self._lvt[reg.LVT_TIMER]
        if not entry & reg.LVT_MASKED:
            self._accept(entry & 0xFF, False)

    def read_tsc_deadline(self) -> int:
        """Return IA32_TSC_DEADLINE: the armed deadline, 0 where there is none."""
        return self._timer.deadline

    def write_tsc_deadline(self, tsc: int) -> None:
        """Write IA32_TSC_DEADLINE; one that is past interrupts at once, 0 disarms."""
        self._timer.deadline = tsc & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def tsc_offset(self) -> int:
        """What the guest's TSC shows beyond `tsc_hz` x guest time."""
        return self._timer.tsc_offset

    @tsc_offset.setter
    def tsc_offset(self, value: int) -> None:
        self._timer.tsc_offset = value


def _highest(bank: bytes) -> int:
    """Return the highest vector of a bank; 0 where it is empty."""
    return max(int.from_bytes(bank, "little").bit_length() - 1, 0)
