"""Back ends over files: `file`, which writes a log, and `pipe`, a pair of FIFOs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from pyvm.chardev.base import Buffer, ChardevError, report
from pyvm.chardev.stream import StreamChardev
from pyvm.mainloop import MainLoop

OpenFile = Callable[[str, int, int], int]
"""Opens a file by path, flags and mode; close-on-exec.  Raises OSError."""


def _open_host_file(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, mode)


def open_path(path: str, flags: int, mode: int = 0o666, open_file: OpenFile = _open_host_file) -> int:
    """Open `path` close-on-exec; raises ChardevError."""
    try:
        return open_file(path, flags | os.O_NOCTTY, mode)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "Invalid argument"
        raise ChardevError(f"Could not open '{path}': {reason}") from error


class FdChardev(StreamChardev):
    """A back end over descriptors that it owns."""

    def __init__(self, label: str, loop: MainLoop, in_fd: int, out_fd: int) -> None:
        """Take over `in_fd` and `out_fd`, which may be the same; -1 means none.  Both become non-blocking."""
        super().__init__(label, loop)
        self._owned = {fd for fd in (in_fd, out_fd) if fd >= 0}
        for fd in self._owned:
            os.set_blocking(fd, False)
        self._in_fd = in_fd
        self._out_fd = out_fd

    def close(self) -> None:
        """Stop moving bytes and close the descriptors."""
        self._stop()
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()
        super().close()


class FileChardev(FdChardev):
    """Output goes to a file; input, where asked for, comes from another."""

    def __init__(
        self,
        label: str,
        loop: MainLoop,
        path: str,
        *,
        append: bool = False,
        input_path: str | None = None,
        open_file: OpenFile | None = None,
    ) -> None:
        """Open the files, by `open_file` where names may stand for something else; raises ChardevError."""
        open_file = open_file or _open_host_file
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        out_fd = open_path(path, flags, open_file=open_file)
        try:
            reading = os.O_RDONLY | os.O_NONBLOCK
            in_fd = -1 if input_path is None else open_path(input_path, reading, open_file=open_file)
        except ChardevError:
            os.close(out_fd)
            raise
        super().__init__(label, loop, in_fd, out_fd)
        self._path = path
        self._failing = False

    @property
    def filename(self) -> str:
        """Return the kind of back end, as QEMU does for a file."""
        return "file"

    def _send(self, data: Buffer) -> int:
        try:
            sent = os.write(self._out_fd, data)
        except BlockingIOError:
            raise
        except OSError as error:
            if not self._failing:
                self._failing = True
                report(f"chardev {self.label}: output to '{self._path}' is lost: {error.strerror}")
            raise
        self._failing = False
        return sent


class PipeChardev(FdChardev):
    """Two FIFOs, `path`.in towards the guest and `path`.out from it, or one file for both directions."""

    def __init__(self, label: str, loop: MainLoop, path: str) -> None:
        """Open the FIFOs; raises ChardevError.

        Each is opened for reading and writing, so peers come and go without the other seeing an end of file, and what
        the guest writes waits in the FIFO for a reader.
        """
        in_fd = out_fd = -1
        try:
            in_fd = open_path(f"{path}.in", os.O_RDWR | os.O_NONBLOCK)
            out_fd = open_path(f"{path}.out", os.O_RDWR | os.O_NONBLOCK)
        except ChardevError:
            if in_fd >= 0:
                os.close(in_fd)
            in_fd = out_fd = open_path(path, os.O_RDWR | os.O_NONBLOCK)
        if stat.S_ISDIR(os.fstat(in_fd).st_mode):
            os.close(in_fd)
            raise ChardevError(f"Could not open '{path}': Is a directory")
        super().__init__(label, loop, in_fd, out_fd)

    @property
    def filename(self) -> str:
        """Return the kind of back end, as QEMU does for FIFOs."""
        return "pipe"
