"""The destination of a migration: takes memory and state in, and becomes the machine.

A thread of its own fills memory; what it reads is checked before it is believed, and whatever is wrong ends the machine
with one line that says what.  State is loaded in the main loop when all of it has come.  Where the source can be
answered, it is told that this machine is ready, and only its word makes this one run.

Memory may come behind all that, while the machine runs (:mod:`pyvm.migration.late_pages`).  A connection that breaks
then is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.errors import ConfigError
from pyvm.memory import PAGE_SIZE
from pyvm.migration import progress as states
from pyvm.migration.components import MAIN_RAM
from pyvm.migration.loop_calls import MachineEndedError, MainLoopCalls
from pyvm.migration.multifd import TOKEN_SIZE, Receivers
from pyvm.migration.pages import PageReader, Target
from pyvm.migration.stream import (
    ANSWER_LIMIT,
    DONE,
    FAILED_ANSWER,
    LATE,
    LOADED_ANSWER,
    OPTIONAL,
    PAGES,
    SECTION,
    START_ORDER,
    SYNC,
    RecordHead,
    RecordReader,
    Section,
    StreamError,
    StreamReader,
    pack_record,
    parse_section,
)
from pyvm.migration.worker import MigrationThread

if TYPE_CHECKING:
    from pyvm.migration.channel import Channel
    from pyvm.migration.late_pages import LateTarget
    from pyvm.migration.transport import Listening

_CHANNELS_LIMIT = 255
_PATIENCE = 5.0
"""Seconds that a machine has to end whose memory is not all there."""
_STATE_LIMIT = 256 << 20
"""Most bytes of state that are kept before they are loaded."""


class Guest(Protocol):
    """The machine that is to be.  Called in the main loop, with the machine lock held, but for :meth:`prepare`."""

    def prepare(self) -> None:
        """Load what all of it needs, before anybody waits for it; called in the thread of the migration."""

    def memory(self) -> Mapping[str, memoryview]:
        """Return the blocks of memory; guest RAM is all zeros."""

    def check_header(self, header: Mapping[str, Any]) -> None:
        """Raise ConfigError or StateError unless the source is a machine of the same make."""

    def load(self, header: Mapping[str, Any], sections: Mapping[str, Section]) -> None:
        """Take the state of all components over.  Raises ConfigError or StateError."""

    def arrived(self) -> None:
        """It is the machine now: use the disks, and run if it is to.  Raises ConfigError."""

    def lost(self, reason: str) -> None:
        """Nothing has come of it."""

    def processor(self) -> int:
        """Return the id of the thread that runs guest code, 0 where there is none; while memory comes late."""

    def gone(self) -> bool:
        """Return whether the machine is about to end; in any thread."""

    def give_up(self) -> None:
        """The machine ends, and somebody waits for memory that will not come; in the thread of the migration."""


class Incoming(MigrationThread):
    """One migration from somewhere else; made in the main loop, where `listening` waits for it already."""

    def __init__(
        self, guest: Guest, loop: MainLoopCalls, listening: Listening, on_status: Callable[[str], None]
    ) -> None:
        super().__init__("migration-incoming", on_status)
        self._guest = guest
        self._loop = loop
        self._listening = listening
        self.addresses = listening.addresses
        """Where it listens."""
        self._channel: Channel | None = None
        self._receivers: Receivers | None = None
        self._sections: dict[str, Section] = {}
        self._section_bytes = 0
        self._aborted = False
        self._expected: tuple[memoryview, bytearray, bytes] | None = None
        """Guest RAM, which pages of it come late, and by what another connection is known."""
        self._late: LateTarget | None = None
        self._seen_going = 0.0
        self.waited: int | None = None
        """For how long the processors have waited for memory that came late, in ms, once all is there."""

    @property
    def connected(self) -> bool:
        """Whether the source has come."""
        return self.status == states.ACTIVE

    def abort(self) -> None:
        """Tear its connections down; from any thread."""
        self._aborted = True
        self._listening.abort()
        if self._channel is not None:
            self._channel.abort()
        if self._receivers is not None:
            self._receivers.abort()
        if self._late is not None:
            self._late.interrupt()

    @property
    def incomplete(self) -> bool:
        """Whether the machine runs, and memory is still to come."""
        return self.status in states.POSTCOPY

    def pause(self) -> bool:
        """Break the connection while memory comes late; return whether it does."""
        if self.status != states.POSTCOPY_ACTIVE or self._late is None:
            return False
        self._late.interrupt()
        return True

    def recover(self, listen: Callable[[], Listening]) -> None:
        """Go on with a connection from somewhere else.  Raises ConfigError, OSError."""
        if self.status != states.POSTCOPY_PAUSED or self._late is None:
            raise ConfigError("Migrate recover can only be run when postcopy is paused.")
        self._listening.close()
        self._listening = listen()
        self.addresses = self._listening.addresses
        if self.addresses:
            self._late.listen(self._listening)
            return
        channel = self._listening.accept()
        try:
            if not channel.two_way:
                raise ConfigError("Unable to open return-path for postcopy")
            self._late.take_up(channel)
        finally:
            channel.close()

    # ---- The thread

    def _main(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - whatever a stream leads to: this machine is none, and says why
            reason = (error.strerror if isinstance(error, OSError) and error.strerror else None) or str(error)
            self._tell(reason)
            with suppress(MachineEndedError):
                self._loop.call(lambda: self._lose(reason))
        finally:
            if self._late is not None:
                self._late.close()
            if self._receivers is not None:
                self._receivers.close()
            if self._channel is not None:
                self._channel.close()
            self._listening.close()

    def _tell(self, reason: str) -> None:
        if self._late is not None:
            self._late.failed(reason)
        elif self._channel is not None and self._channel.two_way:
            text = reason.encode(errors="replace")[:ANSWER_LIMIT]
            with suppress(OSError):
                self._channel.writelines([pack_record(FAILED_ANSWER, text), text])

    def _lose(self, reason: str) -> None:
        self._enter(states.FAILED)
        if not self._aborted:
            self._guest.lost(reason)

    def _run(self) -> None:
        self._guest.prepare()
        channel = self._channel = self._listening.accept()
        if self._aborted:
            raise OSError("nobody waits for a migration any more")
        self._loop.call(lambda: self._enter(states.ACTIVE))
        reader = StreamReader(channel)
        header = reader.header
        answers = header.get("answers") is True
        if answers and not channel.two_way:
            raise StreamError("the source wants an answer, which cannot be given from here")
        self._loop.call(lambda: self._guest.check_header(header))
        views = self._blocks(header, self._loop.call(self._guest.memory))
        self._accept_more(header, views)
        self._read_all(reader, PageReader(views), views[0])
        if self._expected is not None:
            self._follow(header, *self._expected)
            return
        self._loop.call(lambda: self._guest.load(header, self._sections))
        if answers:
            channel.write(pack_record(LOADED_ANSWER))
            self._await_order(reader)
        self._loop.call(self._arrive)

    def _arrive(self) -> None:
        if not self._aborted:
            self._guest.arrived()
            self._enter(states.COMPLETED)

    def _await_order(self, reader: RecordReader) -> None:
        head = reader.head()
        reader.body(head)
        if head.kind != START_ORDER:
            raise StreamError("the source said something that makes no sense")

    @staticmethod
    def _blocks(header: Mapping[str, Any], memory: Mapping[str, memoryview]) -> list[Target]:
        """Return the blocks in the order of the source.  Raises StreamError."""
        listed = header.get("ram")
        if header.get("page-size") != PAGE_SIZE or not isinstance(listed, list):
            raise StreamError("the header lists no memory")
        views: list[Target] = []
        for entry in listed:
            match entry:
                case [str(name), int(size)]:
                    view = memory.get(name)
                    if view is None:
                        raise StreamError(f"there is no block of RAM '{name}' here")
                    if len(view) != size:
                        raise StreamError(f"the block of RAM '{name}' has {len(view):#x} bytes here, not {size:#x}")
                    views.append(Target(view, zeros=name == MAIN_RAM))
                case _:
                    raise StreamError("the header lists something that is no memory")
        if len(views) != len(memory):
            raise StreamError("the header does not list all memory")
        return views

    def _accept_more(self, header: Mapping[str, Any], views: list[Target]) -> None:
        count, token = header.get("channels"), header.get("token")
        if not isinstance(count, int) or not 0 <= count <= _CHANNELS_LIMIT:
            raise StreamError("the header has no number of connections")
        if not count:
            return
        if not isinstance(token, bytes) or len(token) != TOKEN_SIZE:
            raise StreamError("the header has nothing to know other connections by")
        self._receivers = Receivers(views, count)
        while self._receivers.missing:
            self._receivers.add(self._listening.accept(), token)

    def _read_all(self, reader: StreamReader, pages: PageReader, ram: Target) -> None:
        while True:
            head = reader.head()
            if head.kind == PAGES:
                pages.read(head, reader)
                continue
            body = reader.body(head)
            if head.kind == DONE:
                return
            if head.kind == LATE and reader.header.get("late") is True and self._expected is None:
                self._expect(ram, body, reader.header.get("token"))
                continue
            self._read_other(head, body)

    def _read_other(self, head: RecordHead, body: bytearray) -> None:
        if head.kind == SECTION:
            self._section_bytes += len(body)
            if self._section_bytes > _STATE_LIMIT:
                raise StreamError("the source has more state than a machine can have")
            section = parse_section(head, body)
            if section.name in self._sections:
                raise StreamError(f"section '{section.name}' comes twice")
            self._sections[section.name] = section
        elif head.kind == SYNC and self._receivers is not None:
            self._receivers.sync()
        elif not head.flags & OPTIONAL:
            raise StreamError(f"a record of kind {bytes(head.kind)!r}, which is not known")

    # ---- When memory follows

    def _expect(self, ram: Target, bits: bytearray, token: Any) -> None:
        """Take the list of the pages that come behind the machine.  Raises StreamError."""
        from pyvm.migration.late_pages import bits_size

        if len(bits) != bits_size(len(ram.view)) or not isinstance(token, bytes) or len(token) != TOKEN_SIZE:
            raise StreamError("the list of pages that come late makes no sense")
        self._expected = ram.view, bits, token
        self._loop.call(lambda: self._enter(states.POSTCOPY_ACTIVE))

    def _follow(self, header: Mapping[str, Any], ram: memoryview, bits: bytearray, token: bytes) -> None:
        """Become the machine, and take memory meanwhile."""
        from pyvm.migration.late_pages import LateTarget

        assert self._channel is not None
        late = self._late = LateTarget(ram, bits, token, self._channel)
        late.listen(self._listening)
        self._loop.call(lambda: self._guest.load(header, self._sections))
        late.loaded()
        state, error = late.wait()
        while state == "loading":
            state, error = late.wait()
        if state == "failed":
            raise StreamError(error)
        self._loop.call(self._begin)
        while state != "complete":
            self._follow_state(state)
            state, _ = late.wait()
            if self._aborted or self._is_stuck(state):
                return
        self.waited = late.waited
        self._loop.call(lambda: self._enter(states.COMPLETED))

    def _is_stuck(self, state: str) -> bool:
        """Return whether the machine cannot end because somebody waits for memory that will not come."""
        now = time.monotonic()
        if state != "paused" or not self._guest.gone():
            self._seen_going = now
            return False
        if now - self._seen_going > _PATIENCE:
            self._guest.give_up()
            return True
        return False

    def _begin(self) -> None:
        if not self._aborted:
            self._guest.arrived()
            if self._late is not None:
                self._late.watch(self._guest.processor())

    def _follow_state(self, state: str) -> None:
        """Tell of a connection that has broken, or was taken up."""
        if state == "paused" and self.status == states.POSTCOPY_ACTIVE:
            self._loop.call(lambda: self._enter(states.POSTCOPY_PAUSED))
        elif state == "running" and self.status == states.POSTCOPY_PAUSED:
            self._loop.call(lambda: self._enter(states.POSTCOPY_RECOVER))
            self._loop.call(lambda: self._enter(states.POSTCOPY_ACTIVE))
