"""Pictures of the screen as files: PPM (Netpbm's raw P6) and PNG.

PNG files are written by pypng: a small library in pure Python that does this alone.  Pillow would do as well, but
brings decoders for dozens of formats that a virtual machine monitor has no business with.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.devices.display.scanout import Picture
    from pyvm.devices.display.vga import Vga

FORMATS = ("ppm", "png")


def picture(vga: Vga) -> Picture:
    """Return what the adapter shows now: an array of height x width x (red, green, blue)."""
    from pyvm.devices.display.render import render

    return render(vga.save(), vga.vram.view)


def encode(image: Picture, format: str) -> bytes:  # noqa: A002
    """Return a picture as a file in one of :data:`FORMATS`."""
    height, width, _ = image.shape
    if format == "ppm":
        return b"P6\n%d %d\n255\n" % (width, height) + image.tobytes()
    import png  # type: ignore[import-untyped]

    file = io.BytesIO()
    png.Writer(width, height, greyscale=False, bitdepth=8).write_packed(file, (row.tobytes() for row in image))
    return file.getvalue()


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write all of `data` to a file without a buffer; raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def save_picture(image: Picture, filename: str | os.PathLike[str], format: str = "ppm") -> None:  # noqa: A002
    """Write a picture to a file, which is made or overwritten; raises OSError."""
    data = encode(image, format)
    with open(filename, "wb", buffering=0) as file:
        write_all(file, data)
