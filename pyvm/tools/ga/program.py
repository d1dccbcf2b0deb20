"""Running a program in the guest so that its output is seen while it runs.

The protocol gives a program's output when it has ended, and of that only the first 16 MiB.  Where the guest has a POSIX
shell, output therefore goes to two files in a directory of ours, which the agent reads as they grow; the directory is
removed as the program begins, for then all has been opened.  Without such a shell, the protocol's way is left.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

from pyvm.agent import AgentClient, AgentError, AgentFailure, AgentRestarted
from pyvm.agent.records import GuestExecStatus
from pyvm.records import field, record
from pyvm.tools.ga.failures import BY_SIGNAL, CANNOT_RUN, NOT_FOUND, GaError

Sink = Callable[[bytes], object]

SHELL = "/bin/sh"
INPUT_LIMIT = 8 << 20
"""More input than this goes through a file, too: a request is held in memory several times over."""

_CHUNK = 256 << 10
_FIRST_POLL = 0.002
_LONGEST_POLL = 0.25
_STATUS_MASK = 0xFF
"""What a process can end with; the guest may say anything."""
_SCRIPT = """\
d=$1 i=$2 c=$3
shift 3
exec >"$d/out" 2>"$d/err"
[ -z "$i" ] || exec <"$i"
rm -rf -- "$d"
[ -z "$c" ] || cd -- "$c" || exit 126
command -v "$1" >/dev/null 2>&1 && command -v setsid >/dev/null 2>&1 && set -- setsid "$@"
exec "$@"
"""
"""Begins a program, in a session of its own, so that signals reach its children, too."""
_KILL = 'kill -s "$1" -- "-$2" 2>/dev/null || kill -s "$1" "$2"'


@record
class Program:
    """What is to be run."""

    words: Sequence[str]
    variables: Sequence[str] = ()
    """``NAME=value``."""
    only_variables: bool = False
    """Whether the program gets no others."""
    directory: str | None = None
    input: bytes = b""

    @property
    def argv(self) -> list[str]:
        """Return the words, behind what sets the variables."""
        if not self.variables and not self.only_variables:
            return list(self.words)
        return ["/usr/bin/env", *(["-i"] if self.only_variables else []), *self.variables, *self.words]


@record(eq=False)
class Runner:
    """Runs programs one after the other; `out` and `error` take what they write."""

    agent: AgentClient
    out: Sink
    error: Sink
    interrupt: Callable[[], int] = field(default=lambda: 0)
    """Returns the number of a signal that the program is to get, or 0."""

    def run(self, program: Program, *, plain: bool = False) -> int:
        """Run a program to its end, and return its exit status as a shell would."""
        if not plain:
            with contextlib.suppress(_NoShellError):
                return self._stream(program)
        return self._collect(program)

    # ---- The protocol's way

    def _collect(self, program: Program) -> int:
        agent = self.agent
        argv, variables = list(program.words), list(program.variables)
        if program.directory is not None:
            raise GaError("the guest has no shell that could change the directory")
        if program.variables and not program.only_variables:
            argv, variables = program.argv, []
        environment = variables if program.only_variables else None
        try:
            pid = agent.exec(argv[0], argv[1:], environment, program.input or None, capture_output=True)
        except AgentError as error:
            raise _cannot_run(argv[0], error) from None
        status = self._watch(pid, lambda: None)
        result = agent.outputs(status)
        self.out(result[0])
        self.error(result[1])
        if status.out_truncated or status.err_truncated:
            raise GaError("the agent kept only the first part of the output")
        return _exit_status(status)

    def _watch(self, pid: int, meanwhile: Callable[[], object]) -> GuestExecStatus:
        """Wait for a program's end; do `meanwhile` now and then, which returns whether something happened."""
        poll = _FIRST_POLL
        while True:
            number = self.interrupt()
            if number:
                self._kill(pid, number)
            try:
                status = self.agent.exec_status(pid)
            except AgentError:
                # Only the agent that began it knows it.
                raise AgentRestarted("guest-exec-status: the agent no longer knows the program") from None
            if meanwhile():
                poll = _FIRST_POLL
            if status.exited:
                return status
            time.sleep(poll)
            poll = min(2 * poll, _LONGEST_POLL)

    def _kill(self, pid: int, number: int) -> None:
        with contextlib.suppress(AgentError):
            self._quietly(_KILL, str(number), str(pid))

    def _quietly(self, script: str, *arguments: str) -> int:
        """Run a line of ours; return its exit status."""
        pid = self.agent.exec(SHELL, ["-c", script, SHELL, *arguments])
        while not (status := self.agent.exec_status(pid)).exited:
            time.sleep(_FIRST_POLL)
        return _exit_status(status)

    # ---- With files

    def _stream(self, program: Program) -> int:
        agent = self.agent
        directory = f"/tmp/.pyvm-ga-{os.urandom(8).hex()}"
        try:
            if self._quietly('umask 077; mkdir "$1" && : >"$1/out" && : >"$1/err"', directory):
                raise _NoShellError
        except AgentError as error:
            if error.error_class == "CommandNotFound":
                raise
            raise _NoShellError from None
        handles: list[int] = []
        pid = None
        try:
            for name in ("out", "err"):
                handles.append(self._open(f"{directory}/{name}"))
            pid = self._begin(program, directory)
            status = self._watch(pid, lambda: self._move(handles))
            while self._move(handles):
                pass
        finally:
            # After a reset all of it is gone anyway.
            with contextlib.suppress(AgentFailure):
                for handle in handles:
                    agent.file_close(handle)
                if pid is None:
                    self._quietly('rm -rf -- "$1"', directory)
        return _exit_status(status)

    def _open(self, path: str) -> int:
        try:
            return self.agent.file_open(path)
        except AgentError:
            raise _NoShellError from None  # such as an agent that may run programs, and open no files

    def _begin(self, program: Program, directory: str) -> int:
        """Start a program whose output goes to files in `directory`; return its process ID."""
        source, data = "/dev/null", None
        if len(program.input) > INPUT_LIMIT:
            source = f"{directory}/in"
            self.agent.write_file(source, program.input)
        elif program.input:
            source, data = "", program.input
        words = [directory, source, program.directory or "", *program.argv]
        return self.agent.exec(SHELL, ["-c", _SCRIPT, SHELL, *words], None, data)

    def _move(self, handles: Sequence[int]) -> bool:
        """Pass on what the program has written since the last time; return whether that was anything."""
        found = False
        for handle, sink in zip(handles, (self.out, self.error), strict=True):
            while True:
                data, _ = self.agent.file_read(handle, _CHUNK)
                if data:
                    found = True
                    sink(data)
                if len(data) < _CHUNK:
                    break
        return found


class _NoShellError(Exception):
    """The guest has no shell, or no place for files."""


def _exit_status(status: GuestExecStatus) -> int:
    if status.signal is not None:
        return BY_SIGNAL + status.signal & _STATUS_MASK
    return (status.exitcode or 0) & _STATUS_MASK


def _cannot_run(name: str, error: AgentError) -> AgentError | GaError:
    if error.error_class == "CommandNotFound":
        return error
    if "No such file" in error.desc:
        return GaError(f"{name}: the guest has no such program", NOT_FOUND)
    if "Permission denied" in error.desc:
        return GaError(f"{name}: the guest may not run it", CANNOT_RUN)
    return error
