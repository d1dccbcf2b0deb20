"""The qcow2 node: a disk out of tables, data and a backing file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from collections.abc import Mapping as Dictionary
from contextlib import suppress

from pyvm.annotations import TYPE_CHECKING, Any, ClassVar
from pyvm.block.drivers.qcow2 import zeroing
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.image import OnCorrupted, Warn
from pyvm.block.drivers.qcow2.options import OPTION_NAMES, read_options
from pyvm.block.drivers.qcow2.records import Snapshot
from pyvm.block.drivers.qcow2.structures import (
    CRYPT_NONE,
    MAX_CLUSTER_BITS,
    Autoclear,
    Compatible,
    Header,
    Incompatible,
    parse_header,
)
from pyvm.block.errors import BlockError, as_reported
from pyvm.block.node import Child, Extent, Node, NodeOptions, Preallocation, Role
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2 import amend
    from pyvm.block.drivers.qcow2.check import CheckResult, Report
    from pyvm.block.drivers.qcow2.encryption import Encryption
    from pyvm.block.drivers.qcow2.snapshot_node import SnapshotNode
    from pyvm.block.graph import BlockGraph
    from pyvm.secrets import Secrets

__all__ = ["OPTION_NAMES", "Qcow2Node", "read_header"]


def read_header(file: Node) -> Header:
    """Return the header of the image in `file`.  Raises BlockError."""
    try:
        return parse_header(file.head(1 << MAX_CLUSTER_BITS))
    except OSError as error:
        raise BlockError(f"Could not read qcow2 header: {error.strerror}") from None


class Qcow2Node(Node):
    """A qcow2 image in `file`, with the nodes for its data file and backing file where `header` names them.

    It closes them in the end, and when its own construction fails it leaves that to the caller.  `warn` is called with
    one line about damage, or about what a write makes out of date.  `options` are those of :mod:`.options`.  `snapshot`
    is the ID or name of an internal snapshot to read instead of the disk; only where `file` is read-only.  With
    `for_check`, damaged images are opened as well, and nothing is repaired, for :meth:`check`.  An encrypted image
    without its `passphrase` can be looked at, but its data neither read nor written.

    Raises :class:`BlockError` for a broken image, and where the image may not be written although `file` may.
    """

    driver: ClassVar[str] = "qcow2"

    def __init__(
        self,
        file: Node,
        header: Header,
        *,
        name: str = "",
        data_file: Node | None = None,
        backing: Node | None = None,
        warn: Warn,
        options: Dictionary[str, Any] | None = None,
        unmap: bool | None = None,
        snapshot: str | None = None,
        for_check: bool = False,
        passphrase: bytes | None = None,
    ) -> None:
        super().__init__(name, read_only=file.read_only, unmap=file.unmap if unmap is None else unmap)
        self._header = header
        self._file = file
        self.inactive = file.inactive
        self.path = file.path
        chosen = read_options(options or {}, header, unmap=self.unmap)
        self.encryption: Encryption | None = None
        """How the data is encrypted."""
        data = file if data_file is None else data_file
        if header.crypt_method and not for_check:
            from pyvm.block.drivers.qcow2.encryption import Encryption

            self.encryption = Encryption(file, header, passphrase)
            encrypted = data = self.encryption.wrap(data)
        self.disk = Disk(file, header, chosen, name=name, data=data, backing=backing, warn=warn)
        """The parts of the image, for the other modules of the driver."""
        self.before_settling: Callable[[], None] | None = None
        """Called before everything is written back: stores what is kept in the image beside its data."""
        self._said_unwritten = False
        if self.encryption is not None:
            self.disk.reader.encrypted = encrypted
            self.disk.reader.uses_disk_offsets = self.encryption.uses_disk_offsets
        self._raw_data = data_file is not None and bool(header.autoclear_features & Autoclear.RAW_DATA_FILE)
        self._open(snapshot, for_check)
        self.children.append(Child(Role.STORAGE, file))
        if data_file is not None:
            self.children.append(Child(Role.DATA_FILE, data_file))
        if backing is not None:
            self.children.append(Child(Role.BACKING, backing))

    # ---- Opening

    def _open(self, snapshot: str | None, for_check: bool) -> None:
        disk = self.disk
        self._for_check = for_check
        if for_check:
            return
        if not self._header.refcount_table_clusters:
            raise BlockError("Image does not contain a reference count table")
        disk.read_directories()
        if snapshot is not None:
            if not self.read_only:
                raise BlockError("Device is not read-only")
            from pyvm.block.drivers.qcow2 import snapshots

            self._show_snapshot(snapshots.find(disk, snapshot))
        if self.read_only:
            return
        if self.inactive:
            disk.open_for_writing()
            return
        self._make_sound()
        disk.open_for_writing()
        self._clear_features()

    def _make_sound(self) -> None:
        """Repair an image that was not closed cleanly, before anything is written to it.  Raises BlockError."""
        if self._header.incompatible_features & Incompatible.CORRUPT:
            raise BlockError("qcow2: Image is corrupt; cannot be opened read/write")
        if self._header.incompatible_features & Incompatible.DIRTY:
            from pyvm.block.drivers.qcow2.check import repair_dirty

            repair_dirty(self.disk)

    def _show_snapshot(self, snapshot: Snapshot) -> None:
        disk = self.disk
        disk.image.l1 = disk.image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        if snapshot.disk_size is not None:
            self._header.size = snapshot.disk_size
        if disk.l1_entries(self._header.size) > snapshot.l1_size:
            raise BlockError("Snapshot L1 table is too small")

    def _clear_features(self) -> None:
        """Say that nobody looked after features that are not known here."""
        header, known = self._header, self.disk.image.known_autoclear
        if header.autoclear_features & ~known:
            header.autoclear_features &= known
            try:
                self.disk.image.commit_fields()
            except OSError as error:
                raise BlockError(f"Could not update qcow2 header: {error.strerror}") from None

    @property
    def on_corrupted(self) -> OnCorrupted | None:
        """Called with the data of a BLOCK_IMAGE_CORRUPTED event; `device` in it is for the caller to fill in."""
        return self.disk.image.on_corrupted

    @on_corrupted.setter
    def on_corrupted(self, callback: OnCorrupted | None) -> None:
        self.disk.image.on_corrupted = callback

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Be as `new` says; raises BlockError where the image cannot be used like that."""
        from pyvm.block.drivers.qcow2.reopen import reopen

        return reopen(self, graph, new, super().reopen)

    def open_again(self) -> None:
        """Take everything from the file that is kept in memory of it.  Raises BlockError."""
        self._open(None, False)

    def replace_file(self, file: Node) -> None:
        """Be stored in `file`, which shows the same as the node before."""
        self.children = [Child(it.role, file, it.name) if it.role is Role.STORAGE else it for it in self.children]
        self._file = file

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        reader = self.disk.reader
        if reader.backing is old:
            reader.backing = new
        if self.disk.stored_in is old and old is not self._file:
            reader.data = new
            if self.encryption is not None:
                reader.data = reader.encrypted = self.encryption.wrap(new)

    def set_backing(self, backing: Node | None) -> None:
        """Show another node where this image has nothing; the header stays as it is: see :meth:`change_backing`."""
        self.children = [child for child in self.children if child.role is not Role.BACKING]
        if backing is not None:
            self.children.append(Child(Role.BACKING, backing))
            if _comes_from(backing, self):
                backing.inherits_from = self
        self.disk.reader.backing = backing

    # ---- What it is

    @property
    def header(self) -> Header:
        """The header, to be looked at only."""
        return self._header

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self.disk.size

    @property
    def cluster_size(self) -> int:
        """The unit of allocation in bytes."""
        return self._header.cluster_size

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read it at the same time: where its tables stay, and so does what is below."""
        return self.read_only and not self.encrypted and all(child.node.takes_threads for child in self.children)

    @property
    def has_zero_init(self) -> bool:
        """Whether what was never written reads as zeros."""
        # Where other programs have preallocated encrypted clusters, there is anything.
        return self.disk.backing is None and self.encryption is None

    @property
    def encrypted(self) -> bool:
        """Whether the data is encrypted."""
        return self._header.crypt_method != CRYPT_NONE

    def format_info(self) -> dict[str, Any]:
        """Return the `format-specific` of query-block."""
        header = self._header
        if header.version < 3:
            data: dict[str, Any] = {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16}
            if self.encryption is not None:
                data["encrypt"] = self.encryption.info()
            return {"type": "qcow2", "data": data}
        data = {
            "compat": "1.1",
            "compression-type": "zstd" if header.compression_type else "zlib",
            "lazy-refcounts": bool(header.compatible_features & Compatible.LAZY_REFCOUNTS),
            "refcount-bits": 1 << header.refcount_order,
        }
        if header.external_data:
            if header.data_file is not None:
                data["data-file"] = header.data_file
            data["data-file-raw"] = bool(header.autoclear_features & Autoclear.RAW_DATA_FILE)
        if self.disk.bitmaps:
            from pyvm.block.drivers.qcow2 import bitmaps

            data["bitmaps"] = bitmaps.describe(self.disk)
        if self.encryption is not None:
            data["encrypt"] = self.encryption.info()
        data["corrupt"] = bool(header.incompatible_features & Incompatible.CORRUPT)
        data["extended-l2"] = header.extended_l2
        return {"type": "qcow2", "data": data}

    @property
    def is_dirty(self) -> bool:
        """Whether the image was not closed cleanly: the `dirty-flag` of query-block."""
        return self.disk.image.is_dirty

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the first run of bytes from `offset` on, at most `length`, as this layer alone has it."""
        self.disk.image.check_usable()
        length = min(length, self.size - offset)
        self.check_range(offset, length)
        extent = self.disk.reader.status(offset, length)
        if extent.data and extent.node is not None and extent.offset is not None and self.disk.is_preallocated():
            # Nothing may have been written there yet: the file knows.
            below = extent.node.block_status(extent.offset, extent.length)
            return extent._replace(length=below.length, zero=below.zero)
        return extent

    # ---- Reading

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        disk = self.disk
        length = total(buffers)
        disk.image.check_usable()
        self.check_range(offset, length)
        disk.tick()
        disk.reader.readv(offset, length, buffers)

    def read_at_hand(self, offset: int, buffers: Buffers) -> bool:
        """Fill all buffers from `offset` on if that needs no waiting; return whether it was done."""
        disk = self.disk
        length = total(buffers)
        if disk.image.broken or offset + length > self.size:
            return False
        host = disk.mapping.at_hand(offset, length)
        return host is not None and disk.reader.data.read_at_hand(host, buffers)

    # ---- Writing

    def _begin_change(self, offset: int, length: int) -> None:
        self.disk.image.check_usable()
        self.check_write(offset, length)
        if length:
            self.disk.changing_data()
            self.disk.tick()

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        length = total(buffers)
        self._begin_change(offset, length)
        self.note_write(offset + length)
        self.disk.write(offset, buffers)

    def compress(self, data: bytes | bytearray | memoryview) -> bytes | None:
        """Return a cluster in compressed form, None where that is not smaller; may be called by any thread."""
        return self.disk.compressed.compress(data)

    def write_compressed(
        self, offset: int, data: bytes | bytearray | memoryview, *, packed: bytes | None = None
    ) -> None:
        """Write one cluster, or what there is of the last one, in compressed form where that is smaller.

        `packed` is what :meth:`compress` made of it, where that was done before.  Raises OSError.
        """
        cluster = self._header.cluster_size
        length = len(data)
        if self._header.external_data or self.encrypted:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        if offset % cluster or not 0 < length <= cluster or (length < cluster and offset + length != self.size):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._begin_change(offset, length)
        self.note_write(offset + length)
        if packed is None:
            packed = self.compress(data if length == cluster else bytes(data).ljust(cluster, b"\0"))
        self.disk.make_room()
        if packed is None or len(packed) >= cluster or not self.disk.updater.write_packed(offset, packed):
            self.disk.write(offset, (memoryview(data),))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it takes no room."""
        self._begin_change(offset, length)
        if not length:
            return
        self.note_write(offset + length)
        if self._raw_data and self.encryption is None:
            self.disk.data.write_zeroes(offset, length, unmap)
        zeroing.write_zeroes(self.disk, offset, length, unmap and self.unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give whole clusters back, where that was asked for; they read as zeros then."""
        self.disk.image.check_usable()
        self.check_write(offset, length)
        if not self.unmap or self._raw_data:
            return
        if zeroing.has_whole_clusters(self.disk, offset, length):
            self._begin_change(offset, length)
            zeroing.discard(self.disk, offset, length)

    @property
    def has_raw_data(self) -> bool:
        """Whether the data is in a file that is valid as a raw image."""
        return self._raw_data

    def write_tail(self, offset: int, data: bytes) -> None:
        """Write, also behind the end of the disk, where its last cluster goes on.  Raises OSError."""
        self.disk.write(offset, (memoryview(data),))

    # ---- Stable storage

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        if self.read_only or self._for_check:
            return
        self.disk.image.check_usable()
        self.disk.write_tables()

    def inactivate(self) -> None:
        """Write back whatever is held in memory: another process may open the image then."""
        if not self.read_only and not self._for_check:
            self.disk.image.check_usable()
            self._settle_last()

    def _settle_last(self) -> None:
        """Leave an image behind that anybody may open; say once which tables could not be written.  Raises OSError."""
        if self.before_settling is not None:
            self.before_settling()
        try:
            self.disk.make_clean()
        except OSError as error:
            tables = (("L2 table", self.disk.mapping.dirty), ("refcount block", self.disk.refcounts.dirty))
            unwritten = [what for what, dirty in tables if dirty] or [what for what, _ in tables]
            for what in unwritten:
                if not self._said_unwritten:
                    self.disk.warn(as_reported(f"Failed to flush the {what} cache: {error.strerror}"))
            self._said_unwritten = True
            raise

    def drop_cache(self) -> None:
        """Forget what is held in memory of the image: it was changed elsewhere."""
        super().drop_cache()
        now = read_header(self._file)
        vars(self._header).update(vars(now))
        if self.read_only:
            self.disk.mapping.cache.clear()
            self.disk.image.l1 = self.disk.image.read_table("L1 table", now.l1_table_offset, now.l1_size)
            self.disk.compressed.forget()
            self.disk.read_directories()
        else:
            self.disk.take_from_disk()
            self._make_sound()
            self._clear_features()

    def close(self) -> None:
        """Write what is left, so that nothing is leaked; errors are only told, as nobody waits for the data."""
        unused = self.read_only or self._for_check or self.inactive
        if not unused and self.children and not self.disk.image.broken:
            with suppress(OSError):
                self._settle_last()
        super().close()

    # ---- Operations on the whole image

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Make the disk `size` bytes long; new room reads as zeros.  Raises OSError, or BlockError."""
        self._check_operation()
        from pyvm.block.drivers.qcow2 import resize

        resize.truncate(self, size, preallocation)

    def preallocate(self, mode: Preallocation) -> None:
        """Give all of the disk a place on the host.  Raises OSError, or BlockError."""
        self._check_operation()
        from pyvm.block.drivers.qcow2 import resize

        resize.preallocate(self, 0, self._header.size, mode)

    def make_empty(self) -> None:
        """Let the image have nothing of its own, so that what is below shows everywhere.  Raises OSError."""
        self._check_operation()
        from pyvm.block.drivers.qcow2 import resize

        resize.make_empty(self)

    def change_backing(self, filename: str | None, backing_format: str | None) -> None:
        """Write another backing file's name, or none, into the header.  Raises OSError, or BlockError."""
        self._check_operation()
        from pyvm.block.drivers.qcow2 import amend

        amend.change_backing(self.disk, filename, backing_format)

    def amend(
        self,
        options: Dictionary[str, Any],
        progress: amend.Progress | None = None,
        *,
        secrets: Secrets | None = None,
        force: bool = False,
    ) -> None:
        """Change what :mod:`.amend` knows of creation options.  Raises OSError, or BlockError."""
        from pyvm.block.drivers.qcow2 import amend

        self._check_operation()
        amend.amend(self, options, progress, secrets=secrets, force=force)

    def check(self, repair: frozenset[str] | set[str] = frozenset(), report: Report | None = None) -> CheckResult:
        """Look for damage; `repair` may have ``leaks`` and ``errors``.  See :func:`.check.check`."""
        if not self.read_only and not self._for_check:
            self.disk.image.check_usable()
            self.disk.settle()
        from pyvm.block.drivers.qcow2.check import check

        result = check(self.disk, repair, report)
        if repair and self._for_check:
            self._clear_features()
        elif repair:
            self.disk.take_from_disk()
        return result

    def _check_operation(self) -> None:
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.disk.image.check_changeable()

    # ---- Internal snapshots and the state of a VM

    @property
    def snapshots(self) -> list[Snapshot]:
        """The internal snapshots, oldest first."""
        return self.disk.snapshots

    def create_snapshot(self, name: str, **details: int) -> Snapshot:
        """Keep the disk as it is now under a name; for `details` see :func:`.snapshots.create`."""
        from pyvm.block.drivers.qcow2 import snapshots

        self._check_operation()
        return snapshots.create(self, name, **details)

    def apply_snapshot(self, id_or_name: str, *, vm_state: bool = True) -> None:
        """Let the disk be as in a snapshot, with the VM state behind its end or not.  Raises OSError, or BlockError."""
        from pyvm.block.drivers.qcow2 import snapshots

        self._check_operation()
        snapshots.apply(self, snapshots.find(self.disk, id_or_name), vm_state=vm_state)

    def delete_snapshot(self, identifier: str | None = None, name: str | None = None) -> None:
        """Forget a snapshot.  Raises OSError, or BlockError."""
        from pyvm.block.drivers.qcow2 import snapshots

        self._check_operation()
        snapshots.delete(self.disk, snapshots.find_exactly(self.disk, identifier, name))

    def open_snapshot(self, id_or_name: str) -> SnapshotNode:
        """Return a read-only node that shows a snapshot; to be closed before this one.  Raises BlockError."""
        if not self.read_only:
            self.disk.settle()
        from pyvm.block.drivers.qcow2 import snapshots
        from pyvm.block.drivers.qcow2.snapshot_node import SnapshotNode

        return SnapshotNode(self, snapshots.find(self.disk, id_or_name))

    def read_vmstate(self, offset: int, buffers: Buffers) -> None:
        """Fill the buffers with the state of a VM that is kept behind the end of the disk.  Raises OSError."""
        from pyvm.block.drivers.qcow2 import vmstate

        vmstate.read(self.disk, offset, buffers)

    def write_vmstate(self, offset: int, buffers: Buffers) -> None:
        """Write the state of a VM behind the end of the disk; the next snapshot takes it along.  Raises OSError."""
        from pyvm.block.drivers.qcow2 import vmstate

        self._check_operation()
        self.disk.image.check_changeable()
        vmstate.write(self.disk, offset, buffers)

    def drop_vmstate(self, size: int) -> None:
        """Forget the `size` bytes of VM state behind the end of the disk; snapshots keep theirs.  Raises OSError."""
        from pyvm.block.drivers.qcow2 import vmstate

        self._check_operation()
        vmstate.drop(self.disk, size)


def _comes_from(node: Node, parent: Node) -> bool:
    """Return whether a node was opened for `parent`, directly or through others."""
    origin = node.inherits_from
    while origin is not None and origin is not parent:
        origin = origin.inherits_from
    return origin is not None
