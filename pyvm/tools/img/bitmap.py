"""``pyvm-img bitmap``: add, remove and change the persistent bitmaps of an image."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import warn
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice
from pyvm.tools.img.sizes import parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node

_IMAGE, _SOURCE = "image", "source"
_ACTIONS = ("add", "remove", "clear", "enable", "disable")
_LONG = {
    **IMAGE_LONG,
    **{action: action for action in _ACTIONS},
    "merge": "merge=",
    "granularity": "g",
    "source-file": "b",
    "source-format": "F",
}
_MOST_GRANULARITY = (1 << 32) - 1


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:b:F:g:", _LONG)
    granularity = None
    if "g" in arguments:
        granularity = parse_size("granularity", str(arguments.get("g")), 1, _MOST_GRANULARITY)
    actions = [(name, value) for name, value in arguments.options if name in (*_ACTIONS, "merge")]
    if not actions:
        raise ImgError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if len(arguments.operands) != 2:
        raise ImgError("Expecting filename and bitmap name")
    if "F" in arguments and "b" not in arguments:
        raise ImgError("-F only supported with -b")
    names = [name for name, _ in actions]
    if "b" in arguments and "merge" not in names:
        raise ImgError("Merge bitmap source file only supported with --merge")
    if "g" in arguments and "add" not in names:
        raise ImgError("granularity only supported with --add")
    filename, name = arguments.operands
    arguments.add_objects()
    images = Images({_IMAGE: ImageChoice.of(arguments).open(filename, writable=True, backing=False)})
    try:
        source = _IMAGE
        if "b" in arguments:
            source = _SOURCE
            images.nodes[source] = _open_source(str(arguments.get("b")), ImageChoice(arguments.get("F")))
        for action, value in actions:
            _act(images, action, name, granularity, (source, value))
    finally:
        images.close()
    return 0


def _open_source(filename: str, choice: ImageChoice) -> Node:
    from pyvm.block import bitmap_store

    node = choice.open(filename, backing=False)
    bitmap_store.load(node)
    return node


class Images:
    """Images that actions on bitmaps work on, as those of a machine: each is a node by its name here."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.drives: dict[str, Any] = {}
        self.nodes = nodes
        self.graph = self

    def quiet(self) -> AbstractContextManager[None]:
        """Nobody else uses the images."""
        return nullcontext()

    def close(self) -> None:
        """Close all images, which writes the bitmaps."""
        for node in self.nodes.values():
            node.release()


def _act(images: Images, action: str, name: str, granularity: int | None, source: tuple[str, Any]) -> None:
    from pyvm.block import bitmap_actions
    from pyvm.block.errors import BlockError

    try:
        if action == "add":
            bitmap_actions.add(images, _IMAGE, name, granularity, persistent=True, disabled=False)
        elif action == "merge":
            bitmap_actions.merge(images, _IMAGE, name, [source])
        elif action in ("enable", "disable"):
            bitmap_actions.enable(images, _IMAGE, name, enabled=action == "enable")
        elif action == "remove":
            bitmap_actions.remove(images, _IMAGE, name)
        else:
            bitmap_actions.clear(images, _IMAGE, name)
    except (BlockError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else error
        raise ImgError(f"Operation {action} on bitmap {name} failed: {text}") from None


def check_copyable(source: Node, *, skip_broken: bool) -> None:
    """Load the bitmaps of an image that is copied, and refuse those that cannot be.  Raises ImgError."""
    from pyvm.block import bitmap_store

    bitmap_store.load(source)
    for bitmap in source.dirty_bitmaps:
        if bitmap.inconsistent and not skip_broken:
            raise ImgError(
                f"Cannot copy inconsistent bitmap '{bitmap.name}'\n"
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
            )


def copy_bitmaps(source: Node, target: Node) -> None:
    """Give `target`, which is a copy of `source`, its bitmaps too, but for broken ones.  Raises ImgError."""
    from pyvm.block import bitmap_actions
    from pyvm.block.errors import BlockError

    images = Images({_SOURCE: source, _IMAGE: target})
    for bitmap in source.dirty_bitmaps:
        if bitmap.inconsistent:
            warn(f"Skipping inconsistent bitmap '{bitmap.name}'")
            continue
        try:
            bitmap_actions.add(
                images, _IMAGE, bitmap.name, bitmap.granularity, persistent=True, disabled=not bitmap.enabled
            )
            bitmap_actions.merge(images, _IMAGE, bitmap.name, [(_SOURCE, bitmap.name)])
        except (BlockError, OSError) as error:
            raise ImgError(f"Failed to populate bitmap {bitmap.name}: {error}") from None
