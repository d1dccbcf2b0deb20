"""Options of block nodes: which drivers there are, what each takes, and how a file name turns into options.

One structure stands for a node whatever it was typed as: ``{"driver": "qcow2", "node-name": "a", "file": {...} or
"name", "cache": {"direct": True}, ...}``.  `-blockdev` and QMP give it whole, and it is checked before anything is
opened; `-drive` gives a file name and options that are text, and the format may have to be found out first.

A driver is a row of :data:`DRIVERS`.  Its module is imported when it is used, and has a function::

    make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> Node

`own` are the driver's own options, checked and of the types that its row gives them; the node takes over `children`
once it is made.  A protocol driver whose row has `prefixes` is also chosen by file names that begin with one of them
and a colon; its module then has ``parse_filename(name: str) -> dict[str, Any]``, which returns the own options that the
name stands for.  Both raise BlockError.  A row without a module is a driver of QEMU that pyvm does not have (yet): it
is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from pyvm.annotations import Any, Literal, NamedTuple
from pyvm.block.errors import BlockError
from pyvm.block.node import UNUSED, Access, DetectZeroes
from pyvm.errors import ConfigError
from pyvm.options import parse_boolean, parse_number, parse_size
from pyvm.records import field, record
from pyvm.sizes import UINT64_MAX

Tree = dict[str, Any]
"""Options of a node, with those of its children inside."""


class Dialect(Enum):
    """How options were given, on which their types and what is said about mistakes depend."""

    JSON = "json"
    KEYVAL = "keyval"
    """Text, checked like JSON: `-blockdev` with ``key=value``."""
    DRIVE = "drive"
    """Text: `-drive`, sizes with suffixes."""


Kind = Literal["string", "boolean", "integer", "number", "node", "node-or-null", "nodes", "any"]


class Option(NamedTuple):
    """One option of a driver."""

    kind: Kind = "string"
    required: bool = False
    choices: tuple[str, ...] = ()
    members: Mapping[str, Option] = MappingProxyType({})
    """Of a structure."""


def _choice(*choices: str, required: bool = False) -> Option:
    return Option(required=required, choices=choices)


_BOOLEAN = Option("boolean")
_INTEGER = Option("integer")
_NUMBER = Option("number")
"""As text, without a suffix: what is below 0 is counted down from 2^64 there, and found to be too much."""
_STRING = Option()
_FILE = Option("node", required=True)

GENERIC: dict[str, Option] = {
    "driver": Option(required=True),
    "node-name": _STRING,
    "discard": _choice("ignore", "unmap"),
    "cache": Option(members={"direct": _BOOLEAN, "no-flush": _BOOLEAN}),
    "read-only": _BOOLEAN,
    "auto-read-only": _BOOLEAN,
    "force-share": _BOOLEAN,
    "detect-zeroes": _choice("off", "on", "unmap"),
}
"""What every node takes."""

_HOST_FILE = {
    "filename": Option(required=True),
    "aio": _choice("threads", "native", "io_uring"),
    "locking": _choice("auto", "on", "off"),
    "pr-manager": _STRING,
    "aio-max-batch": _INTEGER,
    "drop-cache": _BOOLEAN,
    "x-check-cache-dropped": _BOOLEAN,
}
_NULL = {"size": _INTEGER, "latency-ns": _INTEGER, "read-zeroes": _BOOLEAN}
_NBD = {
    # The driver itself checks the members: with `-drive` they are text.
    "server": Option("any"),
    "host": _STRING,
    "port": _STRING,
    "path": _STRING,
    "export": _STRING,
    "tls-creds": _STRING,
    "tls-hostname": _STRING,
    "x-dirty-bitmap": _STRING,
    "reconnect-delay": _INTEGER,
    "open-timeout": _INTEGER,
}
_SSH = {
    "server": Option("any"),
    "host": _STRING,
    "port": _STRING,
    "path": _STRING,
    "user": _STRING,
    "host-key-check": Option("any"),
    "host_key_check": _STRING,
}
_HTTP = {
    "url": Option(required=True),
    "readahead": _INTEGER,
    "timeout": _INTEGER,
    "username": _STRING,
    "password-secret": _STRING,
    "proxy-username": _STRING,
    "proxy-password-secret": _STRING,
    "cookie": _STRING,
    "cookie-secret": _STRING,
}
_HTTPS = {**_HTTP, "sslverify": _BOOLEAN}
_LAYERED = {"file": _FILE, "backing": Option("node-or-null")}
_ENCRYPTION = {"format": Option(required=True, choices=("aes", "luks")), "key-secret": _STRING}
_QCOW2 = {
    "file": _FILE,
    "backing": Option("node-or-null"),
    "data-file": Option("node"),
    "lazy-refcounts": _BOOLEAN,
    "pass-discard-request": _BOOLEAN,
    "pass-discard-snapshot": _BOOLEAN,
    "pass-discard-other": _BOOLEAN,
    # Checked by the driver, too: with `-drive` the format need not be said.
    "encrypt": Option("any", members=_ENCRYPTION),
    "overlap-check": Option("any"),
    "cache-size": _INTEGER,
    "l2-cache-size": _INTEGER,
    "l2-cache-entry-size": _INTEGER,
    "refcount-cache-size": _INTEGER,
    "cache-clean-interval": _NUMBER,
}


class Driver(NamedTuple):
    """One driver; see the head of this module."""

    name: str
    kind: Literal["protocol", "format", "filter"]
    module: str = ""
    make: str = "make"
    options: Mapping[str, Option] = MappingProxyType({})
    prefixes: tuple[str, ...] = ()
    read_only: bool = False
    """Whether images of this format are only read."""


_PACKAGE = "pyvm.block.drivers"
_ROWS = (
    Driver("file", "protocol", f"{_PACKAGE}.file", options=_HOST_FILE, prefixes=("file",)),
    Driver("host_device", "protocol", f"{_PACKAGE}.host_device", options=_HOST_FILE, prefixes=("host_device",)),
    Driver("host_cdrom", "protocol", f"{_PACKAGE}.host_device", "make_cdrom", _HOST_FILE, prefixes=("host_cdrom",)),
    Driver("null-co", "protocol", f"{_PACKAGE}.null", options=_NULL, prefixes=("null-co",)),
    Driver("null-aio", "protocol", f"{_PACKAGE}.null", "make_aio", _NULL, prefixes=("null-aio",)),
    Driver("raw", "format", f"{_PACKAGE}.raw", options={"file": _FILE, "offset": _INTEGER, "size": _INTEGER}),
    Driver("qcow2", "format", "pyvm.block.open", "make_qcow2", _QCOW2),
    Driver("luks", "format", f"{_PACKAGE}.luks", options={"file": _FILE, "key-secret": _STRING}),
    Driver("qcow", "format", f"{_PACKAGE}.foreign.qcow", options=_LAYERED, read_only=True),
    Driver("bochs", "format", f"{_PACKAGE}.foreign.bochs", options={"file": _FILE}, read_only=True),
    Driver("cloop", "format", f"{_PACKAGE}.foreign.cloop", options={"file": _FILE}, read_only=True),
    Driver("parallels", "format", f"{_PACKAGE}.foreign.parallels", options={"file": _FILE}, read_only=True),
    Driver("qed", "format", f"{_PACKAGE}.foreign.qed", options=_LAYERED, read_only=True),
    Driver("vdi", "format", f"{_PACKAGE}.foreign.vdi", options={"file": _FILE}, read_only=True),
    Driver("vhdx", "format", f"{_PACKAGE}.foreign.vhdx", options={"file": _FILE}, read_only=True),
    Driver("vmdk", "format", f"{_PACKAGE}.foreign.vmdk", options=_LAYERED, read_only=True),
    Driver("vpc", "format", f"{_PACKAGE}.foreign.vpc", options={"file": _FILE}, read_only=True),
    Driver(
        "throttle",
        "filter",
        f"{_PACKAGE}.throttle",
        options={"throttle-group": Option(required=True), "file": _FILE},
    ),
    Driver(
        "copy-before-write",
        "filter",
        f"{_PACKAGE}.copy_before_write",
        options={
            "file": _FILE,
            "target": _FILE,
            "bitmap": Option("any", members={"node": Option(required=True), "name": Option(required=True)}),
            "on-cbw-error": _choice("break-guest-write", "break-snapshot"),
            "cbw-timeout": _INTEGER,
        },
    ),
    Driver("copy-on-read", "filter", f"{_PACKAGE}.copy_on_read", options={"file": _FILE, "bottom": _STRING}),
    Driver(
        "blkdebug",
        "protocol",
        f"{_PACKAGE}.blkdebug",
        options={
            "image": _FILE,
            "config": _STRING,
            "align": _INTEGER,
            "max-transfer": _INTEGER,
            "opt-write-zero": _INTEGER,
            "max-write-zero": _INTEGER,
            "opt-discard": _INTEGER,
            "max-discard": _INTEGER,
            # The driver itself checks the members: with `-drive` they are text.
            "inject-error": Option("any"),
            "set-state": Option("any"),
            "take-child-perms": Option("any"),
            "unshare-child-perms": Option("any"),
        },
        prefixes=("blkdebug",),
    ),
    Driver(
        "blkverify",
        "protocol",
        f"{_PACKAGE}.blkverify",
        options={"raw": _FILE, "test": _FILE},
        prefixes=("blkverify",),
    ),
    Driver(
        "quorum",
        "protocol",
        f"{_PACKAGE}.quorum",
        options={
            "children": Option("nodes", required=True),
            "vote-threshold": Option("integer", required=True),
            "blkverify": _BOOLEAN,
            "rewrite-corrupted": _BOOLEAN,
            "read-pattern": _choice("quorum", "fifo"),
        },
    ),
    Driver(
        "blklogwrites",
        "filter",
        f"{_PACKAGE}.blklogwrites",
        options={
            "file": _FILE,
            "log": _FILE,
            "log-sector-size": _INTEGER,
            "log-append": _BOOLEAN,
            "log-super-update-interval": _INTEGER,
        },
    ),
    Driver("compress", "filter", f"{_PACKAGE}.compress", options={"file": _FILE}),
    Driver(
        "preallocate",
        "filter",
        f"{_PACKAGE}.preallocate",
        options={"file": _FILE, "prealloc-align": _INTEGER, "prealloc-size": _INTEGER},
    ),
    Driver("blkreplay", "filter", f"{_PACKAGE}.blkreplay", options={"image": _FILE}),
    Driver(
        "replication",
        "filter",
        f"{_PACKAGE}.replication",
        options={"file": _FILE, "mode": Option(required=True, choices=("primary", "secondary")), "top-id": _STRING},
    ),
    Driver("snapshot-access", "filter", f"{_PACKAGE}.snapshot_access", options={"file": _FILE}),
    Driver("nbd", "protocol", f"{_PACKAGE}.nbd", options=_NBD, prefixes=("nbd", "nbd+tcp", "nbd+unix")),
    Driver("ssh", "protocol", f"{_PACKAGE}.ssh", options=_SSH, prefixes=("ssh",)),
    Driver("http", "protocol", f"{_PACKAGE}.http", options=_HTTP, prefixes=("http",)),
    Driver("https", "protocol", f"{_PACKAGE}.http", "make_https", _HTTPS, prefixes=("https",)),
)
_MISSING_PROTOCOLS = {
    "ftp": ("ftp",),
    "ftps": ("ftps",),
    "gluster": ("gluster", "gluster+tcp", "gluster+unix", "gluster+rdma"),
    "iscsi": ("iscsi", "iser"),
    "nfs": ("nfs",),
    "nvme": ("nvme",),
    "rbd": ("rbd",),
    "vvfat": ("fat",),
}
_MISSING_FORMATS = ("dmg",)


def _build() -> dict[str, Driver]:
    table = {row.name: row for row in _ROWS}
    for name, prefixes in _MISSING_PROTOCOLS.items():
        table[name] = Driver(name, "protocol", prefixes=prefixes)
    for name in _MISSING_FORMATS:
        table[name] = Driver(name, "format")
    return table


NEVER_WRITTEN = ("bochs", "cloop")
"""Formats that nobody writes, not even QEMU."""
DRIVERS: dict[str, Driver] = _build()
"""Every driver of QEMU, by name."""
_PREFIXES = {prefix: row for row in DRIVERS.values() for prefix in row.prefixes}


def find_driver(name: str) -> Driver:
    """Return a driver that is there.  Raises BlockError."""
    driver = DRIVERS.get(name)
    if driver is None:
        raise BlockError(f"Unknown driver '{name}'")
    if not driver.module:
        raise BlockError(f"Driver '{name}' is not supported by pyvm yet")
    return driver


@record
class Settings:
    """What every node takes, ready for use."""

    name: str
    path: str = ""
    """The file name that led to this node, where there was one."""
    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    unmap: bool = False
    direct: bool = False
    no_flush: bool = False
    detect_zeroes: DetectZeroes = "off"
    probed: bool = False
    """Whether the format was found out."""
    no_io: bool = False
    """Whether it is only looked at: data is neither read nor written, so that no key is needed."""
    access: Access = UNUSED
    """How whoever opens it uses it, for now."""
    given: dict[str, Any] = field(default_factory=dict)
    """What of all this was said, by the options' names, with dots in them."""
    texts: dict[str, str] = field(default_factory=dict)
    """As which text the driver's own options were given that are no texts."""


