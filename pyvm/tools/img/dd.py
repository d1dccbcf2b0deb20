"""``pyvm-img dd``: copy a part of an image into a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.tools.img.arguments import scan
from pyvm.tools.img.console import complain
from pyvm.tools.img.creation import create_target, driver_features
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice
from pyvm.tools.img.sizes import parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.secrets import Secrets

_LONG = {"object": "object=", "image-opts": "image-opts", "force-share": "U"}
_INT_MAX = (1 << 31) - 1
_CHUNK = 2 << 20


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:O:U", _LONG)
    operands = _read_operands(arguments.operands)
    if "if" not in operands or "of" not in operands:
        raise ImgError("Must specify both input and output files")
    block = parse_size("bs", operands.get("bs", "512"), 1, _INT_MAX)
    skip = parse_size("skip", operands.get("skip", "0"))
    count = parse_size("count", operands["count"]) if "count" in operands else None
    choice = ImageChoice.of(arguments)
    output_format = arguments.get("O") or "raw"
    arguments.add_objects()
    source = choice.open(operands["if"])
    try:
        _copy(
            source,
            operands["if"],
            operands["of"],
            output_format,
            skip * block,
            None if count is None else count * block,
            arguments.secrets,
        )
    finally:
        source.release()
    return 0


def _read_operands(texts: list[str]) -> dict[str, str]:
    operands: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in ("bs", "count", "if", "of", "skip"):
            raise ImgError(f"unrecognized operand {name}")
        operands[name] = value
    for name in ("bs", "count", "skip"):
        if name in operands:
            # A wrong one is told before missing ones.
            parse_size(name, operands[name], 1 if name == "bs" else 0, _INT_MAX if name == "bs" else (1 << 63) - 1)
    return operands


def _copy(
    source: Node, name: str, target_name: str, target_format: str, skip: int, most: int | None, secrets: Secrets
) -> None:
    from pyvm.block.errors import BlockError
    from pyvm.block.options import DRIVERS

    if target_format not in DRIVERS:
        raise ImgError("Unknown file format")
    driver_features(target_format)
    end = source.size if most is None else min(skip + most, source.size)
    length = max(end - skip, 0)
    try:
        create_target(target_name, target_format, length, {}, secrets)
    except BlockError as error:
        raise ImgError(f"{target_name}: error while creating output image: {error}") from None
    if skip > source.size:
        complain(f"{name}: cannot skip to specified offset")
    target = ImageChoice(target_format, secrets=secrets).open(target_name, writable=True)
    try:
        buffer = bytearray(min(_CHUNK, length))
        for position in range(skip, skip + length, _CHUNK):
            with memoryview(buffer)[: min(_CHUNK, skip + length - position)] as view:
                _copy_chunk(source, position, target, position - skip, view)
        _flush(target)
    finally:
        target.release()


def _copy_chunk(source: Node, position: int, target: Node, to: int, view: memoryview) -> None:
    try:
        source.readv(position, (view,))
    except OSError as error:
        raise ImgError(f"error while reading from input image file: {error.strerror}") from None
    room = target.size - to
    try:
        target.writev(to, (view[:room],))
    except OSError as error:
        raise ImgError(f"error while writing to output image file: {error.strerror}") from None


def _flush(target: Node) -> None:
    try:
        target.flush()
    except OSError as error:
        raise ImgError(f"error while writing to output image file: {error.strerror}") from None
