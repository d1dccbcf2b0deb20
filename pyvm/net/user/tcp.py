"""TCP toward the guest (RFC 9293, window scale of RFC 7323): one connection, with its end on the host.

What the guest sends is acknowledged when it is here; what the host does not take yet counts against the window, so that
a slow host slows the guest down.  What the host sends is read only as far as the guest's window reaches, in pieces as
large as an offload allows, and kept until it is acknowledged; lost pieces are sent again.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from pyvm.clock import NANOSECONDS
from pyvm.net import packets as p
from pyvm.net import packets6 as p6
from pyvm.net.client import ETHERNET_HEADER, ETHERNET_MTU, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, Offload

if TYPE_CHECKING:
    from pyvm.net.user.host_end import HostEnd
    from pyvm.net.user.tcp_service import TcpService

_CSUM_OFFSET = 16
_DEFAULT_MSS = 536
_DEFAULT_MSS6 = p6.MINIMUM_MTU - p6.IPV6.size - p.TCP.size
_OWN_SCALE = 7
_MAX_SCALE = 14
_RECEIVE_SPACE = 1 << 20
_LARGEST_SEGMENT = 65535 - p.IPV4.size - p.TCP.size
_FLIGHT_LIMIT = 1 << 20
"""Most bytes that are on their way to the guest, however large its window is."""
_PIECES_AT_ONCE = 8
"""After so many pieces others get a turn."""

_FIRST_RTO = NANOSECONDS
_LONGEST_RTO = 60 * NANOSECONDS
_TRIES = 10
_DUPLICATES = 3
_TIME_WAIT = 10 * NANOSECONDS

_OPTION_END, _OPTION_NOP, _OPTION_MSS, _OPTION_SCALE = 0, 1, 2, 3
_U32 = 0xFFFFFFFF


class TcpState(enum.Enum):
    """How far a connection is."""

    CONNECTING = "SYN_SENT"
    """The guest asked for it; the host's end is being made."""
    SYN_SENT = "SYN_RCVD"
    """The guest was asked, and has not answered."""
    SYN_RECEIVED = "SYN_RECEIVED"
    """The guest asked and was answered."""
    ESTABLISHED = "ESTABLISHED"
    TIME_WAIT = "TIME_WAIT"
    CLOSED = "CLOSED"


def _behind(left: int, right: int) -> int:
    """Return how far sequence number `left` is behind `right`, negative where it is before."""
    return ((left - right + 0x80000000) & _U32) - 0x80000000


class _Piece:
    """Bytes that were sent and not acknowledged."""

    __slots__ = ("data", "sequence")

    def __init__(self, sequence: int, data: memoryview) -> None:
        self.sequence = sequence
        self.data = data


