"""Commands about the program itself: help, waiting, signals and the end."""

from __future__ import annotations

import os
import signal
import sys

from pyvm.sizes import read_number
from pyvm.tools.io.command import Arguments, Command
from pyvm.tools.io.numbers import CommandError, take_size
from pyvm.tools.io.session import Session

_MILLISECONDS = 1000


def _help(session: Session, arguments: Arguments) -> None:
    if arguments.operands:
        name = arguments.operands[0]
        command: Command | None = session.table.get(name)
        if command is None:
            raise CommandError(f"command {name} not found")
        session.out(command.usage(name))
        if command.details:
            session.out(f"\n{command.details}\n")
        return
    for name in sorted(session.table):
        command = session.table[name]
        if name == command.name:
            session.out(command.usage(name))
    session.out("\nUse 'help commandname' for extended help.\n")


def _sleep(session: Session, arguments: Arguments) -> None:
    milliseconds = read_number(arguments.operands[0])
    if milliseconds is None or milliseconds < 0:
        raise CommandError(f"{arguments.operands[0]} is not a valid number")
    session.pause(milliseconds / _MILLISECONDS)


def _sigraise(session: Session, arguments: Arguments) -> None:
    del session
    number = take_size(arguments.operands[0])
    if number >= signal.NSIG:
        raise CommandError(f"signal argument '{arguments.operands[0]}' is too large to be a valid signal")
    if number:
        sys.stdout.flush()
        os.kill(os.getpid(), number)


def _abort(session: Session, arguments: Arguments) -> None:
    del session, arguments
    sys.stdout.flush()
    os.abort()


def _quit(session: Session, arguments: Arguments) -> None:
    del arguments
    session.ended = True


COMMANDS = (
    Command("help", _help, "[command]", "help for one or all commands", alias="?", most=1, needs_file=False),
    Command("sleep", _sleep, "", "waits for the given value in milliseconds", least=1, most=1, needs_file=False),
    Command(
        "sigraise",
        _sigraise,
        "signal",
        "raises a signal",
        least=1,
        most=1,
        needs_file=False,
        details=" Sends the program itself the signal of this number: 'sigraise 15' is SIGTERM.\n",
    ),
    Command("abort", _abort, "", "simulate a program crash using abort(3)", needs_file=False),
)
TOOL_COMMANDS = (Command("quit", _quit, "", "exit the program", alias="q", needs_file=False),)
