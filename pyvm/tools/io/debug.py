"""Commands for breakpoints of the driver *blkdebug*, which pyvm does not have: no image can take them."""

from __future__ import annotations

from pyvm.tools.io.command import Arguments, Command
from pyvm.tools.io.numbers import CommandError
from pyvm.tools.io.session import Session

_UNSUPPORTED = "Operation not supported"


def _break(session: Session, arguments: Arguments) -> None:
    del session, arguments
    raise CommandError(f"Could not set breakpoint: {_UNSUPPORTED}")


def _resume(session: Session, arguments: Arguments) -> None:
    del session, arguments
    raise CommandError(f"Could not resume request: {_UNSUPPORTED}")


def _wait_break(session: Session, arguments: Arguments) -> None:
    del session, arguments
    raise CommandError(f"Could not wait for a suspended request: {_UNSUPPORTED}")


def _remove_break(session: Session, arguments: Arguments) -> None:
    del session
    raise CommandError(f"Could not remove breakpoint {arguments.operands[0]}: {_UNSUPPORTED}")


COMMANDS = (
    Command(
        "break", _break, "event tag", "sets a breakpoint on event and tags the stopped request as tag", least=2, most=2
    ),
    Command("resume", _resume, "tag", "resumes the request tagged as tag", least=1, most=1),
    Command("wait_break", _wait_break, "tag", "waits for the suspension of a request", least=1, most=1),
    Command("remove_break", _remove_break, "tag", "remove a breakpoint by tag", least=1, most=1),
)
