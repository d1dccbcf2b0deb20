"""Registers, bits and state record of the local APIC.

Specification: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, sections 11.4.1 (register map),
11.5.1 (LVT), 11.6.1 (ICR) and 11.12.1.2 (x2APIC register map).  The logic is in `pyvm.devices.lapic`.
"""

from __future__ import annotations

from pyvm.devices.apic_bus import DeliveryMode
from pyvm.devices.lapic_timer import DIVIDE_WRITABLE, LapicTimerState
from pyvm.state import State, array, flag, record, uint

# Offsets in the page; the x2APIC MSR is 0x800 + offset / 16.
ID = 0x020  # read only
VERSION = 0x030  # read only
TPR = 0x080
APR = 0x090  # read only; not in x2APIC mode
PPR = 0x0A0  # read only
EOI = 0x0B0  # write only
RRD = 0x0C0  # read only; not in x2APIC mode
LDR = 0x0D0  # read only in x2APIC mode
DFR = 0x0E0  # not in x2APIC mode
SVR = 0x0F0
ISR = 0x100  # read only, eight registers 0x10 apart, as are TMR and IRR
TMR = 0x180
IRR = 0x200
ESR = 0x280
ICR_LOW = 0x300
ICR_HIGH = 0x310  # not in x2APIC mode, where ICR_LOW has 64 bits
LVT_TIMER = 0x320
LVT_THERMAL = 0x330
LVT_PERFORMANCE = 0x340
LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
LVT_ERROR = 0x370
TIMER_INITIAL = 0x380
TIMER_CURRENT = 0x390  # read only
TIMER_DIVIDE = 0x3E0
SELF_IPI = 0x3F0  # write only; in x2APIC mode only

VERSION_VALUE = 0x00050014
DFR_RESET = 0xFFFFFFFF
DFR_WRITABLE = 0xF0000000
DFR_FLAT = 0xF
SVR_RESET = 0xFF
SVR_ENABLE = 0x100
SVR_WRITABLE = 0x1FF

ESR_SEND_ILLEGAL_VECTOR = 0x20
ESR_RECEIVE_ILLEGAL_VECTOR = 0x40
ESR_ILLEGAL_REGISTER = 0x80
FIRST_LEGAL_VECTOR = 16

ICR_MODE_SHIFT = 8
ICR_LOGICAL = 1 << 11
ICR_STATUS = 1 << 12  # reads 0, as messages are delivered at once
ICR_ASSERT = 1 << 14
ICR_LEVEL = 1 << 15
ICR_WRITABLE = 0xCCFFF
SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS = range(4)

LVT_MODE_SHIFT = 8
LVT_REMOTE_IRR = 1 << 14  # read only; LINT0 alone has it, as LINT1 knows edges only
LVT_LEVEL = 1 << 15
LVT_MASKED = 1 << 16
LVT_TIMER_MODE_SHIFT = 17
LVT_WRITABLE = {
    LVT_TIMER: 0x700FF,
    LVT_THERMAL: 0x107FF,
    LVT_PERFORMANCE: 0x107FF,
    LVT_LINT0: 0x1A7FF,
    LVT_LINT1: 0x1A7FF,
    LVT_ERROR: 0x100FF,
}
LVTS = tuple(LVT_WRITABLE)
LINT0_VIRTUAL_WIRE = DeliveryMode.EXTINT << LVT_MODE_SHIFT

# IA32_APIC_BASE, MSR 0x1b.
BASE_RESET = 0xFEE00000
BASE_BSP = 1 << 8
BASE_X2APIC = 1 << 10
BASE_ENABLE = 1 << 11
BASE_ADDRESS = 0xF_FFFF_F000
BASE_MODE = BASE_X2APIC | BASE_ENABLE

X2APIC_FIRST_MSR = 0x800
X2APIC_LAST_MSR = 0x8FF
NOT_IN_X2APIC = (APR, RRD, DFR, ICR_HIGH)
X2APIC_WRITABLE = {  # a write that sets any other bit, or to any other register, is #GP
    TPR: 0xFF,
    EOI: 0,
    SVR: SVR_WRITABLE,
    ESR: 0,
    ICR_LOW: 0xFFFFFFFF << 32 | ICR_WRITABLE | ICR_STATUS,
    TIMER_INITIAL: 0xFFFFFFFF,
    TIMER_DIVIDE: DIVIDE_WRITABLE,
    SELF_IPI: 0xFF,
    **{lvt: mask | ICR_STATUS | LVT_REMOTE_IRR for lvt, mask in LVT_WRITABLE.items()},
}


class LapicState(State):
    """All registers of one local APIC; the LVT in order of its offsets."""

    apic_base: int = uint(64, BASE_RESET | BASE_ENABLE)
    tpr: int = uint(8)
    ldr: int = uint(32)
    dfr: int = uint(32, DFR_RESET)
    svr: int = uint(9, SVR_RESET)
    isr: int = uint(256)
    tmr: int = uint(256)
    irr: int = uint(256)
    esr: int = uint(8)
    errors: int = uint(8)
    icr: int = uint(64)
    lvt: list[int] = array(uint(19, LVT_MASKED), len(LVTS))
    lint0: bool = flag()
    extint_message: bool = flag()
    timer: LapicTimerState = record(LapicTimerState)
