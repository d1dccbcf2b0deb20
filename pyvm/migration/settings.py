"""Capabilities and parameters of migrations: what there are, their defaults, and what goes together.

They can be set at any time and hold for the next migration.  The names are those of QMP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyvm.errors import ConfigError
from pyvm.options import is_identifier

CAPABILITIES = (
    "xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "compress", "events", "postcopy-ram", "x-colo",
    "release-ram", "block", "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps",
    "postcopy-blocktime", "late-block-activate", "x-ignore-shared", "validate-uuid", "background-snapshot",
    "zero-copy-send", "postcopy-preempt",
)  # fmt: skip

DEFAULTS: dict[str, Any] = {
    "announce-initial": 50,
    "announce-max": 550,
    "announce-rounds": 5,
    "announce-step": 100,
    "compress-level": 1,
    "compress-threads": 8,
    "compress-wait-thread": True,
    "decompress-threads": 2,
    "throttle-trigger-threshold": 50,
    "cpu-throttle-initial": 20,
    "cpu-throttle-increment": 10,
    "cpu-throttle-tailslow": False,
    "max-cpu-throttle": 99,
    "tls-creds": "",
    "tls-hostname": "",
    "max-bandwidth": 128 << 20,
    "downtime-limit": 300,
    "x-checkpoint-delay": 20000,
    "block-incremental": False,
    "multifd-channels": 2,
    "multifd-compression": "none",
    "multifd-zlib-level": 1,
    "multifd-zstd-level": 1,
    "xbzrle-cache-size": 64 << 20,
    "max-postcopy-bandwidth": 0,
    "tls-authz": "",
}
"""All parameters that have a value from the start; times in ms, sizes in bytes and bytes a second."""

BITMAP_MAPPING = "block-bitmap-mapping"
_NO_EFFECT = frozenset({"multifd-zlib-level", "multifd-zstd-level"})
"""Parameters that clients may give and that stay as they are, as in QEMU 7.2."""

_VALUE = "a value between {} and {}"
_INTEGER = "an integer in the range of {} to {}"
_RANGES: dict[str, tuple[int, int, str]] = {
    "compress-level": (0, 9, _VALUE.format(0, 9)),
    "compress-threads": (1, 255, _VALUE.format(1, 255)),
    "decompress-threads": (1, 255, _VALUE.format(1, 255)),
    "throttle-trigger-threshold": (1, 100, _INTEGER.format(1, 100)),
    "cpu-throttle-initial": (1, 99, _INTEGER.format(1, 99)),
    "cpu-throttle-increment": (1, 99, _INTEGER.format(1, 99)),
    "downtime-limit": (0, 2_000_000, _INTEGER.format(0, "(2000 * 1000) ms")),
    "multifd-channels": (1, 255, _VALUE.format(1, 255)),
    "announce-initial": (0, 100_000, _VALUE.format(0, 100_000)),
    "announce-max": (0, 100_000, _VALUE.format(0, 100_000)),
    "announce-rounds": (0, 1000, _VALUE.format(0, 1000)),
    "announce-step": (1, 10_000, _VALUE.format(0, 10_000)),
}
"""Least and greatest value, and how a message puts it."""
_PAGE_SIZE = 4096
_MAX_THROTTLE = 99
_ALIAS_LIMIT = 255

_AGAINST_SNAPSHOT = (
    "postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "return-path", "multifd",
    "pause-before-switchover", "auto-converge", "release-ram", "rdma-pin-all", "compress", "xbzrle", "x-colo",
    "validate-uuid", "zero-copy-send",
)  # fmt: skip
_NO_ZERO_COPY = "Zero copy only available for non-compressed non-TLS multifd migration"


CheckHost = Callable[[str], None]


class MigrationSettings:
    """The capabilities and parameters of one machine's migrations."""

    def __init__(self) -> None:
        self.capabilities = dict.fromkeys(CAPABILITIES, False)
        self.parameters = dict(DEFAULTS)
        self.parameters[BITMAP_MAPPING] = None
        """The last of them is None until it is given."""

    def enable(self, states: Iterable[tuple[str, bool]], check_host: CheckHost = lambda name: None) -> None:
        """Switch capabilities on or off, all or none of them.  Raises ConfigError where they do not go together.

        `check_host` is called with the name of each that is switched on and needs something of the host; it raises
        ConfigError where the host does not have that.
        """
        wanted = {**self.capabilities, **dict(states)}
        self._check_capabilities(wanted, check_host)
        self.capabilities = wanted

    def set(self, values: Mapping[str, Any]) -> None:
        """Set parameters, all or none of them.  Raises ConfigError for a value that is out of range."""
        wanted = {**self.parameters, **{name: value for name, value in values.items() if name not in _NO_EFFECT}}
        self._check_parameters(wanted)
        self.parameters = wanted

    def shown(self) -> dict[str, Any]:
        """Return the parameters that have a value."""
        return {name: value for name, value in self.parameters.items() if value is not None}

    def _check_capabilities(self, wanted: Mapping[str, bool], check_host: CheckHost) -> None:
        if wanted["postcopy-ram"] and not self.capabilities["postcopy-ram"]:
            check_host("postcopy-ram")
        if wanted["postcopy-ram"] and wanted["x-ignore-shared"]:
            raise ConfigError("Postcopy is not compatible with ignore-shared")
        if wanted["background-snapshot"]:
            check_host("background-snapshot")
            for name in _AGAINST_SNAPSHOT:
                if wanted[name]:
                    raise ConfigError(f"Background-snapshot is not compatible with {name}")
        compressed = wanted["compress"] or wanted["xbzrle"] or _encoded(self.parameters)
        if wanted["zero-copy-send"] and (not wanted["multifd"] or compressed):
            raise ConfigError(_NO_ZERO_COPY)
        if wanted["postcopy-preempt"]:
            if not wanted["postcopy-ram"]:
                raise ConfigError("Postcopy preempt requires postcopy-ram")
            if wanted["compress"]:
                raise ConfigError("Postcopy preempt not compatible with compress")
        if wanted["multifd"] and wanted["compress"]:
            raise ConfigError("Multifd is not compatible with compress")

    def _check_parameters(self, wanted: Mapping[str, Any]) -> None:
        for name, (low, high, text) in _RANGES.items():
            if not low <= wanted[name] <= high:
                raise _refused(name, text)
        cache = wanted["xbzrle-cache-size"]
        if cache < _PAGE_SIZE or cache & (cache - 1):
            raise _refused("xbzrle-cache-size", "a power of two no less than the target page size")
        if not wanted["cpu-throttle-initial"] <= wanted["max-cpu-throttle"] <= _MAX_THROTTLE:
            raise _refused("max-cpu-throttle", f"an integer in the range of cpu_throttle_initial to {_MAX_THROTTLE}")
        if wanted[BITMAP_MAPPING] is not None:
            try:
                check_bitmap_mapping(wanted[BITMAP_MAPPING])
            except ConfigError as error:
                raise ConfigError(f"Invalid mapping given for {BITMAP_MAPPING}: {error}") from None
        if self.capabilities["zero-copy-send"] and _encoded(wanted):
            raise ConfigError(_NO_ZERO_COPY)


