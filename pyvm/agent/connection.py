"""The agent's wire: JSON lines over a byte stream that may hold remains of earlier conversations.

Specification: QEMU Guest Agent Protocol Reference, `guest-sync-delimited`.  A client that connects, or that gave up
waiting for an answer, cannot know what the next bytes belong to.  It sends a 0xFF byte, which makes the agent forget a
half-sent request, and `guest-sync-delimited` with a number nobody used before; the agent puts 0xFF before its answer.
All that comes before that answer is old and is dropped.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from pyvm.agent.address import Address, connect, reason
from pyvm.agent.errors import (
    AgentAbsent,
    AgentDisconnected,
    AgentError,
    AgentProtocolError,
    AgentRestarted,
    AgentTimeout,
)

DELIMITER = b"\xff"
LINE_LIMIT = 128 << 20
"""No answer is longer: 48 MiB of a file in base64 is the longest."""

_RECEIVE_SIZE = 1 << 18
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 16.0
_CONNECT_RETRY = 0.05


class ConnectionState(enum.Enum):
    """What a client knows of its stream."""

    DISCONNECTED = "disconnected"
    UNSYNCHRONISED = "unsynchronised"
    """Connected; what comes next may be old."""
    READY = "ready"
    """The next line is the answer to the next request."""
    CLOSED = "closed"


class Deadline:
    """A point in time to give up at."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self, limit: float | None = None) -> float | None:
        """Return the seconds left, at most `limit`; None: no end.  Raises TimeoutError where none is left."""
        if self._end is None:
            return limit
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if limit is None else min(left, limit)

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self._end is not None and time.monotonic() >= self._end