class TcpConnection:
    """One connection between a guest's address and port, and those that the guest knows the other side by."""

    def __init__(self, service: TcpService, guest: tuple[bytes, int], other: tuple[bytes, int], sequence: int) -> None:
        self.service = service
        self.guest = guest
        self.other = other
        self.state = TcpState.CLOSED
        self.host: HostEnd | None = None
        self._net = service.net
        self._send_next = self._send_una = sequence
        self._receive_next = 0
        self._window = 0
        """How much the guest takes beyond `_send_una`."""
        self._scale = 0
        self._own_scale = 0
        self._wide = len(guest[0]) == p6.ADDRESS_LENGTH
        self._start = ETHERNET_HEADER + (p6.IPV6.size if self._wide else p.IPV4.size)
        """Where TCP begins in a frame."""
        self._headers = self._start + p.TCP.size
        self._own_mss = ETHERNET_MTU - (self._headers - ETHERNET_HEADER)
        self._mss = _DEFAULT_MSS6 if self._wide else _DEFAULT_MSS
        self._unsent: deque[memoryview] = deque()
        """What the guest has sent and the host has not taken."""
        self._unsent_bytes = 0
        self._flight: deque[_Piece] = deque()
        self._guest_ended = False
        self._host_ended = False
        self._fin_sent = False
        self._fin_acknowledged = False
        self._ended_first = False
        """Whether this side ended before the guest did, and so waits for what may still come."""
        self._acknowledge = False
        """Whether the guest is owed an acknowledgement."""
        self._promised = 0
        """Window that was told last."""
        self._duplicates = 0
        self._recover: int | None = None
        """While lost pieces are sent again: up to where that goes."""
        self._rto = _FIRST_RTO
        self._tries = 0
        self._deadline: int | None = None
        self._timer = self._net.clock.timer(self._time_out)
        self._blocked = False
        """Whether the guest has no room for frames, rather than no window."""
        self._reading = False
        """Whether the host's bytes are waited for: then there are none, or the main loop is about to come."""
        self._pseudo = p.pseudo_sum(other[0], guest[0], p.PROTO_TCP, 0)

    # ---- Beginning

    def open_passive(self, sequence: int, options: memoryview, window: int) -> None:
        """The guest asks for a connection; it is answered by :meth:`host_connected`."""
        self.state = TcpState.CONNECTING
        self._receive_next = (sequence + 1) & _U32
        self._parse_options(options, syn=True)
        self._window = window

    def open_active(self, host: HostEnd) -> None:
        """Ask the guest for a connection."""
        self.host = host
        self.state = TcpState.SYN_SENT
        self._own_scale = _OWN_SCALE
        self._send_syn()

    def host_connected(self, host: HostEnd) -> None:
        """The host's end is there: answer the guest."""
        self.host = host
        self.state = TcpState.SYN_RECEIVED
        self._send_syn()

    def refuse(self) -> None:
        """The host's end cannot be made: reset."""
        self._emit(p.TCP_RST | p.TCP_ACK, self._send_next)
        self._end(abort=True)

    def _send_syn(self) -> None:
        flags = p.TCP_SYN | (p.TCP_ACK if self.state is TcpState.SYN_RECEIVED else 0)
        options = bytes((_OPTION_MSS, 4)) + self._own_mss.to_bytes(2, "big")
        if self._own_scale:
            options += bytes((_OPTION_NOP, _OPTION_SCALE, 3, self._own_scale))
        self._emit(flags, self._send_una, options=options)
        self._send_next = (self._send_una + 1) & _U32
        self._start_timer()

    def _parse_options(self, options: memoryview, *, syn: bool) -> None:
        position = 0
        scaled = False
        while position < len(options) and options[position] != _OPTION_END:
            if options[position] == _OPTION_NOP:
                position += 1
                continue
            length = options[position + 1] if position + 1 < len(options) else 0
            value = options[position + 2 : position + length]
            if length < 2 or len(value) != length - 2:
                break
            if options[position] == _OPTION_MSS and length == 4:
                self._mss = min(max(int.from_bytes(value, "big"), 64), self._own_mss)
            elif options[position] == _OPTION_SCALE and length == 3:
                self._scale, scaled = min(value[0], _MAX_SCALE), True
            position += length
        if syn:
            self._own_scale = _OWN_SCALE if scaled else 0

    # ---- From the guest

    def segment(self, flags: int, sequence: int, acknowledged: int, window: int, rest: memoryview, start: int) -> None:
        """Take a segment of the guest; `rest` is what follows the fixed header, options up to `start`."""
        if flags & p.TCP_RST:
            self._reset(flags, sequence, acknowledged)
            return
        if self.state is TcpState.SYN_SENT:
            self._syn_answered(flags, sequence, acknowledged, window, rest[:start])
            return
        if self.state is TcpState.CONNECTING:
            return  # the guest asks again; the host's end is still being made
        if flags & p.TCP_SYN:
            if self.state is TcpState.SYN_RECEIVED and (sequence + 1) & _U32 == self._receive_next:
                self._send_syn()
            else:
                self._owe(now=True)
            return
        if not flags & p.TCP_ACK:
            return
        if self.state is TcpState.SYN_RECEIVED:
            if acknowledged != self._send_next:
                self._emit(p.TCP_RST, acknowledged)
                return
            self._established()
        payload = rest[start:]
        if not self._acknowledged(acknowledged, window << self._scale, has_data=bool(payload)):
            return
        if payload or flags & p.TCP_FIN:
            self._data(sequence, payload, bool(flags & p.TCP_FIN))
        elif sequence != self._receive_next:
            self._owe(now=True)  # a probe, or what was left of an old segment
        if self.state is TcpState.ESTABLISHED and not self._reading:
            self.pump()

    def _reset(self, flags: int, sequence: int, acknowledged: int) -> None:
        if self.state is TcpState.SYN_SENT:
            wanted = bool(flags & p.TCP_ACK) and acknowledged == self._send_next
        else:
            wanted = 0 <= _behind(sequence, self._receive_next) <= max(self._promised, 1)
        if wanted:
            self._end(abort=True)

    def _syn_answered(self, flags: int, sequence: int, acknowledged: int, window: int, options: memoryview) -> None:
        if not flags & p.TCP_ACK or acknowledged != self._send_next:
            if flags & p.TCP_ACK:
                self._emit(p.TCP_RST, acknowledged)
            return
        if flags & p.TCP_SYN:
            self._receive_next = (sequence + 1) & _U32
            self._parse_options(options, syn=True)
            if not self._own_scale:
                self._scale = 0
            self._send_una, self._window = acknowledged, window
            self._established()
            self._owe(now=True)
            self.pump()

    def _established(self) -> None:
        self.state = TcpState.ESTABLISHED
        self._send_una = self._send_next
        self._stop_timer()

    def _acknowledged(self, acknowledged: int, window: int, *, has_data: bool) -> bool:
        """Take an acknowledgement and a window; return whether the segment is one of this connection."""
        progress = _behind(acknowledged, self._send_una)
        if progress < 0:
            return True  # old, but its data may be new
        if _behind(acknowledged, self._send_next) > 0:
            self._owe(now=True)
            return False
        if progress:
            self._advance(acknowledged)
        elif self._flight and not has_data and window == self._window:
            self._duplicates += 1
            if self._duplicates == _DUPLICATES and self._recover is None:
                self._recover = self._send_next
                self._send_again()
        self._window = window
        return True

    def _advance(self, acknowledged: int) -> None:
        """Drop what has arrived."""
        self._send_una = acknowledged
        flight = self._flight
        while flight:
            first = flight[0]
            done = _behind(acknowledged, first.sequence)
            if done < len(first.data):
                if done > 0:
                    first.sequence, first.data = acknowledged, first.data[done:]
                break
            flight.popleft()
        self._duplicates = self._tries = 0
        self._rto = _FIRST_RTO
        if self._fin_sent and acknowledged == self._send_next:
            self._fin_acknowledged = True
        if self._send_una == self._send_next:
            self._recover = None
            self._stop_timer()
            self._maybe_done()
            return
        self._start_timer()
        if self._recover is not None:
            if _behind(acknowledged, self._recover) >= 0:
                self._recover = None
            else:
                self._send_again()

    def _data(self, sequence: int, payload: memoryview, fin: bool) -> None:
        """Take data that is in order; what is not is asked for again by the acknowledgement."""
        late = _behind(self._receive_next, sequence)
        if late < 0 or late > len(payload) or self._guest_ended or self.state is not TcpState.ESTABLISHED:
            self._owe(now=True)
            return
        payload = payload[late:]
        room = max(_RECEIVE_SPACE - self._unsent_bytes, 0)
        if len(payload) > room:
            payload, fin = payload[:room], False
        if payload:
            self._receive_next = (self._receive_next + len(payload)) & _U32
            self._to_host(payload)
            if self.host is None:
                return
        if fin:
            self._receive_next = (self._receive_next + 1) & _U32
            self._guest_ended = True
            if not self._unsent:
                self.host_output_done()
        self._owe(now=fin or bool(late))

    def _to_host(self, payload: memoryview) -> None:
        assert self.host is not None
        if not self._unsent:
            try:
                taken = self.host.send(payload)
            except OSError:
                self.abort()
                return
            payload = payload[taken:]
            if not payload:
                return
        self._unsent.append(memoryview(bytes(payload)))
        self._unsent_bytes += len(payload)
        self._watch()

    def host_output_done(self) -> None:
        """All that the guest has sent is on the host: end it there, too, if the guest has ended."""
        if self._guest_ended and self.host is not None:
            self.host.end_output()
            self._maybe_done()

    # ---- To the host

    def host_writable(self) -> None:
        """The host takes more of what the guest has sent."""
        unsent = self._unsent
        while unsent and self.host is not None:
            try:
                taken = self.host.send(unsent[0])
            except OSError:
                self.abort()
                return
            self._unsent_bytes -= taken
            if taken < len(unsent[0]):
                unsent[0] = unsent[0][taken:]
                break
            unsent.popleft()
        if not unsent:
            self.host_output_done()
        if self._space() - self._promised >= min(_RECEIVE_SPACE // 2, 2 * self._mss) and self.host is not None:
            self._owe(now=True)  # the window was small, and is not any more
        self._watch()

    # ---- From the host

    def host_readable(self) -> None:
        """The host has something for the guest."""
        self.pump()
        self._net.send_end()

    def pump(self) -> None:
        """Send the guest what the host has, as far as the guest's window and its room for frames reach."""
        if self.state is not TcpState.ESTABLISHED or self.host is None:
            return
        self._blocked = False
        for _ in range(_PIECES_AT_ONCE):
            size = self._allowed()
            if size <= 0 or not self._read_piece(size):
                break
        if self.state is TcpState.ESTABLISHED:
            self._watch()

    def _allowed(self) -> int:
        """Return how many bytes may be sent in one piece now."""
        if self._host_ended:
            return 0
        if self._net.congested:
            self._blocked = True
            self.service.wait_for_room(self)
            return 0
        in_flight = _behind(self._send_next, self._send_una)
        room = min(self._window, _FLIGHT_LIMIT) - in_flight
        if room <= 0:
            if not self._window and not in_flight:
                self._start_timer()  # probe a window that is closed
            return 0
        if room < self._mss and in_flight:
            return 0
        return min(room, _LARGEST_SEGMENT // self._mss * self._mss if self._takes_large else self._mss)

    @property
    def _takes_large(self) -> bool:
        """Whether the guest takes segments that are longer than a frame."""
        offloads = self._net.peer_offloads
        return offloads.tso6 if self._wide else offloads.tso4

    def _read_piece(self, size: int) -> bool:
        """Read from the host and send it; return whether there may be more."""
        assert self.host is not None
        frame = bytearray(self._headers + size)
        try:
            count = self.host.receive_into(memoryview(frame)[self._headers :])
        except OSError:
            self.abort()
            return False
        if count is None:
            return False
        if count == 0:
            self._host_ended = True
            self._send_fin()
            return False
        whole = memoryview(frame)[: self._headers + count]
        self._flight.append(_Piece(self._send_next, whole[self._headers :].toreadonly()))
        sequence, self._send_next = self._send_next, (self._send_next + count) & _U32
        self._finish_frame(whole, p.TCP_ACK | p.TCP_PSH, sequence, b"")
        if self._deadline is None:
            self._start_timer()
        return count == size

    def _send_fin(self) -> None:
        self._fin_sent = True
        self._ended_first = not self._guest_ended
        sequence, self._send_next = self._send_next, (self._send_next + 1) & _U32
        self._emit(p.TCP_FIN | p.TCP_ACK, sequence)
        self._start_timer()

    def _watch(self) -> None:
        """Wait for what can be used now."""
        if self.host is None:
            return
        in_flight = _behind(self._send_next, self._send_una)
        room = min(self._window, _FLIGHT_LIMIT) - in_flight
        open_window = room >= self._mss or (room > 0 and not in_flight)
        read = open_window and not self._host_ended and not self._blocked and self.state is TcpState.ESTABLISHED
        self._reading = read
        self.host.watch(read=read, write=bool(self._unsent))

    # ---- Frames

    def _space(self) -> int:
        """Return the window that the guest may be told."""
        limit = 0xFFFF << self._own_scale
        return min(max(_RECEIVE_SPACE - self._unsent_bytes, 0), limit)

    def _owe(self, *, now: bool) -> None:
        """Acknowledge at once, or when the guest has sent all for now."""
        self._acknowledge = True
        if now:
            self.acknowledge()
        else:
            self.service.owe(self)

    def acknowledge(self) -> None:
        """Send the acknowledgement that is owed, if it is."""
        if self._acknowledge and self.state not in (TcpState.CLOSED, TcpState.CONNECTING):
            self._emit(p.TCP_ACK, self._send_next)

    def _emit(self, flags: int, sequence: int, *, options: bytes = b"", data: memoryview | bytes = b"") -> None:
        frame = bytearray(self._headers + len(options) + len(data))
        frame[self._headers + len(options) :] = data
        self._finish_frame(memoryview(frame), flags, sequence, options)

    def _finish_frame(self, frame: memoryview, flags: int, sequence: int, options: bytes) -> None:
        """Write the headers of a frame whose data is in its place, and send it."""
        mac = self._net.neighbour(self.guest[0])
        if mac is None:
            return  # it is asked for, and this is sent again later
        source, target = self.other[0], self.guest[0]
        length = len(frame) - self._start
        header = p.TCP.size + len(options)
        window = self._space() if not flags & p.TCP_SYN else min(self._space(), 0xFFFF)
        scale = 0 if flags & p.TCP_SYN else self._own_scale
        self._promised = (window >> scale) << scale
        if flags & p.TCP_ACK:
            self._acknowledge = False
        receive_next = self._receive_next if flags & p.TCP_ACK else 0
        frame[: self._start] = self._net.headers(mac, source, target, p.PROTO_TCP, length)
        total = self._pseudo + length
        offload: Offload | None = None
        if options:
            frame[self._headers : self._headers + len(options)] = options
        fields = (self.other[1], self.guest[1], sequence, receive_next, header << 2, flags, window >> scale)
        if self._net.peer_offloads.checksum:
            p.TCP.pack_into(frame, self._start, *fields, total % 0xFFFF, 0)
            size = self._mss if length - header > self._mss else 0
            kind = (GSO_TCPV6 if self._wide else GSO_TCPV4) if size else 0
            offload = Offload(NEEDS_CSUM, kind, self._start + header, size, self._start, _CSUM_OFFSET)
        else:
            p.TCP.pack_into(frame, self._start, *fields, 0, 0)
            full = p.checksum(total + p.words_sum(frame[self._start :]))
            frame[self._start + _CSUM_OFFSET : self._start + _CSUM_OFFSET + 2] = full.to_bytes(2, "big")
        self._net.transmit(frame, offload)

    # ---- Time

    def _start_timer(self) -> None:
        """Count from now until something has to be sent again; the timer itself goes off early and looks."""
        self._deadline = self._net.clock.now() + self._rto
        if self._timer.deadline is None or self._timer.deadline > self._deadline:
            self._timer.arm(self._deadline)

    def _stop_timer(self) -> None:
        self._deadline = None

    def _time_out(self) -> None:
        if self._deadline is None:
            return
        if self._net.clock.now() < self._deadline:
            self._timer.arm(self._deadline)
            return
        self._deadline = None
        if self.state is TcpState.TIME_WAIT:
            self._end(abort=False)
            return
        self._tries += 1
        if self._tries > _TRIES:
            self.abort()
            return
        self._rto = min(self._rto * 2, _LONGEST_RTO)
        if self.state in (TcpState.SYN_SENT, TcpState.SYN_RECEIVED):
            self._send_syn()
        elif self._flight or self._fin_sent:
            self._recover = self._send_next
            self._send_again()
        elif not self._window:
            self._tries = 0
            self._emit(p.TCP_ACK, (self._send_next - 1) & _U32)
        else:
            self.pump()
        if self.state is not TcpState.CLOSED:
            self._start_timer()
            self._net.send_end()

    def _send_again(self) -> None:
        """Send the first thing again that was not acknowledged."""
        self._duplicates = 0
        if self._flight:
            piece = self._flight[0]
            largest = _LARGEST_SEGMENT if self._takes_large else self._mss
            self._emit(p.TCP_ACK | p.TCP_PSH, piece.sequence, data=piece.data[:largest])
        elif self._fin_sent and not self._fin_acknowledged:
            self._emit(p.TCP_FIN | p.TCP_ACK, (self._send_next - 1) & _U32)

    # ---- End

    def _maybe_done(self) -> None:
        """End where both sides have."""
        if self._guest_ended and self._fin_acknowledged and not self._unsent and self.state is TcpState.ESTABLISHED:
            if not self._ended_first:
                self._end(abort=False)
                return
            if self.host is not None:
                self.host.close(abort=False)
                self.host = None
            self.state = TcpState.TIME_WAIT
            self._rto = _TIME_WAIT
            self._start_timer()

    def abort(self) -> None:
        """The connection broke: reset it on both sides."""
        if self.state not in (TcpState.CLOSED, TcpState.TIME_WAIT):
            self._emit(p.TCP_RST | p.TCP_ACK, self._send_next)
        self._end(abort=True)

    def _end(self, *, abort: bool) -> None:
        self.state = TcpState.CLOSED
        self._timer.cancel()
        self._deadline = None
        self._flight.clear()
        self._unsent.clear()
        self._unsent_bytes = 0
        if self.host is not None:
            self.host.close(abort=abort)
            self.host = None
        self.service.forget(self)

    def close(self) -> None:
        """The network goes away."""
        self._end(abort=True)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many bytes wait for the guest, and for the host."""
        return _behind(self._send_next, self._send_una), self._unsent_bytes
