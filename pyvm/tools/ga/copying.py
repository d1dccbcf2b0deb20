"""The subcommand ``cp``: files between here and the guest, whose paths begin with a colon."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pyvm.agent import AgentClient, AgentError
from pyvm.tools.ga.failures import FAILED, PROGRAM, USAGE, GaError
from pyvm.tools.ga.output import text
from pyvm.tools.ga.program import Program, Runner

_CHUNK = 1 << 20
_WORTH_A_BAR = 4 << 20
_PERMISSIONS = 0o7777
_STANDARD = "-"

Advance = Callable[[int], object]


def run(agent: AgentClient, options: argparse.Namespace) -> int:
    """Copy files in one direction or the other."""
    *sources, target = options.paths
    if not sources:
        raise GaError("cp: a source and a destination are needed", USAGE)
    to_guest = target.startswith(":")
    if any(source.startswith(":") == to_guest for source in sources):
        raise GaError("cp: one side must be the guest's, as in 'cp file :/tmp/file'", USAGE)
    copier = _Copier(agent, sys.stderr.isatty() and not options.quiet, keep_mode=not options.no_mode)
    status = 0
    for source in sources:
        try:
            if to_guest:
                copier.put(source, target[1:], several=len(sources) > 1)
            else:
                copier.get(source[1:], target, several=len(sources) > 1)
        except (OSError, AgentError) as error:
            if isinstance(error, AgentError) and error.error_class == "CommandNotFound":
                raise
            reason = error.strerror if isinstance(error, OSError) else error.desc
            sys.stderr.write(f"{PROGRAM}: {source}: {text(reason or error)}\n")
            status = FAILED
    return status


class _Copier:
    """Copies one file after the other."""

    def __init__(self, agent: AgentClient, bars: bool, *, keep_mode: bool) -> None:
        self._agent = agent
        self._bars = bars
        self._keep_mode = keep_mode

    # ---- To the guest

    def put(self, source: str, target: str, *, several: bool) -> None:
        """Copy a file, or standard input, to the guest."""
        name = os.path.basename(source.rstrip("/")) if source != _STANDARD else "stdin"
        if several or target.endswith("/") or not target or self._is_directory(target):
            target = f"{target.rstrip('/')}/{name}" if target else name
        if source == _STANDARD:
            self._send(sys.stdin.buffer, target, None)
            return
        with open(source, "rb") as file:
            state = os.fstat(file.fileno())
            self._send(file, target, state.st_size)
        if self._keep_mode and self._shell('chmod -- "$1" "$2"', f"{state.st_mode & _PERMISSIONS:o}", target)[0]:
            sys.stderr.write(f"{PROGRAM}: {target}: the mode could not be set\n")

    def _send(self, file: BinaryIO, target: str, length: int | None) -> None:
        agent = self._agent
        with agent.opened(target, "w") as handle, self._progress(target, length) as advance:
            while data := file.read(_CHUNK):
                done = 0
                while done < len(data):
                    count = agent.file_write(handle, data[done:])
                    if count <= 0:
                        raise GaError(f"{target}: the agent wrote nothing")
                    done += count
                advance(len(data))
            agent.file_flush(handle)

    def _is_directory(self, path: str) -> bool:
        return self._shell('[ -d "$1" ]', path)[0] == 0

    def _shell(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run a line in the guest, where it can run one; return its exit status and output."""
        out = bytearray()
        try:
            program = Program(["/bin/sh", "-c", script, "sh", *arguments])
            status = Runner(self._agent, out.extend, lambda data: None).run(program, plain=True)
        except (AgentError, GaError):
            return FAILED, ""  # such as a guest without a shell, or with programs forbidden
        return status, out.decode(errors="replace").strip()

    # ---- From the guest

    def get(self, source: str, target: str, *, several: bool) -> None:
        """Copy a file of the guest here, or to standard output."""
        if target == _STANDARD:
            with self._agent.opened(source) as handle:
                self._receive(source, handle, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        if os.path.isdir(target):
            target = os.path.join(target, os.path.basename(source.rstrip("/")))
        elif several or target.endswith("/"):
            raise GaError(f"{target}: there is no such directory")
        # The guest's first: where it has none, no new file is left here.
        with self._agent.opened(source) as handle, open(target, "wb") as file:
            self._receive(source, handle, file)
        if self._keep_mode:
            status, mode = self._shell('stat -c %a -- "$1"', source)
            with contextlib.suppress(ValueError):
                if status == 0:
                    os.chmod(target, int(mode, 8) & 0o777)

    def _receive(self, source: str, handle: int, file: BinaryIO) -> None:
        with self._progress(source, self._length(handle)) as advance:
            while True:
                data, eof = self._agent.file_read(handle, _CHUNK)
                file.write(data)
                advance(len(data))
                if eof or not data:
                    break

    def _length(self, handle: int) -> int | None:
        """Return how long an open file is; None where it has no length, such as a pipe."""
        if not self._bars:
            return None
        try:
            length = self._agent.file_seek(handle, 0, "end").position
            self._agent.file_seek(handle, 0, "set")
        except AgentError:
            return None
        return length

    # ---- Progress

    @contextlib.contextmanager
    def _progress(self, name: str, length: int | None) -> Iterator[Advance]:
        """Show how far a copy is, on a terminal, where it takes a while."""
        if not self._bars or (length is not None and length < _WORTH_A_BAR):
            yield lambda count: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        width = max(10, shutil.get_terminal_size().columns // 3)
        with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
            task = bar.add_task(os.path.basename(name)[-width:], total=length)
            yield lambda count: bar.advance(task, count)
