"""What a disk is to its device: asynchronous requests on the root node of a graph, and a medium that may change.

A request is accounted for, throttled, carried out in an I/O context, and its end is told to the device with the machine
lock held.  What an error leads to is decided here (`werror`, `rerror`): a device either hears of it, or hears nothing
until the request was repeated with success.

All methods are called with the machine lock held.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Literal

from pyvm.block.accounting import BlockStats, Operation
from pyvm.block.context import Context, InlineContext
from pyvm.block.draining import drained_for
from pyvm.block.drivers.throttle import ThrottleNode
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph, User
from pyvm.block.node import NO_PERMISSIONS, UNUSED, Access, DetectZeroes, Node, Permission, disk_access
from pyvm.block.requests import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    ZEROES,
    BackendDevice,
    BackendEvents,
    Done,
    MediumOptions,
    Request,
)
from pyvm.block.throttling import Gate, ThrottleMember
from pyvm.block.vectors import Buffers, total

__all__ = ["BackendDevice", "BackendEvents", "BlockBackend", "Done", "ErrorPolicy", "MediumOptions"]

ErrorPolicy = Literal["report", "ignore", "stop", "enospc"]

_ACCOUNTED = (Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.UNMAP, Operation.WRITE)
_AT_HAND_BYTES = 1 << 20
"""Longest read that is carried out at once where the data is in the host's memory: the guest stands still for it."""
_NO_EVENTS = BackendEvents()


