"""Disks of a machine: block nodes, drives, I/O threads and throttle groups, made from the configuration.

Devices ask for the backend that their `drive` property names, and never see a node.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pyvm.block.backend import BackendEvents, BlockBackend, MediumOptions
from pyvm.block.context import IoContext
from pyvm.block.draining import drained, take_leave
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph, OpenFile
from pyvm.block.node import ALL_PERMISSIONS, Access, Node, Permission
from pyvm.block.open import Opener, open_node, print_warning
from pyvm.block.options import Dialect, Tree
from pyvm.block.throttling import Limits
from pyvm.errors import ConfigError
from pyvm.machine.accelerators import account_by_guest_time
from pyvm.machine.drive_nodes import open_drive
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.block.export.exports import Exports
    from pyvm.block.jobs.manager import Jobs
    from pyvm.block.reopen import Reopener
    from pyvm.clock import Clock
    from pyvm.config import BlockdevConfig, DriveConfig, MachineConfig, ObjectConfig


@record
class StorageEvents:
    """What storage tells the machine."""

    emit: Callable[[str, dict[str, Any]], None]
    """Takes an event and its data; called with the machine lock held."""
    stop: Callable[[], None]
    """The guest must stop soon, in run state `io-error`; called with the machine lock held, on any thread."""
    call_soon: Callable[..., None]
    """Takes a function and its arguments, to be called in the main loop; from any thread, without the lock."""
    call_later: Callable[..., Any] | None = None
    """Takes seconds, a function and its arguments, to be called in the main loop then; from there only."""


@record
class Drive:
    """One drive of the command line, or one that was plugged in later."""

    config: DriveConfig
    backend: BlockBackend


@record
class IoThread:
    """One `iothread` object."""

    id: str
    context: IoContext
    properties: dict[str, int] = field(default_factory=dict)

    @property
    def thread_id(self) -> int:
        """The host's identifier of the thread."""
        thread = self.context.thread
        return 0 if thread is None else thread.native_id or 0


_IOTHREAD_DEFAULTS = {"poll-max-ns": 32768, "poll-grow": 0, "poll-shrink": 0, "aio-max-batch": 0}


