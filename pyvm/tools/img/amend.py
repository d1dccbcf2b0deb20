"""``pyvm-img amend``: change what was chosen when an image was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.tools.img.arguments import IMAGE_LONG, Arguments, scan
from pyvm.tools.img.console import PROGRAM, Progress
from pyvm.tools.img.creation import asks_for_help, check_amendable, print_amend_help, split_options
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.opening import ImageChoice, as_qcow2

if TYPE_CHECKING:
    from pyvm.block.node import Node

_LONG = {**IMAGE_LONG, "force": "force"}


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "ho:f:t:pq", _LONG)
    text = arguments.creation_options()
    if text is None:
        raise UsageError("Must specify options (-o)")
    wants_help = asks_for_help(arguments.all("o"))
    if wants_help and arguments.get("f") is not None:
        _check_format(str(arguments.get("f")))
        print_amend_help(str(arguments.get("f")))
        return 0
    if len(arguments.operands) != 1:
        raise ImgError("Expecting one image file name")
    arguments.add_objects()
    quiet = "q" in arguments
    cache = arguments.cache("t", "writeback", "Invalid cache option: {}")
    options = split_options(text)
    node = ImageChoice.of(arguments).open(
        arguments.operands[0], writable=True, resize=True, cache=cache, quiet=quiet, bitmaps=False
    )
    progress = Progress("p" in arguments and not quiet)
    try:
        image = as_qcow2(node)
        _check_format(node.driver)
        if wants_help:
            print_amend_help(node.driver)
            return 0
        check_amendable(node.driver, options)
        if image is not None:
            _check_backing(options, image.header.backing_file, image.header.backing_format)
            image.amend(options, progress.part, secrets=arguments.secrets, force="force" in arguments)
            image.flush()
        else:
            _amend_luks(node, options, arguments)
        progress.update(100.0)
    finally:
        progress.close()
        node.release()
    return 0


def _amend_luks(node: Node, options: dict[str, str], arguments: Arguments) -> None:
    from pyvm.block.drivers.luks import LuksNode

    if isinstance(node, LuksNode):
        node.amend(options, arguments.secrets, force="force" in arguments)


def _check_format(name: str) -> None:
    if name not in ("qcow2", "luks"):
        raise ImgError(f"Format driver '{name}' does not support option amendment")


def _check_backing(options: dict[str, str], filename: str | None, backing_format: str | None) -> None:
    """Refuse another backing file: that takes more than a new name."""
    if "backing_file" not in options and "backing_fmt" not in options:
        return
    if (options.get("backing_file"), options.get("backing_fmt")) != (filename, backing_format):
        raise ImgError(f"Cannot amend the backing file\nYou can use '{PROGRAM} rebase' instead.")
