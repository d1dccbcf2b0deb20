"""GDB's remote serial protocol on a character device: acknowledgements, interrupts, and replies that come later.

While the guest runs, a debugger that waits for it sends nothing but the interrupt; whatever else it sends stops the
guest first.  Lines of the monitor may take their time, and what the peer sends meanwhile waits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pyvm.chardev.base import ChardevEvent, report
from pyvm.monitor.descriptors import NamedFds, first_fd
from pyvm.monitor.gdb.packets import PACKET_SIZE, PacketReader, Signal, frame
from pyvm.monitor.gdb.session import BAD_REQUEST, OK, Later, Session
from pyvm.monitor.hmp.monitor import HumanClient
from pyvm.monitor.hmp.shell import HumanState
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev
    from pyvm.machine.debugger import Debugger
    from pyvm.monitor.dispatcher import Dispatcher, Reply
    from pyvm.monitor.machine import Scheduler

OUTPUT_LIMIT = 256 << 10
"""Bytes of unread output beyond which input is not looked at any more."""
_LINE_LIMIT = PACKET_SIZE // 2 - 1
"""Most bytes of the monitor's output in one packet."""


class GdbServer:
    """The stub on one device; a front end as :class:`pyvm.chardev.base.Frontend` says."""

    def __init__(self, chardev: Chardev, target: Debugger, dispatcher: Dispatcher, scheduler: Scheduler) -> None:
        """Serve whoever is on `chardev`.  Raises ValueError where another front end has the device."""
        self.named_fds = NamedFds()
        self._chardev = chardev
        self._target = target
        self._dispatcher = dispatcher
        self._scheduler = scheduler
        self._reader = PacketReader()
        self._received: deque[bytes | Signal] = deque()
        self._output = bytearray()
        self._session: Session | None = None
        self._client: HumanClient | None = None
        self._acknowledges = True
        self._last = b""
        """The last packet that was sent, while the peer has not acknowledged it."""
        self._waits = False
        """Whether the peer waits for the guest to stop."""
        self._in_monitor = False
        """Whether a line of the monitor is being executed."""
        self._proceeding = False
        chardev.attach(self)
        self._ignore_states = target.listen(self._state_changed)

    def close(self) -> None:
        """Tell the peer that the machine is gone, and let go of the device."""
        self._ignore_states()
        if self._waits:
            self._send(b"W%02x" % (self._target.exit_status & 0xFF))
        self._end()
        self._chardev.detach()
        self.named_fds.close()

    def take_fd(self) -> int | None:
        """Return the first of the descriptors that the peer passed last, and close the others."""
        return first_fd(self._chardev)

    # ---- The chardev's front end

    def can_receive(self) -> int:
        """Return how many bytes :meth:`receive` can take now."""
        return 0 if self._held_up or self._received else PACKET_SIZE

    @property
    def _held_up(self) -> bool:
        return self._session is None or self._in_monitor or len(self._output) > OUTPUT_LIMIT

    def receive(self, data: bytes) -> None:
        """Take bytes from the debugger."""
        if self._session is not None:
            for item in self._reader.feed(data):
                self._note(item)
            self._proceed()

    def _note(self, item: bytes | Signal) -> None:
        """Keep what came, without what a peer has sent again because nobody listened yet: it counts on one answer."""
        again = self._acknowledges and isinstance(item, bytes) and self._received and self._received[-1] == item
        if not again:
            self._received.append(item)

    def event(self, event: ChardevEvent) -> None:
        """Hear what happened to the connection."""
        if event is ChardevEvent.OPENED:
            self._end()
            self._session = Session(self._target, self._run_line)
            self._client = HumanClient(HumanState(), self._line_executed, self)
            self._dispatcher.attach(self._client)
            self._target.stop()
        elif event is ChardevEvent.CLOSED:
            self._end()

    def writable(self) -> None:
        """The peer takes more."""
        self._flush()
        self._resume()

    # ---- The conversation

    def _end(self) -> None:
        """Forget the connection and all that came of it; breakpoints stay until the next debugger comes."""
        if self._client is not None:
            self._client.close()
            self._dispatcher.withdraw(self._client)
        self._client = self._session = None
        self._reader = PacketReader()
        self._received.clear()
        self._output.clear()
        self._acknowledges = True
        self._waits = self._in_monitor = False
        self._last = b""

    def _resume(self) -> None:
        self._proceed()
        if self.can_receive():
            self._chardev.accept_input()

    def _proceed(self) -> None:
        """Look at what came until it is used up or has to wait."""
        if self._proceeding:
            return
        self._proceeding = True
        try:
            while self._received and not self._held_up:
                self._take(self._received.popleft())
        finally:
            self._proceeding = False

    def _take(self, item: bytes | Signal) -> None:
        match item:
            case bytes():
                self._acknowledge(b"+")
                self._target.stop()
                self._waits = False
                self._handle(item)
            case Signal.INTERRUPT:
                self._target.stop()
            case Signal.ACK:
                self._last = b""
            case Signal.NACK:
                self._write(self._last)
            case Signal.DAMAGED:
                self._acknowledge(b"-")
            case Signal.TOO_LONG:
                self._acknowledge(b"+")
                self._send(BAD_REQUEST)

    def _handle(self, packet: bytes) -> None:
        assert self._session is not None, "what comes without a connection is dropped"
        reply = self._session.handle(packet)
        match reply:
            case bytes():
                self._send(reply)
            case Later.STOPPED:
                self._waits = True
            case Later.MONITOR:
                pass  # answered already, or when the line has been executed
            case Later.NO_ACKS:
                self._send(OK)
                self._acknowledges, self._last = False, b""
            case Later.ENDS | Later.KILLED:
                if reply is Later.ENDS:
                    self._send(OK)
                report("terminated via GDBstub")
                self._target.end_machine()

    def _state_changed(self, old: RunState, new: RunState) -> None:
        if self._waits and old is RunState.RUNNING and self._session is not None:
            self._waits = False
            self._send(self._session.stop_reply(new))

    # ---- Lines of the monitor

    def _run_line(self, line: str) -> None:
        assert self._client is not None, "what comes without a connection is dropped"
        self._in_monitor = True
        request = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
        self._dispatcher.submit(self._client, request)

    def _line_executed(self, reply: Reply) -> None:
        text = reply["return"] if "return" in reply else f"Error: {reply['error']['desc']}\r\n"
        data = text.encode("utf-8", "surrogateescape")
        for start in range(0, len(data), _LINE_LIMIT):
            self._send(b"O" + data[start : start + _LINE_LIMIT].hex().encode("ascii"))
        self._send(OK)
        self._in_monitor = False
        if not self._proceeding:
            self._scheduler.call_soon(self._resume)

    # ---- Output

    def _acknowledge(self, sign: bytes) -> None:
        if self._acknowledges:
            self._write(sign)

    def _send(self, data: bytes) -> None:
        packet = frame(data)
        self._last = packet if self._acknowledges else b""
        self._write(packet)

    def _write(self, data: bytes) -> None:
        self._output += data
        self._flush()

    def _flush(self) -> None:
        while self._output and (taken := self._chardev.write(bytes(self._output[:OUTPUT_LIMIT]))):
            del self._output[:taken]
