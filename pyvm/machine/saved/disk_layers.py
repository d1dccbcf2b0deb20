"""Disks of machines that are made of another one: what that one has stays as it is, and everybody writes to overlays.

Two things lead to such disks.  A machine that is *forked* has each of its writable disks frozen: the image becomes
read-only, and what the machine writes from then on goes to a new image on top.  A machine that is *saved* in a folder
leaves a copy of the topmost image of each there.  Either way, the other machines put temporary images of their own on
top, which are gone when they end.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.filename import name_of
from pyvm.block.node import Node
from pyvm.errors import ConfigError
from pyvm.records import record
from pyvm.temporary import new_temporary_file, temporary_directory

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.config import MachineConfig
    from pyvm.machine.pc import Pc
    from pyvm.machine.storage import Storage

_PREFIX = "pyvm-disks-"
_CHUNK = 4 << 20
_MOST_COPIES = 256
SAVED_STATE = "state"
"""The file that makes a folder that of a saved machine."""


@record(frozen=True)
class Frozen:
    """An image that nobody writes to: the name by which it can be opened, its format, and the size of the disk."""

    filename: str
    format: str
    size: int


class DiskFamily:
    """The directory with images that machines of one family share; it is gone when the last of them has ended.

    Machines have threads of their own, so several may use it at the same time.
    """

    def __init__(self) -> None:
        self.copies: dict[Node, str] = {}
        """By image without a name: where a copy of it is."""
        self._lock = threading.Lock()
        self._members = 0
        self._numbers = itertools.count(1)
        self._remove: Callable[[], object] = lambda: None

    @cached_property
    def path(self) -> str:
        """The directory, which is made when it is first asked for.  Raises OSError."""
        import shutil
        import tempfile
        import weakref

        with self._lock:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=temporary_directory())
            self._remove = weakref.finalize(self, shutil.rmtree, path, True)
            return path

    def join(self) -> None:
        """One more machine belongs to it."""
        with self._lock:
            self._members += 1

    def leave(self) -> None:
        """A machine has ended."""
        with self._lock:
            self._members -= 1
            if not self._members:
                self._remove()

    def new_path(self) -> str:
        """Return the name for another image."""
        return os.path.join(self.path, f"{next(self._numbers)}.qcow2")


# ---- Disks of the machine that others are made of


def writable_disks(pc: Pc) -> dict[str, BlockBackend]:
    """Return the disks that the machine may write to, by what the command line calls them.  Raises BlockError."""
    known = {drive.id for drive in (*pc.config.drives, *pc.config.default_drives)}
    nodes = {str(item.options.get("node-name")) for item in pc.config.blockdevs}
    disks: dict[str, BlockBackend] = {}
    for backend in pc.storage.backends():
        node = backend.node
        if node is None or node.read_only:
            continue
        name = backend.name or pc.disk_names.setdefault(backend, node.name)
        if name not in known and name not in nodes:
            raise BlockError(f"'{name}' was plugged in later, and is not on the command line")
        if node.is_filter:
            raise BlockError(f"'{name}' has a filter of type '{node.driver}' in front of it")
        disks[name] = backend
    return disks


def freeze_disks(pc: Pc, family: DiskFamily) -> dict[str, Frozen]:
    """Freeze all disks of a machine that is stopped, and return them by name.  Raises BlockError, OSError."""
    storage = pc.storage
    frozen = {}
    for name, backend in writable_disks(pc).items():
        node = backend.node
        assert node is not None
        if _directory_of(node) == family.path and _is_empty(node) and node.backing is not None:
            frozen[name] = _named(storage, node.backing, family)
        else:
            frozen[name] = _named(storage, node, family)
            _put_overlay(storage, node, family.new_path(), frozen[name])
    return frozen


def _directory_of(node: Node) -> str:
    return os.path.dirname(node.filename)


def _is_empty(node: Node) -> bool:
    """Return whether nothing was ever written to a qcow2 image."""
    disk: Any = getattr(node, "disk", None)
    if disk is None:
        return False
    disk.settle()
    return not any(disk.image.l1)


def _put_overlay(storage: Storage, node: Node, path: str, frozen: Frozen) -> None:
    """Put an image on top of a disk that is frozen; others can open it together with `frozen`."""
    from pyvm.machine.overlays import NewOverlay, make_overlay

    with storage.quiet():
        _create_overlay(path, node.size, frozen)
    # A temporary image cannot be opened again to be read-only; nobody else can open it, either.
    overlay = make_overlay(storage, node, NewOverlay(path, "qcow2", existing=True), freeze=_is_there(node))
    storage.release(overlay)  # those who use it hold it


def _named(storage: Storage, node: Node, family: DiskFamily) -> Frozen:
    """Return a frozen image that others can open by its name: a copy where it has none any more."""
    if _directory_of(node) == family.path:
        # Its header names what is below by a name that leads there for everybody.
        return Frozen(node.filename, "qcow2", node.size)
    if not _is_there(node):
        path = family.copies.get(node)
        if path is None:
            path = family.copies[node] = family.new_path()
            copy_image(storage, node, path)
        return Frozen(path, "qcow2", node.size)
    return Frozen(_full_name(node), node.driver, node.size)


def _full_name(node: Node) -> str:
    """Return the name by which an image can be opened, from wherever it is named."""
    name = name_of(node)
    protocol, colon, _ = name.partition(":")
    return name if colon and "/" not in protocol else os.path.abspath(name)


def _is_there(node: Node) -> bool:
    """Return whether the file of an image has a name: temporary images (snapshot=on) have none."""
    leaf = node
    while leaf.file is not None:
        leaf = leaf.file
    return leaf.driver != "file" or os.path.exists(leaf.filename)


def copy_image(storage: Storage, node: Node, path: str) -> list[Node]:
    """Make a qcow2 image that has what the topmost image of a disk has, on top of the same backing file.

    Where that is temporary, or belongs to a saved machine, what it has is copied, too.  Returns the images that were
    copied.  Raises BlockError, OSError.
    """
    from pyvm.block.create import create_image
    from pyvm.block.info import is_encrypted

    copied = [node]
    below = node.backing
    while below is not None and _is_temporary(below):
        copied.append(below)
        below = below.backing
    if any(is_encrypted(layer) for layer in copied):
        raise BlockError(f"'{node.name}' is encrypted, and a copy would not be")
    backing = (_full_name(below), below.driver) if below is not None else (None, None)
    with storage.quiet():
        create_image(path, "qcow2", node.size, {}, *backing, check_backing=False)
    tree = {"driver": "qcow2", "file": {"driver": "file", "filename": path, "locking": "off"}, "backing": None}
    target = storage.open(None, tree)
    try:
        with storage.quiet():
            _copy_layers(node, below, target)
            target.flush()
    finally:
        storage.release(target)
    return copied


def _is_temporary(node: Node) -> bool:
    """Return whether an image may go: with the machines that use it, or with the folder of a saved machine."""
    directory = _directory_of(node)
    if not _is_there(node) or os.path.basename(directory).startswith(_PREFIX):
        return True
    return os.path.basename(node.filename) in (name_of_copy(number) for number in range(_MOST_COPIES)) and (
        os.path.exists(os.path.join(directory, SAVED_STATE))
    )


def name_of_copy(number: int) -> str:
    """Return the name of the copy of a disk in the folder of a saved machine."""
    return f"disk-{number}.qcow2"


def _copy_layers(node: Node, below: Node | None, target: Node) -> None:
    """Copy what a disk has in the layers above `below`."""
    from pyvm.block.status import chain_status

    offset, end = 0, node.size
    while offset < end:
        extent = chain_status(node, offset, end - offset, below)
        if extent.data:
            for place in range(offset, offset + extent.length, _CHUNK):
                target.write(place, node.read(place, min(_CHUNK, offset + extent.length - place)))
        elif extent.zero and extent.present and below is not None:
            target.write_zeroes(offset, extent.length, True)
        offset += extent.length


# ---- Disks of the machines that are made


def stand_on(config: MachineConfig, disks: Mapping[str, Frozen], *, alone: bool, made: Callable[[str], object]) -> None:
    """Let a machine have temporary images on top of `disks` in the place of what its options name.

    With `alone`, these are all the disks that it may write to: other nodes are only read.  `made` is told the name of
    each temporary file that is there from then on, to be removed once it is open.  Raises ConfigError.
    """
    for drive in (*config.drives, *config.default_drives):
        frozen = disks.get(drive.id)
        if frozen is not None:
            drive.file, drive.format = frozen.filename, None if frozen.filename.startswith("json:") else frozen.format
            drive.options = {name: value for name, value in drive.options.items() if name == "node-name"}
            drive.snapshot = True
    for blockdev in config.blockdevs:
        name = blockdev.options.get("node-name")
        frozen = disks.get(str(name))
        if frozen is None:
            if alone:
                blockdev.options = {**blockdev.options, "read-only": True if blockdev.typed else "on"}
            continue
        path = _temporary_overlay(frozen, made)
        kept = {key: value for key, value in blockdev.options.items() if key in ("node-name", "discard", "cache")}
        locking = {"driver": "file", "filename": path, "locking": "off"}
        blockdev.options = {**kept, "driver": "qcow2", "file": locking}


def _temporary_overlay(frozen: Frozen, made: Callable[[str], object]) -> str:
    try:
        path = new_temporary_file("vl.")
        made(path)
        _create_overlay(path, frozen.size, frozen)
    except OSError as error:
        raise ConfigError(f"a temporary image cannot be made: {error.strerror or os.strerror(errno.EIO)}") from None
    except BlockError as error:
        raise ConfigError(f"a temporary image cannot be made: {error}") from None
    return path


def _create_overlay(path: str, size: int, frozen: Frozen) -> None:
    """Make a temporary image on top of one that is frozen.  Raises BlockError."""
    from pyvm.block.create import create_image

    create_image(path, "qcow2", size, {}, frozen.filename, frozen.format, check_backing=False, durable=False)
