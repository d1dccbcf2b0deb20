"""The command ``pyvm-img``: global options, the subcommand, and what becomes of errors."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pyvm.annotations import NoReturn
from pyvm.tools.img.console import PROGRAM, complain, discard_output, warn
from pyvm.tools.img.errors import HelpAsked, ImgError, UsageError
from pyvm.tools.leaving import leave

COMMANDS = (
    "amend bench bitmap check commit compare convert create dd info map measure rebase resize snapshot"
).split()  # fmt: skip
_GARBAGE = 50_000
"""So many new objects until garbage is looked for: those that modules are made of are no garbage."""
_FAILURES = {"compare": 2}
"""Exit status of a subcommand that cannot start, where that is not 1."""


def script() -> NoReturn:
    """Run ``pyvm-img`` as a program of its own, which starts and ends as fast as it can."""
    gc.set_threshold(_GARBAGE)
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm-img`` with the arguments `argv`, by default the process's; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return 1
    except KeyboardInterrupt:
        return _interrupted()
    return status


def _interrupted() -> int:
    """Say that it was interrupted, on a line of its own."""
    import signal

    try:
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        discard_output()
    complain("interrupted")
    return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    from pyvm.errors import ConfigError

    command = ""
    try:
        command, rest = _global_options(arguments)
        if not command:
            return 0
        return _subcommand(command, rest)
    except HelpAsked:
        from pyvm.tools.img.helptext import help_text

        sys.stdout.write(help_text())
        return 0
    except UsageError as error:
        complain(f"{error}\nTry '{PROGRAM} --help' for more information")
        return error.status
    except ImgError as error:
        if str(error):
            complain(str(error))
        return error.status
    except ConfigError as error:
        complain(str(error))
        return _FAILURES.get(command, 1)


def _subcommand(command: str, arguments: list[str]) -> int:
    from pyvm.block.errors import BlockError

    if command not in COMMANDS:
        raise UsageError(f"Command not found: {command}")
    module = import_module(f"pyvm.tools.img.{command}")
    try:
        return int(module.run(arguments))
    except BrokenPipeError:
        raise
    except BlockError as error:
        complain(str(error))
    except OSError as error:
        complain(os.strerror(error.errno) if error.errno else str(error))
    except MemoryError:
        complain("Cannot allocate memory")
    return _FAILURES.get(command, 1)


def _global_options(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the subcommand and its arguments; no subcommand where a global option has done all there was to do."""
    if not arguments:
        raise UsageError("Not enough arguments")
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-") or argument == "-":
            return argument, rest
        name, value = _global_option(argument)
        if name == "help":
            raise HelpAsked
        if name == "version":
            _print_version()
            return "", []
        if value is None:
            if not rest:
                raise UsageError(f"missing argument for option '{argument}'")
            value = rest.pop(0)
        if _trace(value):
            return "", []
    raise UsageError("Not enough arguments")


def _global_option(argument: str) -> tuple[str, str | None]:
    """Return the name of a global option, and its value where that is in the same argument."""
    if not argument.startswith("--"):
        names = {"h": "help", "V": "version", "T": "trace"}
        if argument[1] not in names:
            raise UsageError(f"unrecognized option '{argument}'")
        return names[argument[1]], argument[2:] or None
    given, equals, value = argument[2:].partition("=")
    matching = [name for name in ("help", "version", "trace") if given and name.startswith(given)]
    if len(matching) != 1 or (equals and matching != ["trace"]):
        raise UsageError(f"unrecognized option '{argument}'")
    return matching[0], value if equals else None


def _print_version() -> None:
    from pyvm import __version__

    print(f"{PROGRAM} version {__version__}")


def _trace(text: str) -> bool:
    """Handle ``--trace``; return whether only the list of events was asked for.  There are no events to trace."""
    from pyvm.options import Group, parse

    if text in ("help", "?"):
        return True
    options = parse(Group("trace", "enable", {"enable": "string", "events": "string", "file": "string"}), text)
    pattern = options.string("enable")
    events = options.string("events")
    patterns = [pattern] if pattern else []
    if events is not None:
        try:
            with open(events, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file]
        except OSError as error:
            raise ImgError(f"could not open trace events file '{events}': {error.strerror}") from None
        patterns += [line for line in lines if line and not line.startswith("#")]
    for it in patterns:
        if "*" not in it:
            warn(f"trace event '{it.lstrip('-')}' does not exist")
    return False


if __name__ == "__main__":
    script()
