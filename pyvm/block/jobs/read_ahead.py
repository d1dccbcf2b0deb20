"""How a job goes through a chain of images: what is where, and the data, copied as fast as can be.

Where all there is to a piece is a read from one host file and a write to another, through image formats that do not
look at the data, the host copies it.  Where a piece of a file, or of what a server has, is written somewhere else, a
thread reads the next piece meanwhile.  No filter of the graph is passed by for either.  What is written to a server may
be on its way while the job goes on.  All of that, and what is known of the images, is for one turn of the job: as long
as it holds the lock of its context, nobody changes the source.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic_ns

from pyvm.block.drivers.file import FileNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, Pending, Role
from pyvm.block.reopen import all_below
from pyvm.block.spans import HostPipe
from pyvm.block.status import ChainExtent, chain_status

_LOOK_BYTES = 64 << 20
"""So far one looks at most: to ask about a long run takes hardly more than to ask about a step of a job."""
_LOOK_CLUSTERS = 4096
"""So many clusters one looks at, at most: the guest waits meanwhile."""
_MOST_WRITES = 8
"""So many writes are on their way at once."""
_BULK_NS_PER_MIB = 2_000_000
"""Where the host takes no longer than this, larger pieces are no burden to whoever waits."""
_QUIET_NS = 100_000_000
"""So long nobody has waited where pieces are to be larger."""


_PLAIN = frozenset({"qcow2", "raw", "file", "host_device", "nbd"})


LateFailure = Callable[[int, int, OSError], None]
"""Takes offset and length of what could not be written, and why."""


class CopyError(Exception):
    """A copy has failed, at the source or at the target."""

    def __init__(self, error: OSError | BlockError, of_read: bool) -> None:
        self.error = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
        super().__init__(self.error.strerror)
        self.of_read = of_read


class _Reader:
    """A thread that reads from files, and from servers."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Node, int, memoryview] | None] = SimpleQueue()
        self._done: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._serve, name="read-ahead", daemon=True).start()

    def _serve(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            node, offset, view = wanted
            try:
                node.readv(offset, (view,))
            except OSError:
                self._done.put(False)  # whoever wants the data reads it again, and gets the error
            else:
                self._done.put(True)

    def begin(self, node: Node, offset: int, view: memoryview) -> None:
        """Have `view` filled."""
        self._wanted.put((node, offset, view))

    def wait(self) -> bool:
        """Return whether what was begun has succeeded, once it is over; what was not begun yet is given up."""
        try:
            # Where processors are scarce, the caller has the data sooner than the thread that was woken for it.
            self._wanted.get_nowait()
        except Empty:
            return self._done.get()
        return False

    def close(self) -> None:
        """End the thread."""
        self._wanted.put(None)


class ReadAhead:
    """Reads and copies for one job, under the lock of its context."""

    def __init__(self) -> None:
        self.enabled = True
        """Whether anything is read ahead."""
        self._node: Node | None = None
        self._base: Node | None = None
        self._start = self._end = 0
        self._known: ChainExtent | None = None
        """The run of data from `_start` to `_end`."""
        self._buffers = [bytearray(), bytearray()]
        self._used = 0
        """The buffer that the caller has; the one behind it is read into."""
        self._reader: _Reader | None = None
        self._pending: tuple[int, memoryview] | None = None
        """What is being read: from which offset of the source, and into what."""
        self._writes: deque[tuple[int, int, Pending]] = deque()
        """What is on its way to the target: offsets and lengths."""
        self._on_failure: LateFailure | None = None
        self._pipe: HostPipe | None = None
        self._host_copies = True
        """Whether the host can copy between these files, as far as one knows."""
        self._quick = False
        """Whether the last piece was copied by the host, and took little time."""
        self._contended = 0
        """When somebody waited last."""

    @property
    def in_bulk(self) -> bool:
        """Whether larger pieces are in order: the host copies them quickly, and nobody has waited for a while.

        What there is to do for each piece, the wait for the interpreter above all, is less then.
        """
        return self._quick and monotonic_ns() - self._contended >= _QUIET_NS

    def put_off(self, target: Node, on_failure: LateFailure) -> None:
        """Let writes to `target` be on their way when :meth:`copy` returns, where that takes several at once."""
        if target.takes_several:
            self._on_failure = on_failure
            self._buffers = [bytearray() for _ in range(_MOST_WRITES + 2)]

    def status(self, node: Node, offset: int, length: int, base: Node | None = None) -> ChainExtent:
        """Answer as :func:`.chain_status` does.  Raises OSError."""
        known, asked = self._known, length
        if known is None or node is not self._node or base is not self._base or not self._start <= offset < self._end:
            if _is_plain(node):
                length = max(length, _LOOK_BYTES)
            known = chain_status(node, offset, bounded_look(node, length), base)
            # What a job does about data leaves it as it is; zeros may be where it writes to.
            is_data = known.present and known.data and not known.zero
            self._node, self._base, self._known = node, base, known if is_data else None
            self._start, self._end = offset, offset + known.length
        place = known.offset if known.offset is None else known.offset + offset - self._start
        return known._replace(length=min(asked, self._end - offset), offset=place)

    def copy(self, node: Node, offset: int, length: int, until: int, target: Node) -> None:
        """Write to `target` what a range of `node` has, of which :meth:`status` has told; for `until` see :meth:`read`.

        Raises CopyError, unless the failure comes to light later: see :meth:`put_off`.
        """
        if self._host_copies:
            start = monotonic_ns()
            if self._copy_on_host(node, offset, length, target):
                self._quick = (monotonic_ns() - start) << 20 <= _BULK_NS_PER_MIB * length
                return
        self._quick = False
        try:
            view = self.read(node, offset, length, until)
        except (OSError, BlockError) as error:
            raise CopyError(error, True) from None
        try:
            self._write(target, offset, view)
        except (OSError, BlockError) as error:
            raise CopyError(error, False) from None

    def _write(self, target: Node, offset: int, view: memoryview) -> None:
        pending = target.start_writev(offset, (view,)) if self._on_failure is not None else None
        if pending is None:
            target.writev(offset, (view,))
            return
        self._writes.append((offset, len(view), pending))
        self._settle(_MOST_WRITES - 1)

    def _settle(self, most: int) -> None:
        """Wait until no more than so many writes are on their way."""
        while len(self._writes) > most:
            offset, length, pending = self._writes.popleft()
            try:
                pending.wait()
            except OSError as error:
                assert self._on_failure is not None
                self._on_failure(offset, length, error)

    def _copy_on_host(self, node: Node, offset: int, length: int, target: Node) -> bool:
        """Let the host copy; return whether it has done that."""
        known = self._known
        if known is None or known.offset is None or node is not self._node or offset + length > self._end:
            return False
        file = _file_of(node, known)
        if file is None or not _leaves_data_alone(target):
            return False
        if self._pipe is None:
            self._pipe = HostPipe()
        try:
            target.writev(offset, file.span(self._pipe, known.offset + offset - self._start, length))
        except (OSError, BlockError) as error:
            # Whatever it was, it is found out by whoever reads and writes.
            number = error.errno if isinstance(error, OSError) else 0
            self._host_copies = number not in (errno.EINVAL, errno.ENOSYS, errno.EMFILE)
            return False
        return True

    def read(self, node: Node, offset: int, length: int, until: int) -> memoryview:
        """Return `length` bytes, good until the next call; from then on it goes up to `until`.  Raises OSError."""
        view = self._take(offset, length)
        self._used = self._next
        if view is None:
            view = self._buffer(self._used, length)
            node.readv(offset, (view,))
        self._begin(node, offset + length, min(length, until - offset - length))
        return view

    @property
    def _next(self) -> int:
        return (self._used + 1) % len(self._buffers)

    def _buffer(self, index: int, length: int) -> memoryview:
        if len(self._buffers[index]) < length:
            self._buffers[index] = bytearray(length)
        return memoryview(self._buffers[index])[:length]

    def _take(self, offset: int, length: int) -> memoryview | None:
        """Return what was read ahead, where it is what is wanted."""
        if self._pending is None or self._reader is None:
            return None
        start, view = self._pending
        self._pending = None
        if not self._reader.wait() or start != offset or len(view) < length:
            return None
        return view[:length]

    def _begin(self, node: Node, offset: int, length: int) -> None:
        known = self._known
        length = min(length, self._end - offset)
        if not self.enabled or known is None or node is not self._node or known.offset is None or length <= 0:
            return
        leaf = _leaf_of(node, known)
        if leaf is None:
            return
        if self._reader is None:
            self._reader = _Reader()
        self._pending = offset, self._buffer(self._next, length)
        self._reader.begin(leaf, known.offset + offset - self._start, self._pending[1])

    def end_turn(self, contended: bool = False) -> None:
        """Wait for what is on its way, and forget everything: others may change the images.

        `contended` says whether somebody waits to come in between.
        """
        if contended:
            self._contended = monotonic_ns()
        self._settle(0)
        self._known = None
        if self._pending is not None and self._reader is not None:
            self._pending = None
            self._reader.wait()

    def close(self) -> None:
        """End the thread."""
        self.end_turn()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def bounded_look(node: Node, length: int) -> int:
    """Return how much of a range to ask about at a time, so that it does not take long whatever images there are."""
    clusters = [it.cluster_size for it in all_below(node) if it.cluster_size]
    return min([length, *(size * _LOOK_CLUSTERS for size in clusters)])


def _is_plain(node: Node) -> bool:
    """Return whether only images, files and servers are below: nobody minds how far one looks at a time."""
    return all(it.driver in _PLAIN for it in all_below(node))


def _leaves_data_alone(node: Node) -> bool:
    """Return whether what is written gets to a host file as it is."""
    layer: Node | None = node
    while layer is not None and layer.driver in ("qcow2", "raw"):
        if layer.encrypted or layer.detect_zeroes != "off":
            return False
        data = [child.node for child in layer.children if child.role is Role.DATA_FILE]
        layer = data[0] if data else layer.file
    return layer is not None and layer.detect_zeroes == "off" and plain_file(layer) is not None


def plain_file(node: Node | None) -> FileNode | None:
    """Return a node where it is a file of the host that several threads may use."""
    if isinstance(node, FileNode) and node.driver == "file" and node.takes_threads:
        return node
    return None


def _leaf_of(node: Node, extent: ChainExtent) -> Node | None:
    """Return what has an extent of `node` as it is, where no filter is in between and a thread may read it."""
    layer: Node | None = node
    while layer is not extent.layer:
        if layer is None or layer.is_filter:
            return None
        layer = layer.backing
    found = extent.node
    if layer is None or layer.is_filter or not (found is layer or any(it.node is found for it in layer.children)):
        return None
    return found if found is not None and found.driver in ("file", "nbd") and found.takes_threads else None


def _file_of(node: Node, extent: ChainExtent) -> FileNode | None:
    return plain_file(_leaf_of(node, extent))


def file_of(node: Node, extent: ChainExtent) -> tuple[FileNode, int] | None:
    """Return where an extent of `node` is: in which file as it is, and from where on; None where in none."""
    file = _file_of(node, extent)
    return None if file is None or extent.offset is None else (file, extent.offset)
