"""The graph of all block nodes of a machine: names, who holds what, and who may do what with which node.

Nodes are held by other nodes (as children), by users outside of the graph (disks, jobs, exports) and by the monitor
(`-blockdev`, blockdev-add); one that nobody holds is closed.  What each user and parent does with a node, and what it
lets others do, must go together; all of it together is what a host file is locked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyvm.annotations import TYPE_CHECKING, NamedTuple
from pyvm.block.errors import BlockError
from pyvm.block.node import (
    ALL_PERMISSIONS,
    NO_PERMISSIONS,
    PERMISSION_NAMES,
    UNUSED,
    Access,
    Node,
    Permission,
    take_order,
)
from pyvm.options import is_identifier
from pyvm.records import record
from pyvm.secrets import Secrets

if TYPE_CHECKING:
    from pyvm.block.draining import Worker
    from pyvm.block.throttling import ThrottleGroups
    from pyvm.clock import Clock

OpenFile = Callable[[str, int], int]
"""Opens a file by its name with flags as of :func:`os.open`; raises OSError."""

_MAX_NAME = 31


@record
class User:
    """Somebody outside of the graph who uses a node."""

    node: Node
    description: str
    """What errors call it: ``block device 'virtio0'``."""
    access: Access
    name: str = "root"
    """What the node is to it."""
    order: int = 0
    stays: bool = False
    """Whether it stays with its node where another one takes the place of that."""
    waits: bool = False
    """Whether it does nothing before the guest is there: a device, while a machine arrives."""


class _Use(NamedTuple):
    """One use of a node, by a user or by a parent."""

    description: str
    name: str
    access: Access
    order: int


class BlockGraph:
    """All nodes.  Methods are called with the machine lock held; those that change something raise BlockError."""

    def __init__(self, clock: Clock | None = None, secrets: Secrets | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        """By node name, the oldest first."""
        self.monitor_nodes: list[Node] = []
        """Those that the monitor holds."""
        self.workers: list[Worker] = []
        """Who works on nodes by himself, the oldest first."""
        self.resting: list[Worker] | None = None
        """Who goes on later, while several things are done for which nodes stand still."""
        self.of_machine = False
        """Whether nodes are disks of a machine, and not what a tool works on."""
        self.device_names: set[str] = set()
        """Names of drives, which share their name space with nodes."""
        self._clock = clock
        self._throttle_groups: ThrottleGroups | None = None
        self.open_file: OpenFile = os.open
        """How files of the host are opened by their names."""
        self.secrets = secrets or Secrets()
        """Passwords and keys that options of nodes name."""
        self.find_object: Callable[[str], object] = self.secrets.credentials.get
        """Returns an object of a user by its ID, None without: credentials that options of nodes name."""
        self.find_fd: Callable[[str], int | None] = lambda name: None
        """Gives away a descriptor to which whoever opens nodes now gave a name; None without."""
        self._users: list[User] = []
        self._ranks: dict[Node, int] = {}
        self._next_rank = 0
        self._next_name = 0
        self._applied: dict[Node, Access] = {}
        self.given_up = False
        """Whether the images are inactive since the machine has gone: what is opened afterwards is active."""
        self.inactive = False
        """Whether images that are opened may be in use by another process: see :mod:`pyvm.block.activation`."""
        self.drive_of: Callable[[Node], str] = lambda node: ""
        """Returns the name of the drive that has a node as its medium; empty where none does."""
        self._blockers: list[tuple[Node, object, str]] = []
        """Nodes that are not to be changed, who says so, and why; the newest first."""

    @property
    def throttle_groups(self) -> ThrottleGroups:
        """The groups of nodes and devices that share limits."""
        if self._throttle_groups is None:
            from pyvm.block.throttling import ThrottleGroups
            from pyvm.clock import RunningClock

            self._throttle_groups = ThrottleGroups(self._clock or RunningClock())
        return self._throttle_groups

    # ---- Names

    def check_name(self, name: str) -> None:
        """Raise BlockError unless a new node can have this name."""
        if not is_identifier(name):
            raise BlockError(f"Invalid node-name: '{name}'")
        if name in self.device_names:
            raise BlockError(f"node-name={name} is conflicting with a device id")
        if name in self.nodes:
            raise BlockError(f"Duplicate nodes with node-name='{name}'")
        if len(name) > _MAX_NAME:
            raise BlockError("Node name too long")

    def make_name(self) -> str:
        """Return a name for a node that was given none: ``#block123``, its last two digits random."""
        name = f"#block{self._next_name}{os.urandom(1)[0] % 100:02}"
        self._next_name += 1
        return name

    def add_device_name(self, name: str) -> None:
        """A drive is called `name`."""
        if name in self.device_names:
            raise BlockError(f"Device with id '{name}' already exists")
        if name in self.nodes:
            raise BlockError(f"Device name '{name}' conflicts with an existing node name")
        self.device_names.add(name)

    def find(self, name: str) -> Node:
        """Return the node with this name."""
        node = self.nodes.get(name)
        if node is None:
            raise BlockError(f"Cannot find device='{name}' nor node-name='{name}'")
        return node

    # ---- Nodes

    def add(self, node: Node, rank: int | None = None) -> None:
        """Take in a node that was opened, under the name that it has; `rank` is where it is listed."""
        self.nodes[node.name] = node
        self._ranks[node] = self.take_rank() if rank is None else rank
        node.on_released = self._forget

    def take_rank(self) -> int:
        """Return the next place in the list of nodes: for one that comes before others which are opened for it."""
        self._next_rank += 1
        return self._next_rank

    def listed(self) -> list[Node]:
        """Return the nodes that clients may see, in the order in which they were opened from the top down."""
        return sorted((node for node in self.nodes.values() if not node.hidden), key=lambda node: self._ranks[node])

    def _forget(self, node: Node) -> None:
        """A node was closed."""
        self.nodes.pop(node.name, None)
        self._ranks.pop(node, None)
        self._applied.pop(node, None)

    def give_to_monitor(self, node: Node) -> None:
        """The monitor holds `node` from now on, in the place of whoever opened it."""
        self.monitor_nodes.append(node)

    def check_free(self, node: Node) -> None:
        """Raise BlockError where what is on top of `node`, or a job, needs it as it is."""
        self.check_unblocked(node)
        links = [(child.order, parent) for parent in self.nodes.values() for child in parent.children
                 if child.node is node and child.label == "backing" and not parent.is_filter]  # fmt: skip
        if links:
            latest = max(links, key=lambda link: link[0])[1]
            raise BlockError(f"Node '{node.name}' is busy: node is used as backing hd of '{latest.name}'")

    def check_unblocked(self, node: Node) -> None:
        """Raise BlockError where somebody wants `node` to stay as it is."""
        for blocked, _, reason in self._blockers:
            if blocked is node:
                raise BlockError(f"Node '{self.drive_of(node) or node.name}' is busy: {reason}")

    def is_blocked(self, node: Node) -> bool:
        """Return whether somebody wants `node` to stay as it is."""
        return any(blocked is node for blocked, _, _ in self._blockers)

    def is_frozen(self, parent: Node, child: Node) -> bool:
        """Return whether somebody who uses both wants `child` to stay below `parent`."""
        owners = [owner for blocked, owner, _ in self._blockers if blocked is parent]
        return any(blocked is child and owner in owners for blocked, owner, _ in self._blockers)

    def block(self, node: Node, owner: object, reason: str) -> None:
        """Have nobody change `node` until :meth:`unblock`."""
        self._blockers.insert(0, (node, owner, reason))

    def unblock(self, owner: object) -> None:
        """End all that :meth:`block` was called for by somebody."""
        self._blockers = [it for it in self._blockers if it[1] is not owner]

    def delete(self, name: str) -> None:
        """Take a node from the monitor, as blockdev-del does, and close it."""
        node = self.nodes.get(name)
        if node is None:
            raise BlockError(f"Failed to find node with node-name='{name}'")
        if any(user.name == "root" for user in self.users(node)):
            raise BlockError(f"Node {name} is in use")
        self.check_free(node)
        if node not in self.monitor_nodes:
            raise BlockError(f"Node {name} is not owned by the monitor")
        if node.references > 1:
            raise BlockError(f"Block device {name} is in use")
        self.monitor_nodes.remove(node)
        node.release()

    def close(self) -> None:
        """Take all nodes from the monitor, those first that were opened last."""
        while self.monitor_nodes:
            self.monitor_nodes.pop().release()

    def parents(self, node: Node) -> Iterator[tuple[Node, str]]:
        """Yield the parents of a node, with what they call it."""
        for parent in self.nodes.values():
            for child in parent.children:
                if child.node is node:
                    yield parent, child.label

    def users(self, node: Node) -> list[User]:
        """Return who uses a node from outside of the graph."""
        return [user for user in self._users if user.node is node]

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Let requests pass meanwhile that wait in filters for their turn: somebody waits for their thread."""
        waiting = [node for node in self.nodes.values() if node.driver == "throttle"]
        for node in waiting:
            node.begin_drain()
        try:
            yield
        finally:
            for node in waiting:
                node.end_drain()

    # ---- Permissions

    def attach(self, node: Node, description: str, access: Access, name: str = "root", *, waits: bool = False) -> User:
        """Let somebody use `node`.  The reference to it is the caller's."""
        user = User(node, description, access, name, take_order(), waits=waits)
        self._users.append(user)
        try:
            self.refresh()
        except BlockError:
            self._users.remove(user)
            raise
        return user

    def change(self, user: User, access: Access) -> None:
        """Let a user use its node in another way."""
        before, user.access = user.access, access
        try:
            self.refresh()
        except BlockError:
            user.access = before
            raise

    def move(self, user: User, node: Node) -> None:
        """Let a user use another node."""
        before, user.node = user.node, node
        try:
            self.refresh()
        except BlockError:
            user.node = before
            raise

    def detach(self, user: User) -> None:
        """A user has gone."""
        self._users.remove(user)
        self.refresh()

    def refresh(self, reopened: frozenset[Node] = frozenset()) -> None:
        """Check that all uses of all nodes go together, and let the host know; nothing is changed on failure.

        `reopened` are nodes that were just made read-only or writable.
        """
        wanted = self._compute(reopened)
        wanted = {node: UNUSED if node.inactive else access for node, access in wanted.items()}
        done: list[tuple[Node, Access]] = []
        try:
            for node, access in wanted.items():
                before = self._applied.get(node)
                if access != before:
                    node.set_access(access)
                    if before is not None:
                        done.append((node, before))
        except BlockError:
            for node, access in reversed(done):
                node.set_access(access)
            raise
        self._applied = wanted

    def accesses(self) -> dict[Node, Access]:
        """Return what is done with each node altogether.  Raises BlockError where that does not go together."""
        return self._compute()

    def _compute(self, reopened: frozenset[Node] = frozenset()) -> dict[Node, Access]:
        """Return what is done with each node altogether."""
        uses: dict[Node, list[_Use]] = {node: [] for node in self.nodes.values()}
        for user in self._users:
            access = UNUSED if user.waits and self.inactive else user.access
            uses.setdefault(user.node, []).append(_Use(user.description, user.name, access, user.order))
        computed: dict[Node, Access] = {}
        for node in self._parents_first():
            access = _combine(node, uses.get(node, []), reopened=node in reopened)
            computed[node] = access
            for child in node.children:
                use = _Use(
                    f"node '{node.name}'",
                    child.label,
                    node.child_access(child, access.used, access.shared),
                    child.order,
                )
                uses.setdefault(child.node, []).append(use)
        return computed

    def _parents_first(self) -> list[Node]:
        order: list[Node] = []
        seen: set[Node] = set()

        def visit(node: Node) -> None:
            if node not in seen:
                seen.add(node)
                for child in node.children:
                    visit(child.node)
                order.append(node)

        for node in self.nodes.values():
            visit(node)
        return order[::-1]


def _combine(node: Node, uses: list[_Use], *, reopened: bool = False) -> Access:
    uses = sorted(uses, key=lambda use: -use.order)
    for strict in uses:
        for other in uses:
            refused = other.access.used & ~strict.access.shared
            if other is not strict and refused:
                raise BlockError(
                    f"Permission conflict on node '{node.name}': permissions '{permission_names(refused)}' are both "
                    f"required by {other.description} (uses node '{node.name}' as '{other.name}' child) and unshared "
                    f"by {strict.description} (uses node '{node.name}' as '{strict.name}' child)."
                )
    used, shared = NO_PERMISSIONS, ALL_PERMISSIONS
    for use in uses:
        used |= use.access.used
        shared &= use.access.shared
    if node.read_only and used & (Permission.WRITE | Permission.WRITE_UNCHANGED):
        if reopened:
            raise BlockError(f"Read-only block node '{node.name}' cannot support read-write users")
        raise BlockError("Block node is read-only")
    return Access(used, shared)


def permission_names(permissions: Permission) -> str:
    """Return permissions as QEMU names them."""
    return ", ".join(name for permission, name in PERMISSION_NAMES.items() if permission & permissions)
