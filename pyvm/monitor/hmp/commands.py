"""Commands that do something, and `help`."""

from __future__ import annotations

from pyvm.devices.display.screendump import FORMATS
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp import (
    block,
    block_jobs,
    character,
    debugging,
    dumping,
    examine,
    host,
    host_addresses,
    migration,
    network,
    objects,
    parts,
    tracing,
    vm_snapshots,
    vnc,
)
from pyvm.monitor.hmp import input as typing
from pyvm.monitor.hmp.arguments import Format
from pyvm.monitor.hmp.information import INFORMATION
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable, UnknownCommandError, help_line
from pyvm.monitor.log_items import listing

COMMANDS = CommandTable()
for _chapter in (
    block,
    block_jobs,
    character,
    debugging,
    dumping,
    examine,
    host,
    host_addresses,
    migration,
    network,
    objects,
    tracing,
    typing,
    vm_snapshots,
):
    COMMANDS.include(_chapter.COMMANDS)
for _subjects in (
    block,
    block_jobs,
    dumping,
    examine,
    host,
    migration,
    network,
    objects,
    parts,
    tracing,
    typing,
    vm_snapshots,
    vnc,
):
    INFORMATION.include(_subjects.INFORMATION)

_PORT_SUFFIX = {1: "b", 2: "w", 4: "l"}
_PRINTABLE = range(32, 127)
_ESCAPES = {ord("'"): "\\'", ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r"}
_INT64_END = 1 << 63
_INT32_SIGN = 1 << 31


# ---- The monitor itself


@COMMANDS.command(
    "help|?",
    "name:text?",
    parameters="[cmd]",
    description="show the help",
    preconfig=True,
    completes=COMMANDS,
)
def show_help(shell: Shell, name: str | None) -> str:
    """Show the help on all commands, on one, or on all that follow one's name; for `log`, what it takes."""
    if name is not None and name.strip() == "log":
        return listing("log", with_none=True)
    table: CommandTable | None = COMMANDS
    path = ""
    for word in (name or "").split():
        if table is None:
            break  # words behind the name of a command are its arguments
        command = table.get(word)
        if command is None or not (shell.initialized or command.preconfig):
            return f"{UnknownCommandError(path + word)}\n"
        if command.subcommands is None:
            return help_line(path, command)
        table, path = command.subcommands, f"{path}{word} "
    return COMMANDS.help("", shell.initialized) if table is None else table.help(path, shell.initialized)


@COMMANDS.command(
    "info",
    parameters="[subcommand]",
    description="show various information about the system state",
    preconfig=True,
    subcommands=INFORMATION,
)
def show_subjects(shell: Shell) -> str:
    """Show what there is information about."""
    return INFORMATION.help("info ", shell.initialized)


@COMMANDS.command("quit|q", description="quit the emulator", preconfig=True)
def quit_emulator(shell: Shell) -> None:
    """End the process."""
    shell.qmp("quit")
    shell.state.ended = True


@COMMANDS.command("cpu", "index:uint32", parameters="index", description="set the default CPU")
def set_cpu(shell: Shell, index: int) -> str:
    """Choose the vCPU that other commands are about."""
    if not any(vcpu["cpu-index"] == index for vcpu in shell.qmp("query-cpus-fast")):
        return "invalid CPU index\n"
    shell.state.cpu = index
    return ""


# ---- The machine


@COMMANDS.command("stop|s", description="stop emulation")
def stop(shell: Shell) -> None:
    """Stop the guest."""
    shell.qmp("stop")


@COMMANDS.command("cont|c", description="resume emulation")
def cont(shell: Shell) -> None:
    """Let the guest run."""
    shell.qmp("cont")


@COMMANDS.command("system_reset", description="reset the system")
def system_reset(shell: Shell) -> None:
    """Reset the machine."""
    shell.qmp("system_reset")


@COMMANDS.command("system_powerdown", description="send system power down event")
def system_powerdown(shell: Shell) -> None:
    """Press the power button."""
    shell.qmp("system_powerdown")


@COMMANDS.command("system_wakeup", description="wakeup guest from suspend")
def system_wakeup(shell: Shell) -> None:
    """Wake the guest from suspend-to-RAM."""
    shell.qmp("system_wakeup")


@COMMANDS.command("nmi", description="inject an NMI")
def nmi(shell: Shell) -> None:
    """Send a non-maskable interrupt."""
    shell.qmp("inject-nmi")


@COMMANDS.command(
    "balloon",
    "target:megabytes",
    parameters="target",
    description="request VM to change its memory allocation (in MB)",
)
def balloon(shell: Shell, target: int) -> None:
    """Ask the guest for memory, or give it memory."""
    if target >= _INT64_END:
        shell.qmp("query-balloon")  # without a balloon, no size is right
        raise QmpError("Parameter 'target' expects a size")
    shell.qmp("balloon", value=target)


# ---- The screen


@COMMANDS.command(
    "screendump",
    "filename:filename -f:string device:string? head:uint32?",
    parameters="filename [-f format] [device [head]]",
    description="save a picture of the screen, or of head 'head' of display device 'device', as a 'ppm' or 'png' file",
)
def screendump(shell: Shell, filename: str, f: str | None, device: str | None, head: int | None) -> None:
    """Write what a display shows to a file."""
    if f is not None and f not in FORMATS:
        raise QmpError(f"invalid parameter value: {f}")
    if head is not None:
        head = (head ^ _INT32_SIGN) - _INT32_SIGN
    shell.qmp("screendump", filename=filename, device=device, head=head, format=f)


# ---- Values


def _character(value: int) -> str:
    """Return a character constant, as C has it."""
    value &= 0xFFFFFFFF
    text = _ESCAPES.get(value) or (chr(value) if value in _PRINTABLE else f"\\x{value:02x}")
    return f"'{text}'"


def show_value(value: int, letter: str) -> str:
    """Return `value`, a signed 64-bit integer, as the letter of a format says."""
    unsigned = value & 0xFFFFFFFFFFFFFFFF
    match letter:
        case "x":
            return f"{unsigned:#x}" if unsigned else "0"
        case "o":
            return f"0{unsigned:o}" if unsigned else "0"
        case "u":
            return str(unsigned)
        case "c":
            return _character(value)
        case _:
            return str(value)


@COMMANDS.command(
    "print|p",
    "format:format value:int64",
    parameters="/fmt expr",
    description="print expression value (use $reg for CPU register access)",
)
def print_value(shell: Shell, format: Format, value: int) -> str:  # noqa: A002 - the name that its help has
    """Show the value of an expression."""
    shell.state.format = format
    return show_value(value, format.letter) + "\n"


@COMMANDS.command("i", "format:format address:uint32", parameters="/fmt addr", description="I/O port read")
def port_read(shell: Shell, format: Format, address: int) -> str:  # noqa: A002
    """Read an I/O port."""
    from pyvm.monitor.hmp.hardware import inspect

    shell.state.format = format
    size = format.size if format.size in _PORT_SUFFIX else 1
    port = address & 0xFFFF
    value = inspect(shell.machine).board.ports.read(port, size)
    return f"port{_PORT_SUFFIX[size]}[0x{port:04x}] = 0x{value:0{format.size * 2}x}\n"


@COMMANDS.command(
    "o", "format:format address:uint32 value:uint32", parameters="/fmt addr value", description="I/O port write"
)
def port_write(shell: Shell, format: Format, address: int, value: int) -> None:  # noqa: A002
    """Write an I/O port."""
    from pyvm.monitor.hmp.hardware import inspect

    shell.state.format = format
    size = format.size if format.size in _PORT_SUFFIX else 1
    inspect(shell.machine).board.ports.write(address & 0xFFFF, size, value & (1 << 8 * size) - 1)
