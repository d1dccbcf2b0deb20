"""The source of a migration that may become one by postcopy: the capability `postcopy-ram`.

It begins as any other.  When somebody asks for it, the guest stops, its state goes over, and memory follows while it
runs over there (:mod:`pyvm.migration.late_pages`).  Until the other side has the state, any failure leaves the source
as it was.  From then on that is the machine, and needs what is here: a migration whose connection breaks is
`postcopy-paused` until somebody has another connection; nothing is lost meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.migration import progress as states
from pyvm.migration.late_pages import LateSource
from pyvm.migration.outgoing import MigrationCancelledError, Outgoing
from pyvm.migration.stream import LATE, StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvm.migration.channel import Channel
    from pyvm.migration.dirty import DirtyPages
    from pyvm.migration.stream import Section, StreamWriter


class PostcopyOutgoing(Outgoing):
    """One migration whose memory may come late."""

    memory_may_follow = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._late: LateSource | None = None
        self._resumed = False
        self._begun = False
        """Whether the other side is the machine, although it does not have all memory yet."""

    # ---- From the main loop

    def cancel(self) -> None:
        """Give it up soon.  Raises ConfigError where the other side is the machine already, and needs this one."""
        if self._begun and self.running:
            raise ConfigError("Postcopy cannot be cancelled: the guest runs on the destination")
        super().cancel()

    def pause(self) -> bool:
        """Break the connection while memory comes late; return whether it does."""
        if self.status != states.POSTCOPY_ACTIVE or not self._begun or self._channel is None:
            return False
        self._channel.abort()
        return True

    def resume(self, connect: Callable[[], Channel]) -> None:
        """Take it up where the connection was broken.  Raises ConfigError where it was not."""
        if self.status != states.POSTCOPY_PAUSED:
            super().resume(connect)
        if self._capabilities["release-ram"]:
            raise ConfigError("Postcopy recovery cannot work when release-ram capability is set")
        self._connect = connect
        self._resumed = True
        self._woken.set()

    def retune(self) -> None:
        """Parameters were changed."""
        if self._late is not None:
            self._late.server.pace(self.parameters["max-postcopy-bandwidth"])

    # ---- The thread

    def _connected(self) -> Channel:
        channel = super()._connected()
        if not channel.two_way:
            channel.close()
            raise ConfigError("Unable to open return-path for postcopy")
        return channel

    def _close_channels(self) -> None:
        if self._late is not None:
            self._late.close()
        super()._close_channels()

    def _let_follow(self, dirty: DirtyPages, writer: StreamWriter, sections: list[Section]) -> None:
        """Send the state, then the rest of guest RAM, while the machine runs on the other side."""
        bits = dirty.take_ram()
        self._send_pass(dirty, limited=False)
        self._end_pass(writer)
        self._count(writer, lambda: writer.record(LATE, bits))
        self._send_state(writer, sections)
        late = self._late = LateSource(dirty.views[0], bits, self._token)
        self.progress.remaining_pages = 0
        self.progress.late = late.server
        self._serve(late)
        late.await_loaded()
        self._loop.call(lambda: self._let_begin(dirty, late))
        while True:
            try:
                late.await_end()
                break
            except (OSError, StreamError):
                if not late.server.begun:  # this is still the machine
                    self._begun, self._stopped = False, True
                    raise
                self._recover(late)
        self._loop.call(self._moved)

    def _serve(self, late: LateSource) -> None:
        assert self._channel is not None
        late.server.pace(self.parameters["max-postcopy-bandwidth"])
        late.serve(self._channel, release=self._capabilities["release-ram"])

    def _let_begin(self, dirty: DirtyPages, late: LateSource) -> None:
        """From now on the other side is the machine; this one has what that still needs."""
        if self._cancelled:
            raise MigrationCancelledError
        self._begun = True
        self._stopped = False
        dirty.end()
        self.progress.going_on()
        late.begin()

    def _recover(self, late: LateSource) -> None:
        """Wait until somebody has a connection again, and go on with it."""
        while True:
            if self._cancelled:
                raise MigrationCancelledError
            self._loop.call(lambda: self._enter(states.POSTCOPY_PAUSED))
            while not self._reconnected():
                self._await_resume()
            self._loop.call(lambda: self._enter(states.POSTCOPY_RECOVER))
            assert self._channel is not None
            try:
                late.take_up(self._channel)
            except (OSError, StreamError):
                continue
            self._serve(late)
            self._loop.call(lambda: self._enter(states.POSTCOPY_ACTIVE))
            return

    def _await_resume(self) -> None:
        while not self._resumed:
            self._woken.wait()
            self._woken.clear()
            if self._cancelled:
                raise MigrationCancelledError

    def _reconnected(self) -> bool:
        """Make a connection, if somebody has said where to; return whether there is one."""
        if not self._resumed:
            return False
        self._resumed = False
        try:
            channel = self._connected()
        except (OSError, ConfigError) as error:
            self._loop.call(lambda reason=str(error): self._host.not_resumed(reason))  # type: ignore[misc]
            return False
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        return True
