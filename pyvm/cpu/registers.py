"""The register state of a vCPU as a checked record, and as boot loaders set it.

The engine hands registers over as a dict (see `pyvm/native/state.c`); a record has the same names.  What follows from
these registers, as the hidden flags of the translator do, is computed by the engine and never part of a record.
"""

from __future__ import annotations

from typing import Any, Self

from pyvm.state import State, StateError, blob, flag, integer, record, text, uint

ACTIVITIES = ("running", "halted", "wait-for-sipi")
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10
_CR0_PE = 1
_A20_MASKS = (0xFFFFFFFF, 0xFFEFFFFF)
_CR0_PG = 1 << 31
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt")


class SegmentState(State):
    """A segment register with its descriptor cache; `flags` is the second word of the descriptor."""

    selector: int = uint(32)
    base: int = uint(64)
    limit: int = uint(32)
    flags: int = uint(32)


class RegisterState(State):
    """All registers of one vCPU, and what it is doing."""

    gpr: bytes = blob(16 * 8, exact=True)
    rip: int = uint(64)
    rflags: int = uint(64, 2)
    es: SegmentState = record(SegmentState)
    cs: SegmentState = record(SegmentState)
    ss: SegmentState = record(SegmentState)
    ds: SegmentState = record(SegmentState)
    fs: SegmentState = record(SegmentState)
    gs: SegmentState = record(SegmentState)
    ldt: SegmentState = record(SegmentState)
    tr: SegmentState = record(SegmentState)
    gdt: SegmentState = record(SegmentState)
    idt: SegmentState = record(SegmentState)
    cr0: int = uint(32)
    cr2: int = uint(64)
    cr3: int = uint(64)
    cr4: int = uint(32)
    a20_mask: int = uint(32, 0xFFFFFFFF)
    efer: int = uint(64)
    fpu_top: int = integer(0, 7)
    fpu_status: int = uint(16)
    fpu_control: int = uint(16, 0x37F)
    fpu_opcode: int = uint(16)
    fpu_ip: int = uint(64)
    fpu_dp: int = uint(64)
    fpu_tags: bytes = blob(8, exact=True)
    fpu_registers: bytes = blob(8 * 16, exact=True)
    mxcsr: int = uint(16, 0x1F80)
    xmm: bytes = blob(16 * 16, exact=True)
    sysenter_cs: int = uint(32)
    sysenter_esp: int = uint(64)
    sysenter_eip: int = uint(64)
    star: int = uint(64)
    lstar: int = uint(64)
    cstar: int = uint(64)
    fmask: int = uint(64)
    kernel_gs_base: int = uint(64)
    tsc_aux: int = uint(64)
    tsc_offset: int = uint(64)
    xcr0: int = uint(64, 1)
    misc_enable: int = uint(64, 1)
    pat: int = uint(64, 0x0007040600070406)
    pkru: int = uint(32)
    dr0: int = uint(64)
    dr1: int = uint(64)
    dr2: int = uint(64)
    dr3: int = uint(64)
    dr6: int = uint(64, 0xFFFF0FF0)
    dr7: int = uint(64, 0x400)
    nmi_masked: bool = flag()
    interrupt_shadow: bool = flag()
    activity: str = text(16, "running")
    nmi_pending: bool = flag()
    init_pending: bool = flag()
    sipi_vector: int = integer(-1, 255, -1)

    def check(self, path: str = "") -> None:
        """Verify each field, and that the modes the control registers select exist together."""
        super().check(path)
        if self.activity not in ACTIVITIES:
            raise StateError(f"{path or 'RegisterState'}.activity: unknown {self.activity!r}")
        if self.cr0 & _CR0_PG and not self.cr0 & _CR0_PE:
            raise StateError(f"{path or 'RegisterState'}.cr0: paging without protection")
        if self.a20_mask not in _A20_MASKS:
            raise StateError(f"{path or 'RegisterState'}.a20_mask: neither open nor closed")
        active = bool(self.efer & _EFER_LME and self.cr0 & _CR0_PG)
        if active != bool(self.efer & _EFER_LMA):
            raise StateError(f"{path or 'RegisterState'}.efer: long mode does not agree with CR0")

    def to_engine(self) -> dict[str, Any]:
        """Return what the engine's `set_state` takes."""
        values = self.to_dict()
        for name in _SEGMENTS:
            segment = getattr(self, name)
            values[name] = (segment.selector, segment.base, segment.limit, segment.flags)
        return values

    @classmethod
    def from_engine(cls, values: dict[str, Any]) -> Self:
        """Build a record from what the engine's `get_state` returns."""
        plain = dict(values)
        for name in _SEGMENTS:
            selector, base, limit, flags = values[name]
            plain[name] = {"selector": selector, "base": base, "limit": limit, "flags": flags}
        return cls.from_dict(plain)
