"""Commands about snapshots of the whole machine in its disks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.records import Snapshot

COMMANDS = CommandTable()
INFORMATION = CommandTable()


def _machine(shell: Shell) -> Any:
    """Return the machine, which must be one with disks."""
    storage_of(shell.machine)
    return shell.machine


@COMMANDS.command(
    "savevm",
    "name:string?",
    parameters="tag",
    description="save a VM snapshot. If no tag is provided, a new snapshot is created",
)
def savevm(shell: Shell, name: str | None) -> None:
    """Save the machine in its disks; a snapshot of that name goes."""
    from pyvm.machine.saved import vm_snapshots

    with block_errors():
        vm_snapshots.save(_machine(shell), name, overwrite=True)


@COMMANDS.command("loadvm", "name:string", parameters="tag", description="restore a VM snapshot from its tag")
def loadvm(shell: Shell, name: str) -> None:
    """Let the machine and its disks be as they were."""
    from pyvm.machine.saved import vm_snapshots

    with block_errors():
        vm_snapshots.load_and_go_on(_machine(shell), name)


@COMMANDS.command("delvm", "name:string", parameters="tag", description="delete a VM snapshot from its tag")
def delvm(shell: Shell, name: str) -> None:
    """Forget a snapshot."""
    from pyvm.machine.saved import vm_snapshots

    with block_errors():
        vm_snapshots.delete(_machine(shell), name)


@INFORMATION.command("snapshots", description="show the currently saved VM snapshots")
def info_snapshots(shell: Shell) -> str:
    """Show the snapshots that can be loaded, and those that only some disks have."""
    from pyvm.machine.saved import vm_snapshots

    try:
        common, partial = vm_snapshots.listing(storage_of(shell.machine))
    except BlockError as error:
        return f"{error}\n"
    if not common and not partial:
        return "There is no snapshot available.\n"
    text = "List of snapshots present on all disks:\n"
    # Each disk has an ID of its own for it.
    text += _table([{**_info(it), "id": "--"} for it in common]) if common else "None\n"
    for name, snapshots in partial:
        text += f"\nList of partial (non-loadable) snapshots on '{name}':\n"
        text += _table([_info(it) for it in snapshots])
    return text


def _info(snapshot: Snapshot) -> dict[str, Any]:
    from pyvm.block.info import snapshot_info

    return snapshot_info(snapshot)


def _table(snapshots: Iterable[dict[str, Any]]) -> str:
    from pyvm.block.info_text import snapshot_lines

    title, *lines = snapshot_lines(snapshots)
    del title
    return "".join(f"{line}\n" for line in lines)
