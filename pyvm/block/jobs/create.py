"""Jobs that make an image in a node or file, or change one: *create* and *amend*."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.foreign.creation import FORMATS as FOREIGN
from pyvm.block.drivers.foreign.creation import Opening, Planner, check_sectors
from pyvm.block.errors import BlockError
from pyvm.block.jobs.job import Job
from pyvm.block.jobs.waits import Aside, Body, Io
from pyvm.block.node import ALL_PERMISSIONS, Access, Node, Permission, disk_access

if TYPE_CHECKING:
    from pyvm.block.graph import User
    from pyvm.block.jobs.manager import Jobs

CREATABLE = ("file", "luks", "qcow2", *FOREIGN)
"""Drivers of which images can be made."""
_INT64_MAX = (1 << 63) - 1
_LARGEST_DISK = _INT64_MAX >> 30 << 30


class _ImageJob(Job):
    """What both jobs have in common."""

    def start(self) -> None:
        """Begin; one that has nothing to wait for, or fails before, is over when this returns."""
        super().start()
        if self.body_over:
            self.has_ended()


class CreateJob(_ImageJob):
    """Makes an image; `options` are a BlockdevCreateOptions."""

    kind: ClassVar[str] = "create"

    def __init__(self, jobs: Jobs, identifier: str, options: Mapping[str, Any]) -> None:
        super().__init__(jobs, identifier, auto_dismiss=False)
        self._options = options
        self._users: list[User] = []

    def body(self) -> Body:
        """Make it."""
        self.remaining = 1
        try:
            driver = self._options["driver"]
            if driver == "file":
                create = _plan_file(self._options)
                yield Aside(create)
            else:
                write = _PLANS.get(driver, _plan_foreign)(self, self._options)
                yield Io(self.jobs.storage.context, [write], whole=True)
        finally:
            self.progress(1)

    def open(self, reference: Any) -> Node:
        """Return the node that an option names or describes, to be written to until the job is over."""
        storage = self.jobs.storage
        node = storage.graph.find(reference).hold() if isinstance(reference, str) else storage.open(None, reference)
        try:
            access = Access(Permission.WRITE | Permission.RESIZE, ALL_PERMISSIONS)
            self._users.append(storage.graph.attach(node, "an unnamed block device", access))
        except BlockError:
            storage.release(node)
            raise
        return node

    def look_at(self, filename: str) -> Node:
        """Return the node of an image that is only looked at, alone; the caller closes it."""
        from pyvm.block.graph import BlockGraph
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect

        graph = BlockGraph()
        graph.secrets = self.jobs.storage.graph.secrets
        opener = Opener(graph, Dialect.DRIVE, warn=lambda text: None, no_io=True, no_backing=True)
        return opener.open(filename, {"read-only": True, "force-share": True}, access=disk_access(True))

    def clean(self) -> None:
        """Let the nodes go."""
        storage = self.jobs.storage
        for user in self._users:
            storage.graph.detach(user)
            storage.release(user.node)
        self._users = []


def _plan_file(options: Mapping[str, Any]) -> Callable[[], None]:
    from pyvm.block.create import open_new, plan_image

    given = {
        name.replace("-", "_"): options[name]
        for name in ("preallocation", "nocow", "extent-size-hint")
        if name in options
    }
    creation = plan_image(options["filename"], "file", options["size"], given)
    os.close(open_new(creation.filename))
    return creation.run


def _plan_qcow2(job: CreateJob, options: Mapping[str, Any]) -> Callable[[], None]:
    from pyvm.block.drivers.qcow2.creation import ImageTooLargeError, read_options

    check_sectors(options["size"])
    given: dict[str, Any] = {
        name.replace("-", "_"): value
        for name, value in options.items()
        if name not in ("driver", "file", "size", "data-file", "version", "encrypt")
    }
    if "version" in options:
        given["compat"] = options["version"]
    for name, value in options.get("encrypt", {}).items():
        given[f"encrypt.{name}"] = value
    data = None
    if "data-file" in options:
        data = job.open(options["data-file"])
        given["data_file"] = data.filename
    try:
        wanted = read_options(given, options["size"])
    except ImageTooLargeError:
        raise BlockError(f"Could not resize image: {_why_too_large(options['size'])}") from None
    crypto, passphrase = b"", None
    if wanted.encrypt is not None:
        from pyvm.block.drivers.qcow2.encryption import make_volume

        crypto, passphrase = make_volume(wanted.encrypt, job.jobs.storage.graph.secrets)
    file = job.open(options["file"])
    return lambda: _write_qcow2(file, data, wanted, crypto, passphrase)


def _why_too_large(size: int) -> str:
    """Return what QEMU says, which makes an empty image and then lets it grow."""
    if size > _INT64_MAX:
        return "Image size cannot be negative"
    if size > _LARGEST_DISK:
        return f"offset({size}) exceeds maximum({_LARGEST_DISK})"
    return "Failed to grow the L1 table: File too large"


def _write_qcow2(file: Node, data: Node | None, wanted: Any, crypto: bytes, passphrase: bytes | None) -> None:
    from pyvm.block.drivers.qcow2.creation import write_empty
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    _empty(file)
    header = write_empty(file, wanted, crypto)
    mode = wanted.preallocation
    if data is not None and wanted.data_file_raw:
        data.truncate(wanted.size)
        mode = "metadata" if mode == "off" else mode
    if mode == "off":
        return
    node = Qcow2Node(file.hold(), header, data_file=data and data.hold(), warn=lambda text: None, passphrase=passphrase)
    try:
        node.preallocate(mode)
        node.disk.make_clean()
    finally:
        node.close()


def _empty(file: Node) -> None:
    """Let nothing of before be there; what cannot become shorter is overwritten."""
    with suppress(BlockError):
        file.truncate(0)


def _plan_luks(job: CreateJob, options: Mapping[str, Any]) -> Callable[[], None]:
    from pyvm.block.luks import find_passphrase, format_volume, read_options

    check_sectors(options["size"])
    file = job.open(options["file"])
    mode = options.get("preallocation", "off")

    def write() -> None:
        wanted = read_options({key: value for key, value in options.items() if key not in ("driver", "file", "size")})
        header = format_volume(wanted, find_passphrase(job.jobs.storage.graph.secrets, wanted.key_secret))
        _empty(file)
        # There is nothing but data that could be preallocated.
        file.truncate(len(header) + options["size"], preallocation="off" if mode == "metadata" else mode)
        file.write(0, header)
        file.flush()

    return write


def _plan_foreign(job: CreateJob, options: Mapping[str, Any]) -> Callable[[], None]:
    plan: Planner = import_module(f"pyvm.block.drivers.foreign.creation.{options['driver']}").plan
    return plan(options, Opening(job.open, job.look_at))


_PLANS: dict[str, Callable[[CreateJob, Mapping[str, Any]], Callable[[], None]]] = {
    "qcow2": _plan_qcow2,
    "luks": _plan_luks,
}


class AmendJob(_ImageJob):
    """Changes the creation options of an image; `options` are a BlockdevAmendOptions."""

    kind: ClassVar[str] = "amend"

    def __init__(self, jobs: Jobs, identifier: str, node: Node, options: Mapping[str, Any], *, force: bool) -> None:
        super().__init__(jobs, identifier, auto_dismiss=False)
        self._node = node.hold()
        self._options = options
        self._force = force

    def body(self) -> Body:
        """Change it."""
        self.remaining = 1
        try:
            if self._node.driver == "luks" or "encrypt" in self._options:
                yield Io(self.jobs.storage.context_of(self._node), [self._amend], whole=True)
        finally:
            self.progress(1)

    def _amend(self) -> None:
        secrets = self.jobs.storage.graph.secrets
        node: Any = self._node
        if node.driver == "luks":
            given = {name: value for name, value in self._options.items() if name != "driver"}
            node.amend(given, secrets=secrets, force=self._force)
        else:
            given = {f"encrypt.{name}": value for name, value in self._options["encrypt"].items() if name != "format"}
            node.amend(given, secrets=secrets, force=self._force)

    def clean(self) -> None:
        """Let the node go."""
        self.jobs.storage.release(self._node)
