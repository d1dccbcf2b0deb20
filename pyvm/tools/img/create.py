"""``pyvm-img create``: make an image."""

from __future__ import annotations

from pyvm.secrets import Secrets
from pyvm.tools.img.arguments import scan
from pyvm.tools.img.creation import asks_for_help, print_option_help, split_options
from pyvm.tools.img.errors import ImgError, UsageError
from pyvm.tools.img.sizes import parse_size


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "F:b:f:ho:qu", {"object": "object="})
    name = arguments.get("f") or "raw"
    operands = list(arguments.operands)
    if asks_for_help(arguments.all("o")):
        return print_option_help(operands[0] if operands else None, name)
    options = arguments.creation_options()
    if not operands:
        raise UsageError("Expecting image file name")
    filename = operands.pop(0)
    size = parse_size("image size", operands.pop(0)) if operands else None
    if operands:
        raise UsageError(f"Unexpected argument: {operands[0]}")
    arguments.add_objects()
    _create(
        filename,
        name,
        size,
        split_options(options),
        (arguments.get("b"), arguments.get("F")),
        check_backing="u" not in arguments,
        quiet="q" in arguments,
        secrets=arguments.secrets,
    )
    return 0


def _create(
    filename: str,
    name: str,
    size: int | None,
    options: dict[str, str],
    backing: tuple[str | None, str | None],
    *,
    check_backing: bool,
    quiet: bool,
    secrets: Secrets,
) -> None:
    from functools import partial

    from pyvm.block.create import create_image
    from pyvm.block.errors import BlockError

    try:
        create_image(
            filename,
            name,
            size,
            options,
            *backing,
            check_backing=check_backing,
            announce=None if quiet else partial(print, flush=True),
            secrets=secrets,
        )
    except BlockError as error:
        raise ImgError(f"{filename}: {error}") from None
