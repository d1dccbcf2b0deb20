"""Commands about dirty bitmaps."""

from __future__ import annotations

from typing import Any

from pyvm.block import bitmap_actions
from pyvm.block.bitmap_checks import check_usable
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


def add(storage: Any, wanted: Any) -> bitmap_actions.Undo:
    """Add a bitmap; return how to undo that."""
    return bitmap_actions.add(
        storage,
        wanted.node,
        wanted.name,
        wanted.granularity,
        persistent=bool(wanted.persistent),
        disabled=bool(wanted.disabled),
    )


def merge(storage: Any, wanted: Any) -> bitmap_actions.Undo:
    """Merge bitmaps into one; return how to undo that."""
    sources = [(wanted.node, it) if isinstance(it, str) else (it.node, it.name) for it in wanted.bitmaps]
    return bitmap_actions.merge(storage, wanted.node, wanted.target, sources)


@COMMANDS.command("block-dirty-bitmap-add")
def bitmap_add(context: Context, arguments: Any) -> None:
    """Begin to record what is written to a node."""
    with block_errors():
        add(storage_of(context.machine), arguments)


@COMMANDS.command("block-dirty-bitmap-remove")
def bitmap_remove(context: Context, arguments: Any) -> None:
    """Stop recording, and forget what was recorded."""
    with block_errors():
        bitmap_actions.remove(storage_of(context.machine), arguments.node, arguments.name)


@COMMANDS.command("block-dirty-bitmap-clear")
def bitmap_clear(context: Context, arguments: Any) -> None:
    """Forget what was recorded."""
    with block_errors():
        bitmap_actions.clear(storage_of(context.machine), arguments.node, arguments.name)


@COMMANDS.command("block-dirty-bitmap-enable")
def bitmap_enable(context: Context, arguments: Any) -> None:
    """Record from now on."""
    with block_errors():
        bitmap_actions.enable(storage_of(context.machine), arguments.node, arguments.name, enabled=True)


@COMMANDS.command("block-dirty-bitmap-disable")
def bitmap_disable(context: Context, arguments: Any) -> None:
    """Record nothing from now on."""
    with block_errors():
        bitmap_actions.enable(storage_of(context.machine), arguments.node, arguments.name, enabled=False)


@COMMANDS.command("block-dirty-bitmap-merge")
def bitmap_merge(context: Context, arguments: Any) -> None:
    """Put what bitmaps have recorded into one."""
    with block_errors():
        merge(storage_of(context.machine), arguments)


@COMMANDS.command("x-debug-block-dirty-bitmap-sha256")
def bitmap_sha256(context: Context, arguments: Any) -> dict[str, str]:
    """Return a checksum of what was recorded."""
    with block_errors():
        _, bitmap = bitmap_actions.find_bitmap(storage_of(context.machine), arguments.node, arguments.name)
        check_usable(bitmap)
    return {"sha256": bitmap.sha256()}
