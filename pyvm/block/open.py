"""Opening nodes, with all that is below them.

A file name, options or both lead to a node: the protocol from the name, the format from what is in the file unless it
is given, and from a format's header what else belongs to the image.  What an image file names is as trustworthy as the
image.  See :mod:`pyvm.block.options` for the options, and :mod:`pyvm.block.graph` for where nodes are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from importlib import import_module

from pyvm.annotations import TYPE_CHECKING, Any, NamedTuple
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import UNUSED, Access, Node, backing_access, disk_access, storage_access
from pyvm.block.option_trees import (
    OTHER_DATA,
    Inherited,
    identity_of,
    named,
    names_protocol,
    settle_read_only,
    structure,
    take_own,
    take_settings,
)
from pyvm.block.options import (
    DRIVERS,
    Dialect,
    Driver,
    Settings,
    Tree,
    beside,
    check_tree,
    find_driver,
    parse_by,
    parse_filename,
    parse_pseudo,
    protocol_of,
)
from pyvm.block.probe import PROBE_SIZE, find_format, probe_format

if TYPE_CHECKING:
    from pyvm.block.drivers.foreign.mapped import Names

FORMATS = ("raw", "qcow2", "luks", *(driver.name for driver in DRIVERS.values() if driver.read_only))
ONLY_FORMATS = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
_STORED = FORMATS[1:]
"""Formats that have more in their file than data."""
_MAX_CHAIN = 200
"""Most images on top of each other: a read may have to go through all of them."""

Warn = Callable[[str], None]

_PROBED_RAW = """\
WARNING: Image format was not specified for '{}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions."""


def print_warning(text: str) -> None:
    """Tell the person at the prompt."""
    sys.stderr.write(f"{text}\n")


def open_image(
    path: str,
    *,
    name: str = "disk",
    format: str | None = None,  # noqa: A002 - the option's name
    read_only: bool = False,
    unmap: bool = False,
    warn: Warn = print_warning,
) -> Node:
    """Open an image by its file name, outside of any machine's graph; raises BlockError.

    Without `format` it is found out; a guest that then writes what looks like another format to a raw image gets an
    error.  `unmap` gives back to the host what the guest discards.  `name` is the root node's; others have it as a
    prefix.  `warn` is given lines for the person at the prompt.
    """
    tree: Tree = {"read-only": read_only, "discard": "unmap" if unmap else "ignore"}
    if format is not None:
        tree["driver"] = format
    opener = Opener(BlockGraph(), Dialect.DRIVE, warn=warn, prefix=name)
    return opener.open(path, tree, access=disk_access(read_only))


def open_node(tree: Tree, graph: BlockGraph, *, dialect: Dialect = Dialect.JSON, warn: Warn = print_warning) -> Node:
    """Open the node that `-blockdev` or blockdev-add describes; the caller holds it.  Raises BlockError."""
    checked = check_tree(tree, dialect)
    if "node-name" not in checked:
        raise BlockError("'node-name' must be specified for the root node")
    return Opener(graph, dialect, warn=warn).open(None, checked)


class _Place(NamedTuple):
    """Where in a chain something is opened."""

    name: str | None
    """What it is called unless its options say; None: the graph makes a name up."""
    access: Access
    above: tuple[Hashable, ...] = ()
    """What tells the files of the images above apart, the top one first."""
    stored: bool = False
    """Whether it is what an image is stored in: a file name stands for what it is, in no format."""


