"""How a machine comes from another one or from what was saved of it, and goes elsewhere: the wiring for all of these.

What is saved and how is in :mod:`pyvm.migration`; here is when it happens in the life of a machine.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.machine.inspection import Inspection
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.machine.boot import Boot
    from pyvm.machine.lifecycle import Lifecycle
    from pyvm.machine.saved.disk_layers import DiskFamily, Frozen
    from pyvm.machine.saved.fork import ForkedMachine
    from pyvm.machine.saved.migrations import Migrations
    from pyvm.migration.snapshot import Snapshot


class Persistence(Inspection):
    """The part of a machine that outlives it."""

    lifecycle: Lifecycle
    autostart: bool
    _boot: Boot
    _resources: ExitStack
    _temporary: ExitStack
    snapshot: Snapshot | ForkedMachine | None = None
    """What the machine is made of, where it is not a new one."""
    disk_family: DiskFamily | None = None
    """The images that the machine shares with those that were made of it, or of which it was made."""

    @abstractmethod
    def reset_hardware(self) -> None:
        """Reset everything and run the firmware."""

    # ---- Where the machine comes from

    def _find_origin(self) -> None:
        """Take the images from where the machine comes from.  Raises ConfigError."""
        config = self.config
        if config.forked is not None:
            self.snapshot = config.forked
            self.join_family(config.forked.family)
            self.stand_on(config.forked.disks, alone=True)
        elif config.restore is not None:
            from pyvm.migration.snapshot import Snapshot

            self.snapshot = config.saved or Snapshot(config.restore)
            every = config.restore_disks == "overlay"
            wanted = None if every else [it.id for it in config.drives if it.snapshot]
            self.stand_on(self.snapshot.disks(wanted), alone=every)

    def _first_state(self) -> None:
        """Bring the machine, whose devices are there, to where its life begins.  Raises ConfigError."""
        config = self.config
        if config.incoming is not None:
            self._wait_for_migration(config.incoming)
        elif self.snapshot is not None:
            self._restore(self.snapshot)
        elif config.loadvm is None:
            self.reset_hardware()
        if config.loadvm is not None:
            from pyvm.machine.saved.vm_snapshots import load_at_start

            load_at_start(self._pc, config.loadvm)

    def join_family(self, family: DiskFamily) -> None:
        """Share images with other machines until this one is closed."""
        self.disk_family = family
        family.join()
        self._resources.callback(family.leave)

    def stand_on(self, disks: Mapping[str, Frozen], *, alone: bool) -> None:
        """Have temporary images on top of `disks`, whose files are removed as soon as they are open."""
        from pyvm.machine.saved.disk_layers import stand_on

        # Where the machine cannot be made, nobody opens them.
        self._resources.callback(self._temporary.close)
        stand_on(self.config, disks, alone=alone, made=lambda path: self._temporary.callback(os.unlink, path))

    def _restore(self, snapshot: Snapshot | ForkedMachine) -> None:
        """Become the machine that was saved; its RAM is there already."""
        from pyvm.machine.saved.arrival import put_right

        self.reset_to_load()
        snapshot.load(self._pc)
        put_right(self._pc, copied=self.config.forked is not None)

    def _wait_for_migration(self, uri: str) -> None:
        self.reset_to_load()
        self.autostart = not self.config.start_paused
        self.lifecycle.states.set(RunState.INMIGRATE)
        self.migrations.wait_for(uri)

    def reset_to_load(self) -> None:
        """Reset everything, and run no firmware: a saved state is loaded next."""
        self.model.before_reset()
        with self.board.shadow.deferred():
            self.board.reset()
            self.cpus.reset()
        self._boot.restored()

    # ---- Where it goes

    @cached_property
    def migrations(self) -> Migrations:
        """The migrations to somewhere else, and the one from there; made when there is one."""
        from pyvm.machine.saved.migrations import Migrations

        migrations = Migrations(self._pc)
        self._resources.callback(migrations.join)
        self._give_back(migrations.close)
        return migrations

    @property
    def moving(self) -> bool:
        """Whether a migration is under way that needs memory as it is, or has not brought all of it."""
        return "migrations" in vars(self) and self.migrations.busy

    def yank_instances(self) -> list[tuple[dict[str, Any], Callable[[], None]]]:
        """Return the connections that `yank` can tear down."""
        return self.migrations.instances() if "migrations" in vars(self) else []

    def fork(self) -> ForkedMachine:
        """Return this machine, stopped for so long, for another one to be made of; raises SnapshotError."""
        from pyvm.machine.saved.fork import ForkedMachine

        self._check_settled()
        with self._held_up():
            return ForkedMachine(self._pc)

    def _check_settled(self) -> None:
        from pyvm.migration.state_file import SnapshotError

        if self.moving:
            raise SnapshotError("There's a migration process in progress")

    def save_snapshot(self, path: str, arguments: Sequence[str]) -> None:
        """Save the machine in a new folder, stopped for so long; raises SnapshotError, and goes on in any case."""
        from pyvm.migration.snapshot import save_machine

        self._check_settled()
        with self._held_up():
            save_machine(self._pc, path, list(arguments))

    @contextmanager
    def _held_up(self) -> Iterator[None]:
        """Stop the guest for so long, if it runs."""
        running = self.lifecycle.states.running
        self.lifecycle.vm_stop(RunState.SAVE_VM)
        try:
            yield
        finally:
            if running:
                self.lifecycle.vm_start()

    def save_devices(self, path: str) -> None:
        """Save the state of the machine without its memory in a file; raises OSError, and goes on in any case."""
        from pyvm.migration.snapshot import save_devices

        with self._held_up():
            save_devices(self._pc, path)

    def load_devices(self, path: str) -> None:
        """Load such a file into the stopped machine; raises ConfigError."""
        from pyvm.migration.snapshot import load_devices

        load_devices(self._pc, path)
