"""Commands about trace events and the log."""

from __future__ import annotations

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.trace import LogFileError

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_ITEMS = """\
Log items (comma separated):
none            remove all logs
trace:PATTERN   enable trace events

Use "log trace:help" to get a list of trace events.

"""


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
    description="activate logging of the specified items ('none', or 'trace:PATTERN' for trace events)",
)
def log(shell: Shell, items: str) -> str:
    """Have trace events told, or none at all."""
    traces = shell.machine_part("traces")
    wanted: list[str] = []
    for item in items.split(","):
        kind, separator, pattern = item.partition(":")
        if kind == "trace" and pattern == "help":
            return "".join(f"{name}\n" for name in sorted(traces.names()))
        if kind == "trace" and separator:
            wanted += traces.find(pattern)
        elif item != "none":
            return _ITEMS
    traces.enable(traces.names(), False)
    traces.enable(wanted, True)
    return ""