# ---- Values


def check_tree(tree: Mapping[str, Any], dialect: Dialect, path: str = "") -> Tree:
    """Return the options of a node and all inside it, checked and of their types, for `-blockdev` and QMP.

    Raises BlockError.
    """
    name = tree.get("driver")
    if name is None:
        raise BlockError(f"Parameter '{path}driver' is missing")
    if not isinstance(name, str):
        raise BlockError(f"Invalid parameter type for '{path}driver', expected: string")
    if name not in DRIVERS:
        raise BlockError(f"Parameter 'driver' does not accept value '{name}'")
    driver = find_driver(name)
    known = {**GENERIC, **driver.options}
    checked = _check_members(tree, known, dialect, path)
    for key, option in known.items():
        if option.required and key not in checked:
            raise BlockError(f"Parameter '{path}{key}' is missing")
    return checked


def _check_members(given: Mapping[str, Any], known: Mapping[str, Option], dialect: Dialect, path: str) -> Tree:
    checked: Tree = {}
    for key, option in known.items():
        if key in given:
            checked[key] = _check_value(given[key], option, dialect, path, key)
    for key in given:
        if key not in known:
            raise BlockError(f"Parameter '{path}{key}' is unexpected")
    return checked


def _check_value(value: Any, option: Option, dialect: Dialect, path: str, key: str) -> Any:
    if option.members:
        if not isinstance(value, dict):
            raise BlockError(f"Invalid parameter type for '{path}{key}', expected: object")
        members = _check_members(value, option.members, dialect, f"{path}{key}.")
        for name, member in option.members.items():
            if member.required and name not in members:
                raise BlockError(f"Parameter '{path}{key}.{name}' is missing")
        return members
    if option.kind == "nodes":
        return _check_references(value, dialect, path, key)
    if option.kind in ("node", "node-or-null"):
        return _check_reference(value, option, dialect, path, key)
    return convert(value, option, dialect, f"{path}{key}", key)


