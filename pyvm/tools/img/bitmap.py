"""``pyvm-img bitmap``: persistent bitmaps.  Its arguments are read; changing bitmaps is not there yet, and refused."""

from __future__ import annotations

from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.sizes import parse_size

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
    if "g" in arguments:
        parse_size("granularity", str(arguments.get("g")), 1, _MOST_GRANULARITY)
    actions = [name for name, _ in arguments.options if name in (*_ACTIONS, "merge")]
    if not actions:
        raise ImgError("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if len(arguments.operands) != 2:
        raise ImgError("Expecting filename and bitmap name")
    if "F" in arguments and "b" not in arguments:
        raise ImgError("-F only supported with -b")
    if "b" in arguments and "merge" not in actions:
        raise ImgError("Merge bitmap source file only supported with --merge")
    if "g" in arguments and "add" not in actions:
        raise ImgError("granularity only supported with --add")
    name = arguments.operands[1]
    raise ImgError(f"Operation {actions[0]} on bitmap {name} failed: not supported by pyvm-img yet")