class Opener:
    """Opens nodes into `graph`.

    With `prefix`, it is the root node's name, and the beginning of all others.  With `no_io`, nobody is going to read
    or write data; with `no_backing`, what images lie on stays closed; `for_check` opens damaged images, too, alone and
    only to check them.
    """

    def __init__(
        self,
        graph: BlockGraph,
        dialect: Dialect,
        *,
        warn: Warn = print_warning,
        prefix: str | None = None,
        no_io: bool = False,
        no_backing: bool = False,
        for_check: bool = False,
    ) -> None:
        self.graph = graph
        self._no_io = no_io or for_check
        self._no_backing = no_backing or for_check
        self._for_check = for_check
        self.dialect = dialect
        self.warn = warn
        self._prefix = prefix
        self._opened: set[Node] = set()  # children that were described where they are used, and not just named

    def open(self, filename: str | None, tree: Tree, *, access: Access | None = None, aio: str | None = None) -> Node:
        """Open a root node; it belongs to the caller.  Raises BlockError.

        `access` is how it is going to be used, where no user of the graph says so later.
        """
        place = _Place(self._prefix, access or UNUSED)
        node = self._open(filename, dict(tree), Inherited(aio=aio), place)
        if access is None:
            try:
                self.graph.refresh()
            except BlockError:
                node.release()
                raise
        return node

    # ---- One node

    def _open(self, filename: str | None, tree: Tree, inherited: Inherited, place: _Place) -> Node:
        if filename is not None and filename.startswith("json:"):
            tree = {**parse_pseudo(filename), **tree}
            filename = None
        name = tree.pop("driver", None)
        if name is not None:
            driver = find_driver(str(name))
            if driver.kind == "protocol":
                return self._open_protocol(driver, filename, tree, inherited, place)
            return self._open_format(driver, filename, tree, inherited, place)
        return self._open_format(None, filename, tree, inherited, place)

    def _settings(self, tree: Tree, inherited: Inherited, place: _Place) -> Settings:
        """Take what every node takes out of `tree`."""
        settings = take_settings(tree, inherited, self.dialect, self.graph.check_name)
        settings.name = settings.name or place.name or self.graph.make_name()
        settings.access, settings.no_io = place.access, self._no_io
        return settings

    def _finish(
        self,
        driver: Driver,
        settings: Settings,
        own: dict[str, Any],
        children: dict[str, Node],
        rank: int | None = None,
    ) -> Node:
        """Make the node; the children are its own from now on, or closed."""
        try:
            make = getattr(import_module(driver.module), driver.make)
            node: Node = make(settings, own, children, self.graph)
        except BaseException as error:
            for child in children.values():
                child.release()
            if isinstance(error, OSError):
                raise BlockError(f"Could not open '{settings.path}': {error.strerror}") from None
            raise
        for child in children.values():
            if child in self._opened:
                child.inherits_from = node
        return self._take_in(node, settings, {"driver": driver.name, **own}, rank)

    def _take_in(self, node: Node, settings: Settings, options: dict[str, Any], rank: int | None = None) -> Node:
        node.name = settings.name
        node.path = node.path or settings.path
        node.direct, node.no_flush = settings.direct, settings.no_flush
        node.auto_read_only, node.force_share = settings.auto_read_only, settings.force_share
        node.detect_zeroes = settings.detect_zeroes
        node.options = options
        node.given, node.texts = settings.given, settings.texts
        self.graph.add(node, rank)
        return node

    # ---- Protocols

    def _open_protocol(
        self, driver: Driver, filename: str | None, tree: Tree, inherited: Inherited, place: _Place
    ) -> Node:
        settings = self._settings(tree, inherited, place)
        if filename is not None:
            if "filename" in tree:
                raise BlockError("Can't specify 'file' and 'filename' options at the same time")
            if protocol_of(filename) is driver:
                tree = {**parse_filename(filename)[1], **tree}
            elif "filename" in driver.options:
                tree["filename"] = filename
            else:
                tree = {**parse_by(driver, filename), **tree}
            settings.path = filename
        elif isinstance(tree.get("filename"), str):
            settings.path = tree["filename"]
        of_drive = inherited.aio if "aio" in driver.options and "aio" not in tree else None
        if of_drive is not None:
            tree["aio"] = of_drive
        rank = self.graph.take_rank()
        children = self._other_children(driver, tree, self._below(settings, inherited), place)
        if "filename" in driver.options:
            if "filename" not in tree:
                raise BlockError(f"The '{driver.name}' block driver requires a file name")
            settings.path = str(tree.get("filename", ""))
            if identity_of(settings.path) in place.above:
                raise BlockError(f"'{settings.path}' is in its own backing chain")
        own = take_own(driver, tree, self.dialect, settings)
        node = self._finish(driver, settings, own, children, rank)
        if of_drive is not None:
            del node.options["aio"]  # nobody said that of this node
        return node

    # ---- Formats and filters

    def _open_format(
        self, driver: Driver | None, filename: str | None, tree: Tree, inherited: Inherited, place: _Place
    ) -> Node:
        """Open the node of a format or filter, or of the format that is found where `driver` is None."""
        if driver is not None and "file" not in driver.options and filename is None:
            settings = self._settings(tree, inherited, place)
            rank = self.graph.take_rank()
            children = self._other_children(driver, tree, self._below(settings, inherited), place)
            return self._finish(driver, settings, take_own(driver, tree, self.dialect, settings), children, rank)
        settings = self._settings(tree, inherited, place)
        below = self._below(settings, inherited)
        file_tree = tree.pop("file", None)
        if isinstance(file_tree, str):
            opened, file = None, self.graph.find(file_tree).hold()
        else:
            opened = file = self._open_file(driver, filename, file_tree, below, settings, place)
        try:
            if driver is None:
                driver = self._probe(file, settings)
            settle_read_only(driver, file, settings)
            if driver.name == "qcow2":
                if settings.read_only and not file.read_only:
                    file = self._view(file)
                node = self._open_qcow2(driver, file, settings, tree, below, place)
            else:
                node = self._open_other_format(driver, file, settings, tree, below, place)
        except OSError as error:
            file.release()
            raise BlockError(f"Could not read '{file.path}': {error.strerror}") from None
        except BaseException:
            file.release()
            raise
        if opened is not None:
            opened.inherits_from = node
        return node

    def _open_other_format(
        self, driver: Driver, file: Node, settings: Settings, tree: Tree, below: Inherited, place: _Place
    ) -> Node:
        """Open an image in `file`, which it takes over, in any format but qcow2."""
        settings.path = file.path
        rank = self.graph.take_rank()
        if driver.read_only:
            children = self._open_named(driver, file, tree, below, place)
        else:
            children = self._other_children(driver, tree, below, place)
        own = take_own(driver, tree, self.dialect, settings)
        node = self._finish(driver, settings, own, {"file": file.hold(), **children}, rank)
        if driver.read_only and not settings.read_only:
            # Only now: what is no image of the format at all is refused as such.
            node.release()
            raise BlockError(f"pyvm only reads images of format '{driver.name}': use read-only=on")
        file.release()
        return node

    def _open_named(self, driver: Driver, file: Node, tree: Tree, below: Inherited, place: _Place) -> dict[str, Node]:
        """Open the other files that an image names, by what they are to it."""
        read_names = getattr(import_module(driver.module), "read_names", None)
        if read_names is None:
            return {}
        names: Names = read_names(file)
        backing_tree = tree.pop("backing", _NOTHING)
        place = place._replace(above=(*place.above, file.identity))
        with ExitStack() as undo:
            children: dict[str, Node] = {}
            for number, name in enumerate(names.extents):
                label = f"extents.{number}"
                protocol, own = parse_filename(beside(file.path, name))
                inner = _Place(self._child_name(place, label), storage_access(True), place.above)
                children[label] = self._open(None, {**own, "driver": protocol.name}, below, inner)
                undo.callback(children[label].release)
                self._opened.add(children[label])
            backing = self._open_backing(file, names, backing_tree, below, place)
            if backing is not None:
                children["backing"] = backing
                if not isinstance(backing_tree, str):
                    self._opened.add(backing)
            undo.pop_all()
        return children

    def _below(self, settings: Settings, inherited: Inherited) -> Inherited:
        """Return what the children of a node take over."""
        return Inherited(
            settings.read_only,
            settings.auto_read_only,
            settings.force_share,
            settings.unmap,
            settings.direct,
            settings.no_flush,
            inherited.aio,
        )

    def _other_children(self, driver: Driver, tree: Tree, below: Inherited, place: _Place) -> dict[str, Node]:
        """Open the children that a driver has beside, or instead of, its file."""
        children: dict[str, Node] = {}
        try:
            for key, option in driver.options.items():
                if option.kind not in ("node", "nodes") or key in ("file", "data-file"):
                    continue
                if f"x-{key}" in tree:
                    tree[key] = named(key, str(tree.pop(f"x-{key}")), tree.get(key))
                if key not in tree:
                    continue
                value = tree.pop(key)
                several = list(value.values()) if isinstance(value, dict) else value
                found = {key: value}
                if option.kind == "nodes":
                    found = {f"{key}.{index}": it for index, it in enumerate(several)}
                for label, one in found.items():
                    children[label] = self._open_other(label, one, below, place)
        except BaseException:
            for child in children.values():
                child.release()
            raise
        return children

    def _open_other(self, label: str, value: Any, below: Inherited, place: _Place) -> Node:
        if isinstance(value, str):
            return self.graph.find(value).hold()
        stored = place.stored and label.partition(".")[0] not in OTHER_DATA
        inner = _Place(self._child_name(place, label), UNUSED, place.above, stored)
        tree = structure(value, label, "BlockdevRef")
        filename = None
        if "driver" not in tree and str(tree.get("filename", "")).startswith("json:"):
            tree = {**parse_pseudo(tree.pop("filename")), **tree}
        if "driver" not in tree and isinstance(tree.get("filename"), str):
            filename = tree.pop("filename")
            if stored:
                tree["driver"] = parse_filename(filename)[0].name
        node = self._open(filename, tree, below, inner)
        self._opened.add(node)
        return node

    def _open_file(
        self,
        driver: Driver | None,
        filename: str | None,
        file_tree: Tree | None,
        below: Inherited,
        settings: Settings,
        place: _Place,
    ) -> Node:
        """Open what the image is stored in."""
        if filename is None and file_tree is None:
            if driver is None:
                raise BlockError("Must specify either driver or file")
            raise BlockError('A block device must be specified for "file"')
        tree = structure(file_tree, "file", "BlockdevRef")
        if filename is not None and "filename" in tree:
            raise BlockError("Can't specify 'file' and 'filename' options at the same time")
        access = settings.access
        if driver is None or driver.name in _STORED:
            access = storage_access(settings.read_only)
        inner = _Place(self._child_name(place, "file"), access, place.above, stored=True)
        if filename is not None and "driver" not in tree:
            protocol, own = parse_filename(filename)
            tree = {**own, **tree, "driver": protocol.name}
            filename = None
        elif "driver" not in tree and isinstance(tree.get("filename"), str):
            protocol, own = parse_filename(tree["filename"])
            tree = {**tree, **own, "driver": protocol.name}
        elif "driver" not in tree:
            raise BlockError("Must specify either driver or file")
        local = tree.get("filename") if tree["driver"] in ("file", "host_device", "host_cdrom") else None
        if driver is None and isinstance(local, str) and not self._is_stored(local, place):
            inner = inner._replace(access=settings.access)
        return self._open(filename, tree, below, inner)

    def _is_stored(self, path: str, place: _Place) -> bool:
        """Find out the format before the file is opened: how it is locked depends on it."""
        if identity_of(path) in place.above:
            raise BlockError(f"'{path}' is in its own backing chain")
        found = find_format(path, self.graph.open_file)
        if found not in FORMATS:
            raise BlockError(f"'{path}': format '{found}' is not supported by pyvm yet (only {ONLY_FORMATS})")
        return found in _STORED

    def _probe(self, file: Node, settings: Settings) -> Driver:
        found = probe_format(file.head(PROBE_SIZE), file.path)
        if found not in FORMATS:
            raise BlockError(f"'{file.path}': format '{found}' is not supported by pyvm yet (only {ONLY_FORMATS})")
        settings.probed = True
        if found == "raw" and not settings.read_only:
            self.warn(_PROBED_RAW.format(file.filename))
        return find_driver(found)

    def _child_name(self, place: _Place, label: str) -> str | None:
        return None if place.name is None else f"{place.name}.{label}"

    # ---- qcow2, and what its header names

    def _open_qcow2(
        self, driver: Driver, file: Node, settings: Settings, tree: Tree, below: Inherited, place: _Place
    ) -> Node:
        """Open an image in `file`, which it takes over."""
        from pyvm.block.drivers.qcow2.driver import Qcow2Node, read_header
        from pyvm.block.drivers.qcow2.encryption import choose_passphrase

        backing_tree = tree.pop("backing", _NOTHING)
        data_tree = tree.pop("data-file", None)
        own = take_own(driver, tree, self.dialect, settings)
        header = read_header(file)
        passphrase = None
        if not settings.no_io:
            passphrase = choose_passphrase(
                header, own.get("encrypt"), self.graph.secrets, machine=self.graph.of_machine
            )
        rank = self.graph.take_rank()
        place = place._replace(above=(*place.above, file.identity))
        with ExitStack() as undo:
            data_file = None
            if header.external_data:
                data_file = self._open_data_file(header.data_file, data_tree, below, settings, place)
                undo.callback(data_file.release)
            elif data_tree is not None:
                raise BlockError("'data-file' can only be set for images with an external data file")
            backing = self._open_backing(file, header, backing_tree, below, place)
            if backing is not None:
                undo.callback(backing.release)
            node = Qcow2Node(
                file,
                header,
                name=settings.name,
                data_file=data_file,
                backing=backing,
                warn=self.warn,
                options={key: value for key, value in own.items() if key != "encrypt"},
                unmap=settings.unmap,
                passphrase=passphrase,
                for_check=self._for_check,
            )
            undo.pop_all()
        for child, how in ((backing, backing_tree), (data_file, data_tree)):
            if child is not None and not isinstance(how, str):
                child.inherits_from = node
        if not self._no_backing:
            node.named_backing = header.backing_file or ""
        if backing is not None and (backing_tree is _NOTHING or backing_tree == {}):
            from pyvm.block.filename import name_of

            node.named_backing = name_of(backing)
        return self._take_in(node, settings, {"driver": "qcow2", **own}, rank)

    def _view(self, file: Node) -> Node:
        """Return a read-only view of a node that is there for others, too; it takes over the reference."""
        from pyvm.block.drivers.filter import ReadOnlyView

        view = ReadOnlyView(file, name=self.graph.make_name())
        self.graph.add(view)
        return view

    def _open_data_file(
        self, path: str | None, tree: Tree | str | None, below: Inherited, settings: Settings, place: _Place
    ) -> Node:
        if isinstance(tree, str):
            return self.graph.find(tree).hold()
        inner = _Place(self._child_name(place, "data-file"), storage_access(settings.read_only), place.above)
        if tree is not None:
            tree = structure(tree, "data-file", "BlockdevRef")
            if "driver" not in tree and isinstance(tree.get("filename"), str):
                tree = {**tree, "driver": parse_filename(tree["filename"])[0].name}
            return self._open(None, tree, below, inner)
        if path is None:
            raise BlockError("'data-file' is required for this image")
        if path.startswith("json:"):
            return self._open(path, {}, below, inner)
        # Unlike the name of a backing file, a relative one starts at the working directory, as with QEMU.
        protocol, own = parse_filename(path)
        if "filename" in own and identity_of(own["filename"]) in place.above:
            raise BlockError(f"'{own['filename']}' is its own data file")
        return self._open(None, {**own, "driver": protocol.name}, below, inner)

    def _open_backing(self, file: Node, header: Any, tree: Any, below: Inherited, place: _Place) -> Node | None:
        """Open what is below an image: as the options say, or else its header."""
        if self._no_backing or tree is None or (tree is _NOTHING and header.backing_file is None):
            return None
        if isinstance(tree, str):
            if not tree:
                return None
            try:
                return self.graph.find(tree).hold()
            except BlockError as error:
                raise BlockError(f"Could not open backing file: {error}") from None
        tree = {} if tree is _NOTHING else structure(tree, "backing", "BlockdevRefOrNull")
        path = None
        if "file" not in tree and not names_protocol(tree):
            if header.backing_file is None:
                if not tree:
                    return None
            else:
                path = beside(file.path, header.backing_file)
                if header.backing_format is not None:
                    tree.setdefault("driver", header.backing_format)
        below = below._replace(read_only=True, auto_read_only=False)
        inner = _Place(self._child_name(place, "backing"), backing_access(), place.above)
        try:
            if len(place.above) >= _MAX_CHAIN:
                raise BlockError(f"there are more than {_MAX_CHAIN} images on top of each other")
            return self._open(path, {"read-only": True, **tree}, below, inner)
        except BlockError as error:
            raise BlockError(f"Could not open backing file: {error}") from None


_NOTHING = object()
