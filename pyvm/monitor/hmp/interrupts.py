"""Interrupt controllers as text, laid out as QEMU's `info lapic` and `info pic`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.devices import ioapic as io
from pyvm.devices import lapic_regs as reg
from pyvm.devices.apic_bus import DELIVERY_MODES, DeliveryMode
from pyvm.devices.lapic_timer import TimerMode

if TYPE_CHECKING:
    from pyvm.devices.ioapic import IoApicState
    from pyvm.devices.lapic import Lapic
    from pyvm.devices.lapic_regs import LapicState
    from pyvm.devices.lapic_timer import LapicTimerState
    from pyvm.devices.pic import PicPairState, PicState

_LOCAL_MODES = {
    DeliveryMode.FIXED: "Fixed",
    DeliveryMode.SMI: "SMI",
    DeliveryMode.NMI: "NMI",
    DeliveryMode.INIT: "INIT",
    DeliveryMode.EXTINT: "ExtINT",
}
_PIN_MODES = {
    DeliveryMode.FIXED: "fixed",
    DeliveryMode.LOWEST_PRIORITY: "lowest",
    DeliveryMode.SMI: "SMI",
    DeliveryMode.NMI: "NMI",
    DeliveryMode.INIT: "INIT",
    DeliveryMode.EXTINT: "extINT",
}
_RESERVED_MODE = "..."
_TIMER_MODES = {
    TimerMode.ONE_SHOT: "one-shot",
    TimerMode.PERIODIC: "periodic",
    TimerMode.TSC_DEADLINE: "tsc-deadline",
}
_LVT_NAMES = (
    ("LVT0", reg.LVT_LINT0),
    ("LVT1", reg.LVT_LINT1),
    ("LVTPC", reg.LVT_PERFORMANCE),
    ("LVTERR", reg.LVT_ERROR),
    ("LVTTHMR", reg.LVT_THERMAL),
    ("LVTT", reg.LVT_TIMER),
)
_SHORTHANDS = ("no-shorthand", "self", "all-self", "all")
_ACTIVE_LOW = 1 << 13
_FOCUS_CHECK = 1 << 9
_X2APIC_REGISTER_SHIFT = 4


def _polarity(entry: int) -> str:
    return "active-lo" if entry & _ACTIVE_LOW else "active-hi"


def _trigger(level: int) -> str:
    return "level" if level else "edge"


# ---- Local APIC


def _lvt(name: str, offset: int, entry: int) -> str:
    mode = DELIVERY_MODES[entry >> reg.LVT_MODE_SHIFT & 7]
    masked = "masked" if entry & reg.LVT_MASKED else ""
    timer = ""
    if offset == reg.LVT_TIMER:
        timer = _TIMER_MODES.get(TimerMode(entry >> reg.LVT_TIMER_MODE_SHIFT & 3), _RESERVED_MODE)
    # Nothing is ever on its way to the processor, so the column for that stays empty.
    line = (
        f"{name}\t 0x{entry:08x} {_polarity(entry)} {_trigger(entry & reg.LVT_LEVEL):<5} {masked:<6} {'':7} "
        f"{timer:<12} {_LOCAL_MODES.get(mode, _RESERVED_MODE):<6}"
    )
    return line if mode is DeliveryMode.NMI else f"{line} (vec {entry & 0xFF})"


def _command(state: LapicState) -> list[str]:
    """Return the lines on the interrupt command register."""
    low, high = state.icr & 0xFFFFFFFF, state.icr >> 32
    shorthand = low >> 18 & 3
    logical = low & reg.ICR_LOGICAL
    destination = ""
    if shorthand == reg.SHORTHAND_NONE:
        x2apic = state.apic_base & reg.BASE_X2APIC
        number = high if x2apic else high >> 24
        destination = f" mask {number:0{32 if x2apic else 8}b} (APIC ID)" if logical else f" cpu {number} (APIC ID)"
    kind, level = "logical" if logical else "physical", "assert" if low & reg.ICR_ASSERT else "de-assert"
    return [
        f"ICR\t 0x{low:08x} {kind} {_trigger(low & reg.ICR_LEVEL)} {level} {_SHORTHANDS[shorthand]}",
        f"ICR2\t 0x{high:08x}{destination}",
    ]


def _vectors(name: str, vectors: int, level: int) -> str:
    text = "".join(
        f"{vector} {'(level) ' if level >> vector & 1 else ''}" for vector in range(256) if vectors >> vector & 1
    )
    return f"{name}\t {text or '(none)'}"


def _read(chip: Lapic, x2apic: bool, offset: int) -> int:
    """Read a register that is computed when it is read, and that reading does not change."""
    if not x2apic:
        return chip.read(offset, 4)
    return chip.msr_read(reg.X2APIC_FIRST_MSR + (offset >> _X2APIC_REGISTER_SHIFT)) or 0


def _timer(timer: LapicTimerState, current: int) -> str:
    shift = (timer.divide & 3 | timer.divide >> 1 & 4) + 1 & 7
    divide = f"DCR=0x{timer.divide:x} (divide by {1 << shift})"
    return f"Timer\t {divide} initial_count = {timer.initial} current_count = {current}"


def _spurious(svr: int) -> str:
    enabled, focus = "enabled" if svr & reg.SVR_ENABLE else "disabled", "on" if svr & _FOCUS_CHECK else "off"
    return f"SPIV\t 0x{svr:08x} APIC {enabled}, focus={focus}, spurious vec {svr & 0xFF}"


def _priorities(chip: Lapic, state: LapicState, x2apic: bool) -> dict[str, int]:
    """Return the registers on priorities and logical destinations."""
    return {
        "APR": chip.arbitration_priority(),
        "TPR": state.tpr,
        "DFR": state.dfr >> 28,
        "LDR": _read(chip, x2apic, reg.LDR) if x2apic else state.ldr >> 24,
        "PPR": _read(chip, x2apic, reg.PPR),
    }


def show_lapic(index: int, chip: Lapic) -> str:
    """Return the registers of the local APIC of vCPU `index`."""
    state = chip.save()
    x2apic = bool(state.apic_base & reg.BASE_X2APIC)
    lvts = dict(zip(reg.LVTS, state.lvt, strict=True))
    lines = [
        f"dumping local APIC state for CPU {index} ",
        "",
        *(_lvt(name, offset, lvts[offset]) for name, offset in _LVT_NAMES),
        _timer(state.timer, _read(chip, x2apic, reg.TIMER_CURRENT)),
        _spurious(state.svr),
        *_command(state),
        f"ESR\t 0x{state.esr:08x}",
        _vectors("ISR", state.isr, state.tmr),
        _vectors("IRR", state.irr, state.tmr),
        "",
        " ".join(f"{name} 0x{value:02x}" for name, value in _priorities(chip, state, x2apic).items()),
    ]
    return "".join(f"{line}\n" for line in lines)


# ---- I/O APIC and PICs


def _pin(number: int, entry: int) -> str:
    mode = DELIVERY_MODES[entry >> io.ENTRY_MODE_SHIFT & 7]
    masked = "masked" if entry & io.ENTRY_MASKED else ""
    return (
        f"  pin {number:<2} 0x{entry:016x} dest={entry >> io.ENTRY_DESTINATION_SHIFT:x} vec={entry & 0xFF:<3} "
        f"{_polarity(entry)} {_trigger(entry & io.ENTRY_LEVEL):<5} {masked:<6} "
        f"{_PIN_MODES.get(mode, _RESERVED_MODE):<6} {'logical' if entry & io.ENTRY_LOGICAL else 'physical'}"
    )


def _pins(name: str, pins: list[int]) -> str:
    text = "".join(f"{number} " for number in pins)
    return f"  {name:<8} {text or '(none)'}"


def show_ioapic(state: IoApicState) -> str:
    """Return the registers of the I/O APIC."""
    select = f"0x{state.ioregsel:02x}"
    if state.ioregsel >= io.REG_REDIRECTION:
        select += f" (redir[{state.ioregsel - io.REG_REDIRECTION >> 1}])"
    entries = list(enumerate(state.entries))
    lines = [
        f"ioapic0: ver=0x{io.VERSION & 0xFF:x} id=0x{state.id:02x} sel={select}",
        *(_pin(number, entry) for number, entry in entries),
        _pins("IRR", [number for number, _ in entries if state.lines >> number & 1]),
        _pins("Remote IRR", [number for number, entry in entries if entry & io.ENTRY_REMOTE_IRR]),
    ]
    return "".join(f"{line}\n" for line in lines)


def _pic(number: int, state: PicState) -> str:
    return (
        f"pic{number}: irr={state.irr:02x} imr={state.imr:02x} isr={state.isr:02x} hprio={(state.lowest + 1) & 7} "
        f"irq_base={state.base:02x} rr_sel={int(state.read_isr)} elcr={state.elcr:02x} "
        f"fnm={int(state.special_fully_nested)}\n"
    )


def show_pics(state: PicPairState) -> str:
    """Return the registers of the pair of PICs."""
    return _pic(1, state.slave) + _pic(0, state.master)
