"""What an export is to its node: requests of other programs, carried out where the node's own are.

Errors are the client's to deal with: nothing is held back, and no event tells of them.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.block.backend import BlockBackend
from pyvm.block.context import Context, run
from pyvm.block.graph import BlockGraph
from pyvm.block.node import ALL_PERMISSIONS, UNUSED, Access, Node, Permission
from pyvm.block.requests import FLUSH, BackendDevice, Done, Request
from pyvm.block.vectors import Buffers

AT_HAND_BYTES = 64 << 10
"""Longest read that is carried out at once where the data is in the host's memory: the machine stands still for it."""


class Task(Request):
    """One request of a client; `action` is what to do with the node where that is no read, write or the like."""

    __slots__ = ("action",)

    def __init__(
        self,
        backend: ExportBackend,
        kind: int,
        offset: int,
        length: int,
        buffers: Buffers,
        done: Done,
        action: Callable[[Node], None] | None = None,
    ) -> None:
        node = backend.node
        assert node is not None
        super().__init__(backend, node, kind, offset, length, buffers, done)
        self.action = action

    def _perform(self, node: Node, kind: int) -> None:
        if self.action is None:
            super()._perform(node, kind)
        else:
            self.action(node)


class ExportBackend(BlockBackend):
    """The use of a node by an export.  Holds the node; raises BlockError where others are against that."""

    def __init__(self, node: Node, context: Context, graph: BlockGraph, *, writable: bool, write_cache: bool) -> None:
        super().__init__(
            node.hold(), context, graph=graph, read_only=not writable, write_cache=write_cache, werror="report"
        )
        used = Permission.CONSISTENT_READ | (Permission.WRITE if writable else Permission(0))
        try:
            self._use(Access(used, ALL_PERMISSIONS))
        except BaseException:
            self.let_go()
            raise

    def keep_size(self) -> None:
        """Let nobody change the size of the node: clients were told.  Raises BlockError."""
        self._use(Access(self.access.used, ALL_PERMISSIONS & ~Permission.RESIZE))

    def submit(self, task: Task) -> None:
        """Carry a request out; with the machine lock held."""
        self.in_flight += 1
        if self.gates and not self._draining and task.kind != FLUSH:
            self._pass_gates(task)
        else:
            self.context.submit(task)

    def borrow(self) -> bool:
        """Whether a request may be carried out by the caller's thread, with :meth:`carry_out`; it must be then.

        With the machine lock held.
        """
        if self.gates or not self.context.borrow():
            return False
        self.in_flight += 1
        return True

    def carry_out(self, task: Task) -> None:
        """Carry a request out, all but its completion; without the machine lock."""
        try:
            run(task)
        finally:
            self.context.lock.release()

    def read_now(self, offset: int, buffers: Buffers) -> bool:
        """Fill all buffers if that needs no waiting; return whether it was done.  With the machine lock held."""
        return self._read_at_hand(offset, buffers)

    def attach(self, device: BackendDevice, identifier: str = "", *, share_rw: bool = False) -> None:
        """Let a device of another program's guest use it: no client of the monitor sees that one."""

    def ended(self, request: Request) -> None:
        """Take a request that was carried out."""
        self.in_flight -= 1
        request.done(request.error)

    def let_go(self) -> None:
        """Use the node no more; the caller keeps all workers from nodes meanwhile."""
        node = self.node
        assert node is not None
        self._access = UNUSED
        self._set_node(None)
        node.release()
