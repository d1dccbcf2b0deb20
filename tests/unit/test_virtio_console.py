"""virtio-serial: ports, control messages, and flow control in both directions."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.devices.virtio.console import (
    CONSOLE_PORT,
    DEVICE_READY,
    F_EMERG_WRITE,
    F_MULTIPORT,
    F_SIZE,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORT_REMOVE,
    RESIZE,
    ConsoleState,
    VirtioConsole,
)
from pyvm.devices.virtio.console_port import PREFETCH, ConsolePort
from pyvm.state import StateError
from tests.unit.virtio_driver import Harness, RingDriver, SplitDriver, start

CONTROL = struct.Struct("<IHH")
IN, OUT = 4, 5
"""Queues of port 1."""


class Pipe(Chardev):
    """A back end that takes `room` bytes and offers `incoming`."""

    filename = "test"

    def __init__(self, room: int | None = None, *, peer: bool = True) -> None:
        super().__init__("pipe")
        self.room = room
        self.peer = peer
        self.taken = bytearray()
        self.incoming = bytearray()
        self.drop_on_write = False

    @property
    def connected(self) -> bool:
        return self.peer

    def _write(self, data: Buffer) -> int:
        if self.drop_on_write:
            self.drop_on_write = False
            self.hang_up()
        if not self.peer:
            return len(data)
        count = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= count
        self.taken += data[:count]
        return count

    def accept_input(self) -> None:
        assert self.frontend is not None
        while self.incoming and (room := self.frontend.can_receive()):
            chunk = bytes(self.incoming[:room])
            del self.incoming[:room]
            self.frontend.receive(chunk)

    def send(self, data: bytes) -> None:
        self.incoming += data
        self.accept_input()

    def give_room(self, room: int | None) -> None:
        assert self.frontend is not None
        self.room = room
        self.frontend.writable()

    def hang_up(self) -> None:
        assert self.frontend is not None
        self.peer = False
        self.frontend.event(ChardevEvent.CLOSED)

    def connect(self) -> None:
        assert self.frontend is not None
        self.peer = True
        self.frontend.event(ChardevEvent.OPENED)


class Guest:
    """A guest's driver for a device with one serial port, number 1, named "agent"."""

    def __init__(self, pipe: Pipe | None = None, *, packed: bool = False, event_idx: bool = False) -> None:
        self.pipe = pipe or Pipe()
        self.device = VirtioConsole()
        self.port = ConsolePort(name="agent", chardev=self.pipe)
        self.opens: list[tuple[int, bool]] = []
        self.device.on_guest_open = lambda port, is_open: self.opens.append((port.nr, is_open))
        self.device.add_port(self.port)
        self.h: Harness = start(self.device, F_MULTIPORT, packed=packed, event_idx=event_idx, rings=6)
        self.control_buffers()

    def ring(self, index: int) -> RingDriver:
        return self.h.rings[index]

    def control_buffers(self, count: int = 16) -> None:
        for _ in range(count):
            self.ring(2).add(writable=[64])
        self.h.kick(2)

    def tell(self, nr: int, event: int, value: int) -> None:
        self.ring(3).add([CONTROL.pack(nr, event, value)])
        self.h.kick(3)
        self.ring(3).collect()

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        """Return the control messages since the last call."""
        found = []
        for buffer in self.ring(2).collect():
            data = buffer.data(self.h.memory)
            found.append((*CONTROL.unpack(data[:8]), data[8:]))
        return found

    def open(self) -> None:
        self.tell(0, DEVICE_READY, 1)
        self.tell(1, PORT_READY, 1)
        self.tell(1, PORT_OPEN, 1)

    def offer(self, *lengths: int) -> None:
        for length in lengths:
            self.ring(IN).add(writable=[length])
        self.h.kick(IN)

    def received(self) -> list[bytes]:
        return [buffer.data(self.h.memory) for buffer in self.ring(IN).collect()]

    def write(self, *parts: bytes) -> None:
        self.ring(OUT).add(parts)
        self.h.kick(OUT)


both = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def test_ports_introduce_themselves() -> None:
    guest = Guest()
    guest.device.add_port(ConsolePort(console=True))
    guest.tell(0, DEVICE_READY, 1)
    assert sorted(guest.messages()) == [(0, PORT_ADD, 1, b""), (1, PORT_ADD, 1, b"")]
    guest.tell(0, PORT_READY, 1)
    assert guest.messages() == [(0, CONSOLE_PORT, 1, b"")]
    guest.tell(1, PORT_READY, 1)
    assert guest.messages() == [(1, PORT_NAME, 1, b"agent\0"), (1, PORT_OPEN, 1, b"")]
    guest.tell(9, PORT_READY, 1)
    guest.tell(1, 77, 1)
    assert guest.messages() == []


def test_guest_open_and_close_are_reported_once() -> None:
    guest = Guest()
    guest.open()
    guest.tell(1, PORT_OPEN, 1)
    guest.tell(1, PORT_OPEN, 0)
    assert guest.opens == [(1, True), (1, False)]
    guest.tell(1, PORT_OPEN, 1)
    guest.device.set_status(0)
    assert guest.opens[2:] == [(1, True), (1, False)]


def test_guest_hears_of_the_peer() -> None:
    guest = Guest(Pipe(peer=False))
    guest.open()
    guest.messages()
    guest.pipe.connect()
    guest.pipe.hang_up()
    assert guest.messages() == [(1, PORT_OPEN, 1, b""), (1, PORT_OPEN, 0, b"")]


def test_console_seems_connected_whatever_its_peer_does() -> None:
    guest = Guest()
    pipe = Pipe(peer=False)
    guest.device.add_port(ConsolePort(console=True, chardev=pipe))
    guest.tell(0, PORT_READY, 1)
    assert (0, PORT_OPEN, 1, b"") in guest.messages()
    pipe.connect()
    pipe.hang_up()
    assert guest.messages() == []


def test_control_messages_wait_for_buffers() -> None:
    guest = Guest()
    guest.tell(0, DEVICE_READY, 1)
    for number in range(2, 31):
        guest.device.add_port(ConsolePort(name=f"port{number}"))
    first = guest.messages()
    guest.control_buffers(32)
    numbers = [nr for nr, event, _, _ in first + guest.messages() if event == PORT_ADD]
    assert numbers == list(range(1, 31))


@both
def test_output_reaches_the_back_end(packed: bool) -> None:
    guest = Guest(packed=packed)
    guest.open()
    guest.write(b"hello ", b"world")
    assert guest.pipe.taken == b"hello world"
    assert len(guest.ring(OUT).collect()) == 1


@both
@pytest.mark.parametrize("room", [0, 1, 5, 6, 7, 10])
def test_output_waits_in_its_descriptor(packed: bool, room: int) -> None:
    guest = Guest(Pipe(room), packed=packed)
    guest.open()
    guest.write(b"abcde", b"fghij")
    guest.write(b"klm")
    assert guest.pipe.taken == b"abcdefghij"[:room]
    assert len(guest.ring(OUT).collect()) == (room == 10)
    guest.pipe.give_room(1)
    assert guest.pipe.taken == b"abcdefghijklm"[: room + 1]
    guest.pipe.give_room(None)
    assert guest.pipe.taken == b"abcdefghijklm"
    guest.ring(OUT).collect()
    assert not guest.ring(OUT).outstanding


@both
def test_half_written_descriptor_survives_a_save(packed: bool) -> None:
    guest = Guest(Pipe(7), packed=packed)
    guest.open()
    guest.write(b"abcde", b"fghij")
    guest.offer(10, 10)
    guest.pipe.send(b"in")
    state = ConsoleState.from_dict(guest.device.save().to_dict())
    assert state.ports[0].consumed == 7

    other = VirtioConsole()
    pipe = Pipe()
    other.add_port(ConsolePort(name="agent", chardev=pipe))
    opens: list[bool] = []
    other.on_guest_open = lambda port, is_open: opens.append(is_open)
    h = guest.h
    other.attach(h.memory, guest.device.offered_features, h.interrupts.append, lambda: None)
    other.pause()
    other.load(state)
    assert opens == [True]
    other.resume()
    assert pipe.taken == b"hij"
    pipe.send(b"more")
    assert guest.received() == [b"in", b"more"]


