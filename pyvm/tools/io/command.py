"""What a command is: a row of the table, with its arguments taken apart."""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyvm.tools.io.numbers import Usage
from pyvm.tools.io.session import Session

PROGRAM = "qemu-io" if os.path.basename(sys.argv[0]) == "qemu-io" else "pyvm-io"
"""The name it was called by: scripts that run it as qemu-io look for that in messages."""
ANY = -1
"""No upper limit of arguments."""


@dataclass(frozen=True)
class Arguments:
    """The options of a command, in the order given, and what is left."""

    options: tuple[tuple[str, str], ...]
    operands: tuple[str, ...]

    def __contains__(self, letter: str) -> bool:
        return any(it == letter for it, _ in self.options)

    def get(self, letter: str) -> str | None:
        """Return the value of an option, the last one where it was given several times."""
        return next((value for it, value in reversed(self.options) if it == letter), None)


@dataclass(frozen=True)
class Command:
    """One command.

    `run` returns normally where it succeeded, and raises CommandError, OSError or BlockError where not.  `letters`
    are its options as getopt has them; None: it takes its arguments as they are.
    """

    name: str
    run: Callable[[Session, Arguments], None]
    syntax: str
    summary: str
    alias: str = ""
    least: int = 0
    most: int = 0
    letters: str | None = None
    needs_file: bool = True
    writes: bool = False
    details: str = ""
    operands: tuple[int, int] | None = None
    """How many operands there are at least and at most; None: any number."""

    def usage(self, name: str) -> str:
        """Return the line that says how it is used."""
        return f"{name} {self.syntax} -- {self.summary}\n" if self.syntax else f"{name} -- {self.summary}\n"


class WrongOption(Usage):
    """An option that the command does not have, or one without its value; the text says which."""


def parse(command: Command, name: str, given: Sequence[str]) -> Arguments:
    """Take the arguments of a command apart.  Raises Usage."""
    if command.letters is None:
        return Arguments((), tuple(given))
    try:
        options, operands = getopt.gnu_getopt(list(given), command.letters)
    except getopt.GetoptError as error:
        wrong = "option requires an argument" if "requires" in error.msg else "invalid option"
        raise WrongOption(f"{name}: {wrong} -- '{error.opt}'") from None
    if command.operands is not None and not command.operands[0] <= len(operands) <= command.operands[1]:
        raise Usage
    return Arguments(tuple((letter[1:], value) for letter, value in options), tuple(operands))


def complain(session: Session, text: str) -> None:
    """Print an error in the way of the program."""
    session.err(f"{PROGRAM}: {text}\n")
