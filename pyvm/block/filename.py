"""What nodes are called: the name by which one would open the same image again.

A plain file name does where opening it leads to the same nodes: the format is in the file, the backing file in the
image.  Where options made a difference, the name is ``json:{...}`` with the driver and those options, children inside.
Only options that change what the guest reads count; caches, locks and node names do not.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pyvm.block.node import Node, Role
from pyvm.records import record
from pyvm.wire_order import wire_order

Tree = dict[str, Any]

_MAX_LENGTH = 4095
_CUT = "..."

_SIGNIFICANT: dict[str, tuple[str, ...]] = {
    "raw": ("offset", "size"),
    "null-co": ("size", "read-zeroes"),
    "null-aio": ("size", "read-zeroes"),
    "qcow2": ("encrypt.",),
    "luks": ("key-secret",),
    "throttle": ("throttle-group",),
    "copy-on-read": ("bottom",),
    "quorum": ("vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern"),
    "replication": ("mode", "top-id"),
    "blkdebug": ("config", "inject-error.", "set-state."),
    "nbd": ("path", "host", "port", "export", "tls-creds", "tls-hostname", "server."),
    "ssh": ("host", "port", "path", "user", "host_key_check", "server."),
    "http": ("url", "cookie", "cookie-secret", "username", "password-secret", "proxy-username"),
    "https": ("url", "sslverify", "cookie", "cookie-secret", "username", "password-secret", "proxy-username"),
}
"""By driver, the options that make another image of it; one with a dot at its end stands for all that begin so."""
_NAMED_BY_CHILD = ("copy-before-write", "mirror_top", "commit_top", "snapshot-access")
_NAMED_BY_FILE = ("file", "host_device", "host_cdrom")


@record(eq=False)
class Naming:
    """How a node is called."""

    plain: str
    """The plain name; empty where there is none."""
    options: Tree
    """The driver and options that lead to the node."""

    @cached_property
    def name(self) -> str:
        """The plain name, or else the options in one."""
        if self.plain:
            return self.plain
        from pyvm.json.writer import encode

        text = "json:" + encode(self.options).decode("ascii").rstrip("\r\n")
        return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - len(_CUT)] + _CUT


class Namer:
    """Names nodes; what is below several is looked at once.  Only for as long as the graph stays as it is."""

    def __init__(self) -> None:
        self._known: dict[Node, Naming] = {}

    def name(self, node: Node) -> str:
        """Return the name by which one would open what `node` shows."""
        return self.naming(node).name

    def naming(self, node: Node) -> Naming:
        """Return both forms of a node's name."""
        node = skip_implicit(node)
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._find(node)
        return found

    def _find(self, node: Node) -> Naming:
        significant = _significant(node)
        options: Tree = {"driver": node.driver, **significant}
        if node.driver in _NAMED_BY_FILE and node.path:
            options["filename"] = node.path
        overridden = self._backing_overridden(node)
        below: Naming | None = None
        for child in node.children:
            if child.role is Role.BACKING and not overridden:
                continue
            naming = self.naming(child.node)
            _put(options, child.label, naming.options)
            if child.node is node.file:
                below = naming
        if overridden and node.backing is None:
            options["backing"] = None
        if not node.children:
            plain = _plain_name(node, significant)
        elif node.driver in _NAMED_BY_CHILD:
            plain = "" if below is None else below.plain
        elif node.driver == "blkverify":
            names = [self.naming(child.node).plain for child in node.children]
            plain = ":".join([node.driver, *names]) if all(names) else ""
        elif node.driver == "blkdebug":
            image = self.naming(node.children[0].node).plain
            config = str(significant.pop("config", ""))
            plain = f"{node.driver}:{config}:{image}" if image and not significant else ""
        elif below is None or significant or overridden or node.is_filter or not _is_protocol(node.file):
            plain = ""
        else:
            plain = below.plain
        return Naming(plain, options)

    def _backing_overridden(self, node: Node) -> bool:
        """Return whether another image is below `node` than the one that its header names."""
        if node.named_backing is None:
            return False
        if node.backing is None:
            return bool(node.named_backing)
        return self.name(node.backing) != node.named_backing


def name_of(node: Node) -> str:
    """Return the name by which one would open what `node` shows."""
    return Namer().name(node)


def _put(options: Tree, label: str, child: Tree) -> None:
    """Put a child's options in their place: ``children.2`` is one of a list."""
    name, dot, _ = label.partition(".")
    if dot:
        options.setdefault(name, []).append(child)
    else:
        options[label] = child


def _significant(node: Node) -> Tree:
    wanted = _SIGNIFICANT.get(node.driver, ())
    found = {}
    flat = dict(flatten(node.options))
    for key in wire_order(flat):  # as QEMU comes to them when it copies them
        value = flat[key]
        if key in wanted or any(name.endswith(".") and key.startswith(name) for name in wanted):
            found[key] = node.texts.get(key, value)
    return found


def flatten(options: Tree, prefix: str = "") -> list[tuple[str, Any]]:
    """Return options with dotted names in the place of structures."""
    flat: list[tuple[str, Any]] = []
    for key in wire_order(options):
        value = options[key]
        if isinstance(value, dict):
            flat += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat += flatten({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _plain_name(node: Node, significant: Tree) -> str:
    if node.driver.startswith("null-"):
        return "" if significant else node.filename
    name = node.filename
    return "" if name.startswith("json:") else name


def _is_protocol(node: Node | None) -> bool:
    if node is None:
        return False
    from pyvm.block.options import DRIVERS

    bottom = skip_implicit(node)
    return not bottom.children or (bottom.driver in DRIVERS and bool(DRIVERS[bottom.driver].prefixes))


def skip_implicit(node: Node) -> Node:
    """Return the first node from `node` down that somebody asked for."""
    while node.implicit and node.file is not None:
        node = node.file
    return node
