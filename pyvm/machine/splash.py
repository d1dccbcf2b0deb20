"""The picture of ``-boot splash=``, which a firmware shows while it waits at the boot menu: a file of fw_cfg."""

from __future__ import annotations

import struct
from pathlib import Path

from pyvm.errors import ConfigError

_LONGEST = 16 << 20
"""More than any screen has; the firmware's memory is small."""
_BMP_HEADER = 30
_BMP_DEPTH_AT = 28
_BMP_DEPTH = 24


def read_picture(path: str) -> tuple[str, bytes]:
    """Return the name that firmware looks for, which tells the format, and the picture.  Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError(f"failed to find file '{path}': {reason}") from None
    if len(content) > _LONGEST:
        raise ConfigError(f"splash file '{path}' is too big (at most {_LONGEST >> 20} MiB)")
    if content[:2] == b"\xff\xd8":
        return "bootsplash.jpg", content
    if content[:2] == b"BM" and len(content) >= _BMP_HEADER:
        (depth,) = struct.unpack_from("<H", content, _BMP_DEPTH_AT)
        if depth == _BMP_DEPTH:
            return "bootsplash.bmp", content
    raise ConfigError(f"splash file '{path}' format not recognized; must be JPEG or 24 bit BMP")
