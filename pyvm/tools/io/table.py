"""The table of commands, and how a line becomes a call of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.block.backend import BlockBackend
from pyvm.block.breakpoints import Suspended
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.tools.io import asynchronous, debug, files, layout, process, reading, writing
from pyvm.tools.io.command import ANY, Command, WrongOption, complain, parse
from pyvm.tools.io.numbers import CommandError, Usage
from pyvm.tools.io.session import Lock, Output, Session, describe

_ANYWHERE: tuple[Sequence[Command], ...] = (
    reading.COMMANDS,
    writing.COMMANDS,
    asynchronous.COMMANDS,
    layout.COMMANDS,
    debug.COMMANDS,
    process.COMMANDS,
    files.COMMANDS,
)
_TOOL_ONLY: tuple[Sequence[Command], ...] = (files.TOOL_COMMANDS, process.TOOL_COMMANDS)


def make_table(*, tool: bool) -> dict[str, Command]:
    """Return all commands by name and alias; with `tool` also those of a program of its own."""
    table: dict[str, Command] = {}
    for group in _ANYWHERE + (_TOOL_ONLY if tool else ()):
        for command in group:
            table[command.name] = command
            if command.alias:
                table[command.alias] = command
    return table


def run(target: BlockBackend | Node, line: str, out: Output, lock: Lock | None = None) -> bool:
    """Run one line on somebody else's disk or node, as the monitor's ``qemu-io`` does; return whether it succeeded.

    Called with the machine lock held; where it is given as `lock`, it is let go while a command just waits.  `out` is
    given text with line ends.
    """
    backend = target if isinstance(target, BlockBackend) else BlockBackend(target)
    session = Session(out, out, make_table(tool=False), backend, lock=lock)
    try:
        return execute(session, line)
    finally:
        session.drain()


def execute(session: Session, line: str) -> bool:
    """Run one line; return whether it succeeded.  Lines without a command do."""
    words = [word for word in line.split(" ") if word]
    if not words:
        return True
    name, *given = words
    command: Command | None = session.table.get(name)
    if command is None:
        session.err(f'command "{name}" not found\n')
        return False
    problem = _find_problem(session, command, name, len(given))
    if problem:
        session.err(f"{problem}\n")
        return False
    return _call(session, command, name, given)


def _find_problem(session: Session, command: Command, name: str, count: int) -> str:
    """Return why the command cannot be run at all; empty where it can."""
    least, most = command.least, command.most
    if count < least or count > most != ANY:
        if most == ANY:
            expected = f"at least {least}"
        elif least == most:
            expected = f"{least}"
        else:
            expected = f"between {least} and {most}"
        return f"bad argument count {count} to {name}, expected {expected} arguments"
    if command.needs_file and session.backend is None:
        return "no file open, try 'help open'"
    return ""


def _call(session: Session, command: Command, name: str, given: Sequence[str]) -> bool:
    try:
        # What a drive is for its device does not matter here.
        if command.writes and session.backend is not None and session.node.read_only:
            raise BlockError("Block node is read-only")
        command.run(session, parse(command, name, given))
    except Usage as error:
        if isinstance(error, WrongOption):
            session.err(f"{error}\n")
        session.out(command.usage(command.name))
        return False
    except CommandError as error:
        if str(error):
            session.out(f"{error}\n")
        return False
    except BlockError as error:
        complain(session, str(error))
        return False
    except Suspended as error:
        # Whoever could let it go would have to type behind it.
        complain(session, str(error))
        return False
    except BrokenPipeError:
        # Nobody reads the output any more.
        raise
    except OSError as error:
        complain(session, describe(error))
        return False
    return True
