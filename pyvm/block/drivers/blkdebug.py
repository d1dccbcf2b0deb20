"""Filter *blkdebug*: makes requests fail, for tests of what others do then.

Rules name an event.  When the driver above says that it happens (:meth:`Node.debug_event`), the rules for it become the
ones in force, until the next event that has any; requests that meet one in force fail.  Rules for another state than
the present one are left out; `set-state` rules change it.  Breakpoints (see :mod:`pyvm.block.breakpoints`) stop
requests where an event happens.  With limits, the image is one that takes requests of certain sizes only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.breakpoints import Breakpoints
from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import PERMISSION_NAMES, Access, Child, Extent, Node, Permission, Role
from pyvm.block.vectors import Buffers, Cursor, copy_in, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_SECTOR = 512
_INT_MAX = (1 << 31) - 1
_DATA_ZEROES = 1 << 20
_ALWAYS = "none"
_ANY_TYPE = ("read", "write", "write-zeroes", "discard", "flush")
LIMITS = ("align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard")
EVENTS = frozenset(
    """
    l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l1_shrink_write_table
    l1_shrink_free_l2_clusters l2_load l2_update l2_update_compressed l2_alloc_cow_read l2_alloc_write read_aio
    read_backing_aio read_compressed write_aio write_compressed vmstate_load vmstate_save cow_read cow_write cor_write
    reftable_load reftable_grow reftable_update refblock_load refblock_update refblock_update_part refblock_alloc
    refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks refblock_alloc_write_table
    refblock_alloc_switch_table cluster_alloc cluster_alloc_bytes cluster_alloc_space cluster_free flush_to_os
    flush_to_disk pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero
    pwritev_done empty_image_prepare none
    """.split()
)
"""Names that rules may have; not every driver has all of them to tell of."""
_PERMISSIONS = {name.replace(" ", "-"): permission for permission, name in PERMISSION_NAMES.items()}


@dataclass
class Rule:
    """One rule of either kind."""

    event: str
    state: int = 0
    """In which state it holds; 0: in any."""
    errno: int = errno.EIO
    sector: int = -1
    """Which sector must be in a request; -1: any."""
    once: bool = False
    types: tuple[str, ...] = _ANY_TYPE
    new_state: int | None = None
    """The state that follows, for a rule that changes it."""


@dataclass
class Limits:
    """What requests have to keep to, in bytes; 0: nothing."""

    align: int = 0
    """Reads and writes are made of whole blocks of this size."""
    max_transfer: int = 0
    opt_write_zero: int = 0
    """Zeros without data are written apart in whole blocks of this size, and before and behind those."""
    max_write_zero: int = 0
    opt_discard: int = 0
    """Whole blocks of this size are given back apart from what is before and behind them."""
    max_discard: int = 0

    def check(self) -> None:
        """Raise BlockError where they do not go together."""
        align = self.align
        if align and (align & (align - 1) or align >= _INT_MAX):
            raise BlockError(f"Cannot meet constraints with align {align}")
        align = align or 1
        for name, unit in (
            ("max_transfer", align),
            ("opt_write_zero", align),
            ("max_write_zero", max(self.opt_write_zero, align)),
            ("opt_discard", align),
            ("max_discard", max(self.opt_discard, align)),
        ):
            value = getattr(self, name)
            if value >= _INT_MAX or value % unit:
                raise BlockError(f"Cannot meet constraints with {name.replace('_', '-')} {value}")


class BlkdebugNode(FilterNode):
    """A filter in front of `image`."""

    driver: ClassVar[str] = "blkdebug"

    def __init__(
        self, image: Node, rules: list[Rule], *, name: str = "", read_only: bool | None = None, limits: Limits
    ) -> None:
        super().__init__(image, name=name, read_only=read_only)
        self.children = [Child(Role.FILTERED, image, "image")]
        self.state = 1
        self._rules = rules
        self.breakpoints = Breakpoints()
        self._limits = limits
        self._force: list[Rule] = [rule for rule in rules if rule.event == _ALWAYS and rule.new_state is None]
        self.taken = Permission(0)
        self.unshared = Permission(0)
        self._written = False
        """Whether there is anything to make safe."""

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with the image: as those above say, and what the options add."""
        return Access(used | self.taken, shared & ~self.unshared)

    def debug_event(self, event: str) -> None:
        """Something happens in the driver above."""
        injected: list[Rule] = []
        state = self.state
        for rule in self._rules:
            if rule.event != event or rule.state not in (0, self.state):
                continue
            if rule.new_state is None:
                injected.append(rule)
            else:
                state = rule.new_state
        if injected:
            self._force = injected
        self.state = state
        self.breakpoints.meet(event)

    def _check(self, kind: str, offset: int, length: int) -> None:
        """Raise OSError where a rule in force is met."""
        for rule in self._force:
            if kind not in rule.types:
                continue
            place = rule.sector * _SECTOR
            if rule.sector >= 0 and not (offset <= place < offset + length):
                continue
            if rule.once:
                self._force.remove(rule)
                self._rules = [it for it in self._rules if it is not rule]
            if rule.errno:
                raise OSError(rule.errno, os.strerror(rule.errno))
            return

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on, or fail."""
        length = total(buffers)
        before, behind = self._margins(offset, length)
        if before or behind:
            whole = bytearray(before + length + behind)
            self._read_pieces(offset - before, (memoryview(whole),))
            copy_in(buffers, memoryview(whole)[before : before + length])
        else:
            self._read_pieces(offset, buffers)

    def _margins(self, offset: int, length: int) -> tuple[int, int]:
        """Return by how much a request has to grow before and behind to be one of whole blocks."""
        align = self._limits.align
        if align <= 1:
            return 0, 0
        return offset % align, min(-(offset + length) % align, max(self.size - offset - length, 0))

    def _read_pieces(self, offset: int, buffers: Buffers) -> None:
        cursor = Cursor(buffers)
        for start, count in _pieces(offset, total(buffers), self._limits.max_transfer):
            self._check("read", start, count)
            super().readv(start, cursor.take(count))

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on, or fail."""
        self._written = True
        before, behind = self._margins(offset, total(buffers))
        parts = buffers
        if before:
            parts = (*self._edge("head", offset - before, before), *parts)
        if behind:
            parts = (*parts, *self._edge("tail", offset + total(buffers), behind))
        offset -= before
        cursor = Cursor(parts)
        for start, count in _pieces(offset, total(parts), self._limits.max_transfer):
            self.debug_event("pwritev")
            self._check("write", start, count)
            super().writev(start, cursor.take(count))
            self.debug_event("pwritev_done")

    def _edge(self, name: str, offset: int, length: int) -> Buffers:
        """Return what is beside a write in a block of which it has only a part."""
        self.debug_event(f"pwritev_rmw_{name}")
        align = self._limits.align
        first = offset // align * align
        block = bytearray(align)
        there = min(align, max(self.size - first, 0))
        if there:
            self._read_pieces(first, (memoryview(block)[:there],))
        self.debug_event(f"pwritev_rmw_after_{name}")
        start = offset % align
        return (memoryview(block)[start : start + length],)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros, or fail."""
        self._written = True
        limits = self._limits
        start, end = _whole(offset, length, limits.align)
        if start >= end:
            self._write_data_zeroes(offset, length)
            return
        self._write_data_zeroes(offset, start - offset)
        for position, count in _fragments(start, end, limits.opt_write_zero, limits.max_write_zero):
            if count < limits.opt_write_zero:
                self._write_data_zeroes(position, count)
                continue
            self.debug_event("pwritev_zero")
            self._check("write-zeroes", position, count)
            super().write_zeroes(position, count, unmap)
        self._write_data_zeroes(end, offset + length - end)

    def _write_data_zeroes(self, offset: int, length: int) -> None:
        """Write zeros as data, which is what is left where blocks are not whole."""
        for start, count in _pieces(offset, length, self._limits.max_transfer or _DATA_ZEROES):
            self.writev(start, (memoryview(bytes(count)),))

    def discard(self, offset: int, length: int) -> None:
        """Give whole blocks of the range back, or fail."""
        self._written = True
        limits = self._limits
        start, end = _whole(offset, length, limits.align)
        for position, count in _fragments(start, end, limits.opt_discard, limits.max_discard):
            self._check("discard", position, count)
            super().discard(position, count)

    def flush(self) -> None:
        """Make everything safe, or fail."""
        if self._written:
            self.debug_event("flush_to_os")
            self.debug_event("flush_to_disk")
            self._check("flush", 0, 0)
            self._written = False
        super().flush()

    def check_status(self, offset: int, length: int) -> None:
        """Fail where a rule says so."""
        self._check("block-status", offset, length)

    def block_status(self, offset: int, length: int) -> Extent:
        """Return what the image says, or fail."""
        self.check_status(offset, length)
        return super().block_status(offset, length)

    def close(self) -> None:
        """Let go what waits, and the image."""
        self.breakpoints.clear()
        super().close()


def _pieces(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield a range in pieces of at most `most` bytes, if that is not 0; an empty one as it is."""
    step = most or length
    if length <= step:
        yield offset, length
        return
    for start in range(offset, offset + length, step):
        yield start, min(step, offset + length - start)


