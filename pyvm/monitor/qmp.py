"""The QMP server: one monitor on a character device, and a session for each client that connects to it.

    chardev -> QmpMonitor -> QmpSession: parser -> Dispatcher -> reply -> output queue -> chardev
                                 EventBus -> event ----------------^

A session begins in capabilities negotiation and ends with its connection; the next client finds nothing of it.  Any
number of monitors serve clients at once.  A client that does not read holds nobody up: its replies wait in a queue, its
input is not read while that is long, and events are dropped once it is very long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.json.reader import BUSY, INCOMPLETE, JsonError, MessageParser
from pyvm.json.writer import encode, encode_pieces
from pyvm.monitor.commands.control import version_info
from pyvm.monitor.descriptors import NamedFds, first_fd
from pyvm.monitor.dispatcher import Dispatcher, Reply
from pyvm.monitor.errors import COMMAND_NOT_FOUND, QmpError
from pyvm.monitor.events import EventBus, EventMessage
from pyvm.monitor.machine import Scheduler

CHUNK = 2048
"""Most bytes that are taken from a client in one turn, so that looking at them keeps nobody waiting for long."""
TURN = 16
"""Most requests of one client that are executed before others get their turn."""
QUEUED_REQUESTS = 8
"""Most requests that wait in a session with out-of-band execution; without it, one does."""
OUTPUT_LIMIT = 256 << 10
"""Bytes of unread output beyond which a client's input is not read any more."""
REFILLS = 8
"""Most pieces of a long message that are made in one turn."""
EVENT_LIMIT = 4 << 20
"""Bytes of unread output beyond which a client's events are dropped."""

OOB = "oob"


class SessionState(Enum):
    """Where a session is."""

    NEGOTIATION = "negotiation"
    """The greeting is sent; only `qmp_capabilities` exists, and no events come."""
    COMMAND = "command"
    """All commands may be executed."""
    CLOSED = "closed"
    """The client is gone; whatever is still executed for it is not replied to."""


class _Output:
    """What a client has not taken yet."""

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._pending = bytearray()
        self._later: deque[bytes | Iterator[bytes]] = deque()
        """What follows: the rest of a long message is made when the client takes it."""

    def __len__(self) -> int:
        rest = len(self._later) * OUTPUT_LIMIT if self._later and not isinstance(self._later[0], bytes) else 0
        return len(self._pending) + sum(len(entry) for entry in self._later if isinstance(entry, bytes)) + rest

    def send(self, data: bytes) -> None:
        """Write `data`, behind what waits."""
        if self._later:
            self._later.append(data)
            return
        taken = 0 if self._pending else self._chardev.write(data)
        if taken < len(data):
            self._pending += data[taken:]

    def send_later(self, pieces: Iterator[bytes]) -> None:
        """Write a long message behind what waits, in the course of the next calls of :meth:`flush`."""
        self._later.append(pieces)

    def flush(self) -> bool:
        """Write what waits, as far as the back end takes it; return whether to go on when others had their turn."""
        for _ in range(REFILLS):
            while self._pending:
                taken = self._chardev.write(bytes(self._pending[:OUTPUT_LIMIT]))
                if not taken:
                    return False
                del self._pending[:taken]
            if not self._refill():
                return False
        return True

    def _refill(self) -> bool:
        """Take up what follows; return whether there was anything."""
        while self._later:
            entry = self._later[0]
            piece = entry if isinstance(entry, bytes) else next(entry, None)
            if piece is None or isinstance(entry, bytes):
                self._later.popleft()
            if piece:
                self._pending += piece
                return True
        return False

    def clear(self) -> None:
        """Drop what waits: the client is gone."""
        self._pending.clear()
        self._later.clear()


