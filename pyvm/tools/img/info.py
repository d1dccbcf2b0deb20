"""``pyvm-img info``: what an image is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvm.block.info_text import image_lines
from pyvm.tools.img.arguments import IMAGE_LONG, scan
from pyvm.tools.img.console import print_json
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.opening import ImageChoice, as_qcow2

if TYPE_CHECKING:
    from pyvm.block.node import Node

_LONG = {
    **IMAGE_LONG,
    "format": "f",
    "output": "output=",
    "backing-chain": "backing-chain",
    "force-share": "U",
}


def run(argv: list[str]) -> int:
    """Run the subcommand; return its exit status."""
    arguments = scan(argv, "hf:U", _LONG)
    as_json = arguments.json()
    filename = arguments.operand()
    arguments.add_objects()
    choice = ImageChoice.of(arguments)
    chain = "backing-chain" in arguments
    images = _collect(filename, choice, chain)
    if as_json:
        print_json(images if chain else images[0])
        return 0
    for number, image in enumerate(images):
        if number:
            print()
        print(*image_lines(image), sep="\n")
    return 0


def _collect(filename: str, choice: ImageChoice, chain: bool) -> list[dict[str, Any]]:
    """Describe an image and, with `chain`, all that is below it."""
    images: list[dict[str, Any]] = []
    seen: set[str] = set()
    while True:
        if filename in seen:
            raise ImgError(f"Backing file '{filename}' creates an infinite loop.")
        seen.add(filename)
        node = choice.open(filename, backing=False, no_io=True)
        try:
            image = describe(node)
        finally:
            node.release()
        images.append(image)
        if not chain or "backing-filename" not in image:
            return images
        if "full-backing-filename" not in image:
            raise ImgError(f"Could not determine the backing file name of '{filename}'")
        filename = str(image["full-backing-filename"])
        choice = choice.for_backing(image.get("backing-filename-format"))


def describe(node: Node) -> dict[str, Any]:
    """Return the ImageInfo of an open image, as QMP has it."""
    qcow2 = as_qcow2(node)
    from pyvm.block.filename import name_of

    info: dict[str, Any] = {"filename": name_of(node), "format": node.driver, "virtual-size": node.size}
    # What is in an external data file does not count.
    allocated = (node.file if qcow2 is not None and node.file is not None else node).allocated_bytes()
    if allocated is not None:
        info["actual-size"] = allocated
    if node.cluster_size is not None:
        info["cluster-size"] = node.cluster_size
    info["dirty-flag"] = qcow2.is_dirty if qcow2 is not None else False
    if node.encrypted:
        info["encrypted"] = True
    specific = node.format_info()
    if specific is not None:
        info["format-specific"] = specific
    header = getattr(node, "header", None)
    if header is not None and header.backing_file is not None:
        info["backing-filename"] = header.backing_file
        info["full-backing-filename"] = full_name(node.filename, header.backing_file)
        if header.backing_format is not None:
            info["backing-filename-format"] = header.backing_format
    if qcow2 is not None and qcow2.snapshots:
        from pyvm.block.info import snapshot_info

        info["snapshots"] = [snapshot_info(snapshot) for snapshot in qcow2.snapshots]
    return info


def full_name(image: str, backing: str) -> str:
    """Return the name of a backing file as seen from where the image is named from."""
    protocol, colon, _ = backing.partition(":")
    if colon and "/" not in protocol:
        return backing
    return os.path.join(os.path.dirname(image), backing)
