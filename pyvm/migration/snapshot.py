"""A saved machine in a folder, and what makes a machine of it again.

The folder has two files: `state` (:mod:`pyvm.migration.state_file`) and `ram` (:mod:`pyvm.migration.ram_file`).  What
is saved is what the board calls its components, by name; the machine that takes it must have the same ones.  Disk
images are not in the folder: they have to be as they were, and that is checked.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from pyvm.migration.components import MAIN_RAM, check_machine, load_state, marks_of_machine, memory_of, state_of
from pyvm.migration.ram_file import RamPart, SavedRam, write_ram
from pyvm.migration.state_file import SnapshotError, read_state, write_state
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.machine.pc import Pc

_STATE, _RAM = "state", "ram"


# ---- Saving


def save_machine(pc: Pc, path: str, arguments: list[str]) -> None:
    """Save a machine that is stopped in a new folder; `arguments` are noted as what made it.

    Nothing is left of the folder where that fails.  Raises SnapshotError.
    """
    if pc.storage.jobs.blocks_migration:
        raise SnapshotError(f"{path}: block jobs are at work, and cannot be saved")
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from None
    try:
        sections = state_of(pc)
        parts = write_ram(os.path.join(path, _RAM), memory_of(pc), {MAIN_RAM: pc.model.memory_fd})
        header = {
            **marks_of_machine(pc),
            "arguments": arguments,
            "ram": [[part.name, part.offset, part.size] for part in parts],
            "images": _images_of(pc),
        }
        write_state(os.path.join(path, _STATE), header, sections)
    except (OSError, SnapshotError) as error:
        shutil.rmtree(path, ignore_errors=True)
        raise SnapshotError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def save_devices(pc: Pc, path: str) -> None:
    """Write the state of a machine that is stopped, without its memory, to a file, old or new.  Raises OSError."""
    write_state(path, marks_of_machine(pc), state_of(pc), new=False)


def _images_of(pc: Pc) -> list[list[Any]]:
    """Return the name and the marks of each image file below the drives."""
    images: list[list[Any]] = []
    for node in {id(node): node for node in _nodes(pc)}.values():
        if node.driver != "file":
            continue
        if not os.path.exists(node.filename):
            raise SnapshotError("a drive writes to a temporary file (snapshot=on), which would be lost")
        images.append([node.filename, *_marks(node.filename)])
    return images


def _nodes(pc: Pc) -> list[Node]:
    from pyvm.block.reopen import all_below

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
        except StateError as error:
            raise self._broken(str(error)) from None

    def _check_images(self) -> None:
        images = self._header.get("images")
        for entry in images if isinstance(images, list) else []:
            match entry:
                case [str(name), int(size), int(time)]:
                    try:
                        same = _marks(name) == (size, time)
                    except OSError as error:
                        raise self._broken(f"{name}: {error.strerror}") from None
                    if not same:
                        raise self._broken(f"'{name}' has changed since the machine was saved")
                case _:
                    raise self._broken("the images cannot be read")

    def _load_memory(self, pc: Pc) -> None:
        for vga in pc.displays():
            part = self._parts.get("vga.vram")
            if part is None or part.size != vga.vram.size:
                raise self._broken("the machine was saved without display memory")
            _copy_data(os.path.join(self._path, _RAM), part, vga.vram.view)


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
