"""A small QMP client for scripts and tests: commands wait for their answers, events are kept until asked for.

Specification: QEMU Machine Protocol (docs/interop/qmp-spec in QEMU), as clients see it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

DEFAULT_TIMEOUT = 30.0
_LINE_LIMIT = 64 << 20
_LOG_LINES = 500
_EVENTS = 10_000

Event = dict[str, Any]


class QmpFailure(Exception):  # noqa: N818 - says what it is
    """Base of all errors of the QMP client."""


class QmpError(QmpFailure):
    """The monitor refused a command."""

    def __init__(self, error_class: str, desc: str, command: str = "") -> None:
        super().__init__(f"{command}: {desc}" if command else desc)
        self.error_class = error_class
        """``GenericError``, ``CommandNotFound``, ``DeviceNotFound`` and so on."""
        self.desc = desc
        self.command = command


class QmpTimeout(QmpFailure, TimeoutError):  # noqa: N818 - says what it is
    """No answer or event came in time."""


class QmpDisconnected(QmpFailure, ConnectionError):  # noqa: N818 - says what it is
    """The monitor's end of the connection is closed."""


class QmpClient:
    """A QMP monitor on a connected socket; may be used from several threads.

    `connection` belongs to the client from now on.  The constructor waits for the greeting and negotiates; a thread
    then takes in what the monitor sends.  Raises QmpTimeout or QmpDisconnected where there is no greeting.
    """

    def __init__(self, connection: socket.socket, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._socket = connection
        self._socket.settimeout(None)
        self.timeout = timeout
        self.greeting: dict[str, Any] = {}
        self.log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        """The last lines sent and received, for people to read."""
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._answers: dict[int, dict[str, Any] | None] = {}
        """None while the answer is awaited."""
        self._events: collections.deque[Event] = collections.deque(maxlen=_EVENTS)
        self._next_id = 0
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="qmp-client", daemon=True)
        self._reader.start()
        try:
            self._wait(lambda: bool(self.greeting), timeout, "the greeting")
            self.command("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """Return a client of the monitor that listens on the Unix socket at `path`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise QmpDisconnected(f"cannot connect to '{path}': {error.strerror or error}") from None
        return cls(connection, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._closed

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join()
        self._socket.close()

    def command(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Carry out a command and return what it returns; raises QmpError where the monitor refuses.

        Underscores in the names of `arguments` become dashes; :meth:`execute` takes names as they are.
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self.execute(name, given, timeout=timeout)

    def execute(self, name: str, arguments: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Carry out a command with `arguments` named as on the wire."""
        with self._changed:
            self._next_id += 1
            number = self._next_id
            self._answers[number] = None
        request: dict[str, Any] = {"execute": name, "id": number}
        if arguments:
            request["arguments"] = arguments
        try:
            self._send(request)
            self._wait(
                lambda: self._answers[number] is not None, self.timeout if timeout is None else timeout, f"'{name}'"
            )
        finally:
            with self._changed:
                answer = self._answers.pop(number)
        assert answer is not None
        error = answer.get("error")
        if error is not None:
            raise QmpError(str(error.get("class")), str(error.get("desc")), name)
        return answer.get("return")

    def events(self) -> list[Event]:
        """Return the events that nobody has asked for yet, and forget them."""
        with self._changed:
            found = list(self._events)
            self._events.clear()
            return found

    def wait_event(
        self, name: str, *, timeout: float | None = None, match: Callable[[Event], bool] = lambda event: True
    ) -> Event:
        """Return the first event called `name` that satisfies `match`; it may have come already.

        Events before it stay for others to ask for.  Raises QmpTimeout or QmpDisconnected.
        """
        found: list[Event] = []

        def arrived() -> bool:
            for event in self._events:
                if event.get("event") == name and match(event):
                    found.append(event)
                    return True
            return False

        with self._changed:
            self._wait(arrived, self.timeout if timeout is None else timeout, f"the event {name}")
            self._events.remove(found[0])
        return found[0]

    def _wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if self._closed:
                    raise QmpDisconnected(f"the machine ended before {what} was answered or came")
                left = end - time.monotonic()
                if left <= 0:
                    raise QmpTimeout(f"{what} was not answered or did not come within {timeout} s")
                self._changed.wait(left)

    def _send(self, request: dict[str, Any]) -> None:
        line = json.dumps(request)
        self.log.append(f"-> {line}")
        try:
            with self._sending:
                self._socket.sendall(line.encode() + b"\n")
        except OSError as error:
            raise QmpDisconnected(f"'{request['execute']}': {error.strerror or error}") from None

    def _read(self) -> None:
        """Take in what the monitor sends, until it sends no more."""
        buffer = bytearray()
        try:
            while data := self._socket.recv(1 << 16):
                buffer += data
                *lines, rest = buffer.split(b"\n")
                for line in lines:
                    if line.strip():
                        self._take(bytes(line))
                buffer = bytearray(rest)
                if len(buffer) > _LINE_LIMIT:
                    break
        except OSError:
            pass  # as good as an end of file
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, line: bytes) -> None:
        self.log.append(f"<- {line.decode(errors='replace').strip()}")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, dict):
            return
        with self._changed:
            number = message.get("id")
            if "QMP" in message:
                self.greeting = message
            elif "event" in message:
                self._events.append(message)
            elif isinstance(number, int) and number in self._answers:
                self._answers[number] = message
            self._changed.notify_all()
