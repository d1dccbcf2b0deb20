"""Jobs about snapshots of the whole machine: what savevm, loadvm and delvm do, for clients that want to see jobs.

The work is done in one go in the main loop, soon after the job was started: the machine stands still for it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pyvm.block.jobs.job import Job
from pyvm.block.jobs.waits import Body, Sleep
from pyvm.machine.saved import vm_snapshots

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc


class _SnapshotJob(Job):
    """A job about the snapshot `tag` of the disks `devices`, whose machine's state is kept by the node `vmstate`."""

    def __init__(self, pc: Pc, identifier: str, tag: str, devices: Sequence[str], vmstate: str | None = None) -> None:
        super().__init__(pc.storage.jobs, identifier, auto_dismiss=False)
        self._pc = pc
        self._tag = tag
        self._devices = devices
        self._vmstate = vmstate

    def body(self) -> Body:
        """Do it, once whoever asked has his answer."""
        self.remaining = 1
        yield Sleep(0)
        try:
            self._act()
        finally:
            self.progress(1)

    def _act(self) -> None:
        raise RuntimeError("a job without work")


class SnapshotSaveJob(_SnapshotJob):
    """Saves the machine; a snapshot of that name must not be there."""

    kind: ClassVar[str] = "snapshot-save"

    def _act(self) -> None:
        vm_snapshots.save(self._pc, self._tag, vmstate=self._vmstate, devices=self._devices)


class SnapshotLoadJob(_SnapshotJob):
    """Loads the machine; where that fails, it does not run."""

    kind: ClassVar[str] = "snapshot-load"

    def _act(self) -> None:
        vm_snapshots.load_and_go_on(self._pc, self._tag, vmstate=self._vmstate, devices=self._devices)


class SnapshotDeleteJob(_SnapshotJob):
    """Deletes a snapshot from the disks that have it."""

    kind: ClassVar[str] = "snapshot-delete"

    def _act(self) -> None:
        vm_snapshots.delete(self._pc, self._tag, self._devices)
