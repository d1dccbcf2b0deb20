"""The migrations of a machine: to somewhere else, and the one that it comes from.

:mod:`pyvm.migration.outgoing` and :mod:`pyvm.migration.incoming` know how; here is what a machine has to do with it:
run states, disks, events, and one migration at a time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.errors import ConfigError
from pyvm.machine.saved.throttle import Throttle
from pyvm.migration import progress as states
from pyvm.migration.components import (
    MAIN_RAM,
    check_machine,
    fields_of,
    load_state,
    marks_of_machine,
    memory_of,
    state_of,
)
from pyvm.migration.loop_calls import MainLoopCalls
from pyvm.migration.stream import Section, StreamError
from pyvm.migration.transport import Listening, UnknownProtocolError, connect, parse_uri
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.migration.dirty import DirtyPages
    from pyvm.migration.incoming import Incoming
    from pyvm.migration.outgoing import Outgoing
    from pyvm.migration.transport import TakeFd

_RUN_STATE, _BITMAPS = "runstate", "bitmaps"
_OWN_SECTIONS = frozenset({_RUN_STATE, _BITMAPS})
_JOIN_SECONDS = 5.0
_WAYS_BACK = (RunState.PAUSED, RunState.PRELAUNCH, RunState.POSTMIGRATE)
"""Stopped states that the machine can have again when a migration has failed behind its switch-over."""
DEFER = "defer"


class Migrations:
    """All migrations of one machine.  Methods are called in the main loop, with the machine lock held."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        self.outgoing: Outgoing | None = None
        self.incoming: Incoming | None = None
        self.refused: tuple[str, str] | None = None
        """State and error of the last migration, where that could not even begin."""
        self._loop = MainLoopCalls(pc.mainloop.call_soon)
        self._was_running = False
        self._stopped_in = RunState.PRELAUNCH
        self._quits_on_failure = False
        self._bitmaps: Section | None = None
        self._owns_process = False

    @cached_property
    def _throttle(self) -> Throttle:
        return Throttle(self._pc.cpus, self._pc.lifecycle.states, self._pc.mainloop)

    # ---- For commands

    @property
    def idle(self) -> bool:
        """Whether no migration to somewhere else is under way."""
        return self.outgoing is None or not self.outgoing.running

    @property
    def busy(self) -> bool:
        """Whether a migration is under way that needs the machine's memory as it is, or has not brought all of it."""
        return not self.idle or (self.incoming is not None and self.incoming.incomplete)

    def check_host(self, capability: str) -> None:
        """Raise ConfigError where the host does not allow what is to be switched on."""
        view = memory_of(self._pc)[MAIN_RAM]
        if capability == "postcopy-ram" and self._pc.run_state is RunState.INMIGRATE:
            from pyvm.migration.late_pages import check_memory

            try:
                check_memory(view)
            except OSError as error:
                print(f"pyvm: memory cannot come late here: {error.strerror}", file=sys.stderr)
                raise ConfigError("Postcopy is not supported") from None
        elif capability == "background-snapshot":
            from pyvm.migration.background import check_memory as check_protected

            check_protected(view)

    def migrate(self, uri: str, take_fd: TakeFd) -> None:
        """Begin to move to `uri`.  Raises ConfigError, and what `take_fd` does."""
        self._check_may_move()
        self.refused = None
        self._report(states.SETUP)
        try:
            target = parse_uri(uri)
        except UnknownProtocolError:
            self._refuse("")
            raise
        try:
            make = connect(target, take_fd)
        except Exception as error:
            self._refuse(str(error))
            raise
        kind = _kind_of(self._pc.migration.capabilities)
        self.outgoing = kind(
            self, self._loop, target, make, self._pc.migration, self._outgoing_changed, self._pass_begins
        )
        self._pc.mainloop.call_soon(self.outgoing.start)

    def resume(self, uri: str, take_fd: TakeFd) -> None:
        """Go on with a migration whose memory comes late, and whose connection has broken.  Raises ConfigError."""
        if self.outgoing is None:
            raise ConfigError("Cannot resume if there is no paused migration")
        self.outgoing.resume(connect(parse_uri(uri), take_fd))

    def pause(self) -> None:
        """Break the connection of a migration whose memory comes late.  Raises ConfigError where there is none."""
        paused = [one.pause() for one in (self.outgoing, self.incoming) if one is not None]
        if not any(paused):
            raise ConfigError("migrate-pause is currently only supported during postcopy-active state")

    def recover(self, uri: str, take_fd: TakeFd) -> None:
        """Let a migration whose connection has broken come in from elsewhere.  Raises ConfigError, OSError."""
        if self.incoming is None:
            raise ConfigError("Migrate recover can only be run when postcopy is paused.")
        self.incoming.recover(lambda: Listening(parse_uri(uri), take_fd))
        self._report(states.SETUP)

    def _refuse(self, error: str) -> None:
        self.outgoing = None
        self.refused = states.FAILED, error
        self._report(states.FAILED)

    def _check_may_move(self) -> None:
        pc = self._pc
        if self.busy:
            raise ConfigError("There's a migration process in progress")
        if pc.run_state is RunState.INMIGRATE:
            raise ConfigError("Guest is waiting for an incoming migration")
        if pc.run_state is RunState.POSTMIGRATE:
            raise ConfigError("Can't migrate the vm that was paused due to previous migration")
        for name, text in _MISSING.items():
            if pc.migration.capabilities[name]:
                raise ConfigError(text)

    def listen(self, uri: str, take_fd: TakeFd, *, quit_on_failure: bool = True) -> None:
        """Let a migration come in from `uri`; the machine waits for one.  Raises ConfigError, OSError."""
        from pyvm.migration.incoming import Incoming

        listening = Listening(parse_uri(uri), take_fd)
        self._quits_on_failure = quit_on_failure
        self.incoming = Incoming(self, self._loop, listening, self._report)
        self._report(states.SETUP)
        self._pc.mainloop.call_soon(self.incoming.start)

    def wait_for(self, uri: str) -> None:
        """Let a migration come in from what the command line says.  Raises ConfigError."""
        if uri != DEFER:
            try:
                self.listen(uri, _inherited)
            except (OSError, ConfigError) as error:
                raise ConfigError(f"-incoming {uri}: {error}") from None

    def instances(self) -> list[tuple[dict[str, Any], Callable[[], None]]]:
        """Return what `yank` can tear down."""
        for one in (self.outgoing, self.incoming):
            if one is not None and one.status in states.RUNNING:
                return [({"type": "migration"}, one.abort)]
        return []

    def close(self) -> None:
        """The machine ends."""
        self._loop.end()
        self._throttle.set(0)
        if self.outgoing is not None:
            self.outgoing.close()
        if self.incoming is not None:
            self.incoming.abort()

    def join(self) -> None:
        """Wait for the threads, once the machine has ended; without the machine lock."""
        for one in (self.outgoing, self.incoming):
            if one is not None:
                one.join(_JOIN_SECONDS)

    def before_start(self) -> None:
        """The guest is to run: have the disks.  Raises QmpError where another process has them."""
        if self._pc.storage.graph.inactive:
            from pyvm.block.activation import take_disks
            from pyvm.monitor.errors import QmpError

            try:
                take_disks(self._pc.storage)
            except BlockError as error:
                raise QmpError(str(error)) from None

    # ---- What clients see and hear

    @property
    def status(self) -> str:
        """The state of the migration to somewhere else."""
        if self.refused is not None:
            return self.refused[0]
        return states.NONE if self.outgoing is None else self.outgoing.status

    def info(self) -> dict[str, Any]:
        """Return a MigrationInfo."""
        info: dict[str, Any] = {}
        if self.incoming is not None:
            if self.incoming.addresses and self.incoming.status in states.RUNNING:
                info["socket-address"] = self.incoming.addresses
            if self.incoming.status != states.SETUP or not self.incoming.addresses:
                info["status"] = self.incoming.status
            self._add_waits(info, self.incoming)
        if self.status != states.NONE:
            info["status"] = self.status
            self._add_figures(info)
        return info

    def _add_waits(self, info: dict[str, Any], arrived: Incoming) -> None:
        """Add for how long the processors have waited for memory; they take turns, and so wait together."""
        if arrived.waited is not None and self._pc.migration.capabilities["postcopy-blocktime"]:
            info["postcopy-blocktime"] = arrived.waited
            info["postcopy-vcpu-blocktime"] = [arrived.waited] * self._pc.cpus.count

    def _add_figures(self, info: dict[str, Any]) -> None:
        if self.refused is not None:
            if self.refused[1]:
                info["error-desc"] = self.refused[1]
            return
        moving = self.outgoing
        assert moving is not None
        if moving.error and moving.status == states.FAILED:
            info["error-desc"] = moving.error
        if not states.shows_figures(moving.status):
            return
        capabilities, progress = self._pc.migration.capabilities, moving.progress
        info.update(progress.times())
        info["ram"] = progress.ram(multifd=capabilities["multifd"])
        if moving.cache is not None:
            size = self._pc.migration.parameters["xbzrle-cache-size"]
            info["xbzrle-cache"] = moving.cache.figures(size, progress.passes)
        if capabilities["compress"]:
            info["compression"] = progress.compression()
        if progress.throttle and moving.status != states.COMPLETED:
            info["cpu-throttle-percentage"] = progress.throttle

    def _report(self, status: str) -> None:
        if self._pc.migration.capabilities["events"]:
            self._pc.events.emit("MIGRATION", {"status": status})

    def _outgoing_changed(self, status: str) -> None:
        self._report(status)
        if status == states.FAILED and self.outgoing is not None and self.outgoing.error:
            with suppress(OSError):
                print(f"pyvm: {self.outgoing.error}", file=sys.stderr)

    def _pass_begins(self, number: int) -> None:
        if self._pc.migration.capabilities["events"]:
            self._pc.events.emit("MIGRATION_PASS", {"pass": number})

    # ---- As either

    @staticmethod
    def prepare() -> None:
        """Load what moving needs: not all machines move, and one that does should not stand still for it."""
        import numpy as np  # noqa: F401

        from pyvm.block import activation, jobs  # noqa: F401
        from pyvm.migration import bitmaps, dirty  # noqa: F401
        from pyvm.net import announce  # noqa: F401

    # ---- As the source

    def header(self) -> dict[str, Any]:
        """Return what the header of the stream says of the machine."""
        pc = self._pc
        return {**marks_of_machine(pc), "uuid": pc.uuid, "sections": ["clock", "cpus", *pc.board.components]}

    def dirty_pages(self) -> DirtyPages:
        """Return what knows which pages are to be sent."""
        from pyvm.migration.dirty import DirtyPages

        return DirtyPages(memory_of(self._pc), self._pc.cpus, self._pc.model.memory_fd)

    def not_resumed(self, reason: str) -> None:
        """A migration whose connection was broken could not be taken up."""
        with suppress(OSError):
            print(f"pyvm: {reason}", file=sys.stderr)

    def check_movable(self) -> None:
        """Raise ConfigError where something keeps the machine from moving just now."""
        if self._pc.run_state is RunState.SAVE_VM or self._pc.run_state is RunState.RESTORE_VM:
            raise ConfigError("the machine is being saved or restored")

    def stop_to_move(self) -> None:
        """Stop the guest: from now on nothing changes but by this migration."""
        pc = self._pc
        self._was_running = pc.lifecycle.states.running
        self._stopped_in = pc.run_state
        if self._was_running:
            pc.vm_stop(RunState.FINISH_MIGRATE)
        elif self._stopped_in in _WAYS_BACK:
            pc.lifecycle.states.set(RunState.FINISH_MIGRATE)

    def hold(self) -> None:
        """Let nothing change for a moment: the guest stops, and disks have no requests under way."""
        pc = self._pc
        self._was_running = pc.lifecycle.states.running
        self._stopped_in = pc.run_state
        pc.vm_stop(RunState.PAUSED)
        pc.storage.settle()

    def let_go(self) -> None:
        """The guest goes on as it was."""
        if self._was_running:
            self._pc.vm_start()

    def pin_memory(self, pinned: bool) -> None:
        """Have devices give no memory back to the host, or let them do so again."""
        self._pc.memory.pinned = pinned

    def give_disks_up(self) -> None:
        """Let another process have the disks.  Raises ConfigError."""
        from pyvm.block.activation import give_disks_up
        from pyvm.migration.bitmaps import moved_bitmaps

        if self._pc.storage.jobs.blocks_migration:
            raise ConfigError("block jobs are at work on the disks")
        if not self._pc.storage.graph.inactive:
            with moved_bitmaps(self._pc.storage, enabled=self._pc.migration.capabilities["dirty-bitmaps"]):
                give_disks_up(self._pc.storage)

    def sections(self) -> list[Section]:
        """Return the state of all that is not memory."""
        sections = [Section(name, value) for name, value in state_of(self._pc).items()]
        sections.append(Section(_RUN_STATE, {"state": self._stopped_in.value}))
        if self._pc.migration.capabilities["dirty-bitmaps"]:
            from pyvm.migration.bitmaps import save_bitmaps

            sections.append(Section(_BITMAPS, save_bitmaps(self._pc.storage.graph, self._pc.migration.parameters)))
        return sections

    def moved(self) -> None:
        """The other side is the machine now."""
        holder = self._pc.lifecycle.states
        if not holder.allowed(RunState.POSTMIGRATE):
            holder.set(RunState.FINISH_MIGRATE)
        holder.set(RunState.POSTMIGRATE)

    def stay(self) -> None:
        """It has failed: take the disks back, and run if the guest ran."""
        holder = self._pc.lifecycle.states
        if self._was_running:
            try:
                self._pc.vm_start()
            except Exception as error:  # noqa: BLE001 - a disk that somebody else took: the machine stays, stopped
                print(f"pyvm: the guest cannot go on: {error}", file=sys.stderr)
            else:
                return
        with suppress(Exception):
            self.before_start()
        _return_to(holder, self._stopped_in)

    def slow_down(self, percentage: int) -> None:
        """Let the guest run for less of the time."""
        self._throttle.set(percentage)

    # ---- As the destination

    def memory(self) -> Mapping[str, memoryview]:
        """Return the blocks of memory; guest RAM is all zeros."""
        self._pc.memory.clear()
        return memory_of(self._pc)

    def check_header(self, header: Mapping[str, Any]) -> None:
        """Raise ConfigError unless the source is a machine of the same make."""
        pc = self._pc
        for name, value in marks_of_machine(pc).items():
            if header.get(name) != value:
                raise StreamError(f"the source has {name} {header.get(name)!r}, not {value!r}")
        if header.get("late") is True and not pc.migration.capabilities["postcopy-ram"]:
            raise StreamError("the source may send memory late, which needs the capability postcopy-ram here as well")
        if pc.migration.capabilities["validate-uuid"] and header.get("uuid") != pc.uuid:
            raise StreamError(f"UUID received is {header.get('uuid')} and local is {pc.uuid}")

    def load(self, header: Mapping[str, Any], sections: Mapping[str, Section]) -> None:
        """Take the state of all components over.  Raises StateError."""
        pc = self._pc
        values = fields_of(pc, sections.values(), _OWN_SECTIONS)
        check_machine(pc, header, values)
        self._stopped_in = _run_state(sections.get(_RUN_STATE))
        self._bitmaps = sections.get(_BITMAPS)
        if self._bitmaps is not None:
            from pyvm.migration.bitmaps import check_bitmaps

            check_bitmaps(self._bitmaps.fields)
        load_state(pc, values)

    def arrived(self) -> None:
        """It is the machine now: use the disks, and run if it is to.  Raises ConfigError."""
        pc = self._pc
        self._owns_process = threading.current_thread() is threading.main_thread()
        runs = self._stopped_in is RunState.RUNNING and pc.autostart
        late = pc.migration.capabilities["late-block-activate"] and not runs
        if pc.storage.graph.inactive and not late:
            from pyvm.block.activation import take_disks

            take_disks(pc.storage)
        if self._bitmaps is not None:
            from pyvm.migration.bitmaps import load_bitmaps

            load_bitmaps(pc.storage.graph, self._bitmaps.fields, pc.migration.parameters)
        if runs:
            pc.vm_start()
            self._announce()
        else:
            state = RunState.PAUSED if self._stopped_in is RunState.RUNNING else self._stopped_in
            _return_to(pc.lifecycle.states, state)

    def _announce(self) -> None:
        """Tell the network where the guest's cards are now."""
        from pyvm.net.announce import AnnounceTimes

        given = self._pc.migration.parameters
        times = AnnounceTimes(*(given[f"announce-{name}"] for name in ("initial", "max", "rounds", "step")))
        self._pc.network.announce(times, None, "")

    def lost(self, reason: str) -> None:
        """Nothing has come of it: the machine ends, as it is none."""
        with suppress(OSError):
            print(f"pyvm: load of migration failed: {reason}", file=sys.stderr)
        if self._quits_on_failure:
            self._pc.lifecycle.exit_status = 1
            self._pc.lifecycle.end()

    def processor(self) -> int:
        """Return the id of the thread that runs guest code, 0 where there is none."""
        return self._pc.cpus.thread_id

    def gone(self) -> bool:
        """Return whether the machine is about to end; in any thread."""
        return self._pc.lifecycle.ended

    def give_up(self) -> None:
        """The machine ends, and somebody waits for memory that will not come; in the thread of the migration.

        A device may be writing such memory to a disk, which must not become zeros.  So the process ends as it is, where
        it is that machine's; otherwise those who wait go on with zeros.
        """
        if self._owns_process:
            with suppress(OSError):
                print("pyvm: the machine ends without memory that has not come", file=sys.stderr, flush=True)
            os._exit(1)


