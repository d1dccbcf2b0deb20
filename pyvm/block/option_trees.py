"""What opening nodes takes out of options, and small questions that it asks of them and of file names."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyvm.annotations import TYPE_CHECKING, Any, NamedTuple
from pyvm.block.errors import BlockError
from pyvm.block.options import (
    GENERIC,
    NEVER_WRITTEN,
    Dialect,
    Driver,
    Option,
    Settings,
    Tree,
    convert,
    find_driver,
    named_child,
)

if TYPE_CHECKING:
    from pyvm.block.node import DetectZeroes, Node

OTHER_DATA = ("children", "test")
"""Children that are images of their own, whatever their parent is for."""


_BOOLEAN = Option("boolean")


class Inherited(NamedTuple):
    """What children take over where nothing else is said."""

    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    unmap: bool = False
    direct: bool = False
    no_flush: bool = False
    aio: str | None = None


def take_settings(tree: Tree, inherited: Inherited, dialect: Dialect, check_name: Callable[[str], None]) -> Settings:
    """Take what every node takes out of `tree`; without a name where there is none.  Raises BlockError."""
    cache = structure(tree.pop("cache", None), "cache", "object")
    given = {key: tree.pop(key) for key in list(GENERIC) if key in tree}
    for key in cache:
        if key not in ("direct", "no-flush"):
            tree[f"cache.{key}"] = cache[key]

    def value(key: str, default: Any) -> Any:
        return convert(given[key], GENERIC[key], dialect, key, key) if key in given else default

    def cache_flag(key: str, default: bool) -> bool:
        return bool(convert(cache[key], _BOOLEAN, dialect, f"cache.{key}", key)) if key in cache else default

    name = value("node-name", None)
    if name is not None:
        check_name(name)
    discard = value("discard", "unmap" if inherited.unmap else "ignore")
    detect: DetectZeroes = value("detect-zeroes", "off")
    if detect == "unmap" and discard != "unmap":
        raise BlockError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    settings = Settings(
        name or "",
        read_only=value("read-only", inherited.read_only),
        auto_read_only=value("auto-read-only", inherited.auto_read_only),
        force_share=value("force-share", inherited.force_share),
        unmap=discard == "unmap",
        direct=cache_flag("direct", inherited.direct),
        no_flush=cache_flag("no-flush", inherited.no_flush),
        detect_zeroes=detect,
    )
    settings.given = {key: value(key, None) for key in given if key != "node-name"}
    settings.given.update({f"cache.{key}": cache_flag(key, False) for key in ("direct", "no-flush") if key in cache})
    if settings.force_share and not settings.read_only:
        raise BlockError("force-share=on can only be used with read-only images")
    return settings


def take_own(driver: Driver, tree: Tree, dialect: Dialect, settings: Settings) -> dict[str, Any]:
    """Return the driver's own options in `tree`, of their types; refuse what is left.  Raises BlockError."""
    own = {}
    for key, option in driver.options.items():
        if option.kind not in ("node", "node-or-null", "nodes") and key in tree:
            given = tree.pop(key)
            own[key] = convert(given, option, dialect, key, key)
            if dialect is Dialect.DRIVE and isinstance(given, str) and not isinstance(own[key], str):
                settings.texts[key] = given
    for key, value in tree.items():
        key = first_name(key, value)  # noqa: PLW2901 - as it was typed
        if driver.kind == "protocol":
            raise BlockError(f"Block protocol '{driver.name}' doesn't support the option '{key}'")
        raise BlockError(f"Block format '{driver.name}' does not support the option '{key}'")
    for key, option in driver.options.items():
        if option.required and option.kind == "string" and key not in own:
            raise BlockError(f"Parameter '{key}' is missing")
    return own


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