def _check_references(value: Any, dialect: Dialect, path: str, key: str) -> list[Any]:
    if isinstance(value, dict) and dialect is not Dialect.JSON:
        value = [value[number] for number in sorted(value, key=lambda it: (len(it), it))]
    if not isinstance(value, list):
        raise BlockError(f"Invalid parameter type for '{path}{key}', expected: array")
    one = Option("node")
    return [_check_reference(it, one, dialect, f"{path}{key}", f"[{index}]") for index, it in enumerate(value)]


def _check_reference(value: Any, option: Option, dialect: Dialect, path: str, key: str) -> Any:
    if isinstance(value, dict):
        return check_tree(value, dialect, f"{path}{key}.")
    if isinstance(value, str):
        return value
    if value is None and option.kind == "node-or-null":
        return None
    expected = "BlockdevRef" if option.kind == "node" else "BlockdevRefOrNull"
    raise BlockError(f"Invalid parameter type for '{path}{key}', expected: {expected}")


def convert(value: Any, option: Option, dialect: Dialect, path: str, key: str) -> Any:
    """Return the value of an option as its kind has it.  Raises BlockError."""
    kind = option.kind
    if kind == "any":
        return value
    if kind == "string":
        if dialect is Dialect.DRIVE and isinstance(value, bool | int | float):
            # From a file name that is JSON.
            value = ("on" if value else "off") if isinstance(value, bool) else str(value)
        if not isinstance(value, str):
            raise BlockError(f"Invalid parameter type for '{path}', expected: string")
        if option.choices and value not in option.choices:
            raise BlockError(_wrong_choice(option, dialect, key, value))
        return value
    if isinstance(value, bool if kind == "boolean" else int) and isinstance(value, bool) == (kind == "boolean"):
        if kind != "boolean" and value < 0:
            raise BlockError(f"Parameter '{path}' expects a non-negative number")
        return value
    if dialect is Dialect.JSON or not isinstance(value, str):
        raise BlockError(
            f"Invalid parameter type for '{path}', expected: {'boolean' if kind == 'boolean' else 'integer'}"
        )
    try:
        if kind == "boolean":
            return parse_boolean(path, value)
        if dialect is Dialect.DRIVE and kind == "number":
            return _parse_wrapped(path, value)
        return parse_size(path, value) if dialect is Dialect.DRIVE else parse_number(path, value)
    except ConfigError as error:
        if kind != "boolean" and dialect is Dialect.KEYVAL:
            raise BlockError(f"Parameter '{path}' expects integer") from None
        raise BlockError(str(error)) from None


