"""A parallel port of the host as a back end: `parallel`, by Linux's ppdev (Documentation/driver-api/parport-lowlevel).

No parallel port of the guest is there to use it yet, so all that can be done with it is to have it.
"""

from __future__ import annotations

import fcntl
import os

from pyvm.chardev.base import Buffer, Chardev, ChardevError
from pyvm.chardev.file import open_path

_PPCLAIM = 0x708B  # <linux/ppdev.h>: _IO('p', 0x8b)
_PPRELEASE = 0x708C


class ParallelChardev(Chardev):
    """A port that is claimed for this process."""

    def __init__(self, label: str, path: str) -> None:
        """Open and claim the port; raises ChardevError."""
        super().__init__(label)
        self._fd = open_path(path, os.O_RDWR)
        try:
            fcntl.ioctl(self._fd, _PPCLAIM)
        except OSError as error:
            os.close(self._fd)
            raise ChardevError(f"not a parallel port: {error.strerror}") from error

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "parallel"

    def _write(self, data: Buffer) -> int:
        """Take bytes; a parallel port is driven by its registers, not by a stream."""
        return len(data)

    def close(self) -> None:
        """Release the port."""
        if self._fd >= 0:
            fcntl.ioctl(self._fd, _PPRELEASE)
            os.close(self._fd)
            self._fd = -1
        super().close()
