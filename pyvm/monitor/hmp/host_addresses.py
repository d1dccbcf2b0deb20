"""Commands that tell where guest memory is in the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pyvm.machine.host_address import HostAddressError, HostPlace, find, physical
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc

COMMANDS = CommandTable()
_UINT64 = (1 << 64) - 1


def _place(shell: Shell, gpa: int) -> HostPlace:
    shell.machine_part("board")  # a machine without one has no memory
    return find(cast("Pc", shell.machine), gpa)


@COMMANDS.command(
    "gpa2hva",
    "address:int64",
    parameters="addr",
    description="print the host virtual address corresponding to a guest physical address",
)
def gpa2hva(shell: Shell, address: int) -> str:
    """Show where a physical address is in this process."""
    gpa = address & _UINT64
    try:
        place = _place(shell, gpa)
    except HostAddressError as error:
        return f"{error}\n"
    return f"Host virtual address for {gpa:#x} ({place.name}) is {place.address:#x}\n"


@COMMANDS.command(
    "gpa2hpa",
    "address:int64",
    parameters="addr",
    description="print the host physical address corresponding to a guest physical address",
)
def gpa2hpa(shell: Shell, address: int) -> str:
    """Show where a physical address is in the host's memory."""
    gpa = address & _UINT64
    try:
        place = _place(shell, gpa)
        found = physical(place.address)
    except HostAddressError as error:
        return f"{error}\n"
    return f"Host physical address for {gpa:#x} ({place.name}) is {found:#x}\n"