class AgentConnection:
    """One conversation with an agent at a time, for any number of threads."""

    def __init__(self, address: Address, probe: float | None = None) -> None:
        self._address = address
        self._probe = probe
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._scanned = 0
        self._lock = threading.RLock()
        self.state = ConnectionState.DISCONNECTED
        if isinstance(address, socket.socket):
            self._socket = address
            self.state = ConnectionState.UNSYNCHRONISED

    def close(self) -> None:
        """End the conversation for good."""
        self.state = ConnectionState.CLOSED
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def request(self, command: str, arguments: dict[str, Any], timeout: float | None, *, silent: float | None) -> Any:
        """Send a command and return what the agent returns; connects and synchronises first where that is due.

        `silent` is for commands that have no answer unless they fail: how many seconds to wait for a failure.
        Raises AgentError where the agent refuses, AgentTimeout, AgentDisconnected, AgentProtocolError.
        """
        deadline = Deadline(timeout)
        with self._exclusively(command, deadline):
            self._prepare(command, deadline)
            request: dict[str, Any] = {"execute": command}
            if arguments:
                request["arguments"] = arguments
            self._send(_encode(request), command, deadline)
            if silent is not None:
                return self._hear_failure(command, silent)
            return self._answer(command, deadline)

    def synchronise(self, timeout: float | None) -> None:
        """Make sure that agent and client agree on where the next answer begins."""
        deadline = Deadline(timeout)
        with self._exclusively("guest-sync-delimited", deadline):
            if self.state is ConnectionState.READY:
                self.state = ConnectionState.UNSYNCHRONISED
            self._prepare("guest-sync-delimited", deadline)

    def drop(self) -> None:
        """Disconnect; the next request connects again."""
        with self._lock:
            self._disconnect()

    @contextlib.contextmanager
    def _exclusively(self, command: str, deadline: Deadline) -> Iterator[None]:
        try:
            left = deadline.remaining()
        except TimeoutError:
            raise _timed_out(command) from None
        if not self._lock.acquire(timeout=-1 if left is None else left):
            raise AgentTimeout(f"{command}: another thread is still waiting for the agent")
        try:
            yield
        finally:
            self._lock.release()

    def _prepare(self, command: str, deadline: Deadline) -> None:
        if self.state is ConnectionState.CLOSED:
            raise AgentDisconnected("the connection to the agent was closed")
        if self.state is ConnectionState.DISCONNECTED:
            self._connect(command, deadline)
        if self.state is ConnectionState.UNSYNCHRONISED:
            self._synchronise(command, deadline)

    def _connect(self, command: str, deadline: Deadline) -> None:
        if isinstance(self._address, socket.socket):
            raise AgentDisconnected(f"{command}: the connection to the agent has ended")
        try:
            connection = connect(self._address, deadline.remaining())
        except TimeoutError:
            raise _timed_out(command) from None
        except (OSError, ValueError) as error:
            raise AgentAbsent(f"cannot connect to the agent at {self._address}: {reason(error)}") from None
        self._socket = connection
        self._forget_input()
        self.state = ConnectionState.UNSYNCHRONISED

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._forget_input()
        if self.state is not ConnectionState.CLOSED:
            self.state = ConnectionState.DISCONNECTED

    def _forget_input(self) -> None:
        self._buffer.clear()
        self._scanned = 0

    def _synchronise(self, command: str, deadline: Deadline) -> None:
        """Drop all that is old.  The request is repeated: it may have been made while nobody listened in the guest."""
        wait = _FIRST_RETRY
        while True:
            number = _new_number()
            self._send(DELIMITER + _sync_request(number), command, deadline)
            attempt = Deadline(wait)
            while not attempt.passed:
                try:
                    line = self._read_line(deadline, attempt, only_delimited=True)
                except TimeoutError:
                    break
                if _parse_answer(line.rpartition(DELIMITER)[2]) == {"return": number}:
                    self.state = ConnectionState.READY
                    return
            if deadline.passed:
                raise AgentTimeout(f"{command}: the agent does not answer")
            wait = min(2 * wait, _LONGEST_RETRY)

    def _send(self, data: bytes, command: str, deadline: Deadline) -> None:
        connection = self._require_socket()
        try:
            connection.settimeout(deadline.remaining())
            connection.sendall(data)
        except TimeoutError:
            self.state = ConnectionState.UNSYNCHRONISED
            raise _timed_out(command) from None
        except OSError as error:
            self._disconnect()
            raise AgentDisconnected(f"{command}: the connection to the agent has ended: {error.strerror}") from None
        except BaseException:
            self.state = ConnectionState.UNSYNCHRONISED
            raise

    def _answer(self, command: str, deadline: Deadline) -> Any:
        """Return the answer to the request just sent."""
        try:
            line = self._answering_line(command, deadline)
        except TimeoutError:
            self.state = ConnectionState.UNSYNCHRONISED
            raise _timed_out(command) from None
        except BaseException:
            if self.state is ConnectionState.READY:
                self.state = ConnectionState.UNSYNCHRONISED
            raise
        answer = _parse_answer(line.lstrip(DELIMITER))
        if "return" in answer:
            return answer["return"]
        error = answer.get("error")
        if isinstance(error, dict) and isinstance(error.get("desc"), str):
            raise AgentError(str(error.get("class", "GenericError")), error["desc"], command)
        self.state = ConnectionState.UNSYNCHRONISED
        raise AgentProtocolError(f"{command}: the agent's answer makes no sense: {line[:200]!r}")

    def _answering_line(self, command: str, deadline: Deadline) -> bytes:
        """Return the next line that is an answer; where none comes, ask whether the agent is the one that was asked.

        An agent answers in turn, so the answer to a later question means that the earlier one was lost.
        """
        wait, number = self._probe, _new_number()
        while True:
            try:
                line = self._read_line(deadline, Deadline(wait))
            except TimeoutError:
                if wait is None or deadline.passed:
                    raise
                self._send(_sync_request(number), command, deadline)
                wait = min(2 * wait, _LONGEST_RETRY)
                continue
            if command == "guest-sync-delimited" or DELIMITER not in line:
                return line
            # Others with the delimiter answer attempts to synchronise that were repeated needlessly.
            if _parse_answer(line.rpartition(DELIMITER)[2]) == {"return": number}:
                raise AgentRestarted(f"{command}: the agent has been started anew meanwhile")

    def _hear_failure(self, command: str, seconds: float) -> None:
        """Wait for the failure of a command that says nothing when it succeeds."""
        try:
            self._answer(command, Deadline(seconds))
        except AgentTimeout:
            pass  # silence is success so far; a failure later on is dropped when synchronising
        except AgentDisconnected:
            pass  # the machine has gone down already

    def _read_line(self, deadline: Deadline, attempt: Deadline | None = None, *, only_delimited: bool = False) -> bytes:
        """Return the next line without its end; raises TimeoutError, AgentDisconnected, AgentProtocolError.

        With `only_delimited` what has no delimiter before it is dropped as it comes.
        """
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                if line.strip() and (not only_delimited or DELIMITER in line):
                    return line
                continue
            if only_delimited:
                last = self._buffer.rfind(DELIMITER)
                del self._buffer[: last if last >= 0 else len(self._buffer)]
            self._scanned = len(self._buffer)
            if self._scanned > LINE_LIMIT:
                self._disconnect()
                raise AgentProtocolError("the agent's answer is too long")
            left = deadline.remaining(attempt.remaining() if attempt is not None else None)
            self._receive(left)

    def _receive(self, timeout: float | None) -> None:
        connection = self._require_socket()
        try:
            connection.settimeout(timeout)
            data = connection.recv(_RECEIVE_SIZE)
        except TimeoutError:
            raise
        except OSError as error:
            self._disconnect()
            raise AgentDisconnected(f"the connection to the agent has ended: {error.strerror}") from None
        if not data:
            self._disconnect()
            raise AgentDisconnected("the connection to the agent has ended")
        self._buffer += data

    def _require_socket(self) -> socket.socket:
        if self._socket is None:
            raise AgentDisconnected("the connection to the agent has ended")
        return self._socket


def wait_until_connected(connection: AgentConnection, timeout: float | None) -> None:
    """Synchronise, however long it takes within `timeout` seconds for a socket and an agent to be there."""
    deadline = Deadline(timeout)
    while True:
        try:
            connection.synchronise(deadline.remaining())
            return
        except AgentDisconnected:
            if deadline.passed or connection.state is ConnectionState.CLOSED:
                raise
            time.sleep(_CONNECT_RETRY)
        except TimeoutError:
            raise AgentTimeout(f"the agent did not answer within {timeout} s") from None


def _timed_out(command: str) -> AgentTimeout:
    return AgentTimeout(f"{command}: the agent did not answer in time")


def _new_number() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 2


def _sync_request(number: int) -> bytes:
    return _encode({"execute": "guest-sync-delimited", "arguments": {"id": number}})


def _encode(request: dict[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def _parse_answer(line: bytes) -> dict[str, Any]:
    """Return an answer, or an empty one where `line` is none."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
