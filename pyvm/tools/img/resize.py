"""``pyvm-img resize``: make an image larger or smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pyvm.sizes import INT64_MAX, read_size
from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import complain, warn
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.opening import ImageChoice

if TYPE_CHECKING:
    from pyvm.block.node import Preallocation

_LONG = {**IMAGE_LONG, "preallocation": "preallocation=", "shrink": "shrink"}


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    # The size comes last and may look like an option.
    if len(argv) < 2 and not {"-h", "--help"} & set(argv):
        raise UsageError("Not enough arguments")
    amount = argv[-1] if argv and argv[-1] not in ("-h", "--help") else ""
    arguments = scan(argv[:-1] if amount else argv, "f:hq", _LONG)
    mode = _preallocation(arguments.get("preallocation") or "off")
    filename = arguments.operand("Expecting image file name and size")
    sign = amount[0] if amount[0] in "+-" else ""
    number = _read(amount.removeprefix(sign))
    arguments.add_objects()
    quiet = "q" in arguments
    node = ImageChoice.of(arguments).open(filename, writable=True, resize=True, quiet=quiet)
    try:
        present = node.size
        size = {"+": present + number, "-": present - number}.get(sign, number)
        if size <= 0 or size > INT64_MAX:
            raise ImgError("New image size must be positive")
        if size <= present and mode != "off":
            raise ImgError("Preallocation can only be used for growing images")
        if size < present and "shrink" not in arguments:
            complain("Use the --shrink option to perform a shrink operation.")
            warn(
                "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an"
                " operation, make sure there is no important data there."
            )
            return 1
        node.truncate(size, preallocation=mode)
        node.flush()
    finally:
        node.release()
    if not quiet:
        print("Image resized.")
    return 0


def _preallocation(text: str) -> Preallocation:
    from pyvm.block.node import PREALLOCATIONS

    for mode in PREALLOCATIONS:
        if mode == text:
            return cast("Preallocation", mode)
    raise ImgError(f"Invalid preallocation mode '{text}'")


def _read(text: str) -> int:
    size = read_size(text)
    if size is None:
        raise ImgError(
            "Parameter 'size' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively."
        )
    if size >= 1 << 64:
        raise ImgError(f"Value '{text}' is out of range for parameter 'size'")
    return size