def _fragments(start: int, end: int, unit: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield a range in pieces: what is before the first whole block of `unit` bytes, the blocks, and what is behind."""
    first, last = _whole(start, end - start, unit)
    bounds = (start, first, last, end) if first < last else (start, end)
    for one, other in pairwise(bounds):
        if one < other:
            yield from _pieces(one, other - one, most)


def _whole(offset: int, length: int, unit: int) -> tuple[int, int]:
    """Return start and end of the whole blocks in a range; there may be none."""
    if unit <= 1:
        return offset, offset + length
    return -(-offset // unit) * unit, (offset + length) // unit * unit


# ---- Options


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that ``blkdebug:CONFIG:IMAGE`` stands for; a plain name is IMAGE.  Raises BlockError."""
    if not name.startswith("blkdebug:"):
        return {"x-image": name}
    config, colon, image = name.removeprefix("blkdebug:").partition(":")
    if not colon:
        raise BlockError("blkdebug requires both config file and image path")
    tree: dict[str, Any] = {"x-image": image}
    if config:
        tree["config"] = config
    return tree


def _event(given: dict[str, Any]) -> str:
    name = given.get("event")
    if name is None:
        raise BlockError("Missing event name for rule")
    if name not in EVENTS:
        raise BlockError(f'Invalid event name "{name}"')
    return str(name)


def _injection(given: dict[str, Any]) -> Rule:
    kind = given.get("iotype")
    return Rule(
        _event(given),
        int(given.get("state", 0)),
        int(given.get("errno", errno.EIO)),
        int(given.get("sector", -1)),
        given.get("once", False) in (True, "on", "true"),
        _ANY_TYPE if kind is None else (kind,),
    )


def _change(given: dict[str, Any]) -> Rule:
    return Rule(_event(given), int(given.get("state", 0)), new_state=int(given["new_state"]))


def _read_config(path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rules in a file with sections ``[inject-error]`` and ``[set-state]``.  Raises BlockError."""
    sections: dict[str, list[dict[str, Any]]] = {"inject-error": [], "set-state": []}
    rule: dict[str, Any] | None = None
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise BlockError(f"Could not read blkdebug config file: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("["):
            section = text.strip("[]").split()[0]
            if section not in sections:
                raise BlockError(f"Could not parse blkdebug config file: line {number}")
            rule = {}
            sections[section].append(rule)
            continue
        key, equals, value = text.partition("=")
        if rule is None or not equals:
            raise BlockError(f"Could not parse blkdebug config file: line {number}")
        rule[key.strip()] = value.strip().strip('"')
    return sections["inject-error"], sections["set-state"]


def _permissions(names: list[str]) -> Permission:
    found = Permission(0)
    for name in names:
        found |= _PERMISSIONS[name]
    return found


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> BlkdebugNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del graph
    try:
        injections, changes = _items(own.get("inject-error")), _items(own.get("set-state"))
        if own.get("config"):
            more, states = _read_config(own["config"])
            injections, changes = more + injections, states + changes
        rules = [_injection(it) for it in injections] + [_change(it) for it in changes]
    except (KeyError, ValueError) as error:
        raise BlockError(f"Could not parse blkdebug rules: {error}") from None
    image = children.get("image")
    if image is None:
        raise BlockError('A block device must be specified for "image"')
    limits = Limits(**{name.replace("-", "_"): int(own.get(name, 0)) for name in LIMITS})
    limits.check()
    made = BlkdebugNode(image, rules, name=settings.name, read_only=settings.read_only, limits=limits)
    made.taken = _permissions(list(_names(own.get("take-child-perms"))))
    made.unshared = _permissions(list(_names(own.get("unshare-child-perms"))))
    return made


def _items(value: Any) -> list[dict[str, Any]]:
    """Return a list of structures, which options that are text have as a structure with numbers for names.

    Raises ValueError.
    """
    if isinstance(value, dict) and "event" in value:
        value = [value]  # one that was not numbered
    found = [value[key] for key in sorted(value)] if isinstance(value, dict) else list(value or ())
    if not all(isinstance(it, dict) for it in found):
        raise ValueError("a list of rules is expected")
    return found


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return list(value or ())
