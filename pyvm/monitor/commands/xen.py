"""Commands of a Xen tool stack.  No machine of pyvm is a Xen guest; what there is are disks that are replicated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.monitor.commands.block_common import HasStorage, block_errors
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.block.drivers.replication import ReplicationNode

COMMANDS = CommandTable()


def _replicated(context: Context) -> list[ReplicationNode]:
    """Return the nodes of all disks that are replicated."""
    machine = context.machine
    if not isinstance(machine, HasStorage) or machine.storage is None:
        return []
    nodes: list[Any] = list(machine.storage.graph.nodes.values())
    return [node for node in nodes if node.driver == "replication"]


@COMMANDS.command("xen-set-global-dirty-log")
def xen_set_global_dirty_log(context: Context, enable: bool) -> None:
    """Log which pages are written: nobody could ask for the log."""


@COMMANDS.command("xen-set-replication")
def xen_set_replication(context: Context, enable: bool, primary: bool, failover: bool | None) -> None:
    """Start or stop the replication of all disks that are replicated; `failover` forgives those that did not begin."""
    if enable and failover is not None:
        raise QmpError("Parameter 'failover' is only for stopping replication")
    with block_errors():
        for node in _replicated(context):
            if enable:
                node.start(is_primary=primary)
            else:
                node.stop(failover=bool(failover))


@COMMANDS.command("query-xen-replication-status")
def query_xen_replication_status(context: Context) -> dict[str, Any]:
    """Return whether replication has failed: the side that sends cannot tell."""
    return {"error": False}


@COMMANDS.command("xen-colo-do-checkpoint")
def xen_colo_do_checkpoint(context: Context) -> None:
    """Make a checkpoint of all disks that are replicated: only the side that receives has something to do."""
