"""The filter `filter-dump`: what a back end sends and receives, in a file that packet analysers read (pcap)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from pyvm.net.client import Frame, Offload

_MAGIC = 0xA1B2C3D4
_VERSION = (2, 4)
_ETHERNET = 1
_FILE_HEADER = struct.Struct("<IHHiIII")
_FRAME_HEADER = struct.Struct("<IIII")
_NANOSECONDS, _MICROSECOND = 1_000_000_000, 1000
DEFAULT_LENGTH = 65536


class FrameDump:
    """A file of frames.  `time` returns nanoseconds since the epoch; at most `length` bytes of a frame are kept.

    `sent` and `received` say which frames of the back end go into it.  Raises OSError where the file cannot be made.
    """

    kind = "filter-dump"

    def __init__(
        self,
        identifier: str,
        path: str,
        time: Callable[[], int],
        *,
        length: int = DEFAULT_LENGTH,
        sent: bool = True,
        received: bool = True,
    ) -> None:
        self.id = identifier
        self.description = ""
        self.enabled = True
        self._time = time
        self._length = length
        self._sent = sent
        self._received = received
        self._fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.write(self._fd, _FILE_HEADER.pack(_MAGIC, *_VERSION, 0, 0, length, _ETHERNET))

    def frame(self, frame: Frame, *, received: bool) -> None:
        """Keep a frame; the first error, such as a full disk, ends the dump."""
        if self._fd < 0 or not self.enabled or not (self._received if received else self._sent):
            return
        seconds, rest = divmod(self._time(), _NANOSECONDS)
        kept = memoryview(frame)[: self._length]
        head = _FRAME_HEADER.pack(seconds & 0xFFFFFFFF, rest // _MICROSECOND, len(kept), len(frame))
        try:
            os.writev(self._fd, (head, kept))
        except OSError:
            self.close()

    def takes(self, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Let a frame pass."""
        del frame, offload, received
        return False

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
