"""Small questions that opening nodes asks of options, of file names, and of what is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.options import NEVER_WRITTEN, Driver, Settings, Tree, find_driver, named_child

if TYPE_CHECKING:
    from pyvm.block.node import Node

OTHER_DATA = ("children", "test")
"""Children that are images of their own, whatever their parent is for."""


def settle_read_only(driver: Driver, file: Node, settings: Settings) -> None:
    """Let an image be read only where its file or format is, if that is allowed.  Raises BlockError."""
    if settings.read_only or not (file.read_only or driver.read_only):
        return
    if settings.auto_read_only:
        settings.read_only = True
    elif driver.name in NEVER_WRITTEN:
        raise BlockError("Image is read-only")
    elif driver.name == "qcow2":
        raise BlockError("Block node is read-only")


def structure(value: Any, name: str, expected: str) -> Tree:
    """Return a copy of what should be a structure, empty where there is nothing.  Raises BlockError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BlockError(f"Invalid parameter type for '{name}', expected: {expected}")
    return dict(value)


def named(key: str, name: str, options: Any) -> Any:
    """Return the options of a child that its parent names, with those that were given.  Raises BlockError."""
    if key in OTHER_DATA and (options is None or (isinstance(options, dict) and "driver" not in options)):
        return {"filename": name, **(options or {})}
    return named_child(name, options)


def names_protocol(tree: Tree) -> bool:
    """Whether the options are those of a protocol's node.  Raises BlockError."""
    name = tree.get("driver")
    return isinstance(name, str) and find_driver(name).kind == "protocol"


def first_name(key: str, value: Any) -> str:
    """Return the dotted name of the first thing in a structure."""
    while isinstance(value, dict) and value:
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    return key


def identity_of(path: str) -> tuple[int, int] | None:
    """Return what tells whether two paths are one file; None where opening it will say what is wrong."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