def _kind_of(capabilities: Mapping[str, bool]) -> type[Outgoing]:
    """Return which kind of migration the capabilities ask for."""
    if capabilities["background-snapshot"]:
        from pyvm.migration.background import BackgroundSnapshot

        return BackgroundSnapshot
    if capabilities["postcopy-ram"]:
        from pyvm.migration.outgoing_late import PostcopyOutgoing

        return PostcopyOutgoing
    from pyvm.migration.outgoing import Outgoing

    return Outgoing


_MISSING = {
    "x-colo": "COLO is not supported by pyvm",
    "block": "Block migration is not supported by pyvm: copy disks with drive-mirror or blockdev-mirror",
    "postcopy-preempt": "Postcopy preempt is not supported by pyvm",
    "zero-copy-send": "Zero copy is not supported by pyvm",
    "x-ignore-shared": "ignore-shared is not supported by pyvm",
}
"""Capabilities that can be switched on, with which no migration can begin, and why."""


def _inherited(name: str) -> int:
    """Return the descriptor of a number that this process inherited.  Raises ConfigError."""
    try:
        number = int(name)
        os.fstat(number)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"'{name}' is no open file descriptor") from None
    return number


def _run_state(section: Section | None) -> RunState:
    fields = section.fields if section is not None else None
    try:
        return RunState(fields["state"]) if isinstance(fields, dict) else RunState.RUNNING
    except (KeyError, ValueError):
        raise StreamError("the section with the run state makes no sense") from None


def _return_to(holder: Any, state: RunState) -> None:
    """Go to a state in which the machine does not run; to `paused` where there is no way."""
    holder.set(state if holder.allowed(state) else RunState.PAUSED)