class BlockBackend:
    """A drive.  Without a context, requests are carried out before the call returns.

    `node` None is a drive without a medium.  `read_only` says what the drive is where the medium would let it write.
    """

    movable = False
    """Whether another context may serve it, where somebody else who uses its node wants that."""

    def __init__(
        self,
        node: Node | None = None,
        context: Context | None = None,
        *,
        name: str = "",
        serial: str = "",
        read_only: bool = False,
        write_cache: bool = True,
        werror: ErrorPolicy = "enospc",
        rerror: ErrorPolicy = "report",
        detect_zeroes: DetectZeroes | None = None,
        removable: bool = False,
        events: BackendEvents = _NO_EVENTS,
        graph: BlockGraph | None = None,
    ) -> None:
        self.name = name
        """The ID of the drive; empty for a node that a device uses by its node name."""
        self.serial = serial or (node.serial if node is not None else "")
        self.write_cache = write_cache
        """Whether there is a volatile write cache; without it, a write is durable once it is done."""
        self.werror: ErrorPolicy = werror
        self.rerror: ErrorPolicy = rerror
        self.detect_zeroes: DetectZeroes = detect_zeroes or (node.detect_zeroes if node is not None else "off")
        self.removable = removable
        """Whether the medium can be changed; the device says so."""
        self.share_rw = False  # whether the device lets others write to the image, too
        self.only_reads = False
        """Whether the device never writes, whatever the medium: a CD-ROM drive."""
        self.retained = MediumOptions()
        self.events = events
        self.context: Context = context or InlineContext()
        self.stats = BlockStats(now=events.now, latency=events.latency)
        self.device: BackendDevice | None = None
        self._device_id: str | Callable[[], str] = ""
        self.io_status_enabled = False
        """Whether the device shows its I/O status; set by those that do."""
        self.io_status: Literal["ok", "failed", "nospace"] = "ok"
        self.throttle: ThrottleMember | None = None
        """The drive's place in a throttle group."""
        self.gates: tuple[Gate, ...] = ()
        """What holds requests up: the drive's own throttle group, then those of filters right below it."""
        self.in_flight = 0
        self.held: deque[Request] = deque()
        """Requests that failed while the policy is to stop, the first that failed first."""
        self._read_only = read_only
        self._draining = 0
        self._completing = False  # whether a device hears of a read that was carried out at once
        self._at_hand: Callable[[int, Buffers], bool] | None = None  # reads what needs no waiting
        self.overlaps = False  # whether reads and writes may be on their way together, as others carry them out
        self.on_eject: list[Callable[[], None]] = []  # called once when the medium goes, before it does
        self._graph = graph
        self._access = UNUSED
        self._user: User | None = None
        self._filters: list[tuple[ThrottleNode, ThrottleMember]] = []
        self._node: Node | None = None
        self._set_node(node)

    @property
    def device_id(self) -> str:
        """What the device is called in events: its ID, or its QOM path."""
        if not isinstance(self._device_id, str):
            self._device_id = self._device_id()
        return self._device_id

    @device_id.setter
    def device_id(self, name: str | Callable[[], str]) -> None:
        """Set the name, or what finds it out when somebody asks."""
        self._device_id = name

    # ---- The medium

    @property
    def node(self) -> Node | None:
        """The root node, None without a medium."""
        return self._node

    @property
    def shown_node(self) -> Node:
        """The node that queries and events name; there must be a medium."""
        node = self._node
        assert node is not None
        while node.implicit and node.file is not None:
            node = node.file
        return node

    @property
    def access(self) -> Access:
        """How the device uses the medium."""
        return self._access

    @property
    def inserted(self) -> bool:
        """Whether there is a medium that can be used: in the drive, and the tray closed."""
        return self._node is not None and not self.tray_open

    @property
    def read_only(self) -> bool:
        """Whether the device must not write."""
        return self._read_only or self._node is None or self._node.read_only

    @property
    def size(self) -> int:
        """Length of the medium in bytes; 0 without one."""
        return self._node.size if self._node is not None else 0

    def _set_node(self, node: Node | None) -> None:
        """Use another node from now on.  Raises BlockError, with nothing changed, where others are against that."""
        if node is None:
            while self.on_eject:
                self.on_eject.pop()()
        if self._graph is not None:
            if node is None:
                if self._user is not None:
                    self._graph.detach(self._user)
                self._user = None
            elif self._user is None:
                self._user = self._graph.attach(node, self._description(), self._access, waits=True)
            else:
                self._graph.move(self._user, node)
        self._node = node
        self.update_gates()

    def _description(self) -> str:
        name = self.name or self.device_id
        return f"block device '{name}'" if name else "an unnamed block device"

    def update_gates(self) -> None:
        """Find out what the node can do, and which throttle groups requests have to pass: there is another one."""
        self.drain()
        for old, member in self._filters:
            old.passed_on = False
            member.leave()
        self._filters = []
        node = self._node
        self._at_hand = None if node is None else node.read_at_hand
        self.overlaps = node is not None and node.takes_several
        while node is not None and node.is_filter:
            if isinstance(node, ThrottleNode) and not node.passed_on:
                node.passed_on = True
                self._filters.append((node, ThrottleMember(node.group)))
            node = node.file
        own = () if self.throttle is None else (self.throttle,)
        self.gates = (*own, *(member for _, member in self._filters))

    def set_throttle(self, member: ThrottleMember | None) -> None:
        """Keep to the limits of a group, or of none; return from the one before is the caller's business."""
        self.throttle = member
        self.update_gates()

    # ---- Requests

    def read(self, offset: int, buffers: Buffers, done: Done) -> None:
        """Fill all buffers from `offset` on."""
        self._request(READ, offset, total(buffers), buffers, done)

    def write(self, offset: int, buffers: Buffers, done: Done) -> None:
        """Write all buffers from `offset` on.  They must stay as they are until it is done."""
        self._request(WRITE, offset, total(buffers), buffers, done)

    def flush(self, done: Done) -> None:
        """Make all writes that are done safe from loss of power."""
        self._request(FLUSH, 0, 0, (), done)

    def discard(self, offset: int, length: int, done: Done) -> None:
        """The range is no longer needed: a hint."""
        self._request(DISCARD, offset, length, (), done)

    def write_zeroes(self, offset: int, length: int, unmap: bool, done: Done) -> None:
        """Let the range read as zeros; with `unmap` it need take no room."""
        self._request(ZEROES, offset, length, (), done, unmap)

    def _request(self, kind: int, offset: int, length: int, buffers: Buffers, done: Done, unmap: bool = False) -> None:
        node = self._node
        if node is None:
            done(errno.ENOMEDIUM)
            return
        if offset < 0 or length < 0 or offset + length > node.size:
            self.stats.refuse(_ACCOUNTED[kind])
            done(errno.EIO)
            return
        if kind not in (READ, FLUSH) and self.read_only:
            self.stats.refuse(_ACCOUNTED[kind])
            done(errno.EPERM)
            return
        started = self.stats.start()
        if kind == READ and length <= _AT_HAND_BYTES and self._read_at_hand(offset, buffers):
            self.stats.done(Operation.READ, length, started)
            self._completing = True
            try:
                done(0)
            finally:
                self._completing = False
            return
        request = Request(self, node, kind, offset, length, buffers, done)
        request.unmap = unmap
        request.durable = not self.write_cache and kind in (WRITE, ZEROES)
        request.started = started
        self.in_flight += 1
        if self.gates and not self._draining and kind != FLUSH:
            self._pass_gates(request)
        else:
            self.context.submit(request)

    def _read_at_hand(self, offset: int, buffers: Buffers) -> bool:
        """Read now what is in the host's memory; return whether that could be done.

        Not for a device that asks for more when it hears of that: a long row of requests would be a deep recursion.
        """
        read = self._at_hand
        if read is None or self.gates or self._completing:
            return False
        return self.context.attempt(lambda: read(offset, buffers))

    def _pass_gates(self, request: Request) -> None:
        """Go through the gates from `request.gate` on; one that is shut calls back when it opens."""
        while request.gate < len(self.gates):
            gate = self.gates[request.gate]
            request.gate += 1
            if not gate.enter(request.kind != READ, request.length, lambda: self._let_go(request)):
                return
        self.context.submit(request)

    def _let_go(self, request: Request) -> None:
        if self._draining:
            self.context.submit(request)
        else:
            self._pass_gates(request)

    def ended(self, request: Request) -> None:
        """Take a request that was carried out."""
        self.in_flight -= 1
        kind, error = request.kind, request.error
        stats = self.stats
        if error:
            if self._handle_error(request, error):
                return
            if request.error:
                stats.fail(_ACCOUNTED[kind], request.started)
                request.done(error)
                return
        if kind in (WRITE, ZEROES):
            stats.highest_offset = max(stats.highest_offset, request.offset + request.length)
        stats.done(_ACCOUNTED[kind], request.length, request.started)
        request.done(0)

    # ---- Errors

    def _handle_error(self, request: Request, error: int) -> bool:
        """Do what the policy says; return whether the request is held back."""
        is_read = request.kind == READ
        policy = self.rerror if is_read else self.werror
        if policy == "enospc":
            policy = "stop" if error == errno.ENOSPC else "report"
        data: dict[str, Any] = {"device": self.name}
        if self._node is not None:
            data["node-name"] = self.shown_node.name
        data["operation"] = "read" if is_read else "write"
        data["action"] = policy
        if self.shows_io_status:
            data["nospace"] = error == errno.ENOSPC
        data["reason"] = os.strerror(error)
        if policy == "stop":
            self.held.append(request)
            if self.io_status == "ok":
                self.io_status = "nospace" if error == errno.ENOSPC else "failed"
            self.events.emit("BLOCK_IO_ERROR", data)
            self.events.stop()
            return True
        self.events.emit("BLOCK_IO_ERROR", data)
        if policy == "ignore":
            request.error = 0
        return False

    @property
    def shows_io_status(self) -> bool:
        """Whether query-block tells the I/O status: the device does, and a policy can change it."""
        return self.io_status_enabled and (self.werror in ("stop", "enospc") or self.rerror == "stop")

    def reset_io_status(self) -> None:
        """Forget an error, as the guest is about to go on."""
        self.io_status = "ok"

    def resume(self) -> None:
        """Repeat what was held back; the guest goes on."""
        self.reset_io_status()
        held, self.held = self.held, deque()
        for request in held:
            self.in_flight += 1
            self.context.submit(request)

    # ---- Waiting

    def drain(self, cancel: bool = False) -> None:
        """Return when nothing is in flight; with `cancel`, what is held back after an error ends with ECANCELED.

        Limits do not hold while this waits.  Jobs on the medium pause with `cancel`.
        """
        with drained_for(self._graph, self._node) if cancel else nullcontext():
            if self.in_flight:
                self._settle()
            if cancel:
                held, self.held = self.held, deque()
                for request in held:
                    request.done(errno.ECANCELED)

    def _settle(self) -> None:
        node = self._node
        self._draining += 1
        if node is not None:
            node.begin_drain()
        try:
            for gate in self.gates:
                gate.release()
            self.context.settle(lambda: not self.in_flight)
        finally:
            self._draining -= 1
            if node is not None:
                node.end_drain()

    # ---- For firmware and monitors

    def preadv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on, now.  Raises OSError."""
        node = self._usable(offset, total(buffers))
        with self.context.lock:
            node.readv(offset, buffers)

    def pread(self, offset: int, length: int) -> bytearray:
        """Return `length` bytes from `offset` on.  Raises OSError."""
        self._usable(offset, length)
        data = bytearray(length)
        self.preadv(offset, (memoryview(data),))
        return data

    def pwritev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on, now.  Raises OSError."""
        node = self._usable(offset, total(buffers))
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        with self.context.lock:
            node.writev(offset, buffers)
            if not self.write_cache:
                node.flush()

    def flush_now(self) -> None:
        """Make everything written safe from loss of power, now.  Raises OSError."""
        self.drain()
        if self._node is not None:
            with self.context.lock:
                self._node.flush()

    def _usable(self, offset: int, length: int) -> Node:
        """Return the node once what is in flight is done; raises OSError where the range is not there."""
        self.drain()
        if self._node is None:
            raise OSError(errno.ENOMEDIUM, os.strerror(errno.ENOMEDIUM))
        self._node.check_range(offset, length)
        return self._node

    # ---- The device

    def attach(self, device: BackendDevice, identifier: str = "", *, share_rw: bool = False) -> None:
        """Let `device` use the drive, with `share_rw` beside others; raises BlockError where one is against that."""
        if self.device is not None:
            raise BlockError(f"Drive '{self.name}' is already in use by another device")
        self.device = device
        self.device_id = identifier or self.device_id
        try:
            self._use(self._device_access(share_rw or self.share_rw))
        except BlockError:
            self.device = None
            self.device_id = ""
            raise

    def _device_access(self, share_rw: bool, node: Node | None = None) -> Access:
        """Return how the device uses the medium that is there, or `node` in its place."""
        read_only = self.read_only if node is None else self._read_only or node.read_only
        access = disk_access(read_only or self.only_reads)
        shared = access.shared & ~(Permission.RESIZE if self.removable else NO_PERMISSIONS)
        return Access(access.used, shared | (Permission.WRITE if share_rw else NO_PERMISSIONS))

    def _use(self, access: Access) -> None:
        """Use the node in this way from now on.  Raises BlockError where others are against that."""
        before, self._access = self._access, access
        if self._graph is not None and self._user is not None:
            self._user.description = self._description()
            try:
                self._graph.change(self._user, access)
            except BlockError:
                self._access = before
                raise

    def detach(self) -> None:
        """The device is gone."""
        self.drain(cancel=True)
        self.device = None
        self.device_id = ""
        self.io_status_enabled = False
        self._use(UNUSED)

    def close(self) -> None:
        """Finish everything, make it safe, and let the node go.  Errors stay silent: nobody waits for the data."""
        self.drain(cancel=True)
        node = self._node
        if node is None:
            return
        with self.context.lock:
            if not node.read_only:
                with suppress(OSError, BlockError):
                    node.flush()
            self._set_node(None)
            node.release()

    # ---- The tray

    @property
    def has_removable_medium(self) -> bool:
        """Whether the medium can be changed; without a device, nobody would be in the way."""
        return self.device is None or self.removable

    @property
    def has_tray(self) -> bool:
        """Whether there is a tray that opens and closes; a floppy drive has none."""
        return self.device is not None and self.removable and getattr(self.device, "has_tray", True)

    @property
    def tray_open(self) -> bool:
        """Whether the tray of the device is open."""
        return self.device is not None and self.removable and self.device.tray_open

    @property
    def locked(self) -> bool:
        """Whether the guest keeps the tray from being opened."""
        return self.device is not None and self.device.medium_locked

    def eject(self, open: bool) -> None:  # noqa: A002 - what the guest did with the tray
        """The guest moved the tray: DEVICE_TRAY_MOVED."""
        self.events.emit("DEVICE_TRAY_MOVED", {"device": self.name, "id": self.device_id, "tray-open": open})

    def _change_medium(self, loaded: bool) -> None:
        """Tell the device; a tray that moves for that is reported."""
        device = self.device
        if device is None:
            return
        before = device.tray_open
        device.media_changed(loaded)
        if device.tray_open != before:
            self.eject(device.tray_open)

    def open_tray(self, force: bool = False) -> bool:
        """Open the tray; return False where the guest has it locked and was asked instead.  Raises BlockError."""
        self._require_removable()
        device = self.device
        if device is None or not self.has_tray or device.tray_open:
            return True
        locked = device.medium_locked
        if locked:
            device.eject_requested(force)
        if locked and not force:
            return False
        self._change_medium(False)
        return True

    def close_tray(self) -> None:
        """Close the tray.  Raises BlockError."""
        self._require_removable()
        if self.device is not None and self.has_tray and self.device.tray_open:
            self._change_medium(True)

    def _require_removable(self) -> None:
        if self.device is not None and not self.removable:
            raise BlockError(f"Device '{self.name or self.device_id}' is not removable")

    def remove_medium(self, *, notify: bool = True) -> Node | None:
        """Take the medium out, and return its root node: it is the caller's to close now.  Raises BlockError.

        Without `notify` the device is not told that its tray must have been open.
        """
        node = self._node
        if node is None:
            return None
        self.drain(cancel=True)
        self.retain(node)
        self._set_node(None)
        if notify and self.device is not None and self.removable and not self.device.tray_open:
            # A drive without a tray notices at once.
            self._change_medium(False)
        return node

    def insert_medium(self, node: Node) -> None:
        """Put a medium in; raises BlockError where there is one, or where it cannot be used like this."""
        if self._node is not None:
            raise BlockError(f"There already is a medium in device '{self.name or self.device_id}'")
        before = self._access
        if self.device is not None:
            self._access = self._device_access(bool(before.shared & Permission.WRITE), node)
        try:
            self._set_node(node)
        except BlockError:
            self._access = before
            raise
        self.detect_zeroes = node.detect_zeroes
        if self.device is not None and self.removable and not self.device.tray_open:
            self._change_medium(True)

    def retain(self, node: Node) -> None:
        """Remember how the medium was opened."""
        self.retained = MediumOptions(node.read_only, self.detect_zeroes, node.unmap, node.direct, node.no_flush)

    def adopt(self, node: Node) -> None:
        """Show another node, which the graph has moved this drive to already."""
        self._node = node
        for request in self.held:
            request.node = node
        self.update_gates()

    def reopened(self, node: Node) -> None:
        """The medium was given other options."""
        self.detect_zeroes = node.detect_zeroes
        self._read_only = self._read_only and self.device is not None  # one that comes later sees what the medium is
        self.update_gates()

    def replace_node(self, node: Node) -> Node | None:
        """Let the drive show another node from now on without the device noticing; return the one before."""
        self.drain()
        before = self._node
        self._set_node(node)
        for request in self.held:
            request.node = node
        return before

    def resize(self, size: int) -> None:
        """Make the medium `size` bytes long, and tell the device.  Raises OSError or BlockError."""
        self.drain()
        if self._node is None:
            raise BlockError(f"Device '{self.name or self.device_id}' has no medium")
        with self.context.lock:
            self._node.truncate(size)
        if self.device is not None:
            self.device.resized()
