"""Commands that type and point, and `info mice`."""

from __future__ import annotations

import re

from pyvm.devices.keycodes import key_names
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_NUMBER = re.compile(r"[ \t\n\v\f\r]*([-+]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_INT32 = 1 << 31


def _integer(text: str) -> int:
    """Return the number at the start of `text` as C's strtol() reads it, in 32 bits; 0 where there is none."""
    found = _NUMBER.match(text)
    if found is None:
        return 0
    digits = found[2]
    value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    value = min(value, (1 << 63) - 1)
    return ((-value if found[1] == "-" else value) + _INT32) % (2 * _INT32) - _INT32


@COMMANDS.command(
    "sendkey",
    "keys:string hold_time:uint32?",
    parameters="keys [hold_ms]",
    description="send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)",
)
def sendkey(shell: Shell, keys: str, hold_time: int | None) -> str:
    """Press keys, which are joined by hyphens: QKeyCodes, or numbers in hexadecimal."""
    from pyvm.input import key_of_number

    names = []
    for key in keys.split("-"):
        name = "less" if key == "<" and keys == "<" else key
        if name[:2] in ("0x", "0X"):
            name = key_of_number(_integer(name))
        elif name not in key_names():
            return f"invalid parameter: {name}\n"
        names.append(name)
    shell.machine_part("input").press(names, hold_time)
    return ""


@COMMANDS.command(
    "mouse_move", "dx:string dy:string dz:string?", parameters="dx dy [dz]", description="send mouse move events"
)
def mouse_move(shell: Shell, dx: str, dy: str, dz: str | None) -> None:
    """Move the mouse, and maybe its wheel."""
    shell.machine_part("input").move(_integer(dx), _integer(dy), _integer(dz or "0"))


@COMMANDS.command(
    "mouse_button", "state:uint32", parameters="state", description="change mouse button state (1=L, 2=R, 4=M)"
)
def mouse_button(shell: Shell, state: int) -> None:
    """Press and release mouse buttons."""
    shell.machine_part("input").set_buttons(state)


@COMMANDS.command("mouse_set", "index:uint32", parameters="index", description="set which mouse device receives events")
def mouse_set(shell: Shell, index: int) -> str:
    """Choose the pointing device that is used."""
    return "" if shell.machine_part("input").choose_mouse(index) else f"Mouse at index '{index}' not found\n"


@INFORMATION.command("mice", description="show which guest mouse is receiving events")
def mice(shell: Shell) -> str:
    """Show the pointing devices, with a mark at the one in use."""
    lines = [
        f"{'*' if mouse['current'] else ' '} Mouse #{mouse['index']}: {mouse['name']}"
        f"{' (absolute)' if mouse['absolute'] else ''}\n"
        for mouse in shell.qmp("query-mice")
    ]
    return "".join(lines) or "No mouse devices connected\n"
