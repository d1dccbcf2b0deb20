"""What a person at the machine does with media: trays open and close, disks go in and out.

`name` is what the drive was asked for by, as errors show it.  Errors are BlockErrors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.options import Dialect, Tree

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage


def open_tray(backend: BlockBackend, name: str, *, force: bool) -> None:
    """Open the tray, where there is one; raises BlockError where the guest has it locked."""
    if not backend.has_removable_medium:
        raise BlockError(f"Device '{name}' is not removable")
    if not backend.open_tray(force):
        raise BlockError(f"Device '{name}' is locked and force was not specified, wait for tray to open and try again")


def take_out(storage: Storage, backend: BlockBackend, name: str) -> None:
    """Take the medium out, and close it unless others hold it."""
    if not backend.has_removable_medium:
        raise BlockError(f"Device '{name}' is not removable")
    if backend.has_tray and not backend.tray_open:
        raise BlockError(f"Tray of device '{name}' is not open")
    if backend.node is not None:
        storage.graph.check_free(backend.node)
        node = backend.remove_medium()
        if node is not None:
            storage.release(node)


def put_in(backend: BlockBackend, node: Node) -> None:
    """Put a node into the drive, which holds it from now on."""
    if not backend.has_removable_medium:
        raise BlockError("Device is not removable")
    if backend.has_tray and not backend.tray_open:
        raise BlockError("Tray of the device is not open")
    if backend.node is not None:
        raise BlockError("There already is a medium in the device")
    node.hold()
    try:
        backend.insert_medium(node)
    except BlockError:
        node.references -= 1
        raise


def change(
    storage: Storage,
    backend: BlockBackend,
    name: str,
    filename: str,
    *,
    image_format: str | None,
    force: bool,
    read_only: bool | None,
) -> None:
    """Put an image file into the drive; what is not said is as with the medium before."""
    if backend.node is not None:
        backend.retain(backend.node)
    retained = backend.retained
    tree: Tree = {
        "read-only": retained.read_only if read_only is None else read_only,
        "discard": "unmap" if retained.unmap else "ignore",
        "detect-zeroes": retained.detect_zeroes,
        "cache": {"direct": retained.direct, "no-flush": retained.no_flush},
    }
    if image_format is not None:
        tree["driver"] = image_format
    node = storage.open(filename, tree, Dialect.DRIVE)
    try:
        open_tray(backend, name, force=force)
        take_out(storage, backend, name)
        put_in(backend, node)
    finally:
        storage.release(node)  # the drive holds it
    backend.close_tray()
