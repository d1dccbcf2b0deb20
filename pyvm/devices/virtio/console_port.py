"""One port of a virtio-serial device (virtio 1.2, section 5.3): the front end of one character device.

`virtserialport` is a generic port that the guest finds by name; `virtconsole` is a terminal.  Bytes flow both ways
under flow control: guest output that the back end cannot take stays in its descriptor, and input is taken from the
back end only as far as the guest has given buffers.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Protocol

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.ring import Chain
from pyvm.state import State, flag, uint

PREFETCH = 64 * 1024
"""Input buffers for so many bytes are taken from the ring ahead; more is not read from the back end at once."""

NAME_LIMIT = 4000
"""Longest port name in bytes; Linux gives its control buffers one page."""

AUTOMATIC = 0xFFFFFFFF
"""In place of a port number: the next free one."""


class PortState(State):
    """Migratable state of one port; `consumed` counts bytes of the next output chain that the back end has taken."""

    nr: int = uint(32)
    ready: bool = flag()
    host_connected: bool = flag()
    guest_connected: bool = flag()
    consumed: int = uint(42)


class PortBus(Protocol):
    """The device that a port is in, as the port knows it."""

    @property
    def running(self) -> bool:
        """Whether the device may use its queues now."""

    def can_take_input(self, port: ConsolePort) -> bool:
        """Return whether the guest has the port open and the device may use its queues."""

    def host_connection_changed(self, port: ConsolePort) -> None:
        """Tell the guest whether a peer is there."""


class ConsolePort:
    """A port; `console` says whether it is a `virtconsole`.  Raises ValueError for a name that is too long."""

    SERIAL_PROPERTIES: ClassVar[Properties] = {
        "nr": Property("uint32", AUTOMATIC, "port number; the next free one where not set"),
        "name": Property("str", None, "name by which the guest finds the port"),
        "chardev": Property("chardev", None, "ID of a chardev to use as a backend"),
    }
    CONSOLE_PROPERTIES: ClassVar[Properties] = SERIAL_PROPERTIES

    def __init__(
        self, *, nr: int = AUTOMATIC, name: str = "", chardev: Chardev | None = None, console: bool = False
    ) -> None:
        if len(name.encode()) > NAME_LIMIT:
            raise ValueError(f"virtio-serial-bus: port name is longer than {NAME_LIMIT} bytes")
        self.nr = nr
        self.name = name
        self.chardev = chardev
        self.console = console
        self.ready = False
        """Whether the guest said that it set the port up."""
        self.host_connected = False
        self.guest_connected = False
        self._bus: PortBus | None = None
        self._input: VirtQueue
        self._output: VirtQueue
        self._buffers: deque[Chain] = deque()
        self._room = 0
        self._held: Chain | None = None
        self._consumed = 0
        self._moving = False

    def plug(self, bus: PortBus, nr: int, input_queue: VirtQueue, output_queue: VirtQueue) -> None:
        """Become port `nr` of a device; raises ValueError where the back end has another front end."""
        self.nr = nr
        self._bus = bus
        self._input = input_queue
        self._output = output_queue
        self.ready = False
        self.guest_connected = False
        if self.chardev is not None:
            # A console does not make its data wait for a peer, so to the guest it always has one.
            self.host_connected = self.console
            try:
                self.chardev.attach(self)
            except ValueError:
                self._bus = None
                raise
            self._tell_backend()

    def unplug(self) -> None:
        """Leave the device; the back end is free for another front end, chains go back to the rings."""
        self._rewind()
        self._consumed = 0
        self._bus = None
        self.host_connected = False
        if self.chardev is not None:
            self.chardev.detach()

    # The back end calls these

    def can_receive(self) -> int:
        """Return for how many bytes the guest has given buffers; 0 while it has not opened the port."""
        bus = self._bus
        if bus is None or not bus.can_take_input(self):
            return 0
        if self._room >= PREFETCH:
            return self._room
        while self._room < PREFETCH and (chain := self._input.pop()) is not None:
            self._buffers.append(chain)
            self._room += chain.writable_bytes
        # The driver may just have broken the device.
        return self._room if bus.can_take_input(self) else 0

    def receive(self, data: bytes) -> None:
        """Put bytes from the host into the guest's buffers."""
        view = memoryview(data)
        buffers = self._buffers
        queue = self._input
        while view and buffers:
            chain = buffers.popleft()
            self._room -= chain.writable_bytes
            done = chain.scatter(view)
            queue.push(chain, done)
            view = view[done:]
        queue.flush()

    def event(self, event: ChardevEvent) -> None:
        """Follow the peer coming and going."""
        if event not in (ChardevEvent.OPENED, ChardevEvent.CLOSED):
            return
        connected = event is ChardevEvent.OPENED or self.console
        if connected != self.host_connected:
            self.host_connected = connected
            if self._bus is not None:
                self._bus.host_connection_changed(self)
        # A back end without a peer takes and drops everything: what was held for the old peer goes.
        self.move_output()

    def writable(self) -> None:
        """Go on with output that the back end could not take."""
        self.move_output()

    # The device calls these

    def set_guest_connected(self, connected: bool) -> None:
        """Take note of the guest opening or closing the port."""
        self.guest_connected = connected
        self._tell_backend()

    def _tell_backend(self) -> None:
        """Say whether somebody in the guest listens; a console always does."""
        if self.chardev is not None and not self.console:
            self.chardev.set_open(self.guest_connected)

    def accept_input(self) -> None:
        """Let the back end try again: the guest opened the port or gave buffers."""
        if self.chardev is not None:
            self.chardev.accept_input()

    def move_output(self) -> None:
        """Give the guest's output to the back end until that takes no more.

        The back end may report a lost peer from within its `write`, which leads here again; the outer call goes on.
        """
        if self._moving or self._bus is None or not self._bus.running:
            return
        self._moving = True
        try:
            self._move_chains()
        finally:
            self._moving = False

    def _move_chains(self) -> None:
        queue = self._output
        if self._held is None and not self._consumed and self.chardev is not None:
            fd = self.chardev.send_fd()
            if fd >= 0:
                self._consumed = queue.send(fd)
        while (chain := self._held or queue.pop()) is not None:
            if not self._move_chain(chain):
                self._held = chain
                break
            self._held = None
            self._consumed = 0
            queue.push(chain, 0)
        queue.flush()

    def _move_chain(self, chain: Chain) -> bool:
        """Offer what is left of `chain` to the back end; return whether all of it was taken."""
        if self.chardev is None:
            return True
        write = self.chardev.write
        skip = self._consumed
        for segment in chain.readable:
            length = len(segment)
            if skip >= length:
                skip -= length
                continue
            rest = segment[skip:] if skip else segment
            skip = 0
            taken = write(rest)
            self._consumed += taken
            if taken < len(rest):
                return False
        return True

    def drop_input(self) -> None:
        """Forget the buffers taken ahead: their queue is being reset."""
        self._buffers.clear()
        self._room = 0

    def drop_output(self) -> None:
        """Forget the chain being moved: its queue is being reset."""
        self._held = None
        self._consumed = 0

    def _rewind(self) -> None:
        """Put all held chains back into their rings; the place within the output chain is kept."""
        if self._buffers:
            self._input.rewind(self._buffers[0])
            self.drop_input()
        if self._held is not None:
            self._output.rewind(self._held)
            self._held = None

    def save(self) -> PortState:
        """Return the migratable state; chains that are held go back to the rings and are popped again later."""
        self._rewind()
        return PortState(self.nr, self.ready, self.host_connected, self.guest_connected, self._consumed)

    def load(self, state: PortState) -> None:
        """Take over a checked state, except for the connection of the host, which is as it is."""
        self.drop_input()
        self.drop_output()
        self.ready = state.ready
        self.set_guest_connected(state.guest_connected)
        self._consumed = state.consumed