def _parse_wrapped(name: str, text: str) -> int:
    if text.startswith("-"):
        return -parse_number(name, text[1:]) & UINT64_MAX
    return parse_number(name, text)


def _wrong_choice(option: Option, dialect: Dialect, key: str, value: str) -> str:
    if dialect is Dialect.DRIVE and key == "discard":
        return "Invalid discard option"
    if dialect is Dialect.DRIVE:
        return f"invalid parameter value: {value}"
    return f"Parameter '{key}' does not accept value '{value}'"


# ---- File names


def parse_filename(name: str) -> tuple[Driver, Tree]:
    """Return the protocol driver that a file name stands for, and its own options.  Raises BlockError."""
    driver = protocol_of(name)
    if driver is None:
        return _local_driver(name), {"filename": name}
    if not driver.module:
        raise BlockError(f"Protocol '{driver.name}' is not supported by pyvm yet: '{name}'")
    if driver.module in _LOCAL:
        path = name.partition(":")[2]
        # What is left may look like a protocol, which it is not.
        return driver, {"filename": f"./{path}" if ":" in path.partition("/")[0] else path}
    return driver, parse_by(driver, name)


def named_child(name: str, options: Any) -> Any:
    """Return the options of a child that the name of its parent names, with those that were given.  Raises BlockError.

    The name is that of the child's file where a format was given.
    """
    if name.startswith("json:") and (options is None or isinstance(options, dict)):
        return {**parse_pseudo(name), **(options or {})}
    driver, own = parse_filename(name)
    if options is None:
        return {**own, "driver": driver.name}
    if not isinstance(options, dict):
        return options
    chosen = DRIVERS.get(str(options.get("driver", driver.name)))
    if chosen is not None and chosen.kind != "protocol":
        return {"file": {**own, "driver": driver.name}, **options}
    return {**own, "driver": driver.name, **options}


