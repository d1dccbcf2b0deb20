"""Commands that tell where guest memory is in the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from pyvm.machine.host_address import HostAddressError, find, physical
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc

COMMANDS = CommandTable()
_UINT64 = (1 << 64) - 1


def _show(shell: Shell, address: int, kind: str, host_address: Callable[[int], int]) -> str:
    """Show what `host_address` makes of the place of a physical address in this process."""
    gpa = address & _UINT64
    shell.machine_part("board")  # a machine without one has no memory
    try:
        place = find(cast("Pc", shell.machine), gpa)
        found = host_address(place.address)
    except HostAddressError as error:
        return f"{error}\n"
    return f"Host {kind} address for {gpa:#x} ({place.name}) is {found:#x}\n"


@COMMANDS.command(
    "gpa2hva",
    "address:int64",
    parameters="addr",
    description="print the host virtual address corresponding to a guest physical address",
)
def gpa2hva(shell: Shell, address: int) -> str:
    """Show where a physical address is in this process."""
    return _show(shell, address, "virtual", lambda found: found)


@COMMANDS.command(
    "gpa2hpa",
    "address:int64",
    parameters="addr",
    description="print the host physical address corresponding to a guest physical address",
)
def gpa2hpa(shell: Shell, address: int) -> str:
    """Show where a physical address is in the host's memory."""
    return _show(shell, address, "physical", physical)
