"""Trace events and the log on the command line: `-trace`, `-d` and `-D`."""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.commandline.reader import CommandLine, HelpRequest
from pyvm.config import TraceConfig
from pyvm.errors import ConfigError
from pyvm.options import Options


def trace_options(given: Sequence[Options]) -> TraceConfig:
    """Return what is to be told, and where; raises ConfigError."""
    config = TraceConfig()
    for options in given:
        pattern = options.string("enable")
        if pattern is not None:
            config.patterns.append((pattern, f"{options.origin}: "))
        events = options.string("events")
        if events is not None:
            config.patterns += _read(events)
        config.file = options.string("file") or config.file
    return config


def add_log_options(line: CommandLine, config: TraceConfig) -> None:
    """Add what `-d` asks for, and where `-D` wants it; raises ConfigError, and HelpRequest for the lists."""
    config.file = line.value("logfile") or config.file
    _add_ranges(line, config)
    text, origin = line.values.get("log", (None, ""))
    if text is None:
        return
    from pyvm.monitor.log_items import MissingItemError, UnknownItemError, listing, parse

    try:
        wanted = parse(text)
    except UnknownItemError as error:
        if str(error) == "help":
            raise HelpRequest("d") from None
        raise ConfigError(f"{origin}: there is no log item '{error}'\n{listing('-d').rstrip()}") from None
    except MissingItemError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if "help" in wanted.patterns:
        raise HelpRequest("trace")
    config.items = wanted.names
    config.patterns += [(pattern, "") for pattern in wanted.patterns]


def _add_ranges(line: CommandLine, config: TraceConfig) -> None:
    text, origin = line.values.get("dfilter", (None, ""))
    if text is None:
        return
    from pyvm.monitor.log_items import parse_ranges

    try:
        config.ranges = parse_ranges(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: bad range '{error}': FIRST..LAST, FIRST+SIZE or LAST-SIZE is needed") from None


def _read(path: str) -> list[tuple[str, str]]:
    """Return the patterns in a file, one in a line, and what comes before a complaint about each."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: {reason}") from None
    return [(line, f"{path}:{number}: ") for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
