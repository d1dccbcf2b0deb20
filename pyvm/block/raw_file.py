"""A disk whose bytes are those of a host file or block device."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

_IOV_LIMIT = 1024
"""Most buffers of one preadv or pwritev (IOV_MAX of Linux)."""

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10
_ZERO_CHUNK = 1 << 20

_IMAGE_MAGICS = (b"QFI\xfb", b"KDMV", b"COWD", b"# Disk DescriptorFile", b"vhdxfile", b"conectix", b"LUKS\xba\xbe")
"""First bytes of qcow2, vmdk, VHDX, VHD and LUKS images."""


class RawFileError(Exception):
    """A host file cannot be used as a disk; the text is one line for people."""


class RawFile:
    """A host file as a disk.

    Its length is fixed while it is open, rounded down to whole sectors.  Offsets and lengths are bytes.  Raises
    :class:`RawFileError` where the file cannot be opened or is not a file.
    """

    def __init__(self, path: str, *, read_only: bool = False, unmap: bool = False, serial: str = "") -> None:
        self.path = path
        self.read_only = read_only
        self.unmap = unmap
        """Whether what the guest discards is given back to the host (`discard=unmap`)."""
        self.serial = serial
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags)
        except IsADirectoryError:
            raise RawFileError(f"'file' driver requires '{path}' to be a regular file") from None
        except OSError as error:
            raise RawFileError(f"Could not open '{path}': {error.strerror}") from None
        try:
            kind = os.fstat(self._fd).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise RawFileError(f"'file' driver requires '{path}' to be a regular file")
            self._size = os.lseek(self._fd, 0, os.SEEK_END) & -512
        except BaseException:
            os.close(self._fd)
            raise

    def looks_formatted(self) -> bool:
        """Whether the file begins as an image of another format does."""
        return os.pread(self._fd, max(map(len, _IMAGE_MAGICS)), 0).startswith(_IMAGE_MAGICS)

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size

    def close(self) -> None:
        """Give the file back; nothing is flushed."""
        os.close(self._fd)

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill all buffers from `offset` on.  Raises OSError.

        Should somebody cut the file short, what is missing reads as zeros.
        """
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest: Sequence[memoryview] = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = os.preadv(self._fd, rest, offset)
                if not count:
                    for buffer in rest:
                        buffer[:] = bytes(len(buffer))
                    count = sum(map(len, rest))
                offset += count
                rest = _behind(rest, count)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write all buffers from `offset` on.  Raises OSError."""
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest: Sequence[memoryview] = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = os.pwritev(self._fd, rest, offset)
                offset += count
                rest = _behind(rest, count)

    def flush(self) -> None:
        """Return when everything written is on stable storage.  Raises OSError."""
        if not self.read_only:
            os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Let the range take no room where that was asked for and the host can do it; it reads as zeros then."""
        if not self.unmap:
            return
        try:
            self._fallocate(_FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)
        except OSError:
            # A discard is a hint.
            return

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it takes no room where the host can do that.  Raises OSError."""
        modes = [_FALLOC_FL_ZERO_RANGE | _FALLOC_FL_KEEP_SIZE]
        if unmap and self.unmap:
            modes.insert(0, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE)
        for mode in modes:
            try:
                self._fallocate(mode, offset, length)
                return
            except OSError:
                # This file system cannot; the next way is slower and the last one always works.
                continue
        zeros = memoryview(bytes(min(_ZERO_CHUNK, length)))
        end = offset + length
        while offset < end:
            count = min(len(zeros), end - offset)
            self.writev(offset, [zeros[:count]])
            offset += count

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(self._fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def _behind(buffers: Sequence[memoryview], count: int) -> Sequence[memoryview]:
    """Return what is left of `buffers` behind their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            rest = list(buffers[index:])
            rest[0] = buffer[count:]
            return rest
        count -= len(buffer)
    return ()
