"""The multiplexer: focus, escape keys, type-ahead, timestamps, and what goes to the back end."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev, ChardevError, ChardevEvent
from pyvm.chardev.mux import TYPE_AHEAD, MuxChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, run_until, running_loop, settle

OPENED, CLOSED, BREAK = ChardevEvent.OPENED, ChardevEvent.CLOSED, ChardevEvent.BREAK
MUX_IN, MUX_OUT = ChardevEvent.MUX_IN, ChardevEvent.MUX_OUT


class Wire(Chardev):
    """A back end that a test plays the peer of: it takes as much as `space` says."""

    def __init__(self) -> None:
        super().__init__("wire")
        self.taken = bytearray()
        self.space = 1 << 30
        self.accepted = 0

    @property
    def filename(self) -> str:
        return "wire"

    def _write(self, data: Buffer) -> int:
        count = min(len(data), self.space)
        self.space -= count
        self.taken += data[:count]
        return count

    def accept_input(self) -> None:
        self.accepted += 1

    def type(self, text: bytes) -> None:
        """Type as far as the multiplexer lets us."""
        assert self.frontend is not None
        assert len(text) <= self.frontend.can_receive()
        self.frontend.receive(text)

    def drain(self, space: int = 1 << 30) -> None:
        self.space = space
        assert self.frontend is not None
        self.frontend.writable()


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


class Setup:
    def __init__(self, loop: MainLoop, escape: int = 1) -> None:
        self.quits = 0
        self.wire = Wire()
        self.mux = MuxChardev("m", self.wire, loop, escape=escape, on_quit=self.quit)
        self.monitor = Recorder().attach(self.mux.port())
        self.console = Recorder().attach(self.mux.port())

    def quit(self) -> None:
        self.quits += 1


@pytest.fixture
def setup(loop: MainLoop) -> Setup:
    return Setup(loop)


def test_the_last_to_attach_has_the_focus(setup: Setup) -> None:
    assert setup.monitor.log == [OPENED, MUX_IN, MUX_OUT]
    assert setup.console.log == [OPENED, MUX_IN]
    setup.wire.type(b"ls\n")
    assert setup.console.data == b"ls\n"
    assert setup.monitor.data == b""


def test_switching(setup: Setup) -> None:
    setup.wire.type(b"a\x01cb\x01cc")
    assert setup.console.data == b"ac"
    assert setup.monitor.data == b"b"
    assert setup.console.events() == [OPENED, MUX_IN, MUX_OUT, MUX_IN]


def test_escape_itself_and_unknown_keys(setup: Setup) -> None:
    setup.wire.type(b"\x01\x01\x01zx\x01")
    setup.wire.type(b"\x01y")
    assert setup.console.data == b"\x01x\x01y"


def test_another_escape_key(loop: MainLoop) -> None:
    setup = Setup(loop, escape=0x14)
    setup.wire.type(b"\x01x\x14\x14\x14h")
    assert setup.console.data == b"\x01x\x14"
    assert b"C-t x    exit" in setup.wire.taken
    assert setup.quits == 0


def test_exit_break_and_save(setup: Setup) -> None:
    setup.wire.type(b"\x01b")
    assert setup.console.log[-1] is BREAK
    assert BREAK not in setup.monitor.log
    setup.wire.type(b"\x01s")
    assert b"not available" in setup.wire.taken
    setup.wire.type(b"\x01x")
    assert setup.quits == 1
    assert setup.wire.taken.endswith(b"QEMU: Terminated\n\r")


def test_help_names_every_key(setup: Setup) -> None:
    setup.wire.type(b"\x01h")
    assert re.findall(rb"C-a (\S+) ", setup.wire.taken) == [b"h", b"x", b"s", b"t", b"b", b"c", b"C-a"]


def test_all_front_ends_write(setup: Setup) -> None:
    setup.console.send(b"one ")
    setup.monitor.send(b"two")
    assert setup.wire.taken == b"one two"


def test_back_pressure_reaches_every_writer(setup: Setup) -> None:
    setup.wire.space = 3
    setup.console.send(b"hello ")
    setup.monitor.send(b"world")
    assert setup.wire.taken == b"hel"
    setup.wire.drain(1)
    setup.wire.drain()
    assert sorted(setup.wire.taken) == sorted(b"hello world")
    assert not setup.console.waiting
    assert not setup.monitor.waiting


def test_the_escape_key_is_heard_while_the_guest_does_not_read(loop: MainLoop, setup: Setup) -> None:
    setup.console.room = 0
    setup.wire.type(b"typed ahead\x01")
    setup.wire.type(b"x")
    assert setup.quits == 1
    setup.console.grant(5)
    run_until(loop, lambda: setup.console.data == b"typed")
    setup.console.grant(100)
    run_until(loop, lambda: setup.console.data == b"typed ahead")


def test_a_front_end_hears_that_more_waits(loop: MainLoop, setup: Setup) -> None:
    """One that takes a little at a time offers room again only after it was asked in vain."""

    class Fifo(Recorder):
        refused = False

        def can_receive(self) -> int:
            self.refused = self.room == 0
            return self.room

    fifo = Fifo(room=16)
    fifo.attach(setup.mux.port())
    setup.wire.type(b"0123456789" * 4)
    while len(fifo.data) < 40:
        assert fifo.refused
        fifo.room = 16
        assert fifo.device is not None
        fifo.device.accept_input()
        settle(loop)
    assert fifo.data == b"0123456789" * 4


def test_type_ahead_is_bounded_and_resumes(loop: MainLoop, setup: Setup) -> None:
    setup.console.room = 0
    setup.wire.type(b"x" * TYPE_AHEAD)
    assert setup.mux.can_receive() == 0
    settle(loop)
    accepted = setup.wire.accepted
    setup.console.grant(10)
    run_until(loop, lambda: setup.mux.can_receive() == 10)
    assert setup.wire.accepted > accepted


def test_type_ahead_stays_with_its_front_end(loop: MainLoop, setup: Setup) -> None:
    setup.console.room = setup.monitor.room = 0
    setup.wire.type(b"c1\x01cm1\x01cc2")
    setup.console.grant(100)
    setup.monitor.grant(100)
    run_until(loop, lambda: setup.monitor.data == b"m1" and setup.console.data == b"c1c2")


def test_input_waits_for_the_first_front_end(loop: MainLoop) -> None:
    wire = Wire()
    mux = MuxChardev("m", wire, loop)
    assert mux.can_receive() == 0
    Recorder().attach(mux.port())
    run_until(loop, lambda: wire.accepted > 1 and mux.can_receive() > 0)


def test_timestamps(setup: Setup) -> None:
    setup.wire.type(b"\x01t")
    for text in (b"a", b"b\nc", b"d\n", b"e\n\nf"):
        setup.console.send(text)
    stamp = rb"\[00:00:0\d\.\d{3}\] "
    assert re.fullmatch(rb"ab\n%scd\n%se\n%s\n%sf" % (stamp, stamp, stamp, stamp), bytes(setup.wire.taken))
    setup.wire.type(b"\x01t")
    setup.console.send(b"\ng")
    assert setup.wire.taken.endswith(b"f\ng")


def test_timestamps_under_back_pressure(setup: Setup) -> None:
    setup.wire.type(b"\x01t")
    setup.wire.space = 0
    text = b"".join(b"line %d\n" % number for number in range(2000))
    setup.console.send(text)
    while setup.console.waiting or setup.mux._pending:
        setup.wire.drain(1000)
    assert re.sub(rb"\[[\d:.]+\] ", b"", bytes(setup.wire.taken)) == text


def test_help_waits_for_a_peer_that_does_not_read(setup: Setup) -> None:
    setup.wire.space = 0
    for _ in range(1000):
        setup.wire.type(b"\x01h")
    assert len(setup.mux._pending) < 2 * TYPE_AHEAD
    setup.console.send(b"after")
    setup.wire.drain()
    assert setup.wire.taken.endswith(b"after")
    assert setup.wire.taken.startswith(b"\n\rC-a h")


def test_events_of_the_back_end_reach_all(setup: Setup) -> None:
    setup.wire.type(b"\x01")
    setup.mux.event(CLOSED)
    setup.mux.event(OPENED)
    assert setup.monitor.log[-2:] == setup.console.log[-2:] == [CLOSED, OPENED]
    setup.wire.type(b"x")
    assert setup.quits == 0, "half a command goes with the peer who typed it"


def test_ports_come_and_go(setup: Setup) -> None:
    ports = [setup.mux.port(), setup.mux.port()]
    with pytest.raises(ChardevError, match=r"too many uses of multiplexed chardev 'm' \(maximum is 4\)"):
        setup.mux.port()
    with pytest.raises(ValueError, match="too many uses"):
        setup.mux.attach(Recorder())
    for port in ports:
        port.close()
    assert setup.console.device is not None
    setup.console.device.detach()
    assert setup.monitor.log[-1] is MUX_IN
    setup.wire.type(b"to the monitor")
    assert setup.monitor.data == b"to the monitor"
    assert setup.mux.in_use
    assert setup.monitor.device is not None
    setup.monitor.device.detach()
    assert not setup.mux.in_use
    assert not setup.mux.frontend_open


def test_a_back_end_in_use_is_refused(loop: MainLoop, setup: Setup) -> None:
    with pytest.raises(ChardevError, match=r"^mux: Device 'wire' is in use$"):
        MuxChardev("n", setup.wire, loop)
    setup.mux.close()
    MuxChardev("n", setup.wire, loop)


def test_open_state(setup: Setup) -> None:
    assert setup.mux.frontend_open
    for front in (setup.monitor, setup.console):
        assert front.device is not None
        front.device.set_open(False)
    assert not setup.mux.frontend_open


@settings(max_examples=60)
@given(st.lists(st.tuples(st.lists(st.sampled_from(b"\x01chtsbz?"), max_size=12), st.integers(0, 9)), max_size=12))
def test_any_keys_in_any_pieces(steps: list[tuple[list[int], int]]) -> None:
    """However the keys are cut and the guest reads, the console and monitor get what a simple reader expects."""
    with running_loop() as loop:
        setup = Setup(loop)
        expected = {0: bytearray(), 1: bytearray()}
        focus, escaped = 1, False
        setup.console.room = setup.monitor.room = 0
        for keys, room in steps:
            for key in keys:
                if escaped:
                    escaped = False
                    focus ^= key == ord("c")
                    if key == 1:
                        expected[focus].append(key)
                elif key == 1:
                    escaped = True
                else:
                    expected[focus].append(key)
            setup.wire.type(bytes(keys))
            setup.console.grant(room)
            setup.monitor.grant(room)
            settle(loop)
        setup.console.grant(1000)
        setup.monitor.grant(1000)
        run_until(loop, lambda: setup.console.data == bytes(expected[1]) and setup.monitor.data == bytes(expected[0]))
