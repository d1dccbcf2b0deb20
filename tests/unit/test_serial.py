"""The 16550A: registers, FIFOs, interrupts, flow control and how Linux's driver uses it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.clock import ManualClock
from pyvm.devices.serial import (
    BACKLOG_LIMIT,
    FCR_ENABLE,
    IER,
    IIR_FCR,
    LCR,
    LSR,
    MCR,
    MSR,
    RBR_THR,
    RUN_DELAY,
    RUN_LENGTH,
    SCR,
    Uart16550,
    UartState,
)
from pyvm.irq import IrqLine
from pyvm.state import StateError

MS = 1_000_000


class Wire(Chardev):
    """A back end that takes `room` bytes and offers `waiting` input."""

    filename = "test"

    def __init__(self) -> None:
        super().__init__("wire")
        self.sent = bytearray()
        self.calls = 0
        self.room: int | None = None
        self.waiting = bytearray()

    def _write(self, data: Buffer) -> int:
        self.calls += 1
        count = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= count
        self.sent += bytes(data)[:count]
        return count

    def open(self) -> None:
        self.room = None
        assert self.frontend is not None
        self.frontend.writable()

    def offer(self, data: bytes) -> None:
        self.waiting += data
        self.accept_input()

    def accept_input(self) -> None:
        while self.waiting and self.frontend is not None:
            count = self.frontend.can_receive()
            if not count:
                return
            data = bytes(self.waiting[:count])
            del self.waiting[:count]
            self.frontend.receive(data)


class Port:
    """A UART, its wire, and the edges of its interrupt."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.wire = Wire()
        self.edges = 0
        self.irq = IrqLine(self._changed)
        self.uart = Uart16550(self.irq, self.clock, self.wire)

    def _changed(self, level: bool) -> None:
        self.edges += level

    def read(self, register: int) -> int:
        value = self.uart.read(register, 1)
        assert 0 <= value <= 0xFF
        return value

    def write(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def say(self, data: bytes) -> None:
        for byte in data:
            self.write(RBR_THR, byte)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def fifo() -> Port:
    port = Port()
    port.write(IIR_FCR, 0x81)  # FIFOs on, trigger level 8
    return port


def test_reset_values(port: Port) -> None:
    assert [port.read(register) for register in range(8)] == [0, 0, 1, 0, 0, 0x60, 0xB0, 0]


def test_divisor_latch_and_scratch(port: Port) -> None:
    port.write(LCR, 0x83)
    port.write(0, 0x34)
    port.write(1, 0x12)
    assert (port.read(0), port.read(1)) == (0x34, 0x12)
    port.write(LCR, 0x03)
    assert (port.read(0), port.read(IER), port.read(LCR)) == (0, 0, 3)
    port.write(SCR, 0xA5)
    assert port.read(SCR) == 0xA5
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F
    port.write(LSR, 0xFF)
    port.write(MSR, 0xFF)
    assert port.read(LSR) == 0x60


def test_kind_is_16550a(port: Port) -> None:
    assert port.read(IIR_FCR) == 0x01
    port.write(IIR_FCR, FCR_ENABLE)
    assert port.read(IIR_FCR) == 0xC1
    port.write(IIR_FCR, 0)
    assert port.read(IIR_FCR) == 0x01


def test_polled_output_is_handed_over_in_lines(port: Port) -> None:
    for byte in b"hello\nwor":
        assert port.read(LSR) & 0x60 == 0x60
        port.write(RBR_THR, byte)
    assert port.wire.sent == b"hello\n"
    assert port.wire.calls == 1
    port.clock.advance(RUN_DELAY)
    assert port.wire.sent == b"hello\nwor"
    port.say(b"x" * RUN_LENGTH)
    assert len(port.wire.sent) == 9 + RUN_LENGTH


def test_flush(port: Port) -> None:
    port.say(b"login: ")
    port.uart.flush()
    assert port.wire.sent == b"login: "


def test_interrupt_driven_output_needs_one_edge_a_buffer(fifo: Port) -> None:
    """What Linux's 8250 driver does: fill the FIFO as long as the transmitter interrupt is pending."""
    data = bytearray(bytes(range(32, 112)))
    expected = bytes(data)
    fifo.write(IER, 0x02)
    assert fifo.irq.level
    while (cause := fifo.read(IIR_FCR) & 0x3F) != 1:
        assert cause == 0x02
        assert fifo.read(LSR) & 0x20
        fifo.say(data[:16])
        del data[:16]
        if not data:
            fifo.write(IER, 0)
    assert fifo.edges <= 6
    fifo.clock.advance(MS)
    assert fifo.wire.sent == expected


def test_transmitter_interrupt_without_reading_iir(port: Port) -> None:
    """A small kernel that writes one byte an interrupt still gets an edge for each, at the line's pace."""
    port.write(IER, 0x02)
    for count in range(1, 6):
        assert port.edges == count
        port.write(RBR_THR, 0x41)
        port.clock.advance(2 * MS)
    assert port.wire.sent == b"AAAAA"


def test_enabling_the_transmitter_interrupt_raises_it(port: Port) -> None:
    port.write(IER, 0x02)
    assert port.read(IIR_FCR) == 0x02
    assert port.read(IIR_FCR) == 0x01
    port.write(IER, 0)
    port.write(IER, 0x02)
    assert port.read(IIR_FCR) == 0x02


def test_slow_back_end_loses_nothing(fifo: Port) -> None:
    fifo.wire.room = 5
    fifo.say(b"0123456789\n")
    assert fifo.wire.sent == b"01234"
    assert fifo.read(LSR) & 0x60 == 0
    fifo.clock.advance(10 * MS)
    assert fifo.read(LSR) & 0x60 == 0
    fifo.write(IER, 0x02)
    assert not fifo.irq.level
    fifo.wire.open()
    assert fifo.irq.level
    assert fifo.read(LSR) & 0x60 == 0x60
    assert fifo.wire.sent == b"0123456789\n"


def test_impatient_guest_is_stored_up_to_a_bound(port: Port) -> None:
    port.wire.room = 0
    for _ in range(BACKLOG_LIMIT + 1000):
        port.write(RBR_THR, 0x2E)
    port.wire.open()
    assert len(port.wire.sent) == BACKLOG_LIMIT


def test_back_end_that_calls_back_from_write(port: Port) -> None:
    class Eager(Wire):
        def write(self, data: Buffer) -> int:
            self.sent += bytes(data)[:1]
            if self.frontend is not None:
                self.frontend.writable()
            return 1

    eager = Eager()
    uart = Uart16550(port.irq, port.clock, eager)
    for byte in b"abc\n":
        uart.write(RBR_THR, 1, byte)
    assert eager.sent == b"abc\n"


def test_no_back_end() -> None:
    clock = ManualClock()
    uart = Uart16550(IrqLine(lambda level: None), clock, None)
    uart.write(RBR_THR, 1, 0x41)
    assert uart.read(LSR, 1) == 0x60
    clock.advance(MS)
    assert uart.save().unsent == b""


def test_input_one_by_one(port: Port) -> None:
    port.write(IER, 0x01)
    port.wire.offer(b"abc")
    got = []
    while port.read(LSR) & 1:
        assert port.read(IIR_FCR) == 0x04
        got.append(port.read(RBR_THR))
    assert bytes(got) == b"abc"
    assert port.edges == 3
    assert port.read(RBR_THR) == 0


def test_trigger_level_and_timeout(fifo: Port) -> None:
    fifo.write(IER, 0x01)
    fifo.wire.offer(b"1234567")
    assert fifo.read(IIR_FCR) == 0xCC
    fifo.wire.offer(b"8")
    assert fifo.read(IIR_FCR) == 0xC4
    assert fifo.read(RBR_THR) == 0x31
    assert fifo.read(IIR_FCR) == 0xC1  # seven left, below the level
    assert fifo.read(LSR) & 1
    fifo.clock.advance(20 * MS)  # four characters at 9600 baud are 4 ms
    assert fifo.read(IIR_FCR) == 0xCC
    assert [fifo.read(RBR_THR) for _ in range(7)] == list(b"2345678")
    fifo.clock.advance(20 * MS)
    assert not fifo.irq.level


def test_long_input_passes_through_the_fifo(fifo: Port) -> None:
    data = bytes(index & 0xFF for index in range(1000))
    fifo.write(IER, 0x01)
    fifo.wire.offer(data)
    assert len(fifo.wire.waiting) == 1000 - 16
    got = bytearray()
    while fifo.read(LSR) & 1:
        got.append(fifo.read(RBR_THR))
    assert got == data
    assert not fifo.irq.level


def test_break(fifo: Port) -> None:
    fifo.write(IER, 0x05)
    fifo.wire.offer(b"a")
    fifo.uart.event(ChardevEvent.BREAK)
    assert fifo.read(LSR) & 0x91 == 0x01  # the break is behind the first character
    assert fifo.read(RBR_THR) == 0x61
    assert fifo.read(IIR_FCR) == 0xC6
    assert fifo.read(LSR) & 0x91 == 0x91
    assert fifo.read(LSR) & 0x91 == 0x01
    assert fifo.read(RBR_THR) == 0
    assert fifo.read(LSR) & 0x91 == 0
    fifo.uart.event(ChardevEvent.CLOSED)
    assert fifo.read(MSR) == 0xB0


def test_overrun(port: Port) -> None:
    port.uart.receive(b"ab")
    port.write(IER, 0x04)
    assert port.read(IIR_FCR) == 0x06
    assert port.read(LSR) & 0x03 == 0x03
    assert port.read(LSR) & 0x03 == 0x01
    assert port.read(RBR_THR) == 0x61


def test_priorities(fifo: Port) -> None:
    fifo.write(IER, 0x0F)
    fifo.write(MCR, 0x10)  # lines fall: modem status changed
    fifo.write(MCR, 0x00)
    fifo.wire.offer(b"a")
    fifo.uart.event(ChardevEvent.BREAK)
    for _ in range(20):
        fifo.uart.receive(b"x")
    seen = [fifo.read(IIR_FCR)]
    fifo.read(LSR)
    seen.append(fifo.read(IIR_FCR))
    fifo.write(IIR_FCR, 0x83)
    seen.append(fifo.read(IIR_FCR))
    seen.append(fifo.read(IIR_FCR))
    fifo.read(MSR)
    seen.append(fifo.read(IIR_FCR))
    assert seen == [0xC6, 0xC4, 0xC2, 0xC0, 0xC1]
    assert not fifo.irq.level


def test_loopback(port: Port) -> None:
    port.write(MCR, 0x1A)
    assert port.read(MSR) & 0xF0 == 0x90  # how Linux finds a UART
    port.write(IER, 0x01)
    port.write(RBR_THR, 0x5A)
    assert port.irq.level
    port.wire.offer(b"from the wire")
    assert port.read(RBR_THR) == 0x5A
    port.write(LCR, 0x40)
    assert port.read(LSR) & 0x11 == 0x11
    assert port.read(RBR_THR) == 0
    port.write(MCR, 0x0B)
    assert port.read(RBR_THR) == ord("f")
    assert port.wire.sent == b""


def test_modem_status_deltas(port: Port) -> None:
    assert port.read(MSR) == 0xB0
    port.write(MCR, 0x10)
    assert port.read(MSR) == 0x0B
    assert port.read(MSR) == 0x00
    port.write(MCR, 0x14)
    assert port.read(MSR) == 0x40  # a rising RI is no delta
    port.write(MCR, 0x10)
    assert port.read(MSR) == 0x04


def test_clearing_the_receiver(fifo: Port) -> None:
    fifo.write(IER, 0x01)
    fifo.wire.offer(b"x" * 20)
    fifo.write(IIR_FCR, 0x83)
    assert fifo.uart.save().received == list(b"xxxx")  # the rest of the wire's bytes came in
    fifo.write(IIR_FCR, 0x00)
    assert fifo.read(LSR) == 0x60


def test_reset_sends_what_was_written(fifo: Port) -> None:
    fifo.say(b"reboot: Restarting system")
    fifo.write(IER, 0x0F)
    fifo.uart.reset()
    assert fifo.wire.sent == b"reboot: Restarting system"
    assert [fifo.read(register) for register in range(8)] == [0, 0, 1, 0, 0, 0x60, 0xB0, 0]
    assert not fifo.irq.level


def test_save_and_load(fifo: Port) -> None:
    fifo.write(IER, 0x01)
    fifo.write(LCR, 0x1B)
    fifo.wire.offer(b"123456789")
    fifo.read(RBR_THR)
    fifo.wire.room = 0
    fifo.say(b"tail\n")
    state = fifo.uart.save()
    other = Port(ManualClock(fifo.clock.now()))
    other.uart.load(UartState.from_dict(state.to_dict()))
    assert other.irq.level == fifo.irq.level is True
    other.clock.advance(RUN_DELAY)
    assert other.wire.sent == b"tail\n"
    assert [other.read(RBR_THR) for _ in range(8)] == list(b"23456789")
    with pytest.raises(StateError):
        other.uart.load(UartState(received=[1, 2]))
    with pytest.raises(StateError):
        other.uart.load(UartState(errors=0x80))
    with pytest.raises(StateError):
        other.uart.load(UartState(timeout=True))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "read", "offer", "break", "room", "time", "reset"]),
            st.integers(0, 7),
            st.integers(0, 255),
        ),
        max_size=80,
    )
)
def test_hostile_guest_and_peer(steps: list[tuple[str, int, int]]) -> None:
    port = Port()
    for action, register, value in steps:
        if action == "write":
            port.write(register, value)
        elif action == "read":
            port.read(register)
        elif action == "offer":
            port.wire.offer(bytes([value]) * register * 5)
        elif action == "break":
            port.uart.event(ChardevEvent.BREAK)
        elif action == "room":
            port.wire.room = value
            if value & 1:
                port.wire.open()
        elif action == "time":
            port.clock.advance(value * MS)
        else:
            port.uart.reset()
        assert port.irq.level == (port.uart._cause() != 1)
    port.uart.load(port.uart.save())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 40)), max_size=20))
def test_output_arrives_whole_and_in_order(pieces: list[tuple[bytes, int]]) -> None:
    port = Port()
    expected = b""
    for data, room in pieces:
        port.wire.room = room
        port.say(data)
        expected += data
        port.clock.advance(MS)
        assert expected.startswith(bytes(port.wire.sent))
        port.wire.open()
        port.clock.advance(MS)
        assert port.wire.sent == expected
