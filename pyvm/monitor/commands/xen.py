"""Commands of a Xen tool stack.  No machine of pyvm is a Xen guest: there is nothing to log or replicate."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


@COMMANDS.command("xen-set-global-dirty-log")
def xen_set_global_dirty_log(context: Context, enable: bool) -> None:
    """Log which pages are written: nobody could ask for the log."""


@COMMANDS.command("xen-set-replication")
def xen_set_replication(context: Context, enable: bool, primary: bool, failover: bool | None) -> None:
    """Start or stop the replication of all disks that are replicated: there are none."""
    if enable and failover is not None:
        raise QmpError("Parameter 'failover' is only for stopping replication")


@COMMANDS.command("query-xen-replication-status")
def query_xen_replication_status(context: Context) -> dict[str, Any]:
    """Return whether replication has failed: none is under way."""
    return {"error": False}


@COMMANDS.command("xen-colo-do-checkpoint")
def xen_colo_do_checkpoint(context: Context) -> None:
    """Make a checkpoint of all disks that are replicated: there are none."""
