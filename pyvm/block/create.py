"""Making disk images: what `pyvm-img create` and copies of images begin with.

Options have the names and rules of QEMU's creation options; values are strings as at a prompt, or of the type that
they mean.  Errors have QEMU's texts.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterable, Mapping

from pyvm.annotations import TYPE_CHECKING, Any, Literal, NamedTuple
from pyvm.block.errors import BlockError
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.secrets import Secrets

Type = Literal["str", "size", "number", "bool"]


class Option(NamedTuple):
    """A creation option: what kind of value it has, and what it is for."""

    name: str
    type: Type
    help: str
    default: str | None = None
    """What it is where it is not given; None where nothing is said of it then."""


_SIZE = Option("size", "size", "Virtual disk size")
_NOCOW = Option("nocow", "bool", "Turn off copy-on-write (valid only on btrfs)")
_HINT = Option("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable")
_RAW = (
    _SIZE,
    _NOCOW,
    Option("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
    _HINT,
)
_CIPHER = (
    Option("cipher-alg", "str", "Name of encryption cipher algorithm"),
    Option("cipher-mode", "str", "Name of encryption cipher mode"),
    Option("ivgen-alg", "str", "Name of IV generator algorithm"),
    Option("ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    Option("hash-alg", "str", "Name of encryption hash algorithm"),
    Option("iter-time", "number", "Time to spend in PBKDF in milliseconds"),
)
_KEY_SLOTS = (
    Option("state", "str", "Select new state of affected keyslots (active/inactive)"),
    Option("keyslot", "number", "Select a single keyslot to modify explicitly"),
    Option("old-secret", "str", "Select all keyslots that match this password"),
    Option("new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    _CIPHER[-1],
)


def _encrypt(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """Return options as they are called in a qcow2 image."""
    return tuple(option._replace(name=f"encrypt.{option.name}") for option in options)


_LUKS = (
    _SIZE,
    Option("key-secret", "str", "ID of the secret that provides the keyslot passphrase"),
    *_CIPHER,
    *_RAW[1:],
)
_QCOW2 = (
    Option("encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
    Option("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    Option("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"),
    *_encrypt(_CIPHER),
    Option("cluster_size", "size", "qcow2 cluster size", "65536"),
    Option("extended_l2", "bool", "Extended L2 tables", "off"),
    Option("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    Option("compression_type", "str", "Compression method used for image cluster compression", "zlib"),
    _SIZE,
    Option("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    Option("backing_file", "str", "File name of a base image"),
    Option("backing_fmt", "str", "Image format of the base image"),
    Option("data_file", "str", "File name of an external data file"),
    Option("data_file_raw", "bool", "The external data file must stay valid as a raw image"),
    Option("lazy_refcounts", "bool", "Postpone refcount updates", "off"),
    Option("refcount_bits", "number", "Width of a reference count entry in bits", "16"),
    _NOCOW,
    _HINT,
)
OPTIONS = {"raw": _RAW, "file": _RAW, "qcow2": _QCOW2, "luks": _LUKS}
"""The options of each format that can be made, in the order in which they are printed."""
AMEND_OPTIONS = {
    "qcow2": (
        *(option for option in _QCOW2 if option.name in (
            "compat", "backing_file", "backing_fmt", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits",
            "size",
        )),
        *_encrypt(_KEY_SLOTS),
    ),
    "luks": _KEY_SLOTS,
}  # fmt: skip
"""The options of each format that can be changed later."""

_MAX_SIZE = (1 << 63) - 1
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_NOCOW_FL = 0x00800000
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
_FS_XFLAG_EXTSIZE = 0x00000800
_FSXATTR = struct.Struct("=IIIII8x")
_DEFAULT_HINT = 1 << 20


@record
class Creation:
    """An image that is to be made: everything has been looked at that can be before it is."""

    filename: str
    format: str
    size: int
    options: dict[str, Any] = field(default_factory=dict)
    """Normalised: sizes and numbers are int, truth values bool."""
    secrets: Secrets | None = None
    """What options about encryption name."""
    durable: bool = True
    """Whether it is on the disk when it is made; a temporary image need not be."""

    def describe(self) -> str:
        """Return the line that QEMU prints before it makes the image."""
        words = [f"Formatting '{self.filename}', fmt={self.format}"]
        for option in OPTIONS[self.format]:
            value = self.options.get(option.name)
            if value is None:
                continue
            text = ("on" if value else "off") if isinstance(value, bool) else str(value)
            words.append(f"{option.name}={text.replace(',', ',,')}")
        return " ".join(words)

    def run(self) -> None:
        """Make the image.  Raises BlockError."""
        if self.format == "qcow2":
            _create_qcow2(self.filename, self.size, self.options, self.secrets, self.durable)
        elif self.format == "luks":
            _create_luks(self.filename, self.size, self.options, self.secrets)
        else:
            _create_raw(self.filename, self.size, self.options)


def create_image(
    filename: str,
    format: str,  # noqa: A002 - the option's name
    size: int | None,
    options: Mapping[str, str | int | bool] | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    *,
    check_backing: bool = True,
    announce: Callable[[str], None] | None = None,
    secrets: Secrets | None = None,
    durable: bool = True,
) -> Creation:
    """Make an image of `size` bytes, or of the backing file's size; `announce` is given QEMU's line before.

    With `check_backing` the backing file has to be there and is opened.  `secrets` are those that options name.  With
    `durable` it is on the disk then; a qcow2 image that is gone with this process need not be.  Raises BlockError.
    """
    creation = plan_image(filename, format, size, options, backing_file, backing_format, check_backing=check_backing)
    creation.secrets, creation.durable = secrets, durable
    if announce is not None:
        announce(creation.describe())
    creation.run()
    return creation


def plan_image(
    filename: str,
    format: str,  # noqa: A002 - the option's name
    size: int | None,
    options: Mapping[str, str | int | bool] | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    *,
    check_backing: bool = True,
) -> Creation:
    """Return an image that can be made; the file is not touched.  Raises BlockError."""
    if format not in OPTIONS:
        raise BlockError(f"Unknown file format '{format}'")
    found = normalise(format, options or {})
    names = {option.name for option in OPTIONS[format]}
    for name, value in (("backing_file", backing_file), ("backing_fmt", backing_format)):
        if value is not None:
            if name not in names:
                what = "Backing file" if name == "backing_file" else "Backing format"
                raise BlockError(f"{what} not supported for file format '{format}'")
            found[name] = value
    if found.get("backing_file") == "":
        raise BlockError("Expected backing file name, got empty string")
    backing, given = found.get("backing_file"), found.get("backing_fmt") or None
    if backing is not None and backing == filename:
        raise BlockError("Error: Trying to create an image with the same filename as the backing file")
    if size is not None and "size" in found:
        raise BlockError("The image size must be specified only once")
    size = found.get("size") if size is None else size
    if backing is not None and check_backing:
        there = _backing_size(filename, backing, given)
        size = there if size is None else size
    if size is None:
        raise BlockError("Image creation needs a size parameter")
    if not 0 <= size <= _MAX_SIZE:
        raise BlockError("Image size must be between 0 and 9223372036854775807")
    found["size"] = size
    return Creation(filename, format, size, found)


def normalise(format: str, given: Mapping[str, str | int | bool]) -> dict[str, Any]:  # noqa: A002
    """Return options for a new image, of their types.  Raises BlockError."""
    return _typed(OPTIONS[format], given)


def normalise_amendment(format: str, given: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
    """Return options for an image that is there, of their types.  Raises BlockError."""
    return _typed(AMEND_OPTIONS[format], given)


def _typed(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    from pyvm.block.option_values import parse_flag, parse_number, parse_size

    parsers: dict[Type, Callable[[Any, str], Any]] = {
        "str": lambda value, _: str(value),
        "size": parse_size,
        "number": parse_number,
        "bool": parse_flag,
    }
    known = {option.name: option for option in options}
    found: dict[str, Any] = {}
    for option in known.values():
        value = given.get(option.name, option.default)
        if value is not None:
            found[option.name] = parsers[option.type](value, option.name)
    for name in given:
        if name not in known:
            raise BlockError(f"Invalid parameter '{name}'")
    return found


def _backing_size(filename: str, backing: str, given: str | None) -> int:
    """Open the backing file as the new image will, and return its size.  Raises BlockError."""
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import disk_access
    from pyvm.block.open import Opener
    from pyvm.block.options import Dialect, beside

    path = beside(filename, backing)
    # A guest may be writing to it.
    tree: dict[str, Any] = {"read-only": True, "force-share": True, **({"driver": given} if given else {})}
    try:
        opener = Opener(BlockGraph(), Dialect.DRIVE, warn=lambda text: None, no_io=True)
        node = opener.open(path, tree, access=disk_access(True))
    except BlockError as error:
        raise BlockError(f"{error}\nCould not open backing image.") from None
    try:
        if given is None:
            raise BlockError(f"Backing file specified without backing format\nDetected format of {node.driver}.")
        return node.size
    finally:
        node.close()


def local_path(filename: str) -> str:
    """Return the path in a file name."""
    return filename.removeprefix("file:")


# ---- Files


def open_new(filename: str) -> int:
    """Return a descriptor of a file that is made where it is not there.  Raises BlockError."""
    try:
        # It may be in use: it is emptied only once nobody else has it.
        return os.open(local_path(filename), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BlockError(f"Could not create '{filename}': {reason}") from None


def _create_file(filename: str, options: Mapping[str, Any]) -> None:
    """Make an empty file, or empty one that is there.  Raises BlockError."""
    if ":" in filename:
        from pyvm.block.remote_files import clear, open_remote

        remote = open_remote(filename)
        if remote is not None:
            try:
                clear(remote, filename)
            finally:
                remote.close()
            return
    descriptor = open_new(filename)
    try:
        _set_hint(descriptor, options.get("extent_size_hint", _DEFAULT_HINT))
        if options.get("nocow"):
            _set_nocow(descriptor)
    finally:
        os.close(descriptor)
    node = _open_file(filename)
    try:
        node.truncate(0)
    finally:
        node.close()


def _open_file(filename: str, durable: bool = True) -> Any:
    if ":" in filename:
        from pyvm.block.remote_files import open_remote

        remote = open_remote(filename)
        if remote is not None:
            return remote
    from pyvm.block.drivers.file import FileNode
    from pyvm.block.node import storage_access

    return FileNode(local_path(filename), access=storage_access(False), unmap=True, no_flush=not durable)


def _set_nocow(descriptor: int) -> None:
    """Turn off copy-on-write where the file system has that; it is only a matter of speed."""
    try:
        flags = struct.unpack("=I", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(4)))[0]
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("=I", flags | _FS_NOCOW_FL))
    except OSError:
        return


def _set_hint(descriptor: int, hint: int) -> None:
    """Say in which steps the file grows, where the file system wants to know; it is only a matter of speed."""
    if not hint:
        return
    try:
        attributes = fcntl.ioctl(descriptor, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
        flags, _, extents, project, cow = _FSXATTR.unpack(attributes)
        fields = _FSXATTR.pack(flags | _FS_XFLAG_EXTSIZE, hint, extents, project, cow)
        fcntl.ioctl(descriptor, _FS_IOC_FSSETXATTR, fields)
    except OSError:
        return


def _create_raw(filename: str, size: int, options: Mapping[str, Any]) -> None:
    preallocation = options.get("preallocation", "off")
    if preallocation == "metadata":
        raise BlockError("Unsupported preallocation mode: metadata")
    if preallocation not in ("off", "falloc", "full"):
        raise BlockError(f"invalid parameter value: {preallocation}")
    _create_file(filename, options)
    node = _open_file(filename)
    try:
        # Disks have whole sectors.
        node.truncate(-(-size // 512) * 512, preallocation=preallocation, exact=False)
    finally:
        node.close()


def _create_luks(filename: str, size: int, options: Mapping[str, Any], secrets: Secrets | None) -> None:
    from pyvm.block.luks import find_passphrase, format_volume, read_options
    from pyvm.secrets import Secrets

    wanted = read_options(options)
    header = format_volume(wanted, find_passphrase(secrets or Secrets(), wanted.key_secret))
    preallocation = options.get("preallocation", "off")
    if preallocation not in ("off", "metadata", "falloc", "full"):
        raise BlockError(f"invalid parameter value: {preallocation}")
    _create_file(filename, options)
    file = _open_file(filename)
    try:
        length = len(header) + -(-size // 512) * 512
        # There is nothing but data that could be preallocated.
        file.truncate(length, preallocation="off" if preallocation == "metadata" else preallocation, exact=False)
        file.write(0, header)
        file.flush()
    except OSError as error:
        raise BlockError(f"Could not create '{filename}': {error.strerror}") from None
    finally:
        file.close()


def _create_qcow2(filename: str, size: int, options: Mapping[str, Any], secrets: Secrets | None, durable: bool) -> None:
    from pyvm.block.drivers.qcow2.creation import read_options, write_empty
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    wanted = read_options(options, size)
    passphrase, crypto = None, b""
    if wanted.encrypt is not None:
        from pyvm.block.drivers.qcow2.encryption import make_volume
        from pyvm.secrets import Secrets

        crypto, passphrase = make_volume(wanted.encrypt, secrets or Secrets())
    _create_file(filename, options)
    if wanted.data_file:
        _create_file(wanted.data_file, {})
    file = _open_file(filename, durable)
    data = None
    try:
        header = write_empty(file, wanted, crypto)
        if wanted.data_file:
            data = _open_file(wanted.data_file)
            data.truncate(wanted.size)
        # A raw data file has everything in its place from the start.
        mode = "metadata" if wanted.data_file_raw and wanted.preallocation == "off" else wanted.preallocation
        if mode != "off":
            node = Qcow2Node(file, header, data_file=data, warn=lambda text: None, passphrase=passphrase)
            node.preallocate(mode)
            node.disk.make_clean()
    except OSError as error:
        raise BlockError(f"Could not create '{filename}': {error.strerror}") from None
    finally:
        file.close()
        if data is not None:
            data.close()
