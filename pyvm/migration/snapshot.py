"""A saved machine in a folder, and what makes a machine of it again.

The folder has two files: `state` (:mod:`pyvm.migration.state_file`) and `ram` (:mod:`pyvm.migration.ram_file`).  What
is saved is what the board calls its components, by name; the machine that takes it must have the same ones.  The folder
also has copies of the topmost images of disks that the machine could write to.  A machine that is restored either puts
temporary images on top of these copies, or goes on with the images themselves, which must be as they were; backing
files and other images that are only read have to be in any case, and that is checked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.reopen import all_below
from pyvm.machine.saved.arrival import step_clock
from pyvm.machine.saved.disk_layers import SAVED_STATE, Frozen, copy_image, name_of_copy, writable_disks
from pyvm.migration.components import (
    MAIN_RAM,
    check_machine,
    load_state,
    marks_of_machine,
    memory_of,
    ranges_of,
    state_of,
)
from pyvm.migration.ram_file import RamPart, SavedRam, write_ram
from pyvm.migration.state_file import SnapshotError, read_state, write_state
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.machine.pc import Pc

_STATE, _RAM = SAVED_STATE, "ram"


# ---- Saving


def save_machine(pc: Pc, path: str, arguments: list[str]) -> None:
    """Save a machine that is stopped in a new folder; `arguments` are noted as what made it.

    Nothing is left of the folder where that fails.  Raises SnapshotError.
    """
    stopped_at = time.time_ns()  # to write all of it takes a while
    if pc.storage.jobs.blocks_migration:
        raise SnapshotError(f"{path}: block jobs are at work, and cannot be saved")
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from None
    try:
        pc.storage.pause()  # what is in memory only would change the images when they are closed
        sections = state_of(pc)
        parts = write_ram(os.path.join(path, _RAM), memory_of(pc), ranges_of(pc))
        header = {
            **marks_of_machine(pc),
            "time": stopped_at,
            "arguments": arguments,
            "ram": [[part.name, part.offset, part.size] for part in parts],
            "disks": _save_disks(pc, path),
            "images": _images_of(pc),
        }
        write_state(os.path.join(path, _STATE), header, sections)
    except (OSError, SnapshotError, BlockError) as error:
        import shutil

        shutil.rmtree(path, ignore_errors=True)
        raise SnapshotError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def save_devices(pc: Pc, path: str) -> None:
    """Write the state of a machine that is stopped, without its memory, to a file, old or new.  Raises OSError."""
    write_state(path, marks_of_machine(pc), state_of(pc), new=False)


def _save_disks(pc: Pc, path: str) -> dict[str, Any]:
    """Copy the topmost image of each disk that can be written; return by name the copies, and what was copied."""
    disks = {}
    for number, (name, backend) in enumerate(writable_disks(pc).items()):
        node = backend.node
        assert node is not None
        file = name_of_copy(number)
        copied = copy_image(pc.storage, node, os.path.join(path, file))
        below = copied[-1].backing
        kept = [] if below is None else all_below(below)
        own = [it.filename for it in all_below(node) if it.driver == "file" and it not in kept]
        disks[name] = {"file": file, "size": node.size, "images": own}
    return disks


def _images_of(pc: Pc) -> list[list[Any]]:
    """Return the name and the marks of each image file below the drives; none of those that are temporary."""
    images = {node.filename for node in _nodes(pc) if node.driver == "file" and os.path.exists(node.filename)}
    return [[name, *_marks(name)] for name in sorted(images)]


def _nodes(pc: Pc) -> list[Node]:
    return [node for backend in pc.storage.backends() if backend.node is not None for node in all_below(backend.node)]


def _marks(filename: str) -> tuple[int, int]:
    status = os.stat(filename)
    return status.st_size, status.st_mtime_ns


# ---- Restoring


class Snapshot:
    """A saved machine, to be loaded once.  Raises SnapshotError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._header, self._sections = read_state(os.path.join(path, _STATE))
        self._parts = {part.name: part for part in self._read_parts()}
        arguments = self._header.get("arguments")
        if not isinstance(arguments, list) or not all(isinstance(word, str) for word in arguments):
            raise self._broken("no command line")
        self.arguments: list[str] = arguments
        """What made the machine that was saved: words of the command line."""
        self._disks = self._read_disks()
        self._replaced: set[str] = set()
        """Images in whose place the machine has the copies in the folder."""

    def _broken(self, what: str) -> SnapshotError:
        return SnapshotError(f"{self._path}: {what}")

    def _read_parts(self) -> list[RamPart]:
        path = os.path.join(self._path, _RAM)
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise self._broken(f"{_RAM}: {error.strerror}") from None
        listed = self._header.get("ram")
        parts = []
        for entry in listed if isinstance(listed, list) else []:
            match entry:
                case [str(name), int(offset), int(length)] if offset >= 0 and length > 0 and offset + length <= size:
                    parts.append(RamPart(name, offset, length))
                case _:
                    raise self._broken("the file with the RAM is cut off")
        return parts

    def _read_disks(self) -> dict[str, tuple[Frozen, list[str]]]:
        """Return the copies of disks, and the images that they are copies of, by the names of the disks."""
        listed = self._header.get("disks")
        disks = {}
        for name, entry in listed.items() if isinstance(listed, dict) else ():
            match entry:
                case {"file": str(file), "size": int(size), "images": list(images)} if os.path.basename(file) == file:
                    path = os.path.join(os.path.abspath(self._path), file)
                    disks[name] = (Frozen(path, "qcow2", size), images)
                case _:
                    raise self._broken("the disks cannot be read")
        return disks

    def disks(self, names: Collection[str] | None = None) -> dict[str, Frozen]:
        """Return the copies of disks that take the place of these disks, or of all."""
        taken = {name: disk for name, disk in self._disks.items() if names is None or name in names}
        self._replaced.update(image for _, images in taken.values() for image in images)
        return {name: frozen for name, (frozen, _) in taken.items()}

    def ram(self, size: int) -> SavedRam:
        """Return the RAM of the machine, which has `size` bytes."""
        part = self._parts.get(MAIN_RAM)
        if part is None or part.size != size:
            raise self._broken(f"the machine was saved with {part.size if part else 0:#x} bytes of RAM, not {size:#x}")
        try:
            return SavedRam(os.path.join(self._path, _RAM), part)
        except (OSError, ValueError) as error:
            raise self._broken(f"{_RAM}: {error}") from None

    def load(self, pc: Pc) -> None:
        """Make `pc`, which has the RAM already and does not run, the machine that was saved."""
        try:
            check_machine(pc, self._header, self._sections)
            self._check_images()
            self._load_memory(pc)
            load_state(pc, self._sections)
            if pc.config.restore_clock == "step":
                step_clock(pc, self._saved_at())
        except StateError as error:
            raise self._broken(str(error)) from None

    def _saved_at(self) -> int:
        """Return when the machine was saved, in ns since the epoch."""
        saved_at = self._header.get("time")
        if not isinstance(saved_at, int):
            raise self._broken("nobody noted when the machine was saved")
        return saved_at

    def _check_images(self) -> None:
        for name, (_, originals) in self._disks.items():
            if any(it not in self._replaced and not os.path.exists(it) for it in originals):
                raise self._broken(f"the image of '{name}' is gone; 'disks=overlay' goes on with the copy of it")
        images = self._header.get("images")
        for entry in images if isinstance(images, list) else []:
            match entry:
                case [str(name), int(size), int(changed)]:
                    if name in self._replaced:
                        continue
                    try:
                        same = _marks(name) == (size, changed)
                    except OSError as error:
                        raise self._broken(f"{name}: {error.strerror}") from None
                    if not same:
                        raise self._broken(f"'{name}' has changed since the machine was saved")
                case _:
                    raise self._broken("the images cannot be read")

    def _load_memory(self, pc: Pc) -> None:
        for name, view in memory_of(pc).items():
            if name == MAIN_RAM:
                continue
            part = self._parts.get(name)
            if part is None or part.size != len(view):
                raise self._broken(f"the machine was saved without the memory '{name}'")
            _copy_data(os.path.join(self._path, _RAM), part, view)


def load_devices(pc: Pc, path: str) -> None:
    """Load what :func:`save_devices` wrote into a machine that does not run; a SnapshotError leaves it as it was."""
    header, sections = read_state(path)
    before = state_of(pc)
    try:
        check_machine(pc, header, sections)
        load_state(pc, sections)
    except StateError as error:
        load_state(pc, before)
        raise SnapshotError(f"{path}: {error}") from None


def _copy_data(path: str, part: RamPart, target: memoryview) -> None:
    """Fill `target`, all zeros, with what a part of the file has."""
    with open(path, "rb") as file:
        place, end = part.offset, part.offset + part.size
        while place < end:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:  # nothing but holes
                return
            place = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), end)
            if start < place:
                os.preadv(file.fileno(), [target[start - part.offset : place - part.offset]], start)
