"""Filter *blkdebug*: makes requests fail, for tests of what others do then.

Rules name an event.  When the driver above says that it happens (:meth:`Node.debug_event`), the rules for it become the
ones in force, until the next event that has any; requests that meet one in force fail.  Rules for another state than
the present one are left out; `set-state` rules change it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import PERMISSION_NAMES, Access, Child, Extent, Node, Permission, Role
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_SECTOR = 512
_ALWAYS = "none"
_ANY_TYPE = ("read", "write", "write-zeroes", "discard", "flush")
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


class BlkdebugNode(FilterNode):
    """A filter in front of `image`."""

    driver: ClassVar[str] = "blkdebug"

    def __init__(
        self, image: Node, rules: list[Rule], *, name: str = "", read_only: bool | None = None, align: int = 0
    ) -> None:
        super().__init__(image, name=name, read_only=read_only)
        self.children = [Child(Role.FILTERED, image, "image")]
        self.state = 1
        self._rules = rules
        self._align = align
        self._force: list[Rule] = [rule for rule in rules if rule.event == _ALWAYS and rule.new_state is None]
        self.taken = Permission(0)
        self.unshared = Permission(0)

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
        self._check("read", offset, total(buffers))
        super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on, or fail."""
        self.debug_event("pwritev")
        self._check("write", offset, total(buffers))
        super().writev(offset, buffers)
        self.debug_event("pwritev_done")

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros, or fail."""
        self.debug_event("pwritev_zero")
        self._check("write-zeroes", offset, length)
        super().write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back, or fail."""
        self._check("discard", offset, length)
        super().discard(offset, length)

    def flush(self) -> None:
        """Make everything safe, or fail."""
        self.debug_event("flush_to_os")
        self.debug_event("flush_to_disk")
        self._check("flush", 0, 0)
        super().flush()

    def block_status(self, offset: int, length: int) -> Extent:
        """Return what the image says, or fail."""
        self._check("block-status", offset, length)
        return super().block_status(offset, length)


# ---- Options


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that ``blkdebug:CONFIG:IMAGE`` stands for.  Raises BlockError."""
    from pyvm.block.options import parse_filename as parse

    config, colon, image = name.removeprefix("blkdebug:").partition(":")
    if not colon:
        raise BlockError("blkdebug requires both config file and image path")
    driver, own = parse(image)
    tree: dict[str, Any] = {"image": {**own, "driver": driver.name}}
    if config:
        tree["config"] = config
    return tree


def _injection(given: dict[str, Any]) -> Rule:
    kind = given.get("iotype")
    return Rule(
        given["event"],
        int(given.get("state", 0)),
        int(given.get("errno", errno.EIO)),
        int(given.get("sector", -1)),
        given.get("once", False) in (True, "on", "true"),
        _ANY_TYPE if kind is None else (kind,),
    )


def _change(given: dict[str, Any]) -> Rule:
    return Rule(given["event"], int(given.get("state", 0)), new_state=int(given["new_state"]))


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
    injections, changes = list(_items(own.get("inject-error"))), list(_items(own.get("set-state")))
    if own.get("config"):
        more, states = _read_config(own["config"])
        injections, changes = more + injections, states + changes
    try:
        rules = [_injection(it) for it in injections] + [_change(it) for it in changes]
    except (KeyError, ValueError) as error:
        raise BlockError(f"Could not parse blkdebug rules: {error}") from None
    image = children.get("image")
    if image is None:
        raise BlockError('A block device must be specified for "image"')
    align = int(own.get("align", 0))
    if align and (align & (align - 1) or not _SECTOR <= align < 1 << 31):
        raise BlockError(f"Cannot meet constraints with align {align}")
    made = BlkdebugNode(image, rules, name=settings.name, read_only=settings.read_only, align=align)
    made.taken = _permissions(list(_names(own.get("take-child-perms"))))
    made.unshared = _permissions(list(_names(own.get("unshare-child-perms"))))
    return made


def _items(value: Any) -> list[dict[str, Any]]:
    """Return a list of structures, which options that are text have as a structure with numbers for names."""
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return list(value or ())


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return list(value or ())