class QmpSession:
    """One client's conversation, from its connection to its disconnection."""

    def __init__(self, monitor: QmpMonitor, dispatcher: Dispatcher, output: _Output) -> None:
        self.state = SessionState.NEGOTIATION
        self.capabilities: frozenset[str] = frozenset()
        self._monitor = monitor
        self._dispatcher = dispatcher
        self._output = output
        self._parser = MessageParser(sliced=True)
        self._requests = 0
        """Requests that wait or are being executed."""
        self._yielded = False
        """The client has had its turn; the rest of its input follows after others'."""
        self._proceeding = False
        self._dropped = False

    @property
    def negotiating(self) -> bool:
        """Whether capabilities are not negotiated yet."""
        return self.state is SessionState.NEGOTIATION

    @property
    def oob_enabled(self) -> bool:
        """Whether out-of-band execution was negotiated."""
        return OOB in self.capabilities

    @property
    def suspended(self) -> bool:
        """Whether no input is looked at for now."""
        limit = QUEUED_REQUESTS if self.oob_enabled else 1
        return self._yielded or self._requests >= limit or len(self._output) > OUTPUT_LIMIT

    def greet(self) -> None:
        """Open the conversation."""
        offered = [OOB] if self._monitor.offer_oob else []
        self._send({"QMP": {"version": version_info(), "capabilities": offered}})

    def enable_capabilities(self, names: Iterable[str]) -> None:
        """Leave capabilities negotiation with these capabilities.

        Raises :class:`QmpError` where it is over already, or one is not offered.
        """
        if self.state is not SessionState.NEGOTIATION:
            raise QmpError("Capabilities negotiation is already complete, command ignored", COMMAND_NOT_FOUND)
        wanted = frozenset(names)
        if OOB in wanted and not self._monitor.offer_oob:
            raise QmpError(f"Capability {OOB} not available")
        self.capabilities = wanted
        self.state = SessionState.COMMAND

    @property
    def named_fds(self) -> NamedFds:
        """The descriptors that clients of this monitor gave names to."""
        return self._monitor.named_fds

    def take_fd(self) -> int | None:
        """Return the descriptor that the client passed last, which the caller closes; None where there is none."""
        return self._monitor.take_fd()

    def receive(self, data: bytes) -> None:
        """Take input."""
        begun = self._dispatcher.pace.begin()
        self._parser.feed(data)
        self._proceed_from(begun)
        if len(data) >= CHUNK:
            self._yield()

    def proceed(self) -> None:
        """Look at the input until it is used up, the session is suspended, or its turn is over."""
        self._proceed_from(self._dispatcher.pace.begin())

    def _proceed_from(self, begun: float) -> None:
        if self._proceeding:
            return
        self._proceeding = True
        try:
            self._proceed(begun)
        finally:
            self._proceeding = False
            self._dispatcher.pace.charge(begun)

    def _proceed(self, begun: float) -> None:
        turn = TURN
        while self.state is not SessionState.CLOSED and not self.suspended:
            if not turn or (turn < TURN and self._dispatcher.pace.over(begun)):
                self._yield()
                return
            turn -= 1
            try:
                request = self._parser.next()
            except JsonError as error:
                request = QmpError(str(error))
            if request is INCOMPLETE:
                return
            if request is BUSY:
                self._yield()
                return
            self._requests += 1
            if type(request) is dict and "exec-oob" in request and "execute" not in request:
                self.reply(self._dispatcher.execute_at_once(self, request))
            else:
                self._dispatcher.submit(self, request)

    def _yield(self) -> None:
        """Let others have their turn."""
        if not self._yielded:
            self._yielded = True
            self._monitor.scheduler.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        if pause := self._dispatcher.pace.pause():
            self._monitor.scheduler.call_later(pause, self._next_turn)
            return
        self._yielded = False
        self._monitor.resume()

    def reply(self, reply: Reply) -> None:
        """Send a reply."""
        if self.state is SessionState.CLOSED:
            return
        self._requests -= 1
        self._send(reply)
        if not self._proceeding and not self.suspended:
            self._monitor.scheduler.call_soon(self._monitor.resume)

    def event(self, event: EventMessage) -> None:
        """Send an event, where the client is ready for events and has not stopped reading."""
        if self.state is not SessionState.COMMAND:
            return
        if len(self._output) <= EVENT_LIMIT:
            self._output.send(event.text(self._monitor.pretty))
        elif not self._dropped:
            self._dropped = True
            import logging

            logging.getLogger(__name__).warning("a QMP client does not read; its events are dropped")

    def _send(self, message: dict[str, Any]) -> None:
        pieces = encode_pieces(message, self._monitor.pretty)
        if pieces is None:
            self._output.send(encode(message, self._monitor.pretty))
        else:
            self._output.send_later(pieces)
            self._monitor.write_soon()

    def close(self) -> None:
        """End the conversation: the client is gone."""
        self.state = SessionState.CLOSED
        self._dispatcher.withdraw(self)


