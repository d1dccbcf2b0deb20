"""Opening an image with all that is below it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pyvm.block.drivers.file import FileNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Access, Node, backing_access, disk_access, storage_access
from pyvm.block.probe import PROBE_SIZE, probe_format

FORMATS = ("raw", "qcow2")
_MAX_CHAIN = 200
"""Most images on top of each other: a read may have to go through all of them."""

Warn = Callable[[str], None]


def _print_warning(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@dataclass(frozen=True)
class _Context:
    """What is the same for a whole chain of images."""

    warn: Warn
    identities: tuple[tuple[int, int], ...] = ()
    """The files above, by device and inode."""


def open_image(
    path: str,
    *,
    name: str = "disk",
    format: str | None = None,  # noqa: A002 - the option's name
    read_only: bool = False,
    unmap: bool = False,
    warn: Warn = _print_warning,
) -> Node:
    """Open an image as a guest's disk; raises BlockError.

    Without `format` it is found out; a guest that then writes what looks like another format to a raw image gets an
    error.  `unmap` gives back to the host what the guest discards.  `name` is the root node's; others have it as a
    prefix.  `warn` is given lines for the person at the prompt.
    """
    return _open(path, name, format, read_only, unmap, disk_access(read_only), _Context(warn))


def _open(
    path: str, name: str, given: str | None, read_only: bool, unmap: bool, access: Access, context: _Context
) -> Node:
    path = _local_path(path)
    found = given or _find_format(path)
    if _identity(path) in context.identities:
        raise BlockError(f"'{path}' is in its own backing chain")
    if found not in FORMATS:
        raise BlockError(f"'{path}': format '{found}' is not supported by pyvm yet (only {' and '.join(FORMATS)})")
    if found == "qcow2":
        access = storage_access(read_only)
    file = FileNode(path, name=f"{name}.file", read_only=read_only, unmap=unmap, access=access)
    try:
        if given is None and probe_format(file.head(PROBE_SIZE), path) != found:
            raise BlockError(f"'{path}' has changed while it was opened")
        context = _Context(context.warn, (*context.identities, file.identity))
        if found == "qcow2":
            return _open_qcow2(file, name, context)
        from pyvm.block.drivers.raw import RawNode

        if given is None and not read_only:
            context.warn(_PROBED_RAW.format(path))
        return RawNode(file, name=name, probed=given is None)
    except OSError as error:
        file.close()
        raise BlockError(f"Could not read '{path}': {error.strerror}") from None
    except BaseException:
        file.close()
        raise


_PROBED_RAW = """\
WARNING: Image format was not specified for '{}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions."""


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells whether two paths are one file; None where opening it will say what is wrong."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _find_format(path: str) -> str:
    """Look at the file before it is locked: how depends on the format."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BlockError(f"Could not open '{path}': {reason}") from None
    try:
        return probe_format(os.pread(descriptor, PROBE_SIZE, 0), path)
    except OSError:
        # A directory or a pipe; opening it as a file says so.
        return "raw"
    finally:
        os.close(descriptor)


def _open_qcow2(file: FileNode, name: str, context: _Context) -> Node:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header

    header = read_header(file)
    below: list[Node] = []
    try:
        data_file = None
        if header.external_data:
            if header.data_file is None:
                raise BlockError("'data-file' is required for this image")
            data_file = _open_data_file(file, header.data_file, f"{name}.data-file", context)
            below.append(data_file)
        backing = None
        if header.backing_file is not None:
            backing = _open_backing(file, header.backing_file, header.backing_format, f"{name}.backing", context)
            below.append(backing)
        return Qcow2Node(file, header, name=name, data_file=data_file, backing=backing, warn=context.warn)
    except BaseException:
        for node in below:
            node.close()
        raise


def _open_data_file(image: FileNode, path: str, name: str, context: _Context) -> FileNode:
    # Unlike the name of a backing file, a relative one starts at the working directory, as with QEMU.
    path = _local_path(path)
    access = storage_access(image.read_only)
    if _identity(path) in context.identities:
        raise BlockError(f"'{path}' is its own data file")
    return FileNode(path, name=name, read_only=image.read_only, unmap=image.unmap, access=access)


def _open_backing(image: FileNode, path: str, given: str | None, name: str, context: _Context) -> Node:
    try:
        if len(context.identities) >= _MAX_CHAIN:
            raise BlockError(f"there are more than {_MAX_CHAIN} images on top of each other")
        return _open(_beside(image.path, path), name, given, True, False, backing_access(), context)
    except BlockError as error:
        raise BlockError(f"Could not open backing file: {error}") from None


def _beside(image: str, path: str) -> str:
    """Return the path of a file that an image names: a relative one starts where the image is."""
    return os.path.join(os.path.dirname(image), _local_path(path))


def _local_path(path: str) -> str:
    """Return the path in a file name as QEMU takes it; raises BlockError for what is not a local file."""
    if path.startswith("file:"):
        return path.removeprefix("file:")
    protocol, colon, _ = path.partition(":")
    if colon and "/" not in protocol:
        raise BlockError(f"Unknown protocol '{protocol}'")
    return path