def parse_by(driver: Driver, name: str) -> Tree:
    """Return the options that a file name stands for to one driver.  Raises BlockError."""
    from importlib import import_module

    return dict(import_module(driver.module).parse_filename(name))


_LOCAL = (f"{_PACKAGE}.file", f"{_PACKAGE}.host_device")


def protocol_of(name: str) -> Driver | None:
    """Return the driver of the protocol that a file name begins with, None for a path.  Raises BlockError."""
    protocol, colon, _ = name.partition(":")
    if not colon or "/" in protocol:
        return None
    driver = _PREFIXES.get(protocol)
    if driver is None:
        raise BlockError(f"Unknown protocol '{protocol}'")
    return driver


def beside(image: str, path: str) -> str:
    """Return the name of a file that an image names: a relative path starts where the image is.  Raises BlockError."""
    protocol, colon, rest = path.partition(":")
    if not path or (colon and "/" not in protocol and protocol != "file"):
        return path
    if colon and protocol == "file":
        path = rest
    if path.startswith("/"):
        return path
    if image.startswith("json:"):
        raise BlockError(f"Cannot use relative backing file names for '{image}'")
    base = image.removeprefix("file:")
    protocol, colon, _ = base.partition(":")
    has_protocol = base is image and bool(colon) and "/" not in protocol
    return base[: max(base.rfind("/"), len(protocol) if has_protocol else -1) + 1] + path