class QmpMonitor:
    """A QMP server on one character device; a front end as :class:`pyvm.chardev.base.Frontend` says."""

    def __init__(
        self,
        chardev: Chardev,
        dispatcher: Dispatcher,
        events: EventBus,
        scheduler: Scheduler,
        *,
        pretty: bool = False,
        offer_oob: bool = True,
    ) -> None:
        """Serve the clients of `chardev`, one after another; `pretty` puts messages on several lines.

        Raises ValueError where another front end has the device.
        """
        self.scheduler = scheduler
        self.pretty = pretty
        self.offer_oob = offer_oob
        self.session: QmpSession | None = None
        self.named_fds = NamedFds()
        self._chardev = chardev
        self._dispatcher = dispatcher
        self._output = _Output(chardev)
        self._writing = False
        self._unsubscribe: Callable[[], None] = events.subscribe(self._event)
        chardev.attach(self)

    def close(self) -> None:
        """End the session and let go of the device."""
        self._unsubscribe()
        self._end_session()
        self._chardev.detach()
        self.named_fds.close()

    def take_fd(self) -> int | None:
        """Return the first of the descriptors that came with the last message that had any, and close the others."""
        return first_fd(self._chardev)

    def can_receive(self) -> int:
        """Return how many bytes :meth:`receive` can take now."""
        return 0 if self.session is None or self.session.suspended else CHUNK

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.session is not None:
            self.session.receive(data)

    def event(self, event: ChardevEvent) -> None:
        """Hear what happened to the connection."""
        if event is ChardevEvent.OPENED:
            self._end_session()
            self.session = QmpSession(self, self._dispatcher, self._output)
            self._dispatcher.attach(self.session)
            self.session.greet()
        elif event is ChardevEvent.CLOSED:
            self._end_session()

    def writable(self) -> None:
        """The client reads again."""
        self._write_more()
        self.resume()

    def _write_more(self) -> None:
        """Write what waits; a long message in turns."""
        self._writing = False
        pace = self._dispatcher.pace
        begun = pace.begin()
        more = self._output.flush()
        pace.charge(begun)
        if more:
            self.write_soon()

    def write_soon(self) -> None:
        """Go on with a long message when others have had their turn."""
        if not self._writing:
            self._writing = True
            self.scheduler.call_soon(self._write_or_wait)

    def _write_or_wait(self) -> None:
        if pause := self._dispatcher.pace.pause():
            self.scheduler.call_later(pause, self._write_or_wait)
            return
        self._write_more()
        self.resume()

    def resume(self) -> None:
        """Look at input that waited, here first and then in the back end."""
        if self.session is not None and not self.session.suspended:
            self.session.proceed()
            if self.can_receive():
                self._chardev.accept_input()

    def _end_session(self) -> None:
        self._output.clear()
        if self.session is not None:
            self.session.close()
            self.session = None

    def _event(self, event: EventMessage) -> None:
        if self.session is not None:
            self.session.event(event)
