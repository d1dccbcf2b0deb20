"""How a job goes through a chain of images: what is where, and the data, of which the next piece is read ahead.

While a job writes one piece, a thread of its own reads the one that follows.  That is done only where all there is to
it is a read from a host file: no filter of the graph is passed by.  What was read ahead, and what is known of the
images, is good for one turn of the job: as long as it holds the lock of its context, nobody changes the source.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue

from pyvm.block.drivers.file import FileNode
from pyvm.block.node import Node
from pyvm.block.reopen import all_below
from pyvm.block.status import ChainExtent, chain_status

_LOOK_BYTES = 64 << 20
"""So far one looks at most: to ask about a long run takes hardly more than to ask about a step of a job."""


_PLAIN = frozenset({"qcow2", "raw", "file", "host_device"})


class _Reader:
    """A thread that reads from files."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[FileNode, int, memoryview] | None] = SimpleQueue()
        self._done: SimpleQueue[bool] = SimpleQueue()
        threading.Thread(target=self._serve, name="read-ahead", daemon=True).start()

    def _serve(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            file, offset, view = wanted
            try:
                file.readv(offset, (view,))
            except OSError:
                self._done.put(False)  # whoever wants the data reads it again, and gets the error
            else:
                self._done.put(True)

    def begin(self, file: FileNode, offset: int, view: memoryview) -> None:
        """Have `view` filled."""
        self._wanted.put((file, offset, view))

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
    """Reads for one job, under the lock of its context."""

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
        """The buffer that the caller has; the other one is read into."""
        self._reader: _Reader | None = None
        self._pending: tuple[int, memoryview] | None = None
        """What is being read: from which offset of the source, and into what."""

    def status(self, node: Node, offset: int, length: int, base: Node | None = None) -> ChainExtent:
        """Answer as :func:`.chain_status` does.  Raises OSError."""
        known = self._known
        if known is None or node is not self._node or base is not self._base or not self._start <= offset < self._end:
            known = chain_status(node, offset, max(length, _LOOK_BYTES) if _is_plain(node) else length, base)
            # What a job does about data leaves it as it is; zeros may be where it writes to.
            is_data = known.present and known.data and not known.zero
            self._node, self._base, self._known = node, base, known if is_data else None
            self._start, self._end = offset, offset + known.length
        place = known.offset if known.offset is None else known.offset + offset - self._start
        return known._replace(length=min(length, self._end - offset), offset=place)

    def read(self, node: Node, offset: int, length: int, until: int) -> memoryview:
        """Return `length` bytes, good until the next call; from then on it goes up to `until`.  Raises OSError."""
        view = self._take(offset, length)
        if view is None:
            view = self._buffer(self._used, length)
            node.readv(offset, (view,))
        self._begin(node, offset + length, min(length, until - offset - length))
        return view

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
        self._used ^= 1
        return view[:length]

    def _begin(self, node: Node, offset: int, length: int) -> None:
        known = self._known
        length = min(length, self._end - offset)
        if not self.enabled or known is None or node is not self._node or known.offset is None or length <= 0:
            return
        file = _file_of(node, known)
        if file is None:
            return
        if self._reader is None:
            self._reader = _Reader()
        self._pending = offset, self._buffer(self._used ^ 1, length)
        self._reader.begin(file, known.offset + offset - self._start, self._pending[1])

    def end_turn(self) -> None:
        """Forget everything: others may change the images."""
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


def _is_plain(node: Node) -> bool:
    """Return whether only images and files are below: nobody minds how far one looks at a time."""
    return all(it.driver in _PLAIN for it in all_below(node))


def plain_file(node: Node | None) -> FileNode | None:
    """Return a node where it is a file of the host that several threads may use."""
    if isinstance(node, FileNode) and node.driver == "file" and node.takes_threads:
        return node
    return None


def _file_of(node: Node, extent: ChainExtent) -> FileNode | None:
    """Return the file that has an extent of `node` as it is, where no filter is in between."""
    layer: Node | None = node
    while layer is not extent.layer:
        if layer is None or layer.is_filter:
            return None
        layer = layer.backing
    found = extent.node
    if layer is None or layer.is_filter or not (found is layer or any(it.node is found for it in layer.children)):
        return None
    return plain_file(found)


def file_of(node: Node, extent: ChainExtent) -> tuple[FileNode, int] | None:
    """Return where an extent of `node` is: in which file as it is, and from where on; None where in none."""
    file = _file_of(node, extent)
    return None if file is None or extent.offset is None else (file, extent.offset)
