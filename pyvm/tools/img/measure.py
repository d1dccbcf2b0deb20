"""``pyvm-img measure``: say how large a new image would be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyvm.records import record
from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import complain, print_json
from pyvm.tools.img.convert import open_snapshot, snapshot_parameters
from pyvm.tools.img.creation import split_options
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice, as_qcow2
from pyvm.tools.img.sizes import parse_size

if TYPE_CHECKING:
    from pyvm.block.node import Node

_LONG = {**IMAGE_LONG, "force-share": "U", "output": "output=", "size": "size="}
_WITH_BITMAPS = 3
"""The version of qcow2 that has bitmaps."""
_SECTOR = 512


@record(frozen=True)
class _Sizes:
    """What was measured, in bytes."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:l:o:O:U", _LONG)
    as_json = arguments.json()
    size = parse_size("image size", str(arguments.get("size"))) if "size" in arguments else None
    options = split_options(arguments.creation_options())
    arguments.add_objects()
    if "l" in arguments:
        snapshot_parameters(str(arguments.get("l")))
    if len(arguments.operands) > 1:
        raise ImgError("At most one filename argument is allowed.")
    filename = arguments.operands[0] if arguments.operands else None
    if filename is None and any(name in arguments for name in ("f", "l", "image-opts")):
        raise ImgError("--image-opts, -f, and -l require a filename argument.")
    if filename is None and size is None:
        raise ImgError("Either --size N or one filename must be specified.")
    if filename is not None and size is not None:
        raise ImgError("--size N cannot be used together with a filename.")
    target = arguments.get("O") or "raw"
    if filename is None:
        sizes = _measure(target, options, size or 0, None)
    else:
        nodes = [ImageChoice.of(arguments).open(filename)]
        try:
            if "l" in arguments:
                nodes.insert(0, open_snapshot(nodes[0], str(arguments.get("l"))))
            sizes = _measure(target, options, nodes[0].size, nodes[0], nodes[-1])
        finally:
            for node in nodes:
                node.release()
    _print(sizes, as_json)
    return 0


def _print(sizes: _Sizes, as_json: bool) -> None:
    if as_json:
        info: dict[str, Any] = {"required": sizes.required, "fully-allocated": sizes.fully_allocated}
        if sizes.bitmaps is not None:
            info["bitmaps"] = sizes.bitmaps
        print_json(info)
        return
    print(f"required size: {sizes.required}")
    print(f"fully allocated size: {sizes.fully_allocated}")
    if sizes.bitmaps is not None:
        print(f"bitmaps size: {sizes.bitmaps}")


def _measure(target: str, options: dict[str, str], size: int, source: Node | None, image: Node | None = None) -> _Sizes:
    """Return the sizes of a copy of `source`, a disk of `size` bytes; `image` has its bitmaps."""
    from pyvm.block.create import OPTIONS, normalise
    from pyvm.block.drivers.qcow2.creation import ImageTooLargeError, measure, read_options
    from pyvm.block.luks import read_options as read_luks_options
    from pyvm.block.options import DRIVERS

    if target not in DRIVERS:
        raise ImgError(f"Unknown file format '{target}'")
    if target not in OPTIONS or target == "file":
        raise ImgError(f"Block driver '{target}' does not support size measurement")
    known = {option.name for option in OPTIONS[target]}
    for name in options:
        if name not in known:
            complain(f"Invalid parameter '{name}'")
            raise ImgError(f"Invalid options for file format '{target}'")
    size = -(-size // _SECTOR) * _SECTOR
    if target == "raw":
        return _Sizes(size, size)
    if target == "luks":
        size += read_luks_options(normalise("luks", options)).payload_offset
        return _Sizes(size, size)
    try:
        wanted = read_options(options, size)
    except ImageTooLargeError:
        raise ImgError("The image size is too large (try using a larger cluster size)") from None
    result = measure(wanted, _extents(source) if source is not None else ())
    bitmaps = _bitmaps_size(image, wanted.cluster_size) if wanted.version >= _WITH_BITMAPS else None
    return _Sizes(result.required, result.fully_allocated, bitmaps)


def _extents(source: Node) -> Iterator[tuple[int, int, bool]]:
    from pyvm.block.status import chain_status

    offset = 0
    while offset < source.size:
        try:
            extent = chain_status(source, offset, source.size - offset)
        except OSError as error:
            raise ImgError(f"Unable to get block status: {error.strerror}") from None
        yield offset, extent.length, extent.data and not extent.zero
        offset += extent.length


def _bitmaps_size(source: Node | None, cluster: int) -> int | None:
    """Return how much room the source's persistent bitmaps take in a copy; None where it cannot have any."""
    image = as_qcow2(source) if source is not None else None
    if image is None or image.header.version < _WITH_BITMAPS:
        return None
    total = names = 0
    for bitmap in (image.format_info()["data"]).get("bitmaps", []):
        bits = -(-image.size // bitmap["granularity"])
        content = -(-bits // (8 * cluster)) * cluster
        total += content + -(-content // cluster * 8 // cluster) * cluster
        names += -(-(24 + len(str(bitmap["name"]).encode())) // 8) * 8
    return total + -(-names // cluster) * cluster
