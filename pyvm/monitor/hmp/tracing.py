"""Commands about trace events and the log."""

from __future__ import annotations

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.log_items import LogItems, MissingItemError, UnknownItemError, listing, parse
from pyvm.monitor.trace import LogFileError

COMMANDS = CommandTable()
INFORMATION = CommandTable()


@COMMANDS.command(
    "trace-event",
    "name:string option:switch vcpu:uint32?",
    parameters="name on|off [vcpu]",
    description="changes status of a specific trace event (vcpu: vCPU to set, default is all)",
)
def trace_event(shell: Shell, name: str, option: bool, vcpu: int | None) -> str:
    """Have trace events told, or not."""
    try:
        shell.qmp("trace-event-set-state", name=name, enable=option, vcpu=vcpu)
    except QmpError as error:
        return f"{error.description}\n"
    return ""


@INFORMATION.command(
    "trace-events",
    "name:string? vcpu:uint32?",
    parameters="[name] [vcpu]",
    description="show available trace-events & their state (name: event name pattern; vcpu: vCPU to query, default is "
    "any)",
)
def trace_events(shell: Shell, name: str | None, vcpu: int | None) -> str:
    """Show which trace events are told."""
    try:
        events = shell.qmp("trace-event-get-state", name=name or "*", vcpu=vcpu)
    except QmpError as error:
        return f"{error.description}\n"
    return "".join(f"{event['name']} : state {event['state'] == 'enabled':d}\n" for event in events)


@COMMANDS.command("logfile", "filename:filename", parameters="filename", description="output logs to 'filename'")
def logfile(shell: Shell, filename: str) -> str:
    """Write the log to a file."""
    try:
        shell.machine_part("traces").set_file(filename)
    except LogFileError as error:
        return f"{error}\n"
    return ""


@COMMANDS.command(
    "log",
    "items:string",
    parameters="item1[,...]",
    description="activate logging of the specified items",
)
def log(shell: Shell, items: str) -> str:
    """Have items logged, or none at all."""
    traces = shell.machine_part("traces")
    try:
        wanted = LogItems() if items == "none" else parse(items)
    except UnknownItemError:
        return listing("log", with_none=True)
    except MissingItemError as error:
        return f"{error}\n"
    if "help" in wanted.patterns:
        return "".join(f"{name}\n" for name in sorted(traces.names()))
    traces.set_items(wanted.names)
    traces.enable(traces.names(), False)
    for pattern in wanted.patterns:
        traces.enable(traces.find(pattern), True)
    return ""
