"""Connecting to an NBD server, and connecting again behind the back of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pyvm.block.drivers.nbd_connection import Connection
from pyvm.block.drivers.nbd_handshake import Wrap, negotiate
from pyvm.block.drivers.nbd_stream import ConnectionLost, ServerAddress, Stream
from pyvm.block.errors import BlockError

HANDSHAKE_TIMEOUT = 30.0
"""How long an attempt to connect may take, in seconds."""
_LEAST = 0.1
"""How long each attempt may take, however late it is."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 16.0


def connect(
    address: ServerAddress,
    export: str,
    context: str,
    timeout: float,
    limit: float = HANDSHAKE_TIMEOUT,
    wrap: Wrap | None = None,
) -> Connection:
    """Return a connection to an export, with `wrap` an encrypted one.  Raises BlockError.

    Later on the server may be silent for `timeout` seconds; now everything must be done in `limit` seconds.
    """
    deadline = time.monotonic() + limit
    stream = Stream(address.connect(limit), timeout)
    try:
        stream.deadline = deadline
        info = negotiate(stream, export, context, wrap=wrap)
        stream.end_deadline()
    except ConnectionLost as error:
        stream.close()
        raise BlockError(f"Failed to connect to '{address.text}': {error.reason}") from None
    except BaseException:
        stream.close()
        raise
    return Connection(stream, info)


def connect_within(attempt: Callable[[float], Connection], seconds: int) -> Connection:
    """Make attempts for so many seconds, but at least one.  Raises BlockError as the last one did.

    `attempt` is given how long it may take.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        left = deadline - time.monotonic()
        try:
            return attempt(min(HANDSHAKE_TIMEOUT, max(left, _LEAST)) if seconds else HANDSHAKE_TIMEOUT)
        except BlockError:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)


class Reconnector:
    """Makes attempts to connect in a thread of its own until one succeeds.

    `attempt` returns a connection or raises BlockError.  `first_pause` is how many seconds are between the first two
    attempts; each pause is twice as long as the one before, up to a limit.
    """

    def __init__(self, attempt: Callable[[], Connection], first_pause: float = _FIRST_PAUSE) -> None:
        self._attempt = attempt
        self._pause = first_pause
        self._changed = threading.Condition()
        self._result: Connection | None = None
        self._closed = False
        self._hurried = False
        """Whether nobody is to wait any more."""
        threading.Thread(target=self._run, name="nbd-connect", daemon=True).start()

    def _run(self) -> None:
        while not self._closed:
            try:
                connection = self._attempt()
            except BlockError:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                continue
            if self._offer(connection):
                return
            connection.close()

    def _offer(self, connection: Connection) -> bool:
        """Keep a connection for whoever waits for it, unless nobody will."""
        with self._changed:
            if not self._closed:
                self._result = connection
                self._changed.notify_all()
            return not self._closed

    def wait(self, seconds: float) -> Connection | None:
        """Return the connection, the caller's from now on, once there is one; None where there is none in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._result is not None or self._hurried, max(0.0, seconds))
            result, self._result = self._result, None
            return result

    def hurry(self) -> None:
        """Let whoever waits go without a connection; attempts are made all the same."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def close(self) -> None:
        """Make no more attempts, and close what nobody took."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            result, self._result = self._result, None
        if result is not None:
            result.close()
