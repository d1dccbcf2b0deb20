"""Snapshots of the whole machine in its disks: savevm, loadvm, delvm, and the jobs that do the same.

Every disk that can be written must be able to keep a snapshot.  One of them has the state of the machine as well.
Errors are BlockErrors, with the texts that management tools know from QEMU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.node import Node, Role
from pyvm.block.vectors import Buffers, total
from pyvm.errors import ConfigError
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.drivers.qcow2.records import Snapshot
    from pyvm.machine.pc import Pc
    from pyvm.machine.storage import Storage
    from pyvm.migration.vmstate import SavedMachine

_NS = 1_000_000_000


class SnapshotDisks:
    """The disks that a snapshot is about: those in `names`, which are node names, or all that can be written."""

    def __init__(self, storage: Storage, names: Sequence[str] | None = None) -> None:
        self._storage = storage
        self._named = names is not None
        if names is None:
            self._nodes = _roots(storage)
        elif not names:
            raise BlockError("At least one device is required for snapshot")
        else:
            self._nodes = [self._find(name) for name in names]

    def _find(self, name: str) -> Node:
        node = self._storage.graph.nodes.get(name)
        if node is None:
            raise BlockError(f"No block device node '{name}'")
        return node

    def _included(self) -> Iterator[Node]:
        """Yield the disks that take part: one that is only read does where it was asked for."""
        for node in self._nodes:
            if self._named or not node.read_only:
                yield node

    def check(self) -> None:
        """Raise BlockError unless all can keep snapshots."""
        for node in self._included():
            if keeper(node) is None:
                raise BlockError(f"Device '{self.name(node)}' is writable but does not support snapshots")

    def name(self, node: Node) -> str:
        """Return the name of the drive that has a node, or else the node's."""
        return self._storage.graph.drive_of(node) or node.name

    def images(self) -> Iterator[tuple[Node, Qcow2Node]]:
        """Yield the disks with the images that keep their snapshots; :meth:`check` comes first."""
        for node in self._included():
            image = keeper(node)
            if image is not None:
                yield node, image

    def have(self, name: str) -> bool:
        """Return whether all disks have a snapshot of this name."""
        return all(find(image, name) is not None for _, image in self.images())

    def state_image(self, name: str | None = None) -> Qcow2Node:
        """Return the image that keeps the state of the machine: that of the node `name`, or the first that can."""
        for node in self._nodes:
            image = keeper(node) if self._named or not node.read_only else None
            if name is None and image is not None:
                return image
            if node.name == name:
                if image is None:
                    raise BlockError(f"vmstate block device '{name}' does not support snapshots")
                return image
        if name is not None:
            raise BlockError(f"vmstate block device '{name}' does not exist")
        raise BlockError("no block device can store vmstate for snapshot")


def _roots(storage: Storage) -> list[Node]:
    """Return what is in the drives, then the nodes that the monitor holds."""
    roots: list[Node] = []
    for node in (*(it.node for it in storage.backends()), *storage.graph.monitor_nodes):
        if node is None or node in roots:
            continue
        if node in storage.graph.monitor_nodes and next(storage.graph.parents(node), None) is not None:
            continue  # it is part of another disk
        roots.append(node)
    return roots


def keeper(node: Node) -> Qcow2Node | None:
    """Return the image below a disk that can keep a snapshot of it."""
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    found: Node | None = node
    while found is not None and not found.read_only:
        if isinstance(found, Qcow2Node):
            return found
        others = [child for child in found.children if child.role is not Role.BACKING]
        found = others[0].node if len(others) == 1 and others[0].role is Role.FILTERED else None
    return None


def find(image: Qcow2Node, name: str) -> Snapshot | None:
    """Return the snapshot of this name in an image."""
    return next((it for it in image.snapshots if it.name == name), None)


# ---- Saving


def save(
    pc: Pc,
    name: str | None,
    *,
    overwrite: bool = False,
    vmstate: str | None = None,
    devices: Sequence[str] | None = None,
) -> None:
    """Save the machine, which stands still meanwhile, as a snapshot; without a name it is called by the time.

    With `overwrite`, snapshots of that name go first.  `vmstate` is the node that keeps the machine's state.
    """
    disks = SnapshotDisks(pc.storage, devices)
    disks.check()
    if name is not None:
        if overwrite:
            _delete(pc.storage, disks, name)
        elif disks.have(name):
            raise BlockError(f"Snapshot '{name}' already exists in one or more devices")
    image = disks.state_image(vmstate)
    _check_at_home(pc)
    was_running = pc.lifecycle.states.running
    pc.vm_stop(RunState.SAVE_VM)
    try:
        pc.storage.drain()
        with pc.storage.quiet():
            _save(pc, disks, image, name or time.strftime("vm-%Y%m%d%H%M%S"))
    finally:
        if was_running:
            pc.vm_start()


def _save(pc: Pc, disks: SnapshotDisks, image: Qcow2Node, name: str) -> None:
    from pyvm.migration.vmstate import write_machine

    seconds, nanoseconds = divmod(time.time_ns(), _NS)
    reached = 0

    def write(offset: int, buffers: Buffers) -> None:
        nonlocal reached
        reached = offset + total(buffers)
        image.write_vmstate(offset, buffers)

    try:
        size = write_machine(pc, write)
    except BaseException as error:
        _drop_state(image, reached)
        if isinstance(error, OSError):
            raise BlockError(f"Error while writing VM state: {error.strerror}") from None
        raise
    disk = ""
    try:
        for node, kept in disks.images():
            disk = disks.name(node)
            kept.create_snapshot(
                name,
                vm_state_size=size if kept is image else 0,
                vm_clock_nsec=pc.clock.now(),
                date_sec=seconds,
                date_nsec=nanoseconds,
            )
    except BaseException as error:
        _drop_state(image, size)
        _remove(disks, name)
        if isinstance(error, OSError | BlockError):
            raise BlockError(f"Could not create snapshot '{name}' on '{disk}'") from None
        raise


