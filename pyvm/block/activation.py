"""Who has the images: this process, or the one that a machine moves to or comes from.

Images that are inactive are open, but not locked, and what was in memory of them is on disk: another process may change
them.  Before they are used again, all that was read from them is read anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.node import ALL_PERMISSIONS, Access

if TYPE_CHECKING:
    from pyvm.block.graph import User
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage


def give_disks_up(storage: Storage) -> None:
    """Write everything back, and let other processes have the images.  Raises BlockError, with nothing changed."""
    graph = storage.graph
    storage.settle()
    with storage.quiet():
        for node in _roots(storage):
            if not node.read_only and not node.inactive:
                try:
                    node.inactivate()
                except OSError as error:
                    raise BlockError(f"'{node.name}' cannot be written back: {error.strerror}") from None
        graph.inactive = graph.given_up = True
        for node in graph.nodes.values():
            node.inactive = True
        graph.refresh()


def take_disks(storage: Storage) -> None:
    """Have all images for this process.  Raises BlockError, with nothing changed, where another one has some.

    A disk that is being filled through an export is shared with that until it goes away: the guest is to go on.
    """
    graph = storage.graph
    before, graph.inactive = graph.inactive, False
    given_up, graph.given_up = graph.given_up, False
    exported = [user for node in graph.nodes.values() if not node.inactive for user in graph.users(node) if user.waits]
    try:
        try:
            _take(storage, _roots(storage))
        except BlockError as error:
            if not exported:
                raise
            _take_shared(storage, exported, error)
    except BlockError:
        graph.inactive, graph.given_up = before, given_up
        raise


def _take_shared(storage: Storage, devices: list[User], why: BlockError) -> None:
    """Have all images, where `why` says that they cannot be had for these devices alone."""
    own = [device.access for device in devices]
    for device in devices:
        device.access = Access(device.access.used, ALL_PERMISSIONS)
    try:
        _take(storage, _roots(storage))
    except BlockError:
        for device, access in zip(devices, own, strict=True):
            device.access = access
        raise why from None
    with suppress(OSError):
        print(f"pyvm: {why}", file=sys.stderr)


def take_node(storage: Storage, node: Node) -> None:
    """Have one image, and what it is made of, for this process, if it is not yet.  Raises BlockError."""
    if any(it.inactive for it in _below(node)):
        _take(storage, [node])


def _take(storage: Storage, roots: Iterable[Node]) -> None:
    taken = [node for root in roots for node in _below(root) if node.inactive]
    for node in taken:
        node.inactive = False
    try:
        storage.graph.refresh()
    except BlockError:
        for node in taken:
            node.inactive = True
        raise
    with storage.quiet():
        for root in roots:
            if root in taken or any(node in taken for node in _below(root)):
                try:
                    root.drop_cache()
                except OSError as error:
                    raise BlockError(f"'{root.name}' cannot be read again: {error.strerror}") from None
    for node in taken:
        storage.load_bitmaps(node)


def _below(node: Node) -> list[Node]:
    """Return a node, and all that it is made of, each once."""
    found = {node: None}
    for child in node.children:
        found.update(dict.fromkeys(_below(child.node)))
    return list(found)


def _roots(storage: Storage) -> list[Node]:
    """Return the nodes that no other node is made of."""
    below = {child.node for node in storage.graph.nodes.values() for child in node.children}
    return [node for node in storage.graph.nodes.values() if node not in below]
