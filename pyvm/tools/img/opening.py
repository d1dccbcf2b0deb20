"""Opening images as the options of a subcommand say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pyvm.secrets import Secrets
from pyvm.tools.img.arguments import Arguments, Cache
from pyvm.tools.img.console import warn_plainly
from pyvm.tools.img.errors import ImgError

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.node import Access, Node

_UNCHANGED = Cache()


@dataclass(frozen=True)
class ImageChoice:
    """How the images of a command line are named and opened."""

    format: str | None = None
    """None: found out."""
    image_opts: bool = False
    """Whether names are options, ``driver=qcow2,file.filename=...``."""
    force_share: bool = False
    """Whether others may write to the image meanwhile."""
    secrets: Secrets = field(default_factory=Secrets)

    @classmethod
    def of(cls, arguments: Arguments, format_option: str = "f") -> ImageChoice:
        """Return what ``-f``, ``--image-opts`` and ``-U`` say."""
        choice = cls(arguments.get(format_option), "image-opts" in arguments, "U" in arguments, arguments.secrets)
        if choice.image_opts and choice.format is not None:
            raise ImgError("--image-opts and --format are mutually exclusive")
        return choice

    def for_backing(self, backing_format: str | None) -> ImageChoice:
        """Return how the image below is opened, of which a header gives the format."""
        return replace(self, format=backing_format, image_opts=False)

    def open(
        self,
        filename: str,
        *,
        writable: bool = False,
        resize: bool = False,
        backing: bool = True,
        cache: Cache = _UNCHANGED,
        quiet: bool = False,
        options: dict[str, Any] | None = None,
        aio: str | None = None,
        complaint: str | None = None,
        exclusive: bool = False,
        no_io: bool = False,
    ) -> Node:
        """Open an image, which belongs to the caller; raises ImgError.

        `backing` False leaves closed what is below it.  `options` are added to those of the node.  `complaint` is what
        the error begins with.  Others may write to a raw image meanwhile, unless it is opened `exclusive`.
        With `no_io` it is only looked at: what is encrypted needs no key.
        """
        complaint = complaint or f"Could not open '{filename}'"
        from pyvm.block.errors import BlockError
        from pyvm.block.graph import BlockGraph
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect
        from pyvm.errors import ConfigError

        try:
            name, tree = self._options(filename)
            tree.setdefault("read-only", not writable)
            tree.setdefault("discard", "unmap" if writable else "ignore")
            if self.force_share:
                tree["force-share"] = True
            caching = tree.setdefault("cache", {})
            caching.setdefault("direct", cache.direct)
            caching.setdefault("no-flush", cache.no_flush)
            if not backing and _takes_backing(name, tree):
                tree["backing"] = None
            tree.update(options or {})
            graph = BlockGraph(secrets=self.secrets)
            opener = Opener(graph, Dialect.DRIVE, warn=_silent if quiet else warn_plainly, no_io=no_io)
            node = opener.open(name, tree, access=_access(writable, resize, exclusive), aio=aio)
        except (BlockError, ConfigError) as error:
            raise ImgError(f"{complaint}: {error}") from None
        except OSError as error:
            raise ImgError(f"{complaint}: {error.strerror}") from None
        return node

    def open_for_check(self, filename: str, *, writable: bool, cache: Cache) -> Qcow2Node | None:
        """Open an image of which even the tables may be damaged; None where its format cannot be checked.

        Raises ImgError.
        """
        from pyvm.block.errors import BlockError
        from pyvm.errors import ConfigError

        common: dict[str, Any] = {"read-only": not writable, "cache": {"direct": cache.direct, "no-flush": False}}
        if self.force_share:
            common["force-share"] = True
        try:
            name, tree = self._options(filename)
            return _open_damaged(name, tree, common)
        except (BlockError, ConfigError) as error:
            raise ImgError(f"Could not open '{filename}': {error}") from None
        except OSError as error:
            raise ImgError(f"Could not open '{filename}': {error.strerror}") from None

    def _options(self, filename: str) -> tuple[str | None, dict[str, Any]]:
        """Return the file name that is left, and the options that the rest of it stands for."""
        if not self.image_opts:
            return filename, {"driver": self.format} if self.format is not None else {}
        from pyvm.block.options import unflatten
        from pyvm.options import Group, parse

        options = parse(Group("source", "file"), filename)
        return None, unflatten(dict(options.pairs))


def _open_damaged(filename: str | None, tree: dict[str, Any], common: dict[str, Any]) -> Qcow2Node | None:
    """Open the file of an image and, where it is a qcow2 image, that without a look at its tables."""
    from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
    from pyvm.block.node import storage_access
    from pyvm.block.options import find_driver, parse_filename, parse_pseudo
    from pyvm.block.probe import PROBE_SIZE, probe_format

    if filename is not None and filename.startswith("json:"):
        tree = {**parse_pseudo(filename), **tree}
        filename = None
    driver = tree.get("driver")
    if driver is not None and find_driver(str(driver)).name != "qcow2":
        return None
    file_tree = tree.get("file") or {}
    if filename is None and isinstance(file_tree, dict):
        filename = file_tree.pop("filename", None)
    if filename is not None and "driver" not in file_tree:
        protocol, own = parse_filename(filename)
        file_tree = {**file_tree, **own, "driver": protocol.name}
    access = storage_access(common["read-only"])
    nodes = [_open_tree({**common, **file_tree}, access)]
    try:
        if driver is None and probe_format(nodes[0].head(PROBE_SIZE), filename or "") != "qcow2":
            nodes[0].release()
            return None
        header = read_header(nodes[0])
        data = None
        if header.external_data and header.data_file is not None:
            protocol, own = parse_filename(header.data_file)
            data = _open_tree({**common, **own, "driver": protocol.name}, access)
            nodes.append(data)
        return Qcow2Node(nodes[0], header, data_file=data, warn=warn_plainly, for_check=True)
    except BaseException:
        for node in nodes:
            node.release()
        raise


def _open_tree(tree: dict[str, Any], access: Access) -> Node:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.open import Opener
    from pyvm.block.options import Dialect

    return Opener(BlockGraph(), Dialect.DRIVE, warn=warn_plainly).open(None, tree, access=access)


def _takes_backing(filename: str | None, tree: dict[str, Any]) -> bool:
    """Whether there may be something below an image: only then its options say that it stays closed."""
    driver = tree.get("driver")
    if filename is not None and filename.startswith("json:"):
        from pyvm.block.options import parse_pseudo

        driver = parse_pseudo(filename).get("driver")
    if driver is None and filename is not None:
        from pyvm.block.probe import PROBE_SIZE, probe_format

        try:
            with open(filename.removeprefix("file:"), "rb") as file:
                driver = probe_format(file.read(PROBE_SIZE), filename)
        except (OSError, ValueError):
            # Opening it as an image says what is wrong.
            return False
    return driver == "qcow2"


def _silent(_: str) -> None:
    """Take a warning that nobody wants to read."""


def _access(writable: bool, resize: bool, exclusive: bool) -> Access:
    from pyvm.block.node import ALL_PERMISSIONS, Access, Permission

    used = Permission.CONSISTENT_READ
    if writable:
        used |= Permission.WRITE
    if resize:
        used |= Permission.RESIZE
    return Access(used, Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED if exclusive else ALL_PERMISSIONS)


def as_qcow2(node: Node) -> Qcow2Node | None:
    """Return `node` where it is a qcow2 image."""
    if node.driver != "qcow2":
        return None
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    return node if isinstance(node, Qcow2Node) else None
