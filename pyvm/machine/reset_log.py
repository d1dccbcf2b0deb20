"""The log item `cpu_reset`: what the vCPUs were at when the machine is reset, which tells of a triple fault's cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.monitor.log_items import CPU_RESET

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc


def log_reset(pc: Pc) -> None:
    """Write the registers of all vCPUs to the log, where it is to have them; while the machine is stopped."""
    if CPU_RESET not in pc.traces.items:
        return
    from pyvm.monitor.hmp.registers import show

    for index, state in zip(sorted(pc.cpus.present), pc.cpus.save(), strict=True):
        pc.traces.log(f"CPU Reset (CPU {index})\n{show(state)}")
