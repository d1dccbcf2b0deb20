"""Thread identifiers of GDB's remote serial protocol: vCPUs are the threads of one process.

GDB manual, appendix E.2.  A thread is numbered from 1, so vCPU 0 is thread 1; 0 stands for any, -1 for all.
"""

from __future__ import annotations

from typing import NamedTuple

from pyvm.monitor.gdb.packets import unsigned

PROCESS = 1
"""The one process: the machine."""
ANY, ALL = 0, -1

_BITS = 32


class ThreadId(NamedTuple):
    """A process and a thread of it, each a number, :data:`ANY` or :data:`ALL`."""

    process: int
    thread: int

    def matches(self, vcpu: int) -> bool:
        """Return whether a vCPU is meant, alone or among others."""
        return self.process in (PROCESS, ANY, ALL) and self.thread in (vcpu + 1, ANY, ALL)


def _number(text: bytes) -> int | None:
    return ALL if text == b"-1" else unsigned(text, _BITS)


def parse(text: bytes) -> ThreadId | None:
    """Return what ``TID``, ``pPID`` or ``pPID.TID`` means; None where it is none of these."""
    process: int | None = ANY
    thread: int | None
    if text.startswith(b"p"):
        first, dot, rest = text[1:].partition(b".")
        process, thread = _number(first), _number(rest) if dot else ALL
    else:
        thread = _number(text)
    return None if process is None or thread is None else ThreadId(process, thread)


def shown(vcpu: int, *, multiprocess: bool) -> bytes:
    """Return the identifier of a vCPU, with its process where the debugger knows of processes."""
    return b"p%02x.%02x" % (PROCESS, vcpu + 1) if multiprocess else b"%02x" % (vcpu + 1)
