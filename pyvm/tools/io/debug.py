"""Commands for breakpoints, which images have that are opened through the driver *blkdebug*."""

from __future__ import annotations

from time import monotonic

from pyvm.block.breakpoints import Breakpoints, find_breakpoints
from pyvm.block.drivers.blkdebug import EVENTS
from pyvm.tools.io.command import Arguments, Command
from pyvm.tools.io.numbers import CommandError
from pyvm.tools.io.session import Session

_UNSUPPORTED = "Operation not supported"
_NOTHING = "No such file or directory"
_POLL_SECONDS = 0.002
_LONGEST_WAIT = 60.0
"""Seconds."""


def _breakpoints(session: Session, problem: str) -> Breakpoints:
    found = find_breakpoints(session.node)
    if found is None:
        raise CommandError(f"{problem}: {_UNSUPPORTED}")
    return found


def _break(session: Session, arguments: Arguments) -> None:
    event, tag = arguments.operands
    found = _breakpoints(session, "Could not set breakpoint")
    if event not in EVENTS:
        raise CommandError(f"Could not set breakpoint: {_NOTHING}")
    if session.opened:
        found.tell = session.out
    found.add(event, tag)


def _resume(session: Session, arguments: Arguments) -> None:
    problem = "Could not resume request"
    if not _breakpoints(session, problem).resume(arguments.operands[0]):
        raise CommandError(f"{problem}: {_NOTHING}")


def _wait_break(session: Session, arguments: Arguments) -> None:
    """Wait, while requests go on, until one has met the breakpoint; not for ever, as nothing else is done meanwhile."""
    problem, tag = "Could not wait for a suspended request", arguments.operands[0]
    found = _breakpoints(session, problem)
    deadline = monotonic() + _LONGEST_WAIT
    while not found.is_suspended(tag):
        if monotonic() > deadline:
            raise CommandError(f"{problem}: {_NOTHING}")
        session.drain()
        if not found.is_suspended(tag):
            session.pause(_POLL_SECONDS)


def _remove_break(session: Session, arguments: Arguments) -> None:
    tag = arguments.operands[0]
    if not _breakpoints(session, f"Could not remove breakpoint {tag}").remove(tag):
        raise CommandError(f"Could not remove breakpoint {tag}: {_NOTHING}")


COMMANDS = (
    Command(
        "break", _break, "event tag", "sets a breakpoint on event and tags the stopped request as tag", least=2, most=2
    ),
    Command("resume", _resume, "tag", "resumes the request tagged as tag", least=1, most=1),
    Command("wait_break", _wait_break, "tag", "waits for the suspension of a request", least=1, most=1),
    Command("remove_break", _remove_break, "tag", "remove a breakpoint by tag", least=1, most=1),
)
