"""Drives and nodes that are added while the machine runs, from options as `-drive` takes them.

A drive that is added so waits for a device that uses it.  Errors are ConfigErrors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.options import Dialect, unflatten
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import DriveConfig
    from pyvm.machine.storage import Storage

_ORIGIN = "drive_add"


def add_drive(storage: Storage, text: str) -> DriveConfig:
    """Make a drive; one that is on an interface is gone again when this returns, as it cannot be used."""
    from pyvm.commandline.drives import parse_drive

    present = [drive.config for drive in storage.drives.values()]
    try:
        drive = parse_drive(text, present, origin=_ORIGIN)
        storage.add_drive(drive)
        if drive.interface != "none":
            storage.remove_drive(drive.id)
    except (BlockError, ConfigError) as error:
        raise ConfigError(str(error).removeprefix(f"{_ORIGIN}: ")) from None
    return drive


def add_node(storage: Storage, text: str) -> None:
    """Open a node that the monitor holds."""
    from pyvm.commandline.drives import parse_node

    try:
        options = parse_node(text, origin=_ORIGIN)
        if "node-name" not in options:
            raise ConfigError("'node-name' needs to be specified")
        node = storage.open(None, unflatten(options), Dialect.DRIVE)
    except (BlockError, ConfigError) as error:
        raise ConfigError(str(error).removeprefix(f"{_ORIGIN}: ")) from None
    storage.graph.give_to_monitor(node)
