"""Protocol driver *file*: the bytes of a host file."""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

from pyvm.annotations import TYPE_CHECKING, Any, ClassVar, Literal
from pyvm.block.drivers.host import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    Bounce,
    fallocate,
    find_alignment,
)
from pyvm.block.errors import BlockError
from pyvm.block.locking import ImageLocks
from pyvm.block.node import (
    ALL_PERMISSIONS,
    UNUSED,
    Access,
    DetectZeroes,
    Extent,
    Node,
    NodeOptions,
    Preallocation,
    disk_access,
)
from pyvm.block.spans import FileSpan
from pyvm.block.vectors import Buffers, behind, fill_zero, is_zero, preadv, pwritev, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph, OpenFile
    from pyvm.block.options import Settings
    from pyvm.block.spans import HostPipe

SECTOR = 512
_IOV_LIMIT = 1024
"""Most buffers of one preadv or pwritev (IOV_MAX of Linux)."""
_ZERO_CHUNK = 1 << 20
_FIRST_BLOCK = 4096
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)

_SET_PREFIX = "/dev/fdset/"
"""What names of sets of descriptors begin with; see :mod:`pyvm.monitor.descriptors`."""

Aio = Literal["threads", "native", "io_uring"]
Locking = Literal["auto", "on", "off"]


