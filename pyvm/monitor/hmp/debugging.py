"""Commands for debuggers."""

from __future__ import annotations

from pyvm.chardev.base import ChardevError
from pyvm.monitor.gdb import DEFAULT_DEVICE
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()


@COMMANDS.command(
    "gdbserver",
    "device:string?",
    parameters="[device]",
    description=f"start gdbserver on given device (default '{DEFAULT_DEVICE}'), stop with 'none'",
)
def gdbserver(shell: Shell, device: str | None) -> str:
    """Wait for a debugger on a device, instead of where one was waited for before."""
    wanted = device or DEFAULT_DEVICE
    try:
        shell.machine_part("gdb").move(wanted)
    except ChardevError as error:
        return f"{error}\nCould not open gdbserver on device '{wanted}'\n"
    return "Disabled gdbserver\n" if wanted == "none" else f"Waiting for gdb connection on device '{wanted}'\n"


@COMMANDS.command(
    "singlestep",
    "option:string?",
    parameters="[on|off]",
    description="run emulation in singlestep mode or switch to normal mode",
)
def singlestep(shell: Shell, option: str | None) -> str:
    """Translate guest code by one instruction at a time, or as usual."""
    if option not in (None, "on", "off"):
        return f"unexpected option {option}\n"
    shell.machine_part("cpus").single_instructions = option != "off"
    return ""
