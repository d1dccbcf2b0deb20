"""What can be chosen when a qcow2 image is opened, with QEMU's names, rules and messages."""

from __future__ import annotations

from collections.abc import Mapping

from pyvm.annotations import Any, NamedTuple
from pyvm.block.drivers.qcow2.overlap import TEMPLATES, Kind
from pyvm.block.drivers.qcow2.structures import MIN_CLUSTER_BITS, Compatible, Header
from pyvm.block.drivers.qcow2.tables import SLICE_BYTES
from pyvm.block.errors import BlockError

_LARGEST_L2_CACHE = 32 << 20
_FEWEST_REFCOUNT_BLOCKS = 4
_INT_MAX = (1 << 31) - 1
_UINT_MAX = (1 << 32) - 1
_DEFAULT_CLEAN_INTERVAL = 600

_OVERLAP_OPTIONS = {
    "main-header": Kind.MAIN_HEADER,
    "active-l1": Kind.ACTIVE_L1,
    "active-l2": Kind.ACTIVE_L2,
    "refcount-table": Kind.REFCOUNT_TABLE,
    "refcount-block": Kind.REFCOUNT_BLOCK,
    "snapshot-table": Kind.SNAPSHOT_TABLE,
    "inactive-l1": Kind.INACTIVE_L1,
    "inactive-l2": Kind.INACTIVE_L2,
    "bitmap-directory": Kind.BITMAP_DIRECTORY,
}
OPTION_NAMES = frozenset(
    {
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "overlap-check",
        "overlap-check.template",
        *(f"overlap-check.{name}" for name in _OVERLAP_OPTIONS),
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
    }
)
"""All options that :func:`read_options` knows."""


class Options(NamedTuple):
    """How an image is used."""

    lazy_refcounts: bool
    discard_request: bool
    discard_snapshot: bool
    discard_other: bool
    overlap: Kind
    l2_cache: int
    """Bytes."""
    l2_slice: int
    """Bytes of a table that are read at once."""
    refcount_cache: int
    """Bytes."""
    clean_interval: int
    """Seconds after which what was not used is dropped from the caches; 0: never."""


def read_options(given: Mapping[str, Any], header: Header, *, unmap: bool) -> Options:
    """Return the options for an image; values are strings, or of the type that they mean.  Raises BlockError.

    `unmap` is whether discards of the guest are passed on where nothing else is said.
    """
    lazy = _flag(given, "lazy-refcounts", bool(header.compatible_features & Compatible.LAZY_REFCOUNTS))
    if lazy and header.version < 3:
        raise BlockError("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
    l2_cache, refcount_cache, l2_slice = _cache_sizes(given, header)
    interval = _number(given, "cache-clean-interval", _DEFAULT_CLEAN_INTERVAL)
    if interval > _UINT_MAX:
        raise BlockError("Cache clean interval too big")
    return Options(
        lazy,
        _flag(given, "pass-discard-request", unmap),
        _flag(given, "pass-discard-snapshot", True),
        _flag(given, "pass-discard-other", False),
        _overlap(given),
        l2_cache,
        l2_slice,
        refcount_cache,
        interval,
    )


def _overlap(given: Mapping[str, Any]) -> Kind:
    short = given.get("overlap-check")
    parts = {key.removeprefix("overlap-check."): value for key, value in given.items() if key.startswith("overlap-")}
    if isinstance(short, Mapping):
        parts = dict(short)
        short = parts.pop("", None)
    template = parts.get("template")
    if short is not None and template is not None and short != template:
        raise BlockError(
            f"Conflicting values for qcow2 options 'overlap-check' ('{short}') and 'overlap-check.template'"
            f" ('{template}')"
        )
    name = short if short is not None else template if template is not None else "cached"
    if name not in TEMPLATES:
        raise BlockError(
            f"Unsupported value '{name}' for qcow2 option 'overlap-check'. Allowed are any of the following: none,"
            " constant, cached, all"
        )
    checked = TEMPLATES[name]
    for key, kind in _OVERLAP_OPTIONS.items():
        if key in parts:
            checked = checked | kind if _flag(parts, key, False) else checked & ~kind
    return checked


def _cache_sizes(given: Mapping[str, Any], header: Header) -> tuple[int, int, int]:
    """Return the bytes of the L2 cache, of the refcount cache, and of an entry of the first."""
    cluster = header.cluster_size
    entries = -(-header.size // cluster)
    most_l2 = -(-entries * header.l2_entry_size // cluster) * cluster
    least_refcounts = _FEWEST_REFCOUNT_BLOCKS * cluster
    both = _number(given, "cache-size", 0)
    wanted_l2 = _number(given, "l2-cache-size", _LARGEST_L2_CACHE)
    refcounts = _number(given, "refcount-cache-size", 0)
    l2_given, refcounts_given = "l2-cache-size" in given, "refcount-cache-size" in given
    l2 = min(most_l2, wanted_l2)
    if "cache-size" in given:
        if l2_given and refcounts_given:
            raise BlockError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
        if l2_given and wanted_l2 > both:
            raise BlockError("l2-cache-size may not exceed cache-size")
        if refcounts > both:
            raise BlockError("refcount-cache-size may not exceed cache-size")
        if l2_given:
            refcounts = both - l2
        elif refcounts_given:
            l2 = both - refcounts
        elif both >= most_l2 + least_refcounts:
            l2, refcounts = most_l2, both - most_l2
        else:
            refcounts = min(both, least_refcounts)
            l2 = both - refcounts
    entry = _number(given, "l2-cache-entry-size", cluster)
    if not 1 << MIN_CLUSTER_BITS <= entry <= cluster or entry & (entry - 1):
        raise BlockError(
            f"L2 cache entry size must be a power of two between {1 << MIN_CLUSTER_BITS} and the cluster size"
            f" ({cluster})"
        )
    if l2 // entry > _INT_MAX:
        raise BlockError("L2 cache size too big")
    if refcounts // cluster > _INT_MAX:
        raise BlockError("Refcount cache size too big")
    entry = entry if "l2-cache-entry-size" in given else min(entry, SLICE_BYTES)
    return l2, max(refcounts, least_refcounts), entry


_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}


def _number(given: Mapping[str, Any], key: str, default: int) -> int:
    value = given.get(key)
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    text = str(value).strip().lower()
    digits = text.rstrip("bkmgtpe")
    if not digits.isascii() or not digits.isdigit() or text[len(digits) :] not in _SUFFIXES:
        raise BlockError(f"Parameter '{key}' expects a non-negative number below 2^64")
    return int(digits) * _SUFFIXES[text[len(digits) :]]


def _flag(given: Mapping[str, Any], key: str, default: bool) -> bool:
    value = given.get(key)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return bool(value == "on")
    raise BlockError(f"Parameter '{key}' expects 'on' or 'off'")
