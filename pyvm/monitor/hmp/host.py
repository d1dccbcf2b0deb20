"""Commands about what the machine does by itself, about its descriptors, and about devices that it lacks."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.hmp.vnc import with_hint
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


@COMMANDS.command("exit_preconfig", description="exit the preconfig state", preconfig=True)
def exit_preconfig(shell: Shell) -> Any:
    """Make the machine."""
    return shell.qmp("x-exit-preconfig")


# ---- Descriptors and passwords


@COMMANDS.command(
    "getfd",
    "fdname:string",
    parameters="getfd name",
    description="receive a file descriptor via SCM rights and assign it a name",
    preconfig=True,
)
def getfd(shell: Shell, fdname: str) -> None:
    """Give a name to a descriptor that came with the line."""
    shell.qmp("getfd", fdname=fdname)


@COMMANDS.command(
    "closefd",
    "fdname:string",
    parameters="closefd name",
    description="close a file descriptor previously passed via SCM rights",
    preconfig=True,
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
def set_password(shell: Shell, protocol: str, password: str, d: str | None, connected: str | None) -> str:
    """Set the password of a remote display."""
    options: Any = _Password()
    options.protocol, options.password = _choice(protocol, _PROTOCOLS), password
    options.display, options.connected = d, None if connected is None else _choice(connected, _IF_CONNECTED)
    return with_hint(shell, d, "set_password", arguments=options)


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
    "dumpdtb", "filename:string", parameters="filename", description="dump the FDT in dtb format to 'filename'"
)
def dumpdtb(shell: Shell, filename: str) -> None:
    """Refuse: a PC has no device tree."""
    shell.qmp("dumpdtb", filename=filename)


@COMMANDS.command(
    "pcie_aer_inject_error",
    "-a -c id:string error_status:string tlp_header:text?",
    parameters="[-a] [-c] id <error_status> [<tlp header> [<tlp header prefix>]]",
    description="inject pcie aer error (-a: advisory non fatal; -c: correctable)",
)
def pcie_aer_inject_error(
    shell: Shell,
    a: bool,
    c: bool,
    id: str,  # noqa: A002 - the name that its help has
    error_status: str,
    tlp_header: str | None,
) -> str:
    """Refuse: the machine has PCI, not PCI Express."""
    if shell.machine_part("find_device")(id) is None:
        return f"id or pci device path is invalid or device not found. {id}\n"
    return f"the device doesn't support pci express. {id}\n"


@COMMANDS.command(
    "wavcapture",
    "path:filename audiodev:string freq:int64? bits:int64? nchannels:int64?",
    parameters="path audiodev [frequency [bits [channels]]]",
    description="capture audio to a wave file",
)
def wavcapture(
    shell: Shell, path: str, audiodev: str, freq: int | None, bits: int | None, nchannels: int | None
) -> str:
    """Refuse: no sound comes out of this machine."""
    return f"Audiodev '{audiodev}' not found\n"


@COMMANDS.command("stopcapture", "n:int64", parameters="capture index", description="stop capture")
def stopcapture(shell: Shell, n: int) -> None:
    """Stop to record sound: none is recorded."""


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
