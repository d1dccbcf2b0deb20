"""Commands that belong to no other chapter."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.descriptors import none_supplied
from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.monitor.descriptors import FdSets

COMMANDS = CommandTable()

LINE_LIMIT = 1 << 16
"""Most characters of a line for the human monitor: it is read by hand, with all others waiting."""


@runtime_checkable
class Dumping(Protocol):
    """A machine whose memory may be being dumped."""

    @property
    def dump_in_progress(self) -> bool:
        """Whether it is, so that the guest must not run."""


@runtime_checkable
class VncOwner(Protocol):
    """A machine with VNC servers."""

    def add_vnc_client(self, fd: int, skip_authentication: bool) -> None:
        """Serve the client on `fd`, which becomes the server's."""


@COMMANDS.command("add_client")
def add_client(context: Context, protocol: str, fdname: str, skipauth: bool | None, tls: bool | None) -> None:
    """Hand a connection to a remote display."""
    fd = context.session.named_fds.require(fdname)
    if protocol == "vnc" and isinstance(context.machine, VncOwner):
        context.machine.add_vnc_client(fd, bool(skipauth))
        return
    os.close(fd)
    if protocol == "spice":
        raise QmpError("SPICE is not in use", DEVICE_NOT_ACTIVE)
    if protocol == "@dbus-display":
        raise QmpError("D-Bus display is not in use", DEVICE_NOT_ACTIVE)
    if protocol != "vnc":
        raise QmpError(f"protocol '{protocol}' is invalid")


@COMMANDS.command("query-name")
def query_name(context: Context) -> dict[str, Any]:
    """Return the machine's name, where it has one."""
    name = context.machine.name
    return {} if name is None else {"name": name}


@COMMANDS.command("query-iothreads")
def query_iothreads(context: Context) -> list[dict[str, Any]]:
    """Return the I/O threads, the newest first."""
    from pyvm.monitor.commands.block_common import storage_of

    return [
        {"id": thread.id, "thread-id": thread.thread_id, **thread.properties}
        for thread in reversed(storage_of(context.machine).iothreads.values())
    ]


@COMMANDS.command("stop")
def stop(context: Context) -> None:
    """Stop the guest; while a migration comes in, do not start it afterwards."""
    machine = context.machine
    if machine.run_state is RunState.INMIGRATE:
        machine.autostart = False
    else:
        machine.vm_stop(RunState.PAUSED)


@COMMANDS.command("cont")
def cont(context: Context) -> None:
    """Let the guest run; while a migration comes in, start it afterwards."""
    machine = context.machine
    state = machine.run_state
    if isinstance(machine, Dumping) and machine.dump_in_progress:
        raise QmpError("There is a dump in process, please wait.")
    if machine.needs_reset:
        raise QmpError("Resetting the Virtual Machine is required")
    if state is RunState.SUSPENDED:
        return
    if state is RunState.FINISH_MIGRATE:
        raise QmpError("Migration is not finalized yet")
    if state is RunState.INMIGRATE:
        machine.autostart = True
    else:
        machine.vm_start()


@COMMANDS.command("human-monitor-command")
def human_monitor_command(context: Context, command_line: str, cpu_index: int | None) -> str | Coroutine[Any, Any, str]:
    """Execute a line of the human monitor; return the text that it leads to."""
    from pyvm.monitor.hmp.shell import execute

    if len(command_line) > LINE_LIMIT:
        raise QmpError(f"The command line is longer than {LINE_LIMIT} characters")
    return execute(context, command_line, cpu_index)


# ---- File descriptors


@COMMANDS.command("getfd")
def getfd(context: Context, fdname: str) -> None:
    """Give a name to a descriptor that came with the command."""
    fd = context.session.take_fd()
    if fd is None:
        raise none_supplied()
    context.session.named_fds.put(fdname, fd)


@COMMANDS.command("closefd")
def closefd(context: Context, fdname: str) -> None:
    """Close a descriptor that has a name."""
    context.session.named_fds.drop(fdname)


def _fdsets(context: Context) -> FdSets:
    from pyvm.monitor.dispatcher import FdSetOwner

    machine = context.machine
    if not isinstance(machine, FdSetOwner):
        raise unsupported()
    return machine.fdsets


@COMMANDS.command("add-fd")
def add_fd(context: Context, fdset_id: int | None, opaque: str | None) -> dict[str, Any]:
    """Put a descriptor that came with the command into a set."""
    sets = _fdsets(context)
    fd = context.session.take_fd()
    if fd is None:
        raise none_supplied()
    try:
        return {"fdset-id": sets.add(fd, fdset_id, opaque), "fd": fd}
    except QmpError:
        os.close(fd)
        raise


@COMMANDS.command("remove-fd")
def remove_fd(context: Context, fdset_id: int, fd: int | None) -> None:
    """Take a descriptor, or all, out of a set."""
    _fdsets(context).remove(fdset_id, fd, running=context.machine.run_state is RunState.RUNNING)


@COMMANDS.command("query-fdsets")
def query_fdsets(context: Context) -> list[dict[str, Any]]:
    """Return all sets of descriptors."""
    return [
        {
            "fdset-id": set_id,
            "fds": [{"fd": fd} if opaque is None else {"fd": fd, "opaque": opaque} for fd, opaque in members],
        }
        for set_id, members in _fdsets(context).query()
    ]


@COMMANDS.command("rtc-reset-reinjection")
def rtc_reset_reinjection(context: Context) -> None:
    """Forget clock interrupts that the guest missed; without `-rtc driftfix=slew` none are kept."""
    board = getattr(context.machine, "board", None)
    if board is not None:
        board.rtc.forget_missed()