@both
def test_saving_does_not_disturb(packed: bool) -> None:
    guest = Guest(Pipe(7), packed=packed)
    guest.open()
    guest.write(b"abcde", b"fghij")
    guest.offer(10)
    assert guest.port.can_receive() == 10
    guest.device.save()
    guest.pipe.give_room(None)
    assert guest.pipe.taken == b"abcdefghij"
    guest.pipe.send(b"in")
    assert guest.received() == [b"in"]


def test_load_tells_the_guest_of_another_peer_state() -> None:
    guest = Guest()
    guest.open()
    guest.messages()
    state = guest.device.save()
    state.ports[0].host_connected = False
    guest.device.pause()
    guest.device.load(state)
    guest.device.resume()
    assert guest.messages() == [(1, PORT_OPEN, 1, b"")]


def test_peer_that_spoke_before_the_machine_came() -> None:
    """A machine that waits for a migration has never run, so nobody has paused its devices."""
    guest = Guest(Pipe(7))
    guest.open()
    guest.messages()
    guest.write(b"abcde", b"fghij")
    guest.offer(10)
    state = guest.device.save()
    state.ports[0].host_connected = False

    other = VirtioConsole()
    pipe = Pipe()
    other.add_port(ConsolePort(name="agent", chardev=pipe))
    other.attach(guest.h.memory, guest.device.offered_features, guest.h.interrupts.append, lambda: None)
    pipe.send(b"ping")
    other.load(state)
    other.resume()
    assert guest.received() == [b"ping"]
    assert guest.messages() == [(1, PORT_OPEN, 1, b"")]
    assert pipe.taken == b"hij"


def test_load_refuses_other_ports() -> None:
    guest = Guest()
    state = guest.device.save()
    state.ports[0].nr = 2
    with pytest.raises(StateError, match="ports"):
        guest.device.load(state)


def test_lost_peer_takes_held_output_along() -> None:
    guest = Guest(Pipe(2))
    guest.open()
    guest.write(b"abc")
    guest.pipe.hang_up()
    assert len(guest.ring(OUT).collect()) == 1
    guest.pipe.connect()
    guest.pipe.room = None
    guest.write(b"new")
    assert guest.pipe.taken == b"abnew"


def test_peer_lost_within_a_write() -> None:
    guest = Guest()
    guest.open()
    guest.pipe.drop_on_write = True
    guest.write(b"gone")
    assert len(guest.ring(OUT).collect()) == 1
    assert (1, PORT_OPEN, 0, b"") in guest.messages()


def test_output_without_a_back_end_is_dropped() -> None:
    guest = Guest()
    guest.port.chardev = None
    guest.write(b"x")
    assert len(guest.ring(OUT).collect()) == 1


@both
def test_input_waits_until_the_guest_opens_and_gives_buffers(packed: bool) -> None:
    guest = Guest(packed=packed)
    guest.pipe.send(b"early bird")
    guest.offer(4)
    assert guest.received() == []
    guest.open()
    assert guest.received() == [b"earl"]
    guest.offer(3, 100)
    assert guest.received() == [b"y b", b"ird"]
    guest.tell(1, PORT_OPEN, 0)
    guest.offer(4)
    guest.pipe.send(b"x")
    assert guest.received() == []


def test_input_takes_no_more_buffers_than_it_needs() -> None:
    guest = Guest()
    guest.open()
    guest.offer(*[4096] * 60)
    assert guest.port.can_receive() == PREFETCH
    guest.pipe.send(bytes(100_000))
    assert sum(map(len, guest.received())) == 100_000