class FileNode(Node):
    """A host file.

    As a disk, its length is whole sectors, the last one filled up with zeros; the image formats above may write behind
    that, and let the file grow.  It is locked for `access`, where that is given.  `direct` goes around the host's page
    cache, `no_flush` never asks for stable storage.  Raises :class:`BlockError` where the file cannot be opened, is not
    a file, or is in use in a way that does not go together with `access`.
    """

    driver: ClassVar[str] = "file"

    def __init__(
        self,
        path: str,
        *,
        name: str = "",
        read_only: bool = False,
        unmap: bool = False,
        serial: str = "",
        access: Access | None = None,
        direct: bool = False,
        no_flush: bool = False,
        auto_read_only: bool = False,
        force_share: bool = False,
        detect_zeroes: DetectZeroes = "off",
        aio: Aio = "threads",
        locking: Locking = "auto",
        open_file: OpenFile = os.open,
    ) -> None:
        """`open_file` opens the file by its name, and whatever else `path` may be called."""
        super().__init__(name, read_only=read_only, unmap=unmap, serial=serial)
        self.path = path
        self._open_file = open_file
        self.direct = direct
        self.no_flush = no_flush
        self.auto_read_only = auto_read_only
        self.force_share = force_share
        self.detect_zeroes = detect_zeroes
        self.aio: Aio = aio
        self._written = False
        self._can_hurry = True
        """Whether this file system can tell that a read would have to wait."""
        self._known_data = range(0)
        """What a file that is only read has no hole in: to find the next one takes long in a file of many extents."""
        self._can_discard = True
        self._can_zero = {FALLOC_FL_PUNCH_HOLE: True, FALLOC_FL_ZERO_RANGE: True}
        self._discards = self._discards_failed = self._discarded = 0
        self._lost = 0
        """The error of a flush that failed: the host may have dropped what it could not write."""
        if force_share and not read_only:
            raise BlockError("force-share=on can only be used with read-only images")
        if aio == "native" and not direct:
            raise BlockError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
        self._fd = self._open(path)
        try:
            self._check_kind(os.fstat(self._fd))
            self._locks = ImageLocks(self._fd, path, required=locking == "on") if locking != "off" else None
            if access is None:
                access = disk_access(self.read_only)
            self.set_access(access)
            self._bounce = Bounce(find_alignment(self._fd)) if direct else None
            self._size = -(-self.length() // SECTOR) * SECTOR
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, path: str) -> int:
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if self.direct else 0)
        wanted = os.O_RDONLY if self.read_only else os.O_RDWR
        try:
            try:
                return self._open_file(path, flags | wanted)
            except OSError as error:
                if self.read_only or not self.auto_read_only or error.errno not in _READ_ONLY:
                    raise
                self.read_only = True
                return self._open_file(path, flags | os.O_RDONLY)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            if self.direct and isinstance(error, OSError) and error.errno == errno.EINVAL:
                reason = "filesystem does not support O_DIRECT"
            if path.startswith(_SET_PREFIX) and isinstance(error, OSError):
                raise BlockError(_no_duplicate(path, flags & os.O_DIRECT | wanted, error)) from None
            raise BlockError(f"Could not open '{path}': {reason}") from None

    _KIND: ClassVar[str] = "a regular file"

    def _check_kind(self, status: os.stat_result) -> None:
        if not self._is_mine(status.st_mode):
            raise BlockError(f"'{self.driver}' driver requires '{self.path}' to be {self._KIND}")
        self.identity = (status.st_dev, status.st_ino)

    @staticmethod
    def _is_mine(mode: int) -> bool:
        return stat.S_ISREG(mode)

    def set_access(self, access: Access) -> None:
        """Hold other locks from now on.  Raises BlockError, with nothing changed, where somebody is against it."""
        if self._locks is not None and self._fd >= 0:
            self._locks.change(Access(access.used, ALL_PERMISSIONS) if self.force_share else access)

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size

    def length(self) -> int:
        """Return how long the file is now, in bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or fewer where the file is shorter.  Raises OSError."""
        return super().head(count) if self._bounce is not None else os.pread(self._fd, count, 0)

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Be as `new` says; raises BlockError where the file cannot be opened like that."""
        before = self.read_only, self.direct
        restore = super().reopen(graph, new)
        if (self.read_only, self.direct) == before:
            return restore
        try:
            self._open_again()
        except BaseException:
            restore()
            raise

        def back() -> None:
            restore()
            with suppress(BlockError):  # it could be opened like this before
                self._open_again()

        return back

    def _open_again(self) -> None:
        """Use another descriptor of the file, opened as the node is now."""
        descriptor = self._open(self.path)
        try:
            bounce = Bounce(find_alignment(descriptor)) if self.direct else None
            locks = None
            if self._locks is not None:
                locks = ImageLocks(descriptor, self.path)
                locks.take_over(self._locks)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._fd)
        self._fd, self._locks, self._bounce = descriptor, locks, bounce
        self._known_data = range(0)

    def close(self) -> None:
        """Give the file and its locks back; nothing is flushed."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # ---- Reading and writing

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError.  What is not in the file reads as zeros."""
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = self._read_some(offset, rest)
                if not count:
                    fill_zero(rest)
                    count = total(rest)
                offset += count
                rest = behind(rest, count)

    def read_at_hand(self, offset: int, buffers: Buffers) -> bool:
        """Fill all buffers from the host's page cache; return False where not all of that is in there."""
        if not self._can_hurry or self._bounce is not None or len(buffers) > _IOV_LIMIT:
            return False
        try:
            return preadv(self._fd, buffers, offset, os.RWF_NOWAIT) == total(buffers)
        except OSError as error:
            self._can_hurry = error.errno not in _UNSUPPORTED
            return False

    def _read_some(self, offset: int, buffers: Buffers) -> int:
        bounce = self._bounce
        if bounce is None:
            return preadv(self._fd, buffers, offset)
        if not bounce.misaligned(offset, buffers):
            try:
                return preadv(self._fd, buffers, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return bounce.read(self._fd, offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on.  Raises OSError."""
        if self.detect_zeroes != "off" and is_zero(buffers):
            self.write_zeroes(offset, total(buffers), self.detect_zeroes == "unmap")
            return
        self._write(offset, buffers)

    def _check_ours(self) -> None:
        if self.inactive:
            raise OSError(errno.EPERM, "the image is in use by another process")

    def _write(self, offset: int, buffers: Buffers) -> None:
        self._check_ours()
        self._written = True
        self.note_write(offset + total(buffers))
        for start in range(0, len(buffers), _IOV_LIMIT):
            rest = buffers[start : start + _IOV_LIMIT]
            while rest:
                count = self._write_some(offset, rest)
                offset += count
                rest = behind(rest, count)

    def _write_some(self, offset: int, buffers: Buffers) -> int:
        bounce = self._bounce
        if bounce is None:
            return pwritev(self._fd, buffers, offset)
        if not bounce.misaligned(offset, buffers):
            try:
                return pwritev(self._fd, buffers, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return bounce.write(self._fd, offset, buffers)

    def copy_range(self, source: FileNode, start: int, offset: int, length: int) -> int:
        """Let the host copy bytes from `start` on in another file to `offset` in this one, which may share blocks.

        Return how many of `length` that were; 0 behind the end of `source`.  Raises OSError where it cannot.
        """
        self._written = True
        self.note_write(offset + length)
        return os.copy_file_range(source._fd, self._fd, length, start, offset)

    def copy_pieces(
        self,
        pieces: Sequence[tuple[int, int, FileNode, int]],
        position: int,
        place: int,
        room: int,
        unit: int,
        buffer: bytearray,
    ) -> tuple[int | None, list[tuple[int, int]], tuple[bool, int] | None]:
        """Copy pieces of a disk from other files through `buffer`, but for whole units that are zeros.

        A piece is its start and end on the disk, the file that has it, and its place there; they are in order, and what
        is before `position` is left out.  Without `room` data keeps its place on the disk, which starts at `place` in
        this file.  Else whole units are written one behind the other from `place` on, as long as there is room.

        Return how far that came, None for the end; where on the disk those units are from, as starts and lengths; and
        what failed there: whether it was the write, and the number of the error.
        """
        from pyvm.native import copy_pieces

        self._check_ours()
        self._written = True
        self.note_write(place + (room or pieces[-1][1]))
        words = array("Q")
        for start, end, file, where in pieces:
            words.extend((start, end, file._fd, where))
        return copy_pieces(words, position, self._fd, place, room, unit, buffer)

    def span(self, pipe: HostPipe, offset: int, length: int) -> FileSpan:
        """Return bytes of the file that the host copies where they are written to another file."""
        return FileSpan(pipe, self._fd, offset, length)

    def flush(self) -> None:
        """Return when everything written is on stable storage.  Raises OSError, and from then on each time."""
        if self._lost:
            raise OSError(self._lost, os.strerror(self._lost))
        if not self._written or self.no_flush:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            if not self.direct:
                self._lost = error.errno or errno.EIO
            raise
        self._written = False

    # ---- Discarding and zeros

    def discard(self, offset: int, length: int) -> None:
        """Let the range take no room where that was asked for and the host can do it; it reads as zeros then."""
        if not self.unmap or not self._can_discard or not length:
            return
        self._check_ours()
        try:
            self._punch(offset, length)
        except OSError as error:
            # A discard is a hint.
            self._can_discard = error.errno not in _UNSUPPORTED
            self._discards_failed += 1
        else:
            self._discards += 1
            self._discarded += length

    def driver_stats(self) -> dict[str, int]:
        """Return how many discards there were, and of how many bytes."""
        return {
            "discard-nb-ok": self._discards,
            "discard-nb-failed": self._discards_failed,
            "discard-bytes-ok": self._discarded,
        }

    def _punch(self, offset: int, length: int) -> None:
        self._written = True
        fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def _zero_range(self, offset: int, length: int) -> None:
        self._written = True
        fallocate(self._fd, FALLOC_FL_ZERO_RANGE, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it takes no room where the host can do that.  Raises OSError."""
        if not length:
            return
        self._check_ours()
        modes = [FALLOC_FL_ZERO_RANGE]
        if unmap and self.unmap:
            modes.insert(0, FALLOC_FL_PUNCH_HOLE)
        for mode in modes:
            if self._can_zero[mode] and self._try_zero(mode, offset, length):
                return
        # This file system cannot; this is slower and always works.
        zeros = memoryview(bytes(min(_ZERO_CHUNK, length)))
        end = offset + length
        while offset < end:
            count = min(len(zeros), end - offset)
            self._write(offset, [zeros[:count]])
            offset += count

    @property
    def zeroes_fast(self) -> bool:
        """Whether zeros need not be written, as far as one knows."""
        return any(self._can_zero.values())

    def _try_zero(self, mode: int, offset: int, length: int) -> bool:
        self.note_write(offset + length)
        try:
            if mode == FALLOC_FL_ZERO_RANGE:
                self._zero_range(offset, length)
            else:
                self._punch(offset, length)
                self._grow(offset + length)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            if error.errno in _UNSUPPORTED:
                self._can_zero[mode] = error.errno == errno.EINVAL
            return False
        return True

    def note_write(self, end: int) -> None:
        """What is written behind its end makes the file longer."""
        super().note_write(end)
        if end > self._size:
            self._size = -(-end // SECTOR) * SECTOR

    def _grow(self, end: int) -> None:
        """A hole behind the end of the file does not make it longer by itself."""
        if self.length() < end:
            os.ftruncate(self._fd, end)

    # ---- What is where

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the first run of data, or of a hole, from `offset` on.  Raises OSError."""
        end = offset + min(length, max(self._size, self.length()) - offset)
        if end <= offset:
            return Extent(0, False, True, True)  # the file has become shorter than the image in it says
        known = self._known_data
        if self.read_only and offset in known:
            return Extent(min(known.stop, end) - offset, True, False, True, offset, self)
        try:
            start = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return Extent(end - offset, True, False, True, offset, self)
            start = end  # all a hole up to the end, or behind it
        if start > offset:
            return Extent(min(start, end) - offset, False, True, True, offset, self)
        hole = os.lseek(self._fd, offset, os.SEEK_HOLE)
        if hole % SECTOR and hole < end and hole == self.length():
            hole = -(-hole // SECTOR) * SECTOR  # zeros fill up the last sector
        if self.read_only:
            self._known_data = range(offset, hole)
        return Extent(min(hole, end) - offset, True, False, True, offset, self)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Make the file `size` bytes long.  Raises OSError, or BlockError for what cannot be."""
        self._check_ours()
        present = self.length()
        if preallocation not in ("off", "falloc", "full"):
            raise BlockError(f"Unsupported preallocation mode: {preallocation}")
        if size < present and preallocation != "off":
            raise BlockError("Preallocation can't be used for shrinking files")
        try:
            if preallocation == "falloc" and size > present:
                os.posix_fallocate(self._fd, present, size - present)
            else:
                os.ftruncate(self._fd, size)
            if not present and preallocation == "off":
                # So that the first block is there to be read, by which others find out how requests are aligned.
                self._write(0, [memoryview(bytes(min(size, _FIRST_BLOCK)))])
            if preallocation == "full":
                self._fill(present, size)
        except OSError as error:
            os.ftruncate(self._fd, present)
            what = "Could not preallocate data for the new file" if preallocation != "off" else "Failed to resize file"
            raise BlockError(f"{what}: {error.strerror}") from None
        self._written = True
        self._size = -(-size // SECTOR) * SECTOR

    def _fill(self, offset: int, end: int) -> None:
        zeros = memoryview(bytes(_ZERO_CHUNK))
        while offset < end:
            count = min(len(zeros), end - offset)
            self._write(offset, [zeros[:count]])
            offset += count
        os.fsync(self._fd)

    def allocated_bytes(self) -> int | None:
        """Return how much room it takes on the host."""
        return os.fstat(self._fd).st_blocks * SECTOR

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read it at the same time: not through one bounce buffer."""
        return self._bounce is None

    @property
    def has_zero_init(self) -> bool:
        """New room in a file reads as zeros."""
        return True

    def drop_cache(self) -> None:
        """Forget what the host's page cache has of the file, and how long it was."""
        self._size = -(-self.length() // SECTOR) * SECTOR
        self._known_data = range(0)
        if not self.direct:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if self.options.get("x-check-cache-dropped"):
                check_cache_dropped(self._fd)


def check_cache_dropped(fd: int) -> None:
    """Raise OSError where the host's page cache has something of a file."""
    import ctypes
    import mmap

    size = os.fstat(fd).st_size
    if not size:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        start = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), pages)
        del start  # the mapping cannot be closed before
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if any(page & 1 for page in pages.raw):
        raise OSError(errno.EIO, "page cache still in use!")


def _no_duplicate(path: str, flags: int, error: OSError) -> str:
    """Return what to say where a set has no descriptor that will do."""
    if error.errno == errno.EINVAL:
        return f"Could not parse fdset {path}"
    return f"Could not dup FD for {path} flags {flags:x}: {error.strerror}"


def make(
    settings: Settings,
    own: dict[str, Any],
    children: dict[str, Node],
    graph: BlockGraph,
    kind: type[FileNode] = FileNode,
) -> FileNode:
    """Open a host file; see :mod:`pyvm.block.options`."""
    del children
    if "pr-manager" in own:
        raise BlockError(f"No persistent reservation manager with id '{own['pr-manager']}'")
    inactive = graph.inactive and not graph.given_up
    node = kind(
        own["filename"],
        name=settings.name,
        read_only=settings.read_only,
        unmap=settings.unmap,
        access=UNUSED if inactive else settings.access,
        direct=settings.direct,
        no_flush=settings.no_flush,
        auto_read_only=settings.auto_read_only,
        force_share=settings.force_share,
        detect_zeroes=settings.detect_zeroes,
        aio=own.get("aio", "threads"),
        locking=own.get("locking", "auto"),
        open_file=graph.open_file,
    )
    node.inactive = inactive
    return node
