"""Virtio socket device (virtio 1.2, section 5.10): connections between programs in the guest and on the host.

Queues: 0 to the guest, 1 from the guest, 2 events.  A guest has a number, its CID, and connects to ports of CID 2, the
host; programs on the host connect to ports of the guest.  There are stream sockets only.

The other end of each connection is a stream handed in.  No connection survives a restore: each is reset, which programs
in the guest take for an end like any other.  The event of the specification would leave some of them waiting, so it is
sent only where the guest has to look at its CID again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pyvm.clock import Clock
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio import vsock_packets as p
from pyvm.devices.virtio.constants import ID_VSOCK, STATUS_DRIVER_OK
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.ring import Chain
from pyvm.devices.virtio.vsock_connection import ConnectionState, HostStream, VsockConnection
from pyvm.native import Vector
from pyvm.state import array, flag, sequence, uint

_RX, _TX, _EVENT = range(3)
_QUEUE_SIZE = 128
_CONNECTIONS_LIMIT = 512
"""Each may keep a quarter of a MiB, and a descriptor."""
_REPLIES_LIMIT = 256
"""With so many answers waiting for buffers, nothing more is taken from the guest."""
_PACKETS_PER_TURN = 256
"""After so many packets, others get a turn at the machine lock."""
_READS_PER_TURN = 64
_SAVED_LIMIT = 4096
_FIRST_HOST_PORT = 1 << 30
_LAST_HOST_PORT = (1 << 31) - 1

_Reply = tuple[int, int, int, int, VsockConnection | None]
"""Guest port, host port, operation, flags, and the connection whose room the packet tells."""


class VsockState(VirtioState):
    """Migratable state; of connections only their ports in guest and host, since they end with a restore."""

    guest_cid: int = uint(32)
    reset_due: bool = flag()
    connections: list[list[int]] = sequence(array(uint(32), 2), _SAVED_LIMIT)


class VirtioVsock(VirtioDevice[VsockState]):
    """A socket device of the guest `guest_cid`.

    `connect_host(port)` returns the stream of a program that serves `port`, or None.  Raises ValueError for a CID that
    no guest can have.
    """

    device_id = ID_VSOCK
    name = "virtio-vsock"
    state_type = VsockState
    PROPERTIES: ClassVar[Properties] = {
        "guest-cid": Property("uint64", 0, "number that the guest is known by, 3 or higher"),
        "uds": Property("str", None, "path of the unix socket that programs on the host connect to"),
        "disable-legacy": Property("OnOffAuto", "on", "leave out the legacy interface"),
    }

    def __init__(self, clock: Clock, guest_cid: int, connect_host: Callable[[int], HostStream | None]) -> None:
        if guest_cid < p.LOWEST_GUEST_CID:
            raise ValueError("guest-cid property must be greater than 2")
        if guest_cid >= p.ANY_CID:
            raise ValueError("guest-cid property must be a 32-bit number")
        super().__init__([_QUEUE_SIZE] * 3, p.F_STREAM, p.CONFIG.size)
        self.guest_cid = guest_cid
        self.connections: dict[tuple[int, int], VsockConnection] = {}
        """By the ports of guest and host."""
        self._connect_host = connect_host
        self._clock = clock
        self._replies: deque[_Reply] = deque()
        self._readable: deque[VsockConnection] = deque()
        """Those whose host program has sent something."""
        self._starved: set[VsockConnection] = set()
        """Those of which the guest takes nothing before it says so."""
        self._next_turn = clock.timer(self._go_on)
        self._next_host_port = _FIRST_HOST_PORT
        self._reset_due = False
        self._handlers = (self._pump, self._transmit, self._send_event)
        self._operations: dict[int, Callable[[VsockConnection, p.Header, Chain], None]] = {
            p.OP_RESPONSE: self._response,
            p.OP_SHUTDOWN: self._shutdown,
            p.OP_RW: self._data,
            p.OP_CREDIT_UPDATE: self._credit_update,
            p.OP_CREDIT_REQUEST: self._credit_request,
        }

    def config(self) -> bytes:
        """Return the configuration space."""
        return p.CONFIG.pack(self.guest_cid)

    def handle_queue(self, queue: VirtQueue) -> None:
        """Work on what the driver made available."""
        self._handlers[queue.index]()

    def _go_on(self) -> None:
        if self.running:
            self._transmit()

    # ---- From the guest

    def _transmit(self) -> None:
        """Take the guest's packets, as long as there is room for the answers."""
        queue = self.queues[_TX]
        for _ in range(_PACKETS_PER_TURN):
            if len(self._replies) >= _REPLIES_LIMIT:
                break
            chain = queue.pop()
            if chain is None:
                break
            self._packet(chain)
            queue.push(chain, 0)
        else:
            self._next_turn.arm(self._clock.now())
        queue.flush()
        self._pump()

    def _packet(self, chain: Chain) -> None:
        size = p.HEADER.size
        if chain.readable_bytes < size:
            return
        first = chain.readable[0]
        header = p.Header(*p.HEADER.unpack_from(first if len(first) >= size else chain.gather(size)))
        if header.src_cid != self.guest_cid or header.dst_cid != p.HOST_CID:
            return  # nobody is there
        key = (header.src_port, header.dst_port)
        connection = self.connections.get(key)
        if header.op == p.OP_RST:
            if connection is not None:
                self._reset(connection)
        elif header.type != p.TYPE_STREAM:
            self._refuse(key)
        elif connection is None:
            if header.op == p.OP_REQUEST:
                self._request(header)
            else:
                self._refuse(key)
        else:
            connection.learn_credit(header)
            if connection in self._starved and connection.credit:
                self._starved.remove(connection)
                self._readable.append(connection)
            handle = self._operations.get(header.op)
            if handle is None or (connection.state is ConnectionState.REQUESTED and header.op != p.OP_RESPONSE):
                self.abort(connection)
            else:
                handle(connection, header, chain)

    def _refuse(self, key: tuple[int, int]) -> None:
        self._replies.append((*key, p.OP_RST, 0, None))

    def _request(self, header: p.Header) -> None:
        key = (header.src_port, header.dst_port)
        stream = self._connect_host(header.dst_port) if len(self.connections) < _CONNECTIONS_LIMIT else None
        if stream is None:
            self._refuse(key)
            return
        connection = self.connections[key] = VsockConnection(*key, stream, ConnectionState.ESTABLISHED)
        connection.learn_credit(header)
        stream.attach(connection)
        self._reply(connection, p.OP_RESPONSE)
        stream.wait_readable()

    def _response(self, connection: VsockConnection, header: p.Header, chain: Chain) -> None:
        del header, chain
        if connection.state is not ConnectionState.REQUESTED:
            self.abort(connection)
            return
        connection.state = ConnectionState.ESTABLISHED
        connection.stream.accepted(connection.host_port)
        connection.stream.wait_readable()

    def _data(self, connection: VsockConnection, header: p.Header, chain: Chain) -> None:
        size = p.HEADER.size
        sane = header.length <= chain.readable_bytes - size
        if not sane or connection.guest_shutdown & p.SHUTDOWN_SEND:
            self.abort(connection)
        elif not connection.take(chain.readable.span(size, size + header.length)):
            self.abort(connection)  # it sends more than there is room for
        else:
            self._tell_room(connection)
            self._notice_hangup(connection)

    def _shutdown(self, connection: VsockConnection, header: p.Header, chain: Chain) -> None:
        del chain
        connection.guest_shutdown |= header.flags & p.SHUTDOWN_BOTH
        connection.finish_output()
        self._end_if_over(connection)

    def _credit_update(self, connection: VsockConnection, header: p.Header, chain: Chain) -> None:
        """The header of each packet has the news."""

    def _credit_request(self, connection: VsockConnection, header: p.Header, chain: Chain) -> None:
        del header, chain
        if not connection.update_queued:
            connection.update_queued = True
            self._reply(connection, p.OP_CREDIT_UPDATE)

    # ---- The life of connections

    def connect(self, stream: HostStream, guest_port: int) -> VsockConnection | None:
        """Ask the guest for a connection to one of its ports; return None where nobody is there to be asked."""
        if not self.status & STATUS_DRIVER_OK or self.broken or len(self.connections) >= _CONNECTIONS_LIMIT:
            return None
        if len(self._replies) >= _REPLIES_LIMIT:
            return None  # the guest takes nothing: it would not hear of it
        while (guest_port, self._next_host_port) in self.connections:
            self._take_host_port()
        connection = VsockConnection(guest_port, self._take_host_port(), stream, ConnectionState.REQUESTED)
        self.connections[guest_port, connection.host_port] = connection
        stream.attach(connection)
        self._reply(connection, p.OP_REQUEST)
        self._pump()
        return connection

    def _take_host_port(self) -> int:
        port = self._next_host_port
        self._next_host_port = port + 1 if port < _LAST_HOST_PORT else _FIRST_HOST_PORT
        return port

    def abort(self, connection: VsockConnection) -> None:
        """End a connection without more ado."""
        if connection.state is not ConnectionState.CLOSED:
            self._forget(connection)
            self._refuse((connection.guest_port, connection.host_port))

    def _forget(self, connection: VsockConnection) -> None:
        del self.connections[connection.guest_port, connection.host_port]
        self._starved.discard(connection)
        if connection in self._readable:
            self._readable.remove(connection)
        connection.close()

    def _reset(self, connection: VsockConnection) -> None:
        """The guest has forgotten a connection; what it had sent by then is still passed on, if it ended it before."""
        if connection.guest_shutdown & p.SHUTDOWN_SEND:
            connection.guest_shutdown = p.SHUTDOWN_BOTH
        if connection.idle or connection.guest_shutdown != p.SHUTDOWN_BOTH:
            self._forget(connection)

    def _end_if_over(self, connection: VsockConnection) -> None:
        if connection.over:
            self.abort(connection)

    def _notice_hangup(self, connection: VsockConnection) -> None:
        """Tell the guest that the host program takes nothing more, where its own output ended before."""
        if connection.stream.broken and connection.host_shutdown == p.SHUTDOWN_SEND:
            self._end_of_stream(connection, p.SHUTDOWN_BOTH)

    def _end_of_stream(self, connection: VsockConnection, flags: int) -> None:
        connection.host_shutdown = flags
        self._reply(connection, p.OP_SHUTDOWN, flags)

    # ---- From the host

    def host_readable(self, connection: VsockConnection) -> bool:
        """The host program has sent something, or gone; return whether to call again when there is more."""
        if connection.state is not ConnectionState.ESTABLISHED:
            return False
        if self._listens(connection):
            self._readable.append(connection)
        self._pump()
        return self._listens(connection)

    def _listens(self, connection: VsockConnection) -> bool:
        """Return whether all was taken that the host program has sent, and there may be more."""
        return not connection.host_shutdown and connection not in self._readable and connection not in self._starved

    def host_writable(self, connection: VsockConnection) -> None:
        """The host program takes more."""
        if connection.state is ConnectionState.CLOSED:
            return
        connection.pass_on()
        connection.finish_output()
        self._tell_room(connection)
        self._notice_hangup(connection)
        self._end_if_over(connection)
        self._pump()

    # ---- To the guest

    def _reply(self, connection: VsockConnection, op: int, flags: int = 0) -> None:
        self._replies.append((connection.guest_port, connection.host_port, op, flags, connection))

    def _tell_room(self, connection: VsockConnection) -> None:
        if connection.update_due:
            connection.update_queued = True
            self._reply(connection, p.OP_CREDIT_UPDATE)

    def _pump(self) -> None:
        """Send answers, and then what the host programs have sent, each in turn."""
        if not self.running:
            return
        queue = self.queues[_RX]
        held = len(self._replies) >= _REPLIES_LIMIT
        more = self._send_replies(queue)
        for _ in range(_READS_PER_TURN):
            if not more or not self._readable:
                break
            connection = self._readable.popleft()
            more = self._receive(queue, connection) and self._send_replies(queue)
        else:
            self._next_turn.arm(self._clock.now())
        queue.flush()
        if held and len(self._replies) < _REPLIES_LIMIT:
            self._next_turn.arm(self._clock.now())

    def _send_replies(self, queue: VirtQueue) -> bool:
        """Return whether all was sent."""
        while self._replies:
            chain = queue.pop()
            if chain is None:
                return False
            if chain.writable_bytes < p.HEADER.size:
                self.fail("a buffer is too small for a packet")
                return False
            guest_port, host_port, op, flags, connection = self._replies.popleft()
            room, forwarded = (0, 0)
            if connection is not None:
                room, forwarded = connection.room_told()
                connection.update_queued = connection.update_queued and op != p.OP_CREDIT_UPDATE
            head = p.HEADER.pack(
                p.HOST_CID, self.guest_cid, host_port, guest_port, 0, p.TYPE_STREAM, op, flags, room, forwarded
            )
            queue.push(chain, chain.scatter(head))
        return True

    def _receive(self, queue: VirtQueue, connection: VsockConnection) -> bool:
        """Fill buffers with what the host program has sent; return False where the guest has given no buffers."""
        credit = connection.credit
        if not credit:
            self._starved.add(connection)
            return True
        chains, room = self._buffers(queue, connection.batch, credit)
        if not chains:
            self._readable.appendleft(connection)
            return False
        head = p.HEADER.size
        spans = [chain.writable.span(head, chain.writable_bytes) for chain in chains]
        buffers = (spans[0] if len(spans) == 1 else Vector.join(spans)).span(0, min(room, credit))
        count = connection.stream.read_into(buffers)
        if not count:
            queue.rewind(chains[0])
            if count == 0:
                hung_up = connection.stream.hung_up()
                self._end_of_stream(connection, p.SHUTDOWN_BOTH if hung_up else p.SHUTDOWN_SEND)
            else:
                connection.stream.wait_readable()
            return True
        self._fill(queue, connection, chains, count)
        full = count == buffers.nbytes
        connection.sent(count, full=full)
        if full:
            self._readable.append(connection)
        else:
            connection.stream.wait_readable()
        return True

    def _buffers(self, queue: VirtQueue, limit: int, wanted: int) -> tuple[list[Chain], int]:
        """Pop up to `limit` chains with room for `wanted` bytes of data; return them and their room."""
        chains: list[Chain] = []
        room = 0
        while room < wanted and len(chains) < limit:
            chain = queue.pop()
            if chain is None:
                break
            if chain.writable_bytes <= p.HEADER.size:
                self.fail("a buffer is too small for a packet")
                return [], 0
            chains.append(chain)
            room += chain.writable_bytes - p.HEADER.size
        return (chains, room) if not self.broken else ([], 0)

    def _fill(self, queue: VirtQueue, connection: VsockConnection, chains: list[Chain], count: int) -> None:
        """Put headers before the data, and give back the chains that have none."""
        ends = (p.HOST_CID, self.guest_cid, connection.host_port, connection.guest_port)
        told = connection.room_told()
        for chain in chains:
            if not count:
                queue.rewind(chain)
                break
            length = min(count, chain.writable_bytes - p.HEADER.size)
            count -= length
            chain.scatter(p.HEADER.pack(*ends, length, p.TYPE_STREAM, p.OP_RW, 0, *told))
            queue.push(chain, p.HEADER.size + length)

    # ---- Events

    def _send_event(self) -> None:
        """Tell the driver that its CID is another one, once it has given a buffer for that."""
        queue = self.queues[_EVENT]
        if self._reset_due and (chain := queue.pop()) is not None:
            self._reset_due = False
            queue.push(chain, chain.scatter(p.EVENT.pack(p.EVENT_TRANSPORT_RESET)))
            queue.flush()

    # ---- Device life

    def reset_device(self) -> None:
        """End all connections."""
        self._next_turn.cancel()
        self._replies.clear()
        self._readable.clear()
        self._starved.clear()
        self._reset_due = False
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()

    def save_device(self) -> VsockState:
        """Return which connections there are, or were until just now as the guest knows."""
        ended = {reply[:2] for reply in self._replies}
        known = sorted(self.connections.keys() | ended)[:_SAVED_LIMIT]
        return VsockState(
            guest_cid=self.guest_cid, reset_due=self._reset_due, connections=[list(ports) for ports in known]
        )

    def load_device(self, state: VsockState) -> None:
        """Begin without connections; the driver is told so."""
        for guest_port, host_port in state.connections:
            self._refuse((guest_port, host_port))
        self._reset_due = state.reset_due or (
            bool(state.status & STATUS_DRIVER_OK) and state.guest_cid != self.guest_cid
        )
