"""The subcommand ``exec``: a program in the guest, as if it ran here."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from pyvm.agent import AgentClient
from pyvm.tools.ga.failures import USAGE, GaError
from pyvm.tools.ga.output import show_json
from pyvm.tools.ga.program import Program, Runner

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def run(agent: AgentClient, options: argparse.Namespace) -> int:
    """Run a program and end as it does."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise GaError("exec: no program was given", USAGE)
    for variable in options.env:
        if "=" not in variable:
            raise GaError(f"--env: '{variable}' is not NAME=VALUE", USAGE)
    program = Program(words, options.env, options.clear_env, options.cwd, _input(options.input))
    if options.detach:
        return _detach(agent, program, options.json)
    if options.json:
        return _as_json(agent, program, plain=options.plain)
    with forwarded_signals() as pending:
        return Runner(agent, writer(1), writer(2), pending).run(program, plain=options.plain)


def _input(given: str | None) -> bytes:
    """Return what the program finds at its standard input: a file's content, or ours where that is no terminal."""
    if given is not None and given != "-":
        with open(given, "rb") as file:
            return file.read()
    if given is None and (sys.stdin is None or sys.stdin.isatty()):
        return b""
    return sys.stdin.buffer.read()


def writer(descriptor: int) -> Callable[[bytes], None]:
    """Return what writes to one of our own outputs, at once."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return write


@contextlib.contextmanager
def forwarded_signals() -> Iterator[Callable[[], int]]:
    """Keep signals for the program in the guest; gives what returns the next one, or 0.  A second Ctrl-C ends us."""
    waiting: list[int] = []
    interrupts = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        waiting.append(number)

    before = {number: signal.signal(number, remember) for number in _FORWARDED}
    try:
        yield lambda: waiting.pop(0) if waiting else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_json(agent: AgentClient, program: Program, *, plain: bool) -> int:
    out, error = bytearray(), bytearray()
    status = Runner(agent, out.extend, error.extend).run(program, plain=plain)
    texts = {"stdout": out.decode(errors="replace"), "stderr": error.decode(errors="replace")}
    show_json({"status": status, **texts})
    return status


def _detach(agent: AgentClient, program: Program, json: bool) -> int:
    """Begin a program and leave it alone."""
    if program.directory is not None:
        raise GaError("exec: --cwd and --detach do not go together", USAGE)
    argv = program.argv
    pid = agent.exec(argv[0], argv[1:], None, program.input or None)
    if json:
        show_json({"pid": pid})
    else:
        sys.stdout.write(f"{pid}\n")
    return 0
