"""Dirty bitmaps that go along with a machine: the capability `dirty-bitmaps`.

What says which parts of a disk were written is sent when the guest has stopped, by the names of nodes and bitmaps, or
by the aliases that the parameter `block-bitmap-mapping` gives them.  Bitmaps that are kept in an image are not stored
there by the source: the destination has them, and keeps them from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyvm.block.bitmaps import DirtyBitmap, attach, find
from pyvm.migration.settings import BITMAP_MAPPING
from pyvm.migration.stream import StreamError

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage

BITMAPS = "bitmaps"
"""The name of the section."""
_GRANULARITIES = [1 << bits for bits in range(9, 32)]
_FIELDS = {"node": str, "name": str, "size": int, "granularity": int, "enabled": bool, "persistent": bool}


def _movable(node: Node) -> list[DirtyBitmap]:
    return [bitmap for bitmap in reversed(node.dirty_bitmaps) if bitmap.name and not bitmap.inconsistent]


def _visible(graph: BlockGraph) -> list[Node]:
    return [node for node in graph.nodes.values() if not node.hidden]


@contextmanager
def moved_bitmaps(storage: Storage, *, enabled: bool) -> Iterator[None]:
    """Have images not store the bitmaps that go along, meanwhile."""
    moved = [bitmap for node in _visible(storage.graph) for bitmap in _movable(node)] if enabled else []
    for bitmap in moved:
        bitmap.skip_store = True
    try:
        yield
    finally:
        for bitmap in moved:
            bitmap.skip_store = False


def save_bitmaps(graph: BlockGraph, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the bitmaps that go along."""
    return [
        {
            "node": node_alias,
            "name": bitmap_alias,
            "size": bitmap.size,
            "granularity": bitmap.granularity,
            "enabled": bitmap.recording,
            "persistent": bitmap.persistent if persistent is None else persistent,
            "bits": bitmap.content(),
        }
        for node in _visible(graph)
        for bitmap in _movable(node)
        for node_alias, bitmap_alias, persistent in _aliases(graph, parameters, node, bitmap)
    ]


def _drives(graph: BlockGraph) -> dict[Node, str]:
    """Return whose drives nodes are: below filters, such as that of a job, the first that is none or has bitmaps."""
    found = {}
    for top in graph.nodes.values():
        name = graph.drive_of(top)
        node: Node | None = top
        while node is not None and node.is_filter and not _movable(node):
            node = node.file
        if name and node is not None:
            found[node] = name
    return found


def _aliases(
    graph: BlockGraph, parameters: Mapping[str, Any], node: Node, bitmap: DirtyBitmap
) -> Iterator[tuple[str, str, bool | None]]:
    """Yield by what names a bitmap goes, and whether it is to be kept; nothing where it stays behind."""
    mapping = parameters[BITMAP_MAPPING]
    if mapping is None:
        yield _drives(graph).get(node) or node.name, bitmap.name, None
        return
    for entry in mapping:
        if entry["node-name"] == node.name:
            for item in entry["bitmaps"]:
                if item["name"] == bitmap.name:
                    yield entry["alias"], item["alias"], (item.get("transform") or {}).get("persistent")


def check_bitmaps(value: Any) -> list[dict[str, Any]]:
    """Return what a section holds.  Raises StreamError."""
    if not isinstance(value, list):
        raise StreamError("the section with bitmaps makes no sense")
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("bits"), bytes):
            raise StreamError("the section with bitmaps makes no sense")
        if any(type(item.get(name)) is not kind for name, kind in _FIELDS.items()):
            raise StreamError("the section with bitmaps makes no sense")
        if item["granularity"] not in _GRANULARITIES or item["size"] < 0:
            raise StreamError(f"bitmap '{item['name']}' has an impossible granularity or size")
        if len(item["bits"]) != len(_empty(item["size"], item["granularity"])):
            raise StreamError(f"bitmap '{item['name']}' has not as many bits as its disk")
    return value


def _empty(size: int, granularity: int) -> range:
    """Return something as long as the content of a bitmap."""
    return range((-(-size // granularity) + 7) // 8)


def load_bitmaps(graph: BlockGraph, value: Any, parameters: Mapping[str, Any]) -> None:
    """Have the bitmaps of a section on the nodes here.  Raises StreamError where one has no node, or has its name."""
    from pyvm.block import bitmap_store

    for item in check_bitmaps(value):
        node, name, persistent = _local(graph, parameters, item)
        if node is None:
            raise StreamError(f"there is no node '{item['node']}' here for the bitmap '{item['name']}'")
        if item["size"] != node.size:
            raise StreamError(f"bitmap '{item['name']}' is of a disk with another size than '{node.name}'")
        if find(node, name) is not None:
            raise StreamError(f"node '{node.name}' has a bitmap '{name}' already")
        bitmap = DirtyBitmap(item["size"], item["granularity"], name)
        bitmap.load(item["bits"])
        bitmap.enabled, bitmap.persistent = item["enabled"], persistent
        attach(node, bitmap)
        if persistent:
            bitmap_store.keep(node)


def _local(graph: BlockGraph, parameters: Mapping[str, Any], item: Mapping[str, Any]) -> tuple[Node | None, str, bool]:
    """Return the node of a bitmap here, its name here, and whether it is to be kept."""
    persistent: bool = item["persistent"]
    for entry in parameters[BITMAP_MAPPING] or ():
        if entry["alias"] == item["node"]:
            for one in entry["bitmaps"]:
                if one["alias"] == item["name"]:
                    wanted = (one.get("transform") or {}).get("persistent")
                    node = graph.nodes.get(entry["node-name"])
                    return node, one["name"], persistent if wanted is None else wanted
    named = graph.nodes.get(item["node"])
    if named is None:
        named = next((node for node in graph.nodes.values() if graph.drive_of(node) == item["node"]), None)
    return named, item["name"], persistent
