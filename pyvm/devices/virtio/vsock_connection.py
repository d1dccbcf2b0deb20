"""One connection of the virtio socket device: its life, and how much either side may send (virtio 1.2, 5.10.6.3).

Each side tells the other how much room it has (`buf_alloc`) and how much it has passed on (`fwd_cnt`); what is sent and
not passed on never exceeds the room.  Guest output that the host program does not take yet waits here, so one slow
program does not hold up the others.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Protocol

from pyvm.devices.virtio.vsock_packets import SHUTDOWN_BOTH, SHUTDOWN_SEND, U32, Header

if TYPE_CHECKING:
    from pyvm.native import Vector

ROOM = 256 << 10
"""Bytes of guest output that a connection keeps for a host program that is slow to take them."""
_LONGEST_BATCH = 64


class HostStream(Protocol):
    """The host program's end of a connection.

    It calls the device back from the main loop only, never from within one of these methods.
    """

    broken: bool
    """Whether the program has gone: what is written is lost."""

    def attach(self, connection: VsockConnection) -> None:
        """Hear which connection this is the end of; before all else."""

    def write(self, data: Vector) -> int:
        """Send what can be sent at once; where that is less than all, `host_writable` is called later."""

    def write_bytes(self, data: bytes) -> int:
        """As :meth:`write`."""

    def read_into(self, buffers: Vector) -> int | None:
        """Return how many bytes were received, 0 at the end of the stream; None where there are none now."""

    def wait_readable(self) -> None:
        """Call `host_readable` whenever there is something to receive, until that returns False."""

    def hung_up(self) -> bool:
        """Return whether the program takes nothing any more; asked at the end of its stream."""

    def accepted(self, host_port: int) -> None:
        """The guest took the connection, which has this number on the host's side."""

    def finish(self) -> None:
        """Tell the program that no more will be written."""

    def close(self) -> None:
        """End the stream; nobody is called back any more."""


class ConnectionState(enum.Enum):
    """Where in its life a connection is."""

    REQUESTED = "requested"
    """The guest has not answered yet."""
    ESTABLISHED = "established"
    CLOSED = "closed"


class VsockConnection:
    """A connection between port `guest_port` of the guest and `host_port` of the host."""

    def __init__(self, guest_port: int, host_port: int, stream: HostStream, state: ConnectionState) -> None:
        self.guest_port = guest_port
        self.host_port = host_port
        self.stream = stream
        self.state = state
        self.batch = 1
        """How many of the guest's buffers to fill at once: more, the more there was to receive before."""
        self.update_queued = False
        """Whether the guest is about to be told of room anyway."""
        self.guest_shutdown = 0
        """What the guest no longer does, as flags of OP_SHUTDOWN."""
        self.host_shutdown = 0
        """What the guest was told that the host no longer does."""
        self._peer_room = 0
        self._peer_forwarded = 0
        self._sent = 0
        self._received = 0
        self._forwarded = 0
        self._told = 0
        """What the guest knows of `_forwarded`."""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._finished = False

    @property
    def requested(self) -> bool:
        """Whether the guest has not answered yet."""
        return self.state is ConnectionState.REQUESTED

    # ---- Host to guest

    def learn_credit(self, header: Header) -> None:
        """Take up what a packet of the guest says of its room."""
        self._peer_room = header.buf_alloc
        self._peer_forwarded = header.fwd_cnt

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        return max(0, self._peer_room - (self._sent - self._peer_forwarded & U32))

    def sent(self, count: int, *, full: bool) -> None:
        """Count bytes that went to the guest; `full` says that more may be there."""
        self._sent = self._sent + count & U32
        self.batch = min(4 * self.batch, _LONGEST_BATCH) if full else 1

    # ---- Guest to host

    @property
    def idle(self) -> bool:
        """Whether all that the guest sent was passed on."""
        return not self._waiting_bytes

    def take(self, data: Vector) -> bool:
        """Pass on what the guest sent, or keep it; return False where it is more than the guest may send."""
        count = data.nbytes
        if count > ROOM - self._waiting_bytes:
            return False
        self._received = self._received + count & U32
        done = self.stream.write(data) if not self._waiting else 0
        if done < count:
            rest = b"".join(data.span(done, count))
            self._waiting.append(rest)
            self._waiting_bytes += len(rest)
        self._forwarded = self._forwarded + done & U32
        return True

    def pass_on(self) -> None:
        """Pass on what was kept, as far as the host program takes it."""
        waiting = self._waiting
        while waiting:
            data = waiting.popleft()
            done = self.stream.write_bytes(data)
            self._forwarded = self._forwarded + done & U32
            self._waiting_bytes -= done
            if done < len(data):
                waiting.appendleft(data[done:])
                return

    @property
    def update_due(self) -> bool:
        """Whether the guest may think that there is little room, and there is more."""
        believed = ROOM - (self._received - self._told & U32)
        return believed <= ROOM // 2 and self._told != self._forwarded and not self.update_queued

    def room_told(self) -> tuple[int, int]:
        """Return `buf_alloc` and `fwd_cnt` for a packet that goes to the guest now."""
        self._told = self._forwarded
        return ROOM, self._forwarded

    # ---- The end

    def finish_output(self) -> None:
        """Tell the host program of the end of the guest's output, once all of that was passed on."""
        if self.guest_shutdown & SHUTDOWN_SEND and self.idle and not self._finished:
            self._finished = True
            self.stream.finish()

    @property
    def over(self) -> bool:
        """Whether the guest wants nothing more of the connection, and all that it sent was passed on."""
        return self.guest_shutdown == SHUTDOWN_BOTH and self.idle

    def close(self) -> None:
        """Let go of both sides."""
        self.state = ConnectionState.CLOSED
        self._waiting.clear()
        self._waiting_bytes = 0
        self.stream.close()