def _encoded(parameters: Mapping[str, Any]) -> bool:
    """Return whether what is sent is not what is in memory."""
    return parameters["multifd-compression"] != "none" or bool(parameters["tls-creds"])


def _refused(name: str, expected: str) -> ConfigError:
    return ConfigError(f"Parameter '{name.replace('-', '_')}' expects {expected}")


def check_bitmap_mapping(mapping: Iterable[Mapping[str, Any]]) -> None:
    """Raise ConfigError where a BitmapMigrationNodeAlias list has a bad alias, or anything twice."""
    nodes: set[str] = set()
    aliases: set[str] = set()
    for node in mapping:
        name, alias = node["node-name"], node["alias"]
        if not is_identifier(alias):
            raise ConfigError(f"The node alias '{alias}' is not well-formed")
        _check_length("node", alias)
        _check_length("node", name, kind="name")
        if name in nodes:
            raise ConfigError(f"The node name '{name}' is mapped twice")
        if alias in aliases:
            raise ConfigError(f"The node alias '{alias}' is used twice")
        nodes.add(name)
        aliases.add(alias)
        _check_bitmaps(node)


def _check_bitmaps(node: Mapping[str, Any]) -> None:
    names: set[str] = set()
    aliases: set[str] = set()
    for bitmap in node["bitmaps"]:
        name, alias = bitmap["name"], bitmap["alias"]
        _check_length("bitmap", alias)
        if name in names:
            raise ConfigError(f"The bitmap '{node['node-name']}'/'{name}' is mapped twice")
        if alias in aliases:
            raise ConfigError(f"The bitmap alias '{node['alias']}'/'{alias}' is used twice")
        names.add(name)
        aliases.add(alias)


def _check_length(what: str, text: str, kind: str = "alias") -> None:
    if len(text.encode("utf-8", "surrogateescape")) > _ALIAS_LIMIT:
        raise ConfigError(f"The {what} {kind} '{text}' is longer than {_ALIAS_LIMIT} bytes")
