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
    config.restore = _saved_machine(line.value("incoming"))
    board.configure(line, config)
    storage.configure(line, config)
    if line.groups["netdev"] or line.groups["nic"] or line.groups["net"]:
        from pyvm.commandline import network

        network.configure(line, config)
    consoles.configure(line, config, terminal=terminal)
    _refuse_duplicates("device", [device.id for device in config.devices])
    return config


def _saved_machine(uri: str | None) -> str | None:
    """Return the folder that `-incoming` names."""
    if uri is None:
        return None
    scheme, colon, path = uri.partition(":")
    if scheme == "file" and path:
        return path
    if colon and scheme in ("tcp", "unix", "exec", "fd", "rdma"):
        raise ConfigError(f"-incoming {uri}: only file: is supported by pyvm yet")
    raise ConfigError(f"-incoming {uri}: unknown migration protocol: {uri}")


def _refuse_duplicates(kind: str, identifiers: Sequence[str | None]) -> None:
    seen = set()
    for identifier in identifiers:
        if identifier is not None and identifier in seen:
            raise ConfigError(f"Duplicate ID '{identifier}' for {kind}")
        seen.add(identifier)
