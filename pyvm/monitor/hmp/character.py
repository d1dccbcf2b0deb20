"""Commands about character devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.chardev.base import ChardevError
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.chardev.options import ChardevOptions

COMMANDS = CommandTable()

_PARSING_FAILED = "Parsing chardev args failed"


@COMMANDS.command("chardev-add", "args:string", parameters="args", description="add chardev")
def chardev_add(shell: Shell, args: str) -> str:
    """Make a character device of what `-chardev` takes."""
    from pyvm.chardev.options import split_options

    devices = shell.machine_part("chardev_set")
    given = split_options(args)
    identifier = given.get("id")
    if identifier is not None and devices.find(identifier) is not None:
        if not _is_given(shell, identifier):
            raise QmpError(f"attempt to add duplicate property '{identifier}' to object (type 'container')")
        return f"Duplicate ID '{identifier}' for chardev\nError: {_PARSING_FAILED}\n"
    if identifier is not None and not _well_formed(identifier):
        return (
            "Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n"
            f"Error: {_PARSING_FAILED}\n"
        )
    try:
        devices.add(_without_wait(_parse(given)))
    except ChardevError as error:
        raise QmpError(str(error)) from None
    return ""


def _is_given(shell: Shell, identifier: str) -> bool:
    """Return whether a `-chardev` of the command line has that ID; QEMU then finds it among the options."""
    config = getattr(shell.machine, "config", None)
    given = () if config is None else config.chardevs
    return any(chardev.id == identifier and chardev.origin.startswith("-chardev") for chardev in given)


def _well_formed(identifier: str) -> bool:
    first, rest = identifier[:1], identifier[1:]
    allowed = all(character.isalnum() or character in "-._" for character in rest)
    return identifier.isascii() and first.isalpha() and allowed


def _parse(given: dict[str, str]) -> ChardevOptions:
    from pyvm.chardev.options import parse_chardev

    return parse_chardev(given)


def _without_wait(options: ChardevOptions) -> ChardevOptions:
    """Return the options of a server that does not wait: guest and monitors would wait with it."""
    from pyvm.chardev.options import SocketOptions
    from pyvm.records import replace

    return replace(options, wait=False) if isinstance(options, SocketOptions) else options


@COMMANDS.command("chardev-change", "id:string args:string", parameters="id args", description="change chardev")
def chardev_change(shell: Shell, id: str, args: str) -> None:  # noqa: A002 - the name that its help has
    """Put another back end in place of one."""
    from pyvm.chardev.options import split_options

    devices = shell.machine_part("chardev_set")
    try:
        devices.check_replaceable(id)
        devices.replace(_without_wait(_parse(split_options(args) | {"id": id})))
    except ChardevError as error:
        raise QmpError(str(error)) from None


@COMMANDS.command("chardev-remove", "id:string", parameters="id", description="remove chardev")
def chardev_remove(shell: Shell, id: str) -> None:  # noqa: A002
    """Remove a character device."""
    shell.qmp("chardev-remove", id=id)


@COMMANDS.command("chardev-send-break", "id:string", parameters="id", description="send a break on chardev")
def chardev_send_break(shell: Shell, id: str) -> None:  # noqa: A002
    """Send a break condition."""
    shell.qmp("chardev-send-break", id=id)


@COMMANDS.command(
    "ringbuf_write",
    "device:string data:string",
    parameters="device data",
    description="Write to a ring buffer character device",
)
def ringbuf_write(shell: Shell, device: str, data: str) -> None:
    """Write text to a ring buffer."""
    shell.qmp("ringbuf-write", device=device, data=data)


def _visible(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if (character < " " and character not in "\n\t") or character == "\x7f":
        return f"\\u{ord(character):04X}"
    return character


@COMMANDS.command(
    "ringbuf_read",
    "device:string size:uint32",
    parameters="device size",
    description="Read from a ring buffer character device",
)
def ringbuf_read(shell: Shell, device: str, size: int) -> str:
    """Show and take out the oldest text of a ring buffer."""
    text = shell.qmp("ringbuf-read", device=device, size=size)
    return "".join(map(_visible, text)) + "\n"