def test_refills_of_the_guest_need_no_kick_while_there_is_room() -> None:
    guest = Guest(event_idx=True)
    guest.open()
    guest.offer(*[4096] * 40)
    guest.pipe.send(b"x")
    guest.ring(IN).add(writable=[4096])
    assert not guest.ring(IN).kick_wanted(1)
    guest.pipe.send(bytes(PREFETCH * 4))
    guest.ring(IN).add(writable=[4096])
    assert guest.ring(IN).kick_wanted(1), "the device has run out of buffers"


def test_one_interrupt_for_one_burst() -> None:
    guest = Guest()
    guest.open()
    guest.offer(*[1024] * 16)
    guest.h.interrupts.clear()
    guest.pipe.send(bytes(16 * 1024))
    assert guest.h.interrupts == [IN]


def test_broken_input_ring_loses_no_input() -> None:
    guest = Guest()
    guest.open()
    ring = guest.ring(IN)
    assert isinstance(ring, SplitDriver)
    ring.write_desc(0, 1 << 40, 4, 2)
    ring.make_available(0)
    guest.pipe.send(b"kept")
    assert guest.device.broken
    assert guest.pipe.incoming == b"kept"


def test_port_numbers() -> None:
    device = VirtioConsole(max_ports=4)
    ports = [ConsolePort(console=console) for console in (False, True, True, False)]
    for port in ports:
        device.add_port(port)
    assert [port.nr for port in ports] == [1, 0, 2, 3]
    with pytest.raises(ValueError, match=r"Out-of-range port id specified, max\. allowed: 3"):
        device.add_port(ConsolePort())


@pytest.mark.parametrize(
    ("port", "message"),
    [
        (ConsolePort(nr=0), "Port number 0 on virtio-serial devices reserved for virtconsole"),
        (ConsolePort(nr=31), "Out-of-range port id specified, max. allowed: 30"),
        (ConsolePort(nr=1), "A port already exists at id 1"),
        (ConsolePort(name="agent"), "A port already exists by name agent"),
    ],
)
def test_impossible_ports(port: ConsolePort, message: str) -> None:
    guest = Guest()
    with pytest.raises(ValueError, match=message):
        guest.device.add_port(port)
    assert list(guest.device.ports) == [1]


def test_back_end_in_use() -> None:
    guest = Guest()
    with pytest.raises(ValueError, match="Device 'pipe' is in use"):
        guest.device.add_port(ConsolePort(chardev=guest.pipe))
    assert list(guest.device.ports) == [1]
    guest.open()
    guest.write(b"still works")
    assert guest.pipe.taken == b"still works"


def test_impossible_devices_and_names() -> None:
    with pytest.raises(ValueError, match="Maximum number of serial ports not specified"):
        VirtioConsole(max_ports=0)
    with pytest.raises(ValueError, match="maximum ports supported: 511"):
        VirtioConsole(max_ports=512)
    with pytest.raises(ValueError, match="longer than"):
        ConsolePort(name="x" * 5000)


def test_hot_unplug() -> None:
    guest = Guest(Pipe(1))
    guest.open()
    guest.messages()
    guest.offer(10)
    guest.pipe.send(b"x")
    guest.write(b"abc")
    guest.device.remove_port(guest.port)
    assert guest.messages() == [(1, PORT_REMOVE, 1, b"")]
    assert len(guest.ring(OUT).collect()) == 1, "whoever wrote does not wait for ever"
    assert guest.pipe.frontend is None
    guest.write(b"nobody")
    assert len(guest.ring(OUT).collect()) == 1
    again = ConsolePort(name="agent", chardev=guest.pipe)
    guest.device.add_port(again)
    assert again.nr == 1
    assert (1, PORT_ADD, 1, b"") in guest.messages()


def test_driver_without_multiport_uses_port_0() -> None:
    device = VirtioConsole()
    pipe = Pipe()
    device.add_port(ConsolePort(console=True, chardev=pipe))
    h = start(device, 0, rings=2)
    h.rings[1].add([b"$ "])
    h.kick(1)
    assert pipe.taken == b"$ "
    h.rings[0].add(writable=[10])
    h.kick(0)
    pipe.send(b"ls\n")
    (buffer,) = h.rings[0].collect()
    assert buffer.data(h.memory) == b"ls\n"


