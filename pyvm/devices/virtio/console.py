"""Virtio console device, alias virtio-serial bus (virtio 1.2, section 5.3): ports between guest and host.

Queues: 0 and 1 input and output of port 0, 2 and 3 control messages to and from the guest, then a pair for each further
port.  "Input" is what the guest receives.  Without VIRTIO_CONSOLE_F_MULTIPORT the driver knows port 0 only and sends
no control messages.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio.console_port import AUTOMATIC, NAME_LIMIT, ConsolePort, PortState
from pyvm.devices.virtio.constants import ID_CONSOLE, MAX_QUEUES
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.state import StateError, blob, flag, record, sequence, uint

# Feature bits (5.3.3)
F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1
F_EMERG_WRITE = 1 << 2

# Configuration space (5.3.4): u16 cols, u16 rows, u32 max_nr_ports, u32 emerg_wr
_CONFIG = struct.Struct("<HHII")
_CONFIG_EMERG_WR = 8

# Control messages (5.3.6.2): u32 port, u16 event, u16 value
_CONTROL = struct.Struct("<IHH")
_SIZE = struct.Struct("<HH")
DEVICE_READY = 0
PORT_ADD = 1
PORT_REMOVE = 2
PORT_READY = 3
CONSOLE_PORT = 4
RESIZE = 5
PORT_OPEN = 6
PORT_NAME = 7

_DATA_QUEUE_SIZE = 128
_CONTROL_QUEUE_SIZE = 32
_CONTROL_IN = 2
_CONTROL_OUT = 3
_CONTROL_BACKLOG = 512
"""Messages that wait until the guest gives buffers; a guest that asks for more without giving any loses the rest."""

DEFAULT_MAX_PORTS = 31
MAX_PORTS = MAX_QUEUES // 2 - 1


class ConsoleState(VirtioState):
    """Migratable state; `control` holds messages that the guest has no buffers for yet."""

    driver_known: bool = flag()
    cols: int = uint(16)
    rows: int = uint(16)
    control: list[bytes] = sequence(blob(_CONTROL.size + NAME_LIMIT + 1), _CONTROL_BACKLOG)
    ports: list[PortState] = sequence(record(PortState), MAX_PORTS)


def _input_index(nr: int) -> int:
    """Return the index of the queue that carries data to the guest for port `nr`; output is the next one."""
    return 0 if nr == 0 else 2 * nr + 2


class VirtioConsole(VirtioDevice[ConsoleState]):
    """A virtio-serial device with up to `max_ports` ports.

    `size` is (columns, rows) of the first console where that is known; VIRTIO_CONSOLE_F_SIZE is offered then.
    Raises ValueError for an impossible number of ports.
    """

    device_id = ID_CONSOLE
    name = "virtio-serial"
    state_type = ConsoleState
    PROPERTIES: ClassVar[Properties] = {
        "max_ports": Property("uint32", DEFAULT_MAX_PORTS, "how many ports there can be, number 0 included"),
        "emergency-write": Property("bool", True, "offer a register that writes one character of the first console"),
    }

    def __init__(
        self,
        *,
        max_ports: int = DEFAULT_MAX_PORTS,
        emergency_write: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        if max_ports <= 0:
            raise ValueError("Maximum number of serial ports not specified")
        if max_ports > MAX_PORTS:
            raise ValueError(f"maximum ports supported: {MAX_PORTS}")
        sizes = [_DATA_QUEUE_SIZE] * (2 * (max_ports + 1))
        sizes[_CONTROL_IN] = sizes[_CONTROL_OUT] = _CONTROL_QUEUE_SIZE
        features = F_MULTIPORT | (F_EMERG_WRITE if emergency_write else 0) | (F_SIZE if size else 0)
        super().__init__(sizes, features, _CONFIG.size)
        self.max_ports = max_ports
        self.cols, self.rows = size or (0, 0)
        self.ports: dict[int, ConsolePort] = {}
        self.on_guest_open: Callable[[ConsolePort, bool], None] = lambda port, is_open: None
        """Told when the guest opens or closes a port."""
        self._driver_known = False
        self._control: deque[bytes] = deque()
        self._handlers: list[Callable[[], None]] = [self._nothing] * len(self.queues)
        self._handlers[_CONTROL_IN] = self._flush_control
        self._handlers[_CONTROL_OUT] = self._take_control
        for nr in range(max_ports):
            self._connect_queues(nr, None)

    @staticmethod
    def _nothing() -> None:
        """Leave buffers where they are: nobody will fill them."""

    # Ports

    def add_port(self, port: ConsolePort) -> None:
        """Plug a port in; raises ValueError where its number, name or back end is taken or its number impossible."""
        nr = self._choose_number(port)
        if port.name and any(other.name == port.name for other in self.ports.values()):
            raise ValueError(f"virtio-serial-bus: A port already exists by name {port.name}")
        queue = _input_index(nr)
        port.plug(self, nr, self.queues[queue], self.queues[queue + 1])
        self.ports[nr] = port
        self._connect_queues(nr, port)
        if self._driver_known:
            self._send(port, PORT_ADD, 1)
        if self.running and not self.has(F_MULTIPORT) and nr == 0:
            self._set_guest_connected(port, True)

    def _choose_number(self, port: ConsolePort) -> int:
        nr = port.nr
        if nr == AUTOMATIC:
            first = 0 if port.console else 1
            nr = next((free for free in range(first, self.max_ports) if free not in self.ports), self.max_ports)
        if nr >= self.max_ports:
            limit = self.max_ports - 1
            raise ValueError(f"virtio-serial-bus: Out-of-range port id specified, max. allowed: {limit}")
        if nr == 0 and not port.console:
            raise ValueError(
                "Port number 0 on virtio-serial devices reserved for virtconsole devices for backward compatibility."
            )
        if nr in self.ports:
            raise ValueError(f"virtio-serial-bus: A port already exists at id {nr}")
        return nr

    def remove_port(self, port: ConsolePort) -> None:
        """Take a port out, and tell the guest."""
        del self.ports[port.nr]
        port.unplug()
        self._connect_queues(port.nr, None)
        if self.running:
            # Somebody in the guest may wait until what it wrote is taken.
            self._discard(self.queues[_input_index(port.nr) + 1])
        if self._driver_known:
            self._send(port, PORT_REMOVE, 1)

    def _connect_queues(self, nr: int, port: ConsolePort | None) -> None:
        index = _input_index(nr)
        if port is not None:
            self._handlers[index] = port.accept_input
            self._handlers[index + 1] = port.move_output
        else:
            output = self.queues[index + 1]
            self._handlers[index] = self._nothing
            self._handlers[index + 1] = lambda: self._discard(output)

    @staticmethod
    def _discard(queue: VirtQueue) -> None:
        """Take output for a port that does not exist."""
        while (chain := queue.pop()) is not None:
            queue.push(chain, 0)
        queue.flush()

    def can_take_input(self, port: ConsolePort) -> bool:
        """Return whether the guest has the port open and the device may use its queues."""
        return self.running and port.guest_connected

    def host_connection_changed(self, port: ConsolePort) -> None:
        """Tell the guest whether a peer is there; a guest that has not set the port up hears of it when it does."""
        if port.ready:
            self._send(port, PORT_OPEN, int(port.host_connected))

    def resize(self, port: ConsolePort, cols: int, rows: int) -> None:
        """Tell the guest that the terminal of a console port has a new size."""
        if port.nr == 0 and self.offered_features & F_SIZE:
            self.cols, self.rows = cols, rows
            self.config_changed()
        if port.ready and port.console:
            # The specification says columns first.  Linux, the driver that listens, has always read rows first.
            self._send(port, RESIZE, 0, _SIZE.pack(rows & 0xFFFF, cols & 0xFFFF))

    def _set_guest_connected(self, port: ConsolePort, connected: bool) -> None:
        if connected != port.guest_connected:
            port.set_guest_connected(connected)
            self.on_guest_open(port, connected)
        if connected:
            port.accept_input()

    # Queues

    def resume(self) -> None:
        """Go on after :meth:`pause`, or with a loaded state: control messages and data wait on either side."""
        super().resume()
        if self.running:
            for queue in self.queues:
                if queue.ready:
                    self.handle_queue(queue)

    def handle_queue(self, queue: VirtQueue) -> None:
        """Let the owner of the queue work on it."""
        self._handlers[queue.index]()

    def _send(self, port: ConsolePort, event: int, value: int, payload: bytes = b"") -> None:
        if len(self._control) < _CONTROL_BACKLOG:
            self._control.append(_CONTROL.pack(port.nr, event, value) + payload)
            self._flush_control()

    def _flush_control(self) -> None:
        """Put waiting control messages into the guest's buffers."""
        queue = self.queues[_CONTROL_IN]
        while self._control and self.running and (chain := queue.pop()) is not None:
            queue.push(chain, chain.scatter(self._control.popleft()))
        queue.flush()

    def _take_control(self) -> None:
        queue = self.queues[_CONTROL_OUT]
        while (chain := queue.pop()) is not None:
            message = chain.gather(_CONTROL.size)
            queue.push(chain, 0)
            if len(message) == _CONTROL.size:
                self._control_message(*_CONTROL.unpack(message))
        queue.flush()

    def _control_message(self, nr: int, event: int, value: int) -> None:
        """Follow one message of the guest; those about ports that do not exist say nothing."""
        if event == DEVICE_READY:
            self._driver_known = value == 1
            if self._driver_known:
                for port in self.ports.values():
                    self._send(port, PORT_ADD, 1)
            return
        port_or_none = self.ports.get(nr)
        if port_or_none is None:
            return
        port = port_or_none
        if event == PORT_READY:
            port.ready = value == 1
            if port.ready:
                self._introduce(port)
        elif event == PORT_OPEN:
            self._set_guest_connected(port, bool(value))

    def _introduce(self, port: ConsolePort) -> None:
        """Tell the guest what it must know of a port that it has set up."""
        if port.console:
            self._send(port, CONSOLE_PORT, 1)
        if port.name:
            self._send(port, PORT_NAME, 1, port.name.encode() + b"\0")
        if port.host_connected:
            self._send(port, PORT_OPEN, 1)

    # Device life

    def driver_ready(self, ready: bool) -> None:
        """Open port 0 for a driver that cannot say so itself; close all ports when the driver goes."""
        if ready and not self.has(F_MULTIPORT):
            if 0 in self.ports:
                self._set_guest_connected(self.ports[0], True)
        elif not ready:
            for port in self.ports.values():
                port.ready = False
                self._set_guest_connected(port, False)

    def reset_device(self) -> None:
        """Forget control messages and chains; ports stay, closed."""
        self._driver_known = False
        self._control.clear()
        for port in self.ports.values():
            port.ready = False
            port.drop_input()
            port.drop_output()

    def reset_queue(self, queue: VirtQueue) -> None:
        """Forget chains of one queue."""
        for port in self.ports.values():
            index = _input_index(port.nr)
            if queue.index == index:
                port.drop_input()
            elif queue.index == index + 1:
                port.drop_output()

    def config(self) -> bytes:
        """Return the configuration space."""
        return _CONFIG.pack(self.cols, self.rows, self.max_ports, 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """Emergency write: one character for the first console, before any queue works."""
        if offset == _CONFIG_EMERG_WR and self.offered_features & F_EMERG_WRITE:
            port = self.ports.get(0)
            if port is not None and port.chardev is not None:
                port.chardev.write(data[:1])

    # State

    def save_device(self) -> ConsoleState:
        """Return ports and waiting control messages."""
        return ConsoleState(
            driver_known=self._driver_known,
            cols=self.cols,
            rows=self.rows,
            control=list(self._control),
            ports=[self.ports[nr].save() for nr in sorted(self.ports)],
        )

    def check_device(self, state: ConsoleState) -> None:
        """Raise :class:`StateError` where the ports are not those of this device."""
        numbers = [port.nr for port in state.ports]
        if numbers != sorted(self.ports):
            raise StateError(f"{self.name}: ports {numbers}, but the device has {sorted(self.ports)}")

    def load_device(self, state: ConsoleState) -> None:
        """Take over the ports; tell whoever listens, and the guest, what is different here."""
        self.cols, self.rows = state.cols, state.rows
        self._driver_known = state.driver_known
        self._control.extend(state.control)
        for port_state in state.ports:
            port = self.ports[port_state.nr]
            was_connected = port.guest_connected
            port.load(port_state)
            if port.guest_connected != was_connected:
                self.on_guest_open(port, port.guest_connected)
            if port.ready and port.host_connected != port_state.host_connected:
                self._send(port, PORT_OPEN, int(port.host_connected))