def _drop_state(image: Qcow2Node, size: int) -> None:
    """Give back what a state that is not kept takes in an image, as far as the image can be written at all."""
    with suppress(OSError, BlockError):
        image.drop_vmstate(size)


def _remove(disks: SnapshotDisks, name: str) -> None:
    for node, image in disks.images():
        snapshot = find(image, name)
        if snapshot is not None:
            with _told(f"Could not delete snapshot '{name}' on '{disks.name(node)}'"):
                image.delete_snapshot(snapshot.identifier, snapshot.name)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Put what went wrong before the reason."""
    try:
        yield
    except OSError as error:
        raise BlockError(f"{what}: {error.strerror}") from None
    except BlockError as error:
        raise BlockError(f"{what}: {error}") from None


def delete(pc: Pc, name: str, devices: Sequence[str] | None = None) -> None:
    """Delete a snapshot from the disks that have it."""
    disks = SnapshotDisks(pc.storage, devices)
    disks.check()
    _delete(pc.storage, disks, name)


def _delete(storage: Storage, disks: SnapshotDisks, name: str) -> None:
    with storage.quiet():
        _remove(disks, name)


def _check_at_home(pc: Pc) -> None:
    """Raise BlockError where the machine is on its way to another process, or its disks are there."""
    if pc.moving:
        raise BlockError("There's a migration process in progress")
    if pc.storage.graph.inactive:
        raise BlockError("The disks are in use by the machine that this one has moved to, or comes from")


# ---- Loading


def load(pc: Pc, name: str, *, vmstate: str | None = None, devices: Sequence[str] | None = None) -> None:
    """Let a machine that does not run, and its disks, be as they were; whether it runs then is the caller's business.

    The state is checked before anything changes.  An error behind that is of the host, and leaves the machine reset.
    """
    _check_at_home(pc)
    storage = pc.storage
    disks = SnapshotDisks(storage, devices)
    disks.check()
    if not disks.have(name):
        raise BlockError(f"Snapshot '{name}' does not exist in one or more devices")
    image = disks.state_image(vmstate)
    snapshot = find(image, name)
    assert snapshot is not None
    if not snapshot.vm_state_size:
        raise BlockError("This is a disk-only snapshot. Revert to it offline using qemu-img")
    storage.drain()
    with storage.quiet():
        saved = _read(pc, image, snapshot)
        for node, kept in disks.images():
            with _told(f"Could not load snapshot '{name}' on '{disks.name(node)}'"):
                _check_unused(storage, node, kept)
        for node, kept in disks.images():
            with _told(f"Could not load snapshot '{name}' on '{disks.name(node)}'"):
                found = find(kept, name)
                assert found is not None
                kept.apply_snapshot(found.identifier, vm_state=False)
        pc.reset_to_load()
        with _told("Error while loading VM state"):
            _clear_memory(pc)
            saved.load()


def _read(pc: Pc, image: Qcow2Node, snapshot: Snapshot) -> SavedMachine:
    from pyvm.migration.vmstate import SavedMachine

    try:
        shown = image.open_snapshot(snapshot.identifier)
        return SavedMachine(pc, shown.read_vmstate, snapshot.vm_state_size)
    except OSError as error:
        raise BlockError(f"Error while loading VM state: {error.strerror}") from None
    except (BlockError, ConfigError) as error:
        raise BlockError(f"Error while loading VM state: {error}") from None


def _clear_memory(pc: Pc) -> None:
    """Let the memory be zeros.  What was made for the guest becomes memory that the host fills in less time."""
    from pyvm.migration.fork_ram import LayeredRam

    pc.memory.clear()
    model, size = pc.model, pc.memory.size
    if model.layered is None and model.memory_fd >= 0 and not model.numa.has_memory:
        layered = LayeredRam(model.main_layers(), pc.memory.mapping)
        layered.discard(0, size)
        model.rest_on(layered)


def _check_unused(storage: Storage, node: Node, image: Qcow2Node) -> None:
    if image.dirty_bitmaps or node.dirty_bitmaps:
        raise BlockError("Device has active dirty bitmaps")
    storage.graph.check_unblocked(node)


def load_and_go_on(pc: Pc, name: str, *, vmstate: str | None = None, devices: Sequence[str] | None = None) -> None:
    """Load a snapshot into a machine, which goes on if it ran; where that raises BlockError, it does not."""
    was_running = pc.lifecycle.states.running
    pc.vm_stop(RunState.RESTORE_VM)
    load(pc, name, vmstate=vmstate, devices=devices)
    if was_running:
        pc.vm_start()


def load_at_start(pc: Pc, name: str) -> None:
    """Load a snapshot into a machine that has just been made, as `-loadvm` asks.  Raises ConfigError."""
    try:
        load(pc, name)
    except BlockError as error:
        raise ConfigError(str(error)) from None


# ---- Listing


def listing(storage: Storage) -> tuple[list[Snapshot], list[tuple[str, list[Snapshot]]]]:
    """Return the snapshots that all disks have, and by drive those that cannot be loaded.  Raises BlockError."""
    disks = SnapshotDisks(storage)
    image = disks.state_image()
    common = [it for it in image.snapshots if disks.have(it.name)]
    names = {it.name for it in common}
    partial = []
    for node, kept in disks.images():
        others = [it for it in kept.snapshots if it.name not in names]
        if others:
            partial.append((storage.graph.drive_of(node), others))
    return common, partial
