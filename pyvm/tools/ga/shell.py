"""The subcommand ``shell``: lines typed here are carried out by the guest's shell.

Each line is a program of its own to the agent.  What a person expects to stay from line to line, the directory and the
exported variables, is kept in a file of the guest between them.  There is no terminal in the guest: editors and the
like do not work, and what reads standard input finds none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from pyvm.agent import AgentClient, AgentError, AgentFailure
from pyvm.tools.ga.execute import forwarded_signals, writer
from pyvm.tools.ga.failures import PROGRAM, GaError, explain
from pyvm.tools.ga.output import text
from pyvm.tools.ga.program import SHELL, Program, Runner

_HISTORY_LINES = 1000
_SCRIPT = """\
if [ -r "$1" ]; then . "$1"; else cd /root 2>/dev/null || cd /; fi
eval "$2"
pyvm_status=$?
(umask 077; { export -p; echo "cd -- '$(pwd | sed "s/'/'\\\\\\\\''/g")'"; } >"$1")
exit $pyvm_status
"""
_BEGIN = 'echo "$(id -un)@$(hostname)"; [ "$(id -u)" = 0 ] && echo "#" || echo "$"'


class _Session:
    """One conversation with the guest's shell."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._state = f"/tmp/.pyvm-ga-{os.urandom(8).hex()}.state"
        self._name, self._sign = "guest", "$"
        self.directory = "/"

    def begin(self) -> None:
        """Find out where we are; raises GaError where the guest has no shell."""
        out = bytearray()
        if Runner(self._agent, out.extend, lambda data: None).run(Program([SHELL, "-c", _BEGIN]), plain=True):
            raise GaError("the guest has no shell that works")
        self._name, _, self._sign = out.decode(errors="replace").strip().partition("\n")
        self.run("")

    @property
    def prompt(self) -> str:
        """What is shown before each line."""
        return text(f"{self._name}:{self.directory}{self._sign} ")

    def run(self, line: str) -> int:
        """Carry one line out, and return its status."""
        with forwarded_signals() as pending:
            runner = Runner(self._agent, writer(1), writer(2), pending)
            status = runner.run(Program([SHELL, "-c", _SCRIPT, "sh", self._state, line]))
        with contextlib.suppress(AgentError):  # `exit` leaves none
            last = self._agent.read_file(self._state).decode(errors="replace").rstrip("\n").rpartition("\n")[2]
            self.directory = last.removeprefix("cd -- ").strip("'") or self.directory
        return status

    def end(self) -> None:
        """Remove what was kept."""
        with contextlib.suppress(AgentFailure, GaError):
            Runner(self._agent, lambda data: None, lambda data: None).run(
                Program([SHELL, "-c", 'rm -f -- "$1"', "sh", self._state]), plain=True
            )


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Let a person edit lines and go back to earlier ones."""
    if not sys.stdin.isatty():
        yield
        return
    import readline

    path = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "pyvm-ga-history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            readline.write_history_file(path)


def run(agent: AgentClient, options: argparse.Namespace) -> int:
    """Carry out lines until ``exit`` or the end of input; return the last one's status."""
    del options
    session = _Session(agent)
    session.begin()
    status = 0
    try:
        with _history():
            while True:
                try:
                    line = input(session.prompt if sys.stdin.isatty() else "")
                except EOFError:
                    break
                except KeyboardInterrupt:
                    sys.stdout.write("\n")
                    continue
                word, _, rest = line.strip().partition(" ")
                if word in ("exit", "logout"):
                    return int(rest) if rest.isdecimal() else status
                if word:
                    status = _carry_out(session, line)
    finally:
        session.end()
    if sys.stdin.isatty():
        sys.stdout.write("\n")
    return status


def _carry_out(session: _Session, line: str) -> int:
    """A line that fails ends with a message, and the conversation goes on."""
    try:
        return session.run(line)
    except AgentFailure as failure:
        error = explain(failure)
    except GaError as failed:
        error = failed
    except KeyboardInterrupt:
        return 130
    if not sys.stdin.isatty():
        raise error
    sys.stderr.write(f"{PROGRAM}: {text(error)}\n")
    return error.status