class Storage:
    """All disks of one machine.  Methods are called with the machine lock held, which `lock` is.

    Making it opens everything that `config` names: throttle groups and I/O threads, block nodes, then drives, each in
    the order given.  Raises ConfigError, with nothing left open.
    """

    def __init__(
        self,
        config: MachineConfig,
        lock: Any,
        clock: Clock,
        events: StorageEvents,
        *,
        warn: Callable[[str], None] = print_warning,
        open_file: OpenFile = os.open,
        find_object: Callable[[str], Any] = lambda identifier: None,
    ) -> None:
        self.graph = BlockGraph(clock)
        self.graph.inactive = config.incoming is not None
        self.graph.of_machine = True
        self.graph.find_object = find_object
        self.graph.drive_of = self._drive_of
        self.graph.open_file = open_file
        self.drives: dict[str, Drive] = {}
        """By ID, in the order in which they were made."""
        self.iothreads: dict[str, IoThread] = {}
        self._retired: list[IoThread] = []
        """I/O threads without an object that still serve disks."""
        self.context = IoContext(lock)
        """The context of disks without an I/O thread."""
        self.lock = lock
        self.clock = clock
        self._events = events
        self._jobs: Jobs | None = None
        self._exports: Exports | None = None
        self._backend_events = BackendEvents(emit=events.emit, stop=events.stop)
        account_by_guest_time(config, clock, self._backend_events)
        self._warn = warn
        self._anonymous: list[BlockBackend] = []
        """Backends of nodes that devices use by their node name, and of devices whose drive was taken away."""
        self._all: list[BlockBackend] = []
        """All backends, in the order in which they were made."""
        try:
            self._open_all(config)
        except BaseException:
            self.close()
            raise

    def _open_all(self, config: MachineConfig) -> None:
        for item in config.objects:
            _with_origin(item.origin, self.add_object, item)
        for blockdev in config.blockdevs:
            _with_origin(blockdev.origin, self._add_blockdev, blockdev)
        for drive in (*config.drives, *config.default_drives):
            _with_origin(drive.origin, self.add_drive, drive)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep all workers from nodes meanwhile: what is opened may share some with disks that are in use."""
        with ExitStack() as stack:
            with self.graph.unlimited():
                stack.enter_context(self.context.lock)
                for thread in (*self.iothreads.values(), *self._retired):
                    stack.enter_context(thread.context.lock)
            yield

    def _drive_of(self, node: Node) -> str:
        return next((it.name for it in self._all if it.node is node and it.name), "")

    @property
    def jobs(self) -> Jobs:
        """The jobs that work on images."""
        if self._jobs is None:
            from pyvm.block.jobs.manager import Jobs, StorageHost

            self._jobs = Jobs(StorageHost(self._events), self)
        return self._jobs

    @property
    def exports(self) -> Exports:
        """The nodes that other programs use, and the NBD server."""
        if self._exports is None:
            from pyvm.block.export.exports import Exports

            self._exports = Exports(self, self._events)
        return self._exports

    def end_exports(self) -> None:
        """Let all exports go: the machine ends."""
        if self._exports is not None:
            self._exports.close()

    def end_jobs(self) -> None:
        """Cancel all jobs: the machine ends."""
        if self._jobs is not None:
            with self.graph.unlimited():
                self._jobs.end_all()

    # ---- Objects

    def add_object(self, item: ObjectConfig) -> None:
        """Make a throttle group, an I/O thread or a secret; other objects are left alone.

        Raises BlockError, and ConfigError.
        """
        if item.type == "secret":
            self.graph.secrets.add(item.id, item.properties)
        elif item.type == "throttle-group":
            limits = {name.removeprefix("x-"): int(value) for name, value in item.properties.items()}
            self.graph.throttle_groups.add(item.id, Limits(limits))
        elif item.type == "iothread":
            context = IoContext(self.lock, item.id)
            context.start()
            given = {name: int(value) for name, value in item.properties.items() if name in _IOTHREAD_DEFAULTS}
            self.iothreads[item.id] = IoThread(item.id, context, {**_IOTHREAD_DEFAULTS, **given})

    def remove_iothread(self, name: str) -> None:
        """Forget an I/O thread; one that serves disks goes on until the machine ends."""
        thread = self.iothreads.pop(name)
        if any(backend.context is thread.context for backend in self.backends()):
            self._retired.append(thread)
        else:
            thread.context.close()

    # ---- Nodes

    def _add_blockdev(self, blockdev: BlockdevConfig) -> None:
        self.add_node(blockdev.options, Dialect.JSON if blockdev.typed else Dialect.KEYVAL)

    def add_node(self, tree: Tree, dialect: Dialect = Dialect.JSON) -> Node:
        """Open a node for the monitor, as `-blockdev` and blockdev-add do.  Raises BlockError."""
        with self.quiet():
            node = open_node(tree, self.graph, dialect=dialect, warn=self._warn)
        self.graph.give_to_monitor(node)
        self.watch(node)
        return node

    def open(self, filename: str | None, tree: Tree, dialect: Dialect = Dialect.JSON) -> Node:
        """Open a node that the caller holds, by a file name, options or both.  Raises BlockError."""
        with self.quiet():
            node = Opener(self.graph, dialect, warn=self._warn).open(filename, tree)
        self.watch(node)
        return node

    def release(self, node: Node) -> None:
        """Hold a node once less; closes it where nobody else holds it."""
        with self.quiet():
            node.release()

    def remove_node(self, name: str) -> None:
        """Close a node that the monitor holds, as blockdev-del does.  Raises BlockError."""
        with self.quiet():
            self.graph.delete(name)

    def reopen(self, trees: Sequence[Tree]) -> None:
        """Give nodes other options, as blockdev-reopen does: all of them or none.  Raises BlockError."""
        from pyvm.block.reopen import Reopener

        reopener = Reopener(self.graph)
        for tree in trees:
            reopener.add(tree)
        self._reopen(reopener)

    def set_read_only(self, node: Node, read_only: bool) -> None:
        """Make a node read-only, or writable, whatever its options were.  Raises BlockError."""
        if node.read_only != read_only:
            self.change_options(node, {"read-only": read_only, "auto-read-only": False})

    def change_options(self, node: Node, changes: Tree) -> None:
        """Give a node some other options, and leave the others as they are.  Raises BlockError."""
        from pyvm.block.reopen import Reopener

        reopener = Reopener(self.graph)
        reopener.add_node(node, changes)
        self._reopen(reopener)

    def _reopen(self, reopener: Reopener) -> None:
        reopener.check_contexts(self.context_of, self.context)
        with self.drained(*reopener.nodes, below=True), self.quiet():
            reopener.run()
        for node in reopener.nodes:
            if node.dirty_bitmaps:
                from pyvm.block import bitmap_store

                bitmap_store.reopened(node)
        for backend in self.backends():
            if backend.node in reopener.nodes:
                backend.reopened(backend.node)

    def resize(self, node: Node, size: int) -> None:
        """Make a node `size` bytes long, and tell the devices that show it.  Raises OSError or BlockError."""
        user = self.graph.attach(node, "an unnamed block device", Access(Permission.RESIZE, ALL_PERMISSIONS))
        try:
            with self.drained(node), self.quiet():
                node.truncate(size)
        finally:
            take_leave(self.graph, node)
            self.graph.detach(user)
        for backend in self.backends():
            shown = backend.node
            while shown is not None and shown is not node and shown.is_filter:
                shown = shown.file
            if shown is node and backend.device is not None:
                backend.device.resized()

    def move_node(self, node: Node, iothread: str | None) -> None:
        """Let an I/O thread, or the main context, serve a node; raises BlockError where a device's disk decides."""
        self.move_tree(node, self.context if iothread is None else self.iothreads[iothread].context)

    def watch(self, node: Node) -> None:
        """Report what happens to `node` and to what is below it: BLOCK_IMAGE_CORRUPTED, BLOCK_WRITE_THRESHOLD."""
        node.on_corrupted = lambda data: self._tell(self._corrupted, node, data)
        node.on_threshold = lambda node, *figures: self._tell(self._threshold_exceeded, node, *figures)
        if hasattr(node, "on_report"):
            node.on_report = lambda name, data: self._tell(self._events.emit, name, data)
        self.load_bitmaps(node)
        for child in node.children:
            self.watch(child.node)

    def load_bitmaps(self, node: Node) -> None:
        """Take over the bitmaps that an image has."""
        disk = getattr(node, "disk", None)
        if not node.inactive and disk is not None and getattr(disk, "bitmaps", None):
            from pyvm.block import bitmap_store

            with self.quiet():
                bitmap_store.load(node)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function` with the machine lock held: now, or soon where this is the worker of an I/O context."""
        contexts = (self.context, *(thread.context for thread in self.iothreads.values()))
        if any(context.thread is threading.current_thread() for context in contexts):
            self._events.call_soon(function, *arguments)
        else:
            function(*arguments)

    def _threshold_exceeded(self, node: Node, threshold: int, amount: int) -> None:
        data = {"node-name": node.name, "amount-exceeded": amount, "write-threshold": threshold}
        self._events.emit("BLOCK_WRITE_THRESHOLD", data)

    def _corrupted(self, node: Node, data: dict[str, Any]) -> None:
        names = [backend.name for backend in self.backends() if backend.node is node]
        self._events.emit("BLOCK_IMAGE_CORRUPTED", {**data, "device": names[0] if names else ""})

    # ---- Drives

    def add_drive(self, config: DriveConfig) -> BlockBackend:
        """Make the drive that a `-drive` describes, and open what is in it.  Raises BlockError."""
        with self.quiet():
            node = None
            if not config.empty:
                node = open_drive(self.graph, config, self._warn)
                self.watch(node)
        try:
            self.graph.add_device_name(config.id)
        except BlockError:
            if node is not None:
                node.release()
            raise
        try:
            backend = BlockBackend(
                node,
                self.context_of(node),
                name=config.id,
                read_only=config.readonly and not config.empty,
                write_cache=config.writeback,
                werror=config.werror,
                rerror=config.rerror,
                detect_zeroes=config.detect_zeroes,
                events=self._backend_events,
                graph=self.graph,
            )
        except BaseException:
            self.graph.device_names.discard(config.id)
            if node is not None:
                node.release()
            raise
        self._all.append(backend)
        backend.retained = MediumOptions(
            config.readonly, config.detect_zeroes, config.discard, config.direct, config.no_flush
        )
        backend.stats.account_invalid = config.account_invalid
        backend.stats.account_failed = config.account_failed
        for seconds in config.stats_intervals:
            backend.stats.add_interval(seconds)
        self.drives[config.id] = Drive(config, backend)
        limits = Limits(config.limits)
        if limits.enabled:
            self.set_limits(backend, limits, config.throttle_group or config.id)
        return backend

    def set_limits(self, backend: BlockBackend, limits: Limits, group: str | None = None) -> None:
        """Limit a backend, in its throttle group or as a member of `group`; or not at all.  Raises BlockError."""
        limits.check()
        present = backend.throttle
        if not limits.enabled:
            self._drop_throttle(backend)
        elif present is None or (group is not None and present.group.name != group):
            self._drop_throttle(backend)
            name = group or backend.name or backend.device_id
            backend.set_throttle(self.graph.throttle_groups.join(name, limits))
        else:
            present.group.configure(limits)

    def _drop_throttle(self, backend: BlockBackend) -> None:
        member = backend.throttle
        if member is not None:
            with drained(self.graph, [] if backend.node is None else [backend.node]):
                backend.set_throttle(None)
            self.graph.throttle_groups.leave(member)

    def remove_drive(self, name: str) -> None:
        """Close a drive that no device uses.  Raises BlockError."""
        drive = self.drives.get(name)
        if drive is None:
            raise BlockError(f"Device '{name}' not found")
        if drive.backend.device is not None:
            raise BlockError(f"Device '{name}' is in use")
        self._close_drive(drive)

    def _close_drive(self, drive: Drive) -> None:
        self._drop_throttle(drive.backend)
        drive.backend.close()
        self._forget_backend(drive.backend)
        self.graph.device_names.discard(drive.config.id)
        self.drives.pop(drive.config.id, None)

    def take_drive_away(self, name: str) -> None:
        """Close a drive at once, as HMP's drive_del does: a device that has it is left with an empty one, for ever."""
        drive = self.drives[name]
        backend = drive.backend
        if backend.device is None:
            self._close_drive(drive)
            return
        node = backend.remove_medium(notify=False)
        if node is not None:
            with self.quiet():
                node.release()
        backend.name = ""
        backend.werror = backend.rerror = "report"
        self.graph.device_names.discard(name)
        self.drives.pop(name)
        self._anonymous.append(backend)

    def _forget_backend(self, backend: BlockBackend) -> None:
        if backend in self._all:
            self._all.remove(backend)

    # ---- Backends

    def backend(self, name: str, iothread: str | None = None) -> BlockBackend:
        """Return what a device's `drive` property names: a drive by its ID, or a node by its name.

        `iothread` is the ID of the I/O thread that is to serve it.  Raises BlockError; KeyError where there is neither
        a drive nor a node of that name.
        """
        drive = self.drives.get(name)
        if drive is not None:
            backend = drive.backend
        else:
            node = self.graph.nodes[name]
            context = self.context_of(node)
            backend = BlockBackend(node.hold(), context, events=self._backend_events, graph=self.graph)
            self._anonymous.append(backend)
            self._all.append(backend)
        if iothread is not None:
            try:
                self.set_iothread(backend, iothread)
            except BlockError:
                self.give_back(backend)
                raise
        return backend

    def empty_backend(self) -> BlockBackend:
        """Return a backend without a medium, for a drive that nobody gave one."""
        backend = BlockBackend(None, self.context, events=self._backend_events, graph=self.graph)
        self._anonymous.append(backend)
        self._all.append(backend)
        return backend

    def give_back(self, backend: BlockBackend, *, detached: bool = False, keep_drive: bool = False) -> None:
        """A device does not need its backend any more; a drive that it used goes with it, unless `keep_drive` is set.

        `detached` says that the device has let go of it already.
        """
        used = detached or backend.device is not None
        if backend.device is not None:
            backend.detach()
        if backend in self._anonymous:
            self._anonymous.remove(backend)
            self._forget_backend(backend)
            self._drop_throttle(backend)
            backend.close()
        elif used and not keep_drive and backend.name in self.drives:
            if self._jobs is not None:
                self._jobs.cancel_on(backend.node)
            self._close_drive(self.drives[backend.name])

    def backends(self) -> Iterator[BlockBackend]:
        """Yield all backends: those of exports, then those of disks in the order in which they were made."""
        if self._exports is not None:
            yield from [it.backend for it in self._exports if it.node is not None]
        yield from tuple(self._all)

    def show_node(self, backend: BlockBackend, name: str) -> None:
        """Let a backend show another node, without its device being told.  Raises BlockError."""
        node = self.graph.nodes.get(name)
        if node is None:
            raise BlockError(f"Cannot find device='' nor node-name='{name}'")
        if self.context_of(node) is not backend.context:
            raise BlockError("Different aio context is not supported for new node")
        before = backend.node
        with self.drained(*(it for it in (before, node) if it is not None)), self.quiet():
            try:
                backend.replace_node(node.hold())
            except BlockError:
                node.references -= 1
                raise
            if before is not None:
                before.release()

    def set_iothread(self, backend: BlockBackend, name: str) -> None:
        """Let an I/O thread serve a backend.  Raises BlockError where the nodes below are served elsewhere."""
        thread = self.iothreads.get(name)
        if thread is None:
            raise BlockError(f"Device '{name}' not found")
        if backend.node is not None:
            self.move_tree(backend.node, thread.context, backend)
        backend.drain()
        backend.context = thread.context

    def move_tree(self, node: Node, context: IoContext, backend: BlockBackend | None = None) -> None:
        """Have a context serve a node for all but `backend`; raises BlockError where somebody wants another one."""
        nodes = set(_tree(node))
        elsewhere = [
            other
            for other in self.backends()
            if other is not backend
            and other.context is not context
            and other.node is not None
            and not nodes.isdisjoint(_tree(other.node))
        ]
        # Nobody but a drive without a device follows its node unasked, and who says so.
        if not all(other.movable or (other.name and other.device is None) for other in elsewhere):
            raise BlockError("Cannot change iothread of active block backend")
        for other in elsewhere:
            other.drain()
            other.context = context

    def context_of(self, node: Node | None) -> IoContext:
        """Return the context that serves `node` or what is below it already, otherwise the main one."""
        if node is not None:
            nodes = set(_tree(node))
            for other in self.backends():
                if other.node is not None and not nodes.isdisjoint(_tree(other.node)):
                    assert isinstance(other.context, IoContext)
                    return other.context
        return self.context

    # ---- Life

    def pause(self) -> None:
        """The guest has stopped: finish what is in flight, and make it safe.  What errors held back stays so."""
        self.settle()
        for backend in self.backends():
            node = backend.node
            if node is not None and not node.read_only:
                with self.graph.unlimited(), backend.context.lock, suppress(OSError, BlockError):
                    node.flush()

    def resume(self) -> None:
        """The guest is about to run: repeat what errors held back."""
        for backend in self.backends():
            backend.resume()

    @contextmanager
    def drained(self, *nodes: Node, below: bool = False) -> Iterator[None]:
        """Let nothing be in flight meanwhile, and jobs pause: see :mod:`pyvm.block.draining`."""
        with drained(self.graph, nodes, below=below):
            self.settle()
            yield

    def drain(self) -> None:
        """Have everything stand still for a moment, jobs included."""
        with drained(self.graph):
            self.settle()

    def settle(self) -> None:
        """Return when no request of a disk is in flight."""
        for backend in self.backends():
            backend.drain()

    def close(self) -> None:
        """Finish everything, and close all images."""
        self.end_exports()
        self.end_jobs()
        while self._anonymous:
            backend = self._anonymous.pop()
            self._forget_backend(backend)
            self._drop_throttle(backend)
            backend.close()
        for drive in list(self.drives.values())[::-1]:
            self._close_drive(drive)
        self.graph.close()
        for thread in (*self.iothreads.values(), *self._retired):
            thread.context.close()
        self.context.close()


def _tree(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _tree(child.node)


def _with_origin(origin: str, action: Callable[[Any], Any], argument: Any) -> None:
    try:
        action(argument)
    except (BlockError, ConfigError) as error:
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from None
