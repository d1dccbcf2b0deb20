"""``pyvm-img snapshot``: list, create, apply and delete internal snapshots."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.opening import ImageChoice, as_qcow2

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.drivers.qcow2.records import Snapshot

_LONG = {**IMAGE_LONG, "force-share": "U"}


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "la:c:d:hqU", _LONG)
    actions = [(name, value) for name, value in arguments.options if name in "lacd"]
    if len(actions) > 1:
        raise UsageError("Cannot mix '-l', '-a', '-c', '-d'")
    filename = arguments.operand()
    arguments.add_objects()
    action, name = actions[0] if actions else ("l", "")
    node = ImageChoice.of(arguments).open(
        filename, writable=action != "l", quiet="q" in arguments, bitmaps=action == "a"
    )
    try:
        image = as_qcow2(node)
        if action == "l":
            if image is not None and image.snapshots:
                _list(image)
        elif action == "c":
            _create(image, name)
        elif action == "a":
            _apply(image, name)
        else:
            _delete(image, name)
    finally:
        node.release()
    return 0


def _list(image: Qcow2Node) -> None:
    from pyvm.block.info import snapshot_info
    from pyvm.block.info_text import snapshot_lines

    print(*snapshot_lines(snapshot_info(snapshot) for snapshot in image.snapshots), sep="\n")


def _create(image: Qcow2Node | None, name: str) -> None:
    from pyvm.block.errors import BlockError

    if image is None:
        raise ImgError(f"Could not create snapshot '{name}': -{errno.ENOTSUP} ({os.strerror(errno.ENOTSUP)})")
    try:
        # Nothing was executed yet: not the same as an unknown number of instructions.
        image.create_snapshot(name, icount=0)
    except OSError as error:
        raise ImgError(f"Could not create snapshot '{name}': -{error.errno} ({error.strerror})") from None
    except BlockError as error:
        raise ImgError(f"Could not create snapshot '{name}': {error}") from None


def _apply(image: Qcow2Node | None, name: str) -> None:
    from pyvm.block.errors import BlockError

    if image is None:
        raise ImgError(f"Could not apply snapshot '{name}': Block driver does not support snapshots")
    snapshot = _find(image, name)
    if snapshot is None:
        reason = os.strerror(errno.ENOENT)
        raise ImgError(f"Could not apply snapshot '{name}': Failed to load snapshot: {reason}")
    try:
        image.apply_snapshot(snapshot.identifier)
    except (OSError, BlockError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ImgError(f"Could not apply snapshot '{name}': Failed to load snapshot: {text}") from None


def _delete(image: Qcow2Node | None, name: str) -> None:
    from pyvm.block.errors import BlockError

    snapshot = _find(image, name) if image is not None else None
    if image is None or snapshot is None:
        raise ImgError(f"Could not delete snapshot '{name}': snapshot not found")
    try:
        image.delete_snapshot(snapshot.identifier, snapshot.name)
    except (OSError, BlockError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ImgError(f"Could not delete snapshot '{name}': {text}") from None


def _find(image: Qcow2Node, name: str) -> Snapshot | None:
    """Return the first snapshot that has this ID or, if there is none, this name."""
    for snapshot in image.snapshots:
        if snapshot.identifier == name:
            return snapshot
    return next((snapshot for snapshot in image.snapshots if snapshot.name == name), None)
