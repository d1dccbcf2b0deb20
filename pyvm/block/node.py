"""The graph's base: nodes, and the permissions with which they use each other.

An edge has a role, and the role says what the parent does with the child and what it lets others do meanwhile.  The
leaves of the graph are host files; they hold these permissions as locks, so that two programs agree about an image.
Who uses which node how, all together, is the business of :mod:`pyvm.block.graph`.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from enum import Enum, IntFlag
from itertools import count

from pyvm.annotations import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol
from pyvm.block.errors import BlockError
from pyvm.block.vectors import Buffers

if TYPE_CHECKING:
    from pyvm.block.bitmaps import DirtyBitmap
    from pyvm.block.graph import BlockGraph

DetectZeroes = Literal["off", "on", "unmap"]
Preallocation = Literal["off", "metadata", "falloc", "full"]
PREALLOCATIONS = ("off", "metadata", "falloc", "full")


class Permission(IntFlag):
    """What the user of a node does with it.  The bits are those of QEMU's image locks."""

    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8


ALL_PERMISSIONS = Permission(15)
NO_PERMISSIONS = Permission(0)
PERMISSION_NAMES = {
    Permission.CONSISTENT_READ: "consistent read",
    Permission.WRITE: "write",
    Permission.WRITE_UNCHANGED: "write unchanged",
    Permission.RESIZE: "resize",
}


class Role(Enum):
    """What a child is to its parent."""

    FILTERED = "filtered"
    """All the data of the parent, which adds nothing to it: the file of a raw image."""
    STORAGE = "storage"
    """Data and metadata of an image format."""
    DATA_FILE = "data-file"
    """Data of an image that has its metadata elsewhere."""
    BACKING = "backing"
    """What shows where the parent has nothing."""


class Access(NamedTuple):
    """What one user of a node does with it, and what others may do at the same time."""

    used: Permission
    shared: Permission


def disk_access(read_only: bool) -> Access:
    """Return how a guest's disk uses its root node; a raw image passes this on to its file."""
    used = Permission.CONSISTENT_READ if read_only else Permission.CONSISTENT_READ | Permission.WRITE
    return Access(used, ALL_PERMISSIONS & ~Permission.WRITE)


def storage_access(read_only: bool) -> Access:
    """Return how an image format uses the files that its data and metadata are in."""
    used = Permission.CONSISTENT_READ
    if not read_only:
        used |= Permission.WRITE | Permission.RESIZE
    return Access(used, ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE))


class NodeOptions(NamedTuple):
    """How a node is to be that is given other options."""

    read_only: bool
    auto_read_only: bool
    unmap: bool
    direct: bool
    no_flush: bool
    detect_zeroes: DetectZeroes
    own: dict[str, Any]
    """The driver's own options."""


UNUSED = Access(NO_PERMISSIONS, ALL_PERMISSIONS)
"""Nothing is done, and anything is allowed."""


def filter_access(used: Permission, shared: Permission) -> Access:
    """Return how what shows the data of another node, as a filter or raw image does, uses it: as it is used itself."""
    return Access(used, shared)


def backing_access() -> Access:
    """Return how an overlay uses what is below it: it must not change."""
    return Access(Permission.CONSISTENT_READ, ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE))


class Child:
    """An edge of the graph.  `name` is what the parent calls this child, where that is not what the role says."""

    __slots__ = ("name", "node", "order", "role")

    def __init__(self, role: Role, node: Node, name: str = "") -> None:
        self.role = role
        self.node = node
        self.name = name
        self.order = take_order()
        """Edges and users of a node are looked at by age."""

    @property
    def label(self) -> str:
        """What the parent calls this child: ``file``, ``backing``, ``data-file``."""
        return self.name or _CHILD_NAMES[self.role]


_CHILD_NAMES = {Role.FILTERED: "file", Role.STORAGE: "file", Role.DATA_FILE: "data-file", Role.BACKING: "backing"}


def take_order() -> int:
    """Return a number greater than all before."""
    return next(_ORDERS)


_ORDERS = count(1)


class Extent(NamedTuple):
    """A run of bytes that a node has in one way.

    `data`: there is data, as opposed to zeros or nothing; `zero`: it reads as zeros; `allocated`: this layer says what
    is here, not the one below.  Where `data` is to be found as it is, it starts at `offset` of `node`: the node that
    was asked, or one below it (None in both where it is nowhere as it is: compressed, encrypted).
    """

    length: int
    data: bool
    zero: bool
    allocated: bool
    offset: int | None = None
    node: Node | None = None
    compressed: bool = False


class Pending(Protocol):
    """Something that was begun, and goes on by itself."""

    def wait(self) -> object:
        """Return once it is done.  Raises OSError."""