def test_configuration_space_and_emergency_write() -> None:
    device = VirtioConsole(size=(80, 25))
    pipe = Pipe()
    port = ConsolePort(console=True, chardev=pipe)
    device.add_port(port)
    h = start(device, F_MULTIPORT | F_SIZE | F_EMERG_WRITE, rings=4)
    assert [device.config_read(offset, size) for offset, size in ((0, 2), (2, 2), (4, 4), (8, 4))] == [80, 25, 31, 0]
    assert device.config_read(12, 4) == 0xFFFFFFFF
    device.config_write(8, 4, ord("!"))
    device.config_write(10, 4, 0)
    assert pipe.taken == b"!"
    h.rings[2].add(writable=[64])
    port.ready = True
    device.resize(port, 132, 43)
    assert (device.config_read(0, 2), device.config_read(2, 2)) == (132, 43)
    assert len(h.config_interrupts) == 1
    (buffer,) = h.rings[2].collect()
    assert buffer.data(h.memory) == CONTROL.pack(0, RESIZE, 0) + struct.pack("<HH", 43, 132)


def test_offered_features_are_those_of_qemu() -> None:
    assert VirtioConsole().offered_features == F_MULTIPORT | F_EMERG_WRITE
    assert VirtioConsole(emergency_write=False).offered_features == F_MULTIPORT


def test_single_queue_reset_forgets_held_chains() -> None:
    guest = Guest(Pipe(1))
    guest.open()
    guest.write(b"abc")
    guest.offer(5)
    assert guest.port.can_receive() == 5
    guest.device.disable_queue(OUT)
    guest.device.disable_queue(IN)
    assert guest.port.can_receive() == 0
    guest.pipe.give_room(None)
    assert guest.pipe.taken == b"a"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9), st.integers(0, 2), st.integers(0, 12))), st.booleans())
def test_hostile_control_messages(messages: list[tuple[int, int, int, int]], with_buffers: bool) -> None:
    guest = Guest()
    for nr, event, value, length in messages:
        data = CONTROL.pack(nr, event, value).ljust(12, b"!")[:length]
        guest.ring(3).add([data] if data else [b"?"])
        guest.h.kick(3)
        guest.ring(3).collect()
        if with_buffers:
            guest.messages()
            guest.control_buffers(16 - len(guest.ring(2).outstanding))
    assert guest.device.running


def test_endless_requests_do_not_pile_up() -> None:
    guest = Guest()
    for _ in range(2000):
        guest.tell(1, PORT_READY, 1)
    assert len(guest.device.save().control) <= 512


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["out", "in", "room", "buffers", "save"]), st.integers(1, 300)), max_size=40))
def test_nothing_is_lost_or_reordered(steps: list[tuple[str, int]]) -> None:
    guest = Guest(Pipe(0), event_idx=True)
    guest.open()
    sent_out, sent_in, got = bytearray(), bytearray(), bytearray()
    for counter, (step, amount) in enumerate(steps):
        data = bytes((counter + position) & 0xFF for position in range(amount))
        if step == "out" and len(guest.ring(OUT).outstanding) < 100:
            sent_out += data
            guest.write(data)
        elif step == "in":
            sent_in += data
            guest.pipe.send(data)
        elif step == "room":
            guest.pipe.give_room(amount)
        elif step == "buffers" and len(guest.ring(IN).outstanding) < 100:
            guest.offer(amount)
        else:
            guest.device.pause()
            guest.device.load(guest.device.save())
            guest.device.resume()
        guest.ring(OUT).collect()
        got += b"".join(guest.received())
    guest.pipe.give_room(None)
    for _ in range(20):
        guest.offer(4096)
        got += b"".join(guest.received())
    assert guest.pipe.taken == sent_out
    assert got == sent_in