def _local_driver(path: str) -> Driver:
    import os
    import stat

    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return DRIVERS["file"]
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        from pyvm.block.probe import is_cdrom

        return DRIVERS["host_cdrom" if is_cdrom(path) else "host_device"]
    return DRIVERS["file"]


def parse_pseudo(name: str) -> Tree:
    """Return the options that a ``json:{...}`` file name is.  Raises BlockError."""
    from pyvm.json.reader import JsonError, loads

    try:
        value = loads(name.removeprefix("json:"))
    except JsonError as error:
        raise BlockError(f"Could not parse the JSON options: {error}") from None
    if not isinstance(value, dict):
        raise BlockError("Invalid JSON object given")
    return unflatten(value)


_TEXT_AND_TREE = ("overlap-check",)
"""Options that may be given as one text and as a structure at once: the text is the member without a name then."""


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Return options with dotted names put into structures.  Raises BlockError where they contradict one another."""
    tree: Tree = {}
    for key, value in flat.items():
        if isinstance(value, dict):
            value = unflatten(value)  # noqa: PLW2901 - the same in its final form
        *parents, last = key.split(".")
        node = tree
        for depth, part in enumerate(parents, 1):
            below = node.setdefault(part, {})
            if not isinstance(below, dict) and part in _TEXT_AND_TREE:
                below = node[part] = {"": below}
            if not isinstance(below, dict):
                raise BlockError(f"Parameters '{'.'.join(parents[:depth])}.*' used inconsistently")
            node = below
        present = node.get(last)
        if isinstance(present, dict) and isinstance(value, dict):
            present.update(value)
        elif isinstance(present, dict) and last in _TEXT_AND_TREE:
            present[""] = value
        elif isinstance(present, dict) and present:
            raise BlockError(f"Parameters '{key}.*' used inconsistently")
        else:
            node[last] = value
    return tree
