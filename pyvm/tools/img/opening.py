"""Opening images as the options of a subcommand say."""

from __future__ import annotations

from pyvm.annotations import TYPE_CHECKING, Any
from pyvm.records import field, record, replace
from pyvm.secrets import Secrets
from pyvm.tools.img.arguments import Arguments, Cache
from pyvm.tools.img.console import warn_plainly
from pyvm.tools.img.errors import ImgError

if TYPE_CHECKING:
    from pyvm.block.drivers.file import FileNode
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.node import Access, Node

_UNCHANGED = Cache()


@record(frozen=True)
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
        for_check: bool = False,
        bitmaps: bool = True,
    ) -> Node:
        """Open an image, which belongs to the caller; raises ImgError.

        `backing` False leaves closed what is below it.  `options` are added to those of the node.  `complaint` is what
        the error begins with.  Others may write to a raw image meanwhile, unless it is opened `exclusive`.
        With `no_io` it is only looked at: what is encrypted needs no key.  `for_check` opens it even if its tables are
        damaged.  Without `bitmaps`, those in the image stay as they are, as data is not written.
        """
        complaint = complaint or f"Could not open '{filename}'"
        from pyvm.block.errors import BlockError
        from pyvm.block.graph import BlockGraph
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect
        from pyvm.errors import ConfigError

        try:
            name, tree = self._options(filename)
            self._set_mode(tree, writable, cache)
            tree.update(options or {})
            graph = BlockGraph(secrets=self.secrets)
            opener = Opener(
                graph,
                Dialect.DRIVE,
                warn=_silent if quiet else warn_plainly,
                no_io=no_io,
                no_backing=not backing,
                for_check=for_check,
            )
            node = opener.open(name, tree, access=_access(writable, resize, exclusive), aio=aio)
        except (BlockError, ConfigError) as error:
            raise ImgError(f"{complaint}: {error}") from None
        except OSError as error:
            raise ImgError(f"{complaint}: {error.strerror}") from None
        if writable and bitmaps and not no_io and not for_check:
            from pyvm.block.bitmap_loading import load_bitmaps

            load_bitmaps(node)
        return node

    def open_for_check(self, filename: str, *, writable: bool, cache: Cache) -> Qcow2Node | None:
        """Open an image of which even the tables may be damaged; None where its format cannot be checked.

        Raises ImgError.
        """
        node = self.open(filename, writable=writable, cache=cache._replace(no_flush=False), for_check=True)
        image = as_qcow2(node)
        if image is None:
            node.release()
        return image

    def _set_mode(self, tree: dict[str, Any], writable: bool, cache: Cache) -> None:
        """Say in the options `tree` how an image is used, where they do not say so themselves."""
        tree.setdefault("read-only", not writable)
        tree.setdefault("discard", "unmap" if writable else "ignore")
        if self.force_share:
            if tree.get("force-share", "on") not in (True, "on"):
                raise ImgError("--force-share/-U conflicts with image options")
            tree["force-share"] = True
        caching = tree.setdefault("cache", {})
        caching.setdefault("direct", cache.direct)
        caching.setdefault("no-flush", cache.no_flush)

    def _options(self, filename: str) -> tuple[str | None, dict[str, Any]]:
        """Return the file name that is left, and the options that the rest of it stands for."""
        if not self.image_opts:
            return filename, {"driver": self.format} if self.format is not None else {}
        from pyvm.block.options import unflatten
        from pyvm.options import Group, parse

        options = parse(Group("source", "file"), filename)
        return None, unflatten(dict(options.pairs))


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


def as_file(node: Node | None) -> FileNode | None:
    """Return `node` where it is a plain file by the host."""
    if node is None or node.driver != "file":
        return None
    from pyvm.block.drivers.file import FileNode

    return node if isinstance(node, FileNode) else None
