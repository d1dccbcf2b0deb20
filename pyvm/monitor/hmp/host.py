"""Commands about what the machine does by itself, about its descriptors, and about devices that it lacks."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.schema.record import record_class

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_WATCHDOG_ACTIONS = ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi")
_PROTOCOLS = ("vnc", "spice")
_IF_CONNECTED = ("keep", "fail", "disconnect")
_DRIVES = "abcdefghijklmnop"
_PC_DRIVES = "acdn"
_PC_LIMIT = 3


def _choice(value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise QmpError(f"invalid parameter value: {value}")
    return value


@COMMANDS.command(
    "watchdog_action",
    "action:string",
    parameters="[reset|shutdown|poweroff|pause|debug|none]",
    description="change watchdog action",
)
def watchdog_action(shell: Shell, action: str) -> None:
    """Say what follows when the guest's watchdog fires."""
    shell.qmp("watchdog-set-action", action=_choice(action.lower(), _WATCHDOG_ACTIONS))


@COMMANDS.command(
    "boot_set",
    "bootdevice:string",
    parameters="bootdevice",
    description="define new values for the boot device list",
)
def boot_set(shell: Shell, bootdevice: str) -> str:
    """Say which drives to boot from at the next reset."""
    for place, letter in enumerate(bootdevice):
        if letter not in _DRIVES:
            return f"Invalid boot device '{letter}'\n"
        if letter in bootdevice[:place]:
            return f"Boot device '{letter}' was given twice\n"
    if len(bootdevice) > _PC_LIMIT:
        return "Too many boot devices for PC\n"
    for letter in bootdevice:
        if letter not in _PC_DRIVES:
            return f"Invalid boot device for PC: '{letter}'\n"
    shell.machine_part("set_boot_order")(bootdevice)
    return f"boot device list now set to {bootdevice}\n"


# ---- Descriptors and passwords


@COMMANDS.command(
    "getfd",
    "fdname:string",
    parameters="getfd name",
    description="receive a file descriptor via SCM rights and assign it a name",
)
def getfd(shell: Shell, fdname: str) -> None:
    """Give a name to a descriptor that came with the line."""
    shell.qmp("getfd", fdname=fdname)


@COMMANDS.command(
    "closefd",
    "fdname:string",
    parameters="closefd name",
    description="close a file descriptor previously passed via SCM rights",
)
def closefd(shell: Shell, fdname: str) -> None:
    """Close a descriptor that has a name."""
    shell.qmp("closefd", fdname=fdname)


_Password = record_class("SetPasswordOptions", ("protocol", "password", "connected", "display"))
_Expiry = record_class("ExpirePasswordOptions", ("protocol", "time", "display"))


@COMMANDS.command(
    "set_password",
    "protocol:string password:string -d:string connected:string?",
    parameters="protocol password [-d display] [action-if-connected]",
    description="set spice/vnc password",
)
def set_password(shell: Shell, protocol: str, password: str, d: str | None, connected: str | None) -> None:
    """Set the password of a remote display."""
    options: Any = _Password()
    options.protocol, options.password = _choice(protocol, _PROTOCOLS), password
    options.display, options.connected = d, None if connected is None else _choice(connected, _IF_CONNECTED)
    shell.qmp("set_password", arguments=options)


@COMMANDS.command(
    "expire_password",
    "protocol:string time:string -d:string",
    parameters="protocol time [-d display]",
    description="set spice/vnc password expire-time",
)
def expire_password(shell: Shell, protocol: str, time: str, d: str | None) -> None:
    """Let the password of a remote display end."""
    options: Any = _Expiry()
    options.protocol, options.time, options.display = _choice(protocol, _PROTOCOLS), time, d
    shell.qmp("expire_password", arguments=options)


# ---- What this machine lacks


def _text_of_error(shell: Shell, command: str, **arguments: int) -> str:
    try:
        shell.qmp(command, **arguments)
    except QmpError as error:
        return f"{error.description}\n"
    return ""


@COMMANDS.command(
    "replay_break",
    "icount:int64",
    parameters="icount",
    description="set breakpoint at the specified instruction count",
)
def replay_break(shell: Shell, icount: int) -> str:
    """Refuse: nothing is replayed."""
    return _text_of_error(shell, "replay-break", icount=icount)


@COMMANDS.command("replay_delete_break", description="remove replay breakpoint")
def replay_delete_break(shell: Shell) -> str:
    """Refuse: nothing is replayed."""
    return _text_of_error(shell, "replay-delete-break")


@COMMANDS.command(
    "replay_seek",
    "icount:int64",
    parameters="icount",
    description="replay execution to the specified instruction count",
)
def replay_seek(shell: Shell, icount: int) -> str:
    """Refuse: nothing is replayed."""
    return _text_of_error(shell, "replay-seek", icount=icount)


@INFORMATION.command("replay", description="show record/replay information")
def replay(shell: Shell) -> str:
    """Show that nothing is recorded or replayed."""
    return "Record/replay is not active\n"


@INFORMATION.command("tpm", description="show the TPM device")
def tpm(shell: Shell) -> str:
    """Show the trusted platform modules, of which there are none."""
    return "".join(f"{module['id']}: model={module['model']}\n" for module in shell.qmp("query-tpm"))


@INFORMATION.command("rocker", "name:string", parameters="name", description="Show rocker switch")
def rocker(shell: Shell, name: str) -> None:
    """Show a switch."""
    shell.qmp("query-rocker", name=name)


@INFORMATION.command("rocker-ports", "name:string", parameters="name", description="Show rocker ports")
def rocker_ports(shell: Shell, name: str) -> None:
    """Show the ports of a switch."""
    shell.qmp("query-rocker-ports", name=name)


@INFORMATION.command(
    "rocker-of-dpa-flows",
    "name:string tbl_id:uint32?",
    parameters="name [tbl_id]",
    description="Show rocker OF-DPA flow tables",
)
def rocker_of_dpa_flows(shell: Shell, name: str, tbl_id: int | None) -> None:
    """Show the flows of a switch."""
    shell.qmp("query-rocker-of-dpa-flows", name=name, tbl_id=tbl_id)


@INFORMATION.command(
    "rocker-of-dpa-groups",
    "name:string type:uint32?",
    parameters="name [type]",
    description="Show rocker OF-DPA groups",
)
def rocker_of_dpa_groups(shell: Shell, name: str, type: int | None) -> None:  # noqa: A002 - the name that its help has
    """Show the groups of a switch."""
    shell.qmp("query-rocker-of-dpa-groups", name=name, type=type)
