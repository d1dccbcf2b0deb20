"""The log's items about what guest code does, which the processors tell of while somebody wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.monitor.log_items import GUEST_ERRORS

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc


def follow(pc: Pc) -> None:
    """Have the processors tell what the log is to have from now on."""
    log = pc.traces.log

    def nothing_there(access: str, gpa: int, size: int) -> None:
        log(f"Invalid {access} at addr 0x{gpa:X}, size {size}, region '(null)', reason: rejected\n")

    pc.cpus.on_nothing = nothing_there if GUEST_ERRORS in pc.traces.items else None
