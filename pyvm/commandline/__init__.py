"""From the words of a command line to the record of a machine.

:mod:`table` and :mod:`groups` say which options and parameters there are, :mod:`reader` sorts what was given,
:mod:`board`, :mod:`consoles` and :mod:`storage` make records of it, and :mod:`helptext` explains it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvm.commandline.reader import CommandLine, HelpRequest
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import MachineConfig

__all__ = ["HelpRequest", "configure", "parse_arguments"]


def parse_arguments(arguments: Sequence[str], *, terminal: bool = False) -> MachineConfig:
    """Return what the command line `arguments`, without the program's name, ask for.

    `terminal` says whether there is a terminal that the serial console can go to when nothing else was said.
    Raises ConfigError, or HelpRequest where help was asked for.
    """
    line = CommandLine()
    line.read(arguments)
    return configure(line, terminal=terminal)


def configure(line: CommandLine, *, terminal: bool = False) -> MachineConfig:
    """Return the machine that the options in `line` describe together; raises ConfigError."""
    from pyvm.commandline import board, consoles, storage
    from pyvm.config import MachineConfig

    config = MachineConfig()
    config.nodefaults = "nodefaults" in line.flags
    config.start_paused = "start_paused" in line.flags
    config.preconfig = "preconfig" in line.flags
    config.daemonize = "daemonize" in line.flags
    config.pidfile = line.value("pidfile")
    config.loadvm = line.value("loadvm")
    config.restore, config.incoming = _incoming(line.value("incoming"))
    if config.restore is not None:
        from pyvm.commandline import restore

        restore.configure(config)
    board.configure(line, config)
    storage.configure(line, config)
    if line.groups["netdev"] or line.groups["nic"] or line.groups["net"]:
        from pyvm.commandline import network

        network.configure(line, config)
    consoles.configure(line, config, terminal=terminal)
    _refuse_duplicates("device", [device.id for device in config.devices])
    return config


def _incoming(uri: str | None) -> tuple[str | None, str | None]:
    """Return the folder with a saved machine that `-incoming` names, or where a migration comes in from."""
    if uri is None:
        return None, None
    scheme, colon, path = uri.partition(":")
    if scheme == "file" and path and not _is_stream(path):
        return path, None
    if uri == "defer" or (colon and scheme in ("tcp", "unix", "exec", "fd", "file")):
        return None, uri
    raise ConfigError(f"-incoming {uri}: unknown migration protocol: {uri}")


def _is_stream(path: str) -> bool:
    """Return whether a path is one of what a migration wrote, not the folder of a saved machine."""
    import os

    return os.path.exists(path) and not os.path.isdir(path)


def _refuse_duplicates(kind: str, identifiers: Sequence[str | None]) -> None:
    seen = set()
    for identifier in identifiers:
        if identifier is not None and identifier in seen:
            raise ConfigError(f"Duplicate ID '{identifier}' for {kind}")
        seen.add(identifier)