class Node(ABC):
    """An open image.  All offsets and lengths are bytes; failures are raised as OSError."""

    driver: ClassVar[str]
    on_corrupted: Callable[[dict[str, Any]], None] | None = None
    """Called with the members of BLOCK_IMAGE_CORRUPTED when the image is found damaged; plain data never is."""
    is_filter: ClassVar[bool] = False
    """Whether it shows the data of its child, and adds no layer of its own."""
    inactive = False
    """Whether another process may be using the image: nothing is written, and what was read may be out of date."""
    unallocated_is_zero: ClassVar[bool] = True
    """Whether what it does not have reads as zeros where nothing is below it."""
    hidden: ClassVar[bool] = False
    """Whether it is a help that QEMU does without: no client sees it."""

    def __init__(self, name: str, *, read_only: bool, unmap: bool = False, serial: str = "") -> None:
        self.name = name
        """The node name."""
        self.read_only = read_only
        self.unmap = unmap
        """Whether what the guest discards is given back (`discard=unmap`)."""
        self.serial = serial
        self.children: list[Child] = []
        self.identity: Hashable = id(self)
        """What tells whether two nodes are the same thing outside of this process."""
        self.references = 1
        """How many hold it: parents, users and the monitor."""
        self.on_released: Callable[[Node], None] = lambda node: None
        """Called when the last of them let it go and it is closed."""
        self.path = ""
        """The name that it was opened by; empty where its options say all."""
        self.options: dict[str, Any] = {}
        """The options that it was opened with, without those of its children."""
        self.texts: dict[str, str] = {}
        """As which text some of them were given; names of images show that."""
        self.implicit = False
        """Whether nobody asked for this filter by name: queries show the node below it in its place."""
        self.direct = False
        self.no_flush = False
        self.detect_zeroes: DetectZeroes = "off"
        self.auto_read_only = False
        self.force_share = False
        self.given: dict[str, Any] = {}
        """What of the options that every node takes was said, with dots in the names."""
        self.inherits_from: Node | None = None
        """The parent that opened it; None where it was opened by itself."""
        self.named_backing: str | None = None
        """What its header names as backing file, as that calls itself once it is open; None where nobody asked."""
        self.highest_offset = 0
        """The end of what was written farthest behind."""
        self.write_threshold = 0
        """Where a write must not go beyond without somebody hearing of it; 0: anywhere."""
        self.on_threshold: Callable[[Node, int, int], None] | None = None
        """Takes the node, its threshold, and by how much a write goes beyond it; called once, on any thread."""
        self.dirty_bitmaps: list[DirtyBitmap] = []
        """What records changes of the node, the newest first: see :mod:`pyvm.block.bitmaps`."""
        self.other_bitmaps: list[DirtyBitmap] = []
        """What filters and jobs keep of the node, for clients to see."""

    # ---- The graph

    @property
    def file(self) -> Node | None:
        """What the image is stored in."""
        return self._child(Role.STORAGE) or self._child(Role.FILTERED)

    @property
    def backing(self) -> Node | None:
        """What shows where this image has nothing; a filter has none, its child may."""
        return self._child(Role.BACKING)

    def _child(self, role: Role) -> Node | None:
        for child in self.children:
            if child.role is role:
                return child.node
        return None

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`.  A driver that keeps the node elsewhere too extends this."""
        self.children = [Child(it.role, new, it.name) if it.node is old else it for it in self.children]

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return how this node uses a child while others use this node for `used` and share `shared`."""
        if child.role is Role.FILTERED:
            return filter_access(used, shared)
        if child.role is Role.BACKING:
            shares = ALL_PERMISSIONS if shared & Permission.WRITE else backing_access().shared
            return Access(Permission.CONSISTENT_READ & used, shares)
        return storage_access(self.read_only)

    def set_access(self, access: Access) -> None:  # noqa: B027 - nobody outside sees most nodes
        """Let others outside of this process know how the node is used from now on.  Raises BlockError."""

    @property
    def filename(self) -> str:
        """The name by which a person would open it; ``json:{...}`` where no plain name says it all."""
        if self.path or self.file is None:
            return self.path
        return self.file.filename

    @property
    @abstractmethod
    def size(self) -> int:
        """Length in bytes, whole sectors."""

    def length(self) -> int:
        """Return the length now, to the byte: a file that an image format keeps in it may grow."""
        return self.size

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes, or fewer where there are not so many.  Raises OSError."""
        return bytes(self.read(0, min(count, self.length())))

    @abstractmethod
    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""

    def read_at_hand(self, offset: int, buffers: Buffers) -> bool:
        """Fill all buffers from `offset` on if that needs no waiting; return whether it was done."""
        del offset, buffers
        return False

    @abstractmethod
    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""

    def start_readv(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to fill all buffers from `offset` on; None where nothing is begun, and :meth:`readv` does it.

        Where something outside does the work, others can be begun meanwhile.  What is begun must be waited for, and
        the buffers left alone until then.  Raises OSError.
        """
        del offset, buffers
        return None

    def start_writev(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to write all buffers from `offset` on; None where nothing is begun, and :meth:`writev` does it.

        See :meth:`start_readv`.
        """
        del offset, buffers
        return None

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written is on stable storage."""

    @abstractmethod
    def discard(self, offset: int, length: int) -> None:
        """Give the range back, where that was asked for and can be done: a hint."""

    @abstractmethod
    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it need take no room."""

    def debug_event(self, event: str) -> None:  # noqa: B027 - only one driver listens
        """Something happens in the driver above that a test may want to know of; the names are blkdebug's."""

    def note_write(self, end: int) -> None:
        """Drivers call this before they write up to `end`."""
        self.highest_offset = max(self.highest_offset, end)
        threshold = self.write_threshold
        if 0 < threshold < end:
            self.write_threshold = 0
            if self.on_threshold is not None:
                self.on_threshold(self, threshold, end - threshold)

    # ---- What only some drivers have

    def driver_stats(self) -> dict[str, int] | None:
        """Return what this driver alone counts: the `driver-specific` of query-blockstats."""
        return None

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the first run of bytes from `offset` on, at most `length`, as this layer alone has it."""
        return Extent(min(length, self.size - offset), True, False, True, offset, self)

    def check_status(self, offset: int, length: int) -> None:  # noqa: B027 - most answer
        """Raise the OSError with which a filter answers what there is in a range, where it does."""

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Make the image `size` bytes long; new room reads as zeros.

        Without `exact` more than that is fine where the size cannot be chosen.  Raises OSError, or BlockError where
        the driver cannot do it.
        """
        raise BlockError("Image format driver does not support resize")

    def allocated_bytes(self) -> int | None:
        """Return how much room it takes on the host, None where nobody knows."""
        sizes = [child.node.allocated_bytes() for child in self.children if child.role is not Role.BACKING]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster, compressed.  Raises OSError; ENOTSUP where the format does not know that."""
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def format_info(self) -> dict[str, Any] | None:
        """Return what this driver alone has to tell: the `format-specific` of query-block, with its `type`."""
        return None

    @property
    def cluster_size(self) -> int | None:
        """The unit of allocation in bytes; None where there is none."""
        return None

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read it, and ask what is where, at the same time, as long as nothing changes."""
        return False

    @property
    def takes_several(self) -> bool:
        """Whether requests can be begun, as :meth:`start_writev` does, because something outside carries them out."""
        return False

    @property
    def has_zero_init(self) -> bool:
        """Whether what was never written reads as zeros."""
        return False

    @property
    def encrypted(self) -> bool:
        """Whether the data is encrypted in what it is stored in."""
        return False

    def inactivate(self) -> None:
        """Write back whatever is held in memory."""
        self.flush()

    def begin_drain(self) -> None:
        """Hold nothing up until :meth:`end_drain`: somebody waits for what is in flight.  From any thread."""
        for child in self.children:
            child.node.begin_drain()

    def end_drain(self) -> None:
        """End :meth:`begin_drain`."""
        for child in self.children:
            child.node.end_drain()

    def cancel_in_flight(self) -> None:
        """Let requests fail now that wait for something outside to come back.  From any thread."""
        for child in self.children:
            child.node.cancel_in_flight()

    def drop_cache(self) -> None:
        """Forget what is cached of the image outside of this process: it was changed elsewhere."""
        for child in self.children:
            child.node.drop_cache()

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Be as `new` says from now on; return what undoes that.  Everything was written back before.

        Raises OSError, or BlockError, with nothing changed.
        """
        del graph
        values = {
            "read_only": new.read_only,
            "auto_read_only": new.auto_read_only,
            "unmap": new.unmap,
            "direct": new.direct,
            "no_flush": new.no_flush,
            "detect_zeroes": new.detect_zeroes,
            "options": {"driver": self.driver, **new.own},
        }
        before = {name: getattr(self, name) for name in values}
        for name, value in values.items():
            setattr(self, name, value)

        def back() -> None:
            for name, value in before.items():
                setattr(self, name, value)

        return back

    def hold(self) -> Node:
        """Hold the node once more; return it."""
        self.references += 1
        return self

    def release(self) -> None:
        """Hold it once less; the last one closes it."""
        self.references -= 1
        if not self.references:
            try:
                self.close()
            finally:
                self.on_released(self)

    def close(self) -> None:
        """Give up the image, and release all that is below it.  What was not flushed may be lost."""
        children, self.children = self.children, []
        for child in children:
            child.node.release()

    def check_range(self, offset: int, length: int) -> None:
        """Raise OSError unless the range is on the disk."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def check_write(self, offset: int, length: int) -> None:
        """Raise OSError unless the range is on the disk and may be written."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.check_range(offset, length)

    def read(self, offset: int, length: int) -> bytearray:
        """Return `length` bytes from `offset` on."""
        data = bytearray(length)
        self.readv(offset, (memoryview(data),))
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at `offset`."""
        self.writev(offset, (memoryview(data),))
