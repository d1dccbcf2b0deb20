"""The stub for GDB: what each packet does to a machine, and how the conversation goes on the wire."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.monitor.gdb import device_options
from pyvm.monitor.gdb.packets import PACKET_SIZE, PacketReader, Signal, frame
from pyvm.monitor.gdb.registers import REGISTERS, annex
from pyvm.monitor.gdb.server import GdbServer
from pyvm.monitor.gdb.threads import ThreadId, parse
from pyvm.runstate import RunState
from tests.system.machine_rig import BASE, Machine

CODE = 0x8000
NUMBERS = {register.name: number for number, register in enumerate(REGISTERS)}
SECONDS = 60


class Wire(Chardev):
    """A device whose other end is the test."""

    def __init__(self) -> None:
        super().__init__("wire")
        self.sent = bytearray()
        self.room = 1 << 30

    @property
    def filename(self) -> str:
        return "wire"

    def _write(self, data: Buffer) -> int:
        taken = min(len(data), self.room)
        self.sent += memoryview(data)[:taken]
        self.room -= taken
        return taken


class Client:
    """A debugger of a machine, by hand."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.pc = machine.pc
        self.wire = Wire()
        self.server = GdbServer(self.wire, self.pc.debugger, self.pc.dispatcher, self.pc.mainloop)

    def send(self, data: bytes) -> list[bytes | Signal]:
        """Send bytes; return what comes back at once."""
        with self.pc.lock:
            while data:
                room = self.server.can_receive()
                assert room, "the stub takes nothing"
                piece, data = data[:room], data[room:]
                self.server.receive(piece)
        return self.take()

    def take(self) -> list[bytes | Signal]:
        """Return what has come since the last time."""
        sent, self.wire.sent = bytes(self.wire.sent), bytearray()
        return PacketReader().feed(sent)

    def ask(self, packet: str | bytes) -> str:
        """Send a packet; return the one reply."""
        data = packet.encode("latin-1") if isinstance(packet, str) else packet
        acknowledged, reply = self.send(frame(data))
        assert acknowledged is Signal.ACK
        assert isinstance(reply, bytes)
        return reply.decode("latin-1")

    def go(self, packet: str) -> str:
        """Send a packet that lets the guest run; return the reply when it has stopped."""
        assert self.send(frame(packet.encode())) == [Signal.ACK]
        return self.stopped()

    def stopped(self) -> str:
        """Wait for the guest to stop; return the reply that says so."""
        deadline = time.monotonic() + SECONDS
        while not self.wire.sent:
            assert time.monotonic() < deadline, "the guest does not stop"
            self.machine.run()
        (reply,) = self.take()
        assert isinstance(reply, bytes)
        return reply.decode("latin-1")

    def register(self, name: str) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(f"p{NUMBERS[name]:x}")), "little")

    def load(self, code: str, at: int = CODE) -> None:
        """Put 32-bit code somewhere, and be about to run it."""
        assert self.ask(f"M{at:x},{len(bytes.fromhex(code)):x}:{code.replace(' ', '')}") == "OK"
        assert self.ask(f"P{NUMBERS['rip']:x}={struct.pack('<Q', at).hex()}") == "OK"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Machine("-smp", "2", base=BASE) as machine:
        client = Client(machine)
        protected = {"cr0": 0x11, "cs": (8, 0, 0xFFFFFFFF, 0xCF9B00), "ds": (16, 0, 0xFFFFFFFF, 0xCF9300)}
        with machine.pc.lock:
            machine.pc.cpus.set_registers(0, protected)
        with machine.pc.lock:
            client.server.event(ChardevEvent.OPENED)
        yield client
        client.server.close()


@pytest.fixture(autouse=True)
def fresh(client: Client) -> None:
    """Each test has a connection of its own, to a guest that stands still."""
    with client.pc.lock:
        client.server.event(ChardevEvent.OPENED)
    client.wire.room = 1 << 30
    client.ask("?")
    client.machine.take_events()


# ---- What each packet does


def test_the_stub_says_what_it_can_do(client: Client) -> None:
    assert client.ask("qSupported") == "PacketSize=1000;qXfer:features:read+;vContSupported+;QStartNoAckMode+"
    reply = client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386")
    assert reply.endswith(";multiprocess+;swbreak+;hwbreak+")
    assert client.ask("vCont?") == "vCont;c;C;s;S"
    for unknown in ("", "vMustReplyEmpty", "qTStatus", "bc", "Q", "q", "v", "qCRC:0,1", "QNonStop:1", "Z5,0,1"):
        assert client.ask(unknown) == "", unknown


def test_vcpus_are_threads(client: Client) -> None:
    assert [client.ask(packet) for packet in ("qfThreadInfo", "qsThreadInfo", "qsThreadInfo")] == ["m01", "m02", "l"]
    assert client.ask("qC") == "QC01"
    client.ask("qSupported:multiprocess+")
    assert [client.ask(packet) for packet in ("qfThreadInfo", "qC", "?")] == [
        "mp01.01",
        "QCp01.01",
        "T05thread:p01.01;",
    ]
    assert bytes.fromhex(client.ask("qThreadExtraInfo,p1.2")) == b"CPU#1 [halted ]"
    for good in ("T1", "Tp1.2", "Hg2", "Hc-1", "Hgp1.-1"):
        assert client.ask(good) == "OK", good
    for wrong in ("Tp1.3", "Tp2.1", "T3", "Tx", "T", "Hg3", "Hx1", "H", "Hg"):
        assert client.ask(wrong) == "E22", wrong
    assert client.ask("qC") == "QCp01.02"
    assert client.register("rip") == 0xFFF0


def test_thread_identifiers() -> None:
    assert parse(b"p1.2") == ThreadId(1, 2)
    assert parse(b"p1") == ThreadId(1, -1)
    assert parse(b"p-1.-1") == ThreadId(-1, -1)
    assert parse(b"1f") == ThreadId(0, 31)
    for wrong in (b"", b"p", b"p.", b"p1.", b"-2", b"--1", b"p1.2.3", b"123456789"):
        assert parse(wrong) is None, wrong


def test_registers_are_described_in_the_order_in_which_they_come(client: Client) -> None:
    main, described = annex("target.xml"), annex("x86-64.xml")
    assert main is not None
    assert described is not None
    assert b"i386:x86-64" in main
    assert b"x86-64.xml" in main
    entries = ElementTree.fromstring(described).iter("reg")
    found = [(entry.get("name"), int(entry.get("bitsize", "0"))) for entry in entries]
    assert found == [(register.name, register.bits) for register in REGISTERS]
    assert len(client.ask("g")) == sum(bits for _, bits in found) // 4
    assert client.ask("qXfer:features:read:target.xml:0,5") == "m<?xml"
    read, more = "", "m"
    while more == "m":
        reply = client.ask(f"qXfer:features:read:x86-64.xml:{len(read):x},fff")
        more, read = reply[0], read + reply[1:]
    assert read.encode() == described
    for wrong in ("nope.xml:0,10", "target.xml:99999,10", "../x:0,1"):
        assert client.ask(f"qXfer:features:read:{wrong}") == "E00"
    assert client.ask("qXfer:features:read:target.xml:0") == "E22"


def test_each_register_can_be_set_and_read_and_all_at_once(client: Client) -> None:
    before = client.ask("g")
    for number, register in enumerate(REGISTERS):
        if register.name in ("cs", "ss", "ds", "es", "fs", "gs", "cr0", "cr3", "cr4", "efer", "eflags", "ftag", "rip"):
            continue
        value = {"cr8": 5, "fstat": 0x3800, "mxcsr": 0x1F00, "fop": 0x123}.get(register.name, 0x1234)
        assert client.ask(f"P{number:x}={value.to_bytes(register.bits // 8, 'little').hex()}") == "OK", register.name
        assert client.register(register.name) == value, register.name
    assert client.ask(f"G{before}") == "OK"
    # The tags follow from the registers, which were all empty.
    assert client.ask("g") == before
    for wrong in ("P", "P0", "P0=", "P0=1", "P99=00", "Pzz=00", "G1", "Gzz"):
        assert client.ask(wrong) == "E22", wrong
    assert [client.ask(packet) for packet in ("p99", "p", "pzz", "pffffffffff")] == ["E14"] * 4


def test_a_vcpu_is_not_put_into_a_state_that_there_is_not(client: Client) -> None:
    assert client.ask(f"P{NUMBERS['cr0']:x}={(1 << 31).to_bytes(8, 'little').hex()}") == "E22"
    assert client.register("cr0") == 0x11


def test_a_segment_register_is_loaded_from_its_table(client: Client) -> None:
    with client.pc.lock:
        client.pc.cpus.set_registers(0, {"gdt": (0, 0x600, 23, 0), "es": (0, 0, 0, 0)})
    assert client.ask(f"M600,18:{struct.pack('<3Q', 0, 0, 0x12CF93345678FFFF).hex()}") == "OK"
    assert client.ask(f"P{NUMBERS['es']:x}=10000000") == "OK"
    assert client.pc.cpus.registers(0)["es"] == (0x10, 0x12345678, 0xFFFFFFFF, 0x12CF9334)
    assert client.ask(f"P{NUMBERS['es']:x}=18000000") == "OK"  # behind the end of the table
    assert client.pc.cpus.registers(0)["es"][0] == 0x18
    assert client.ask(f"P{NUMBERS['es']:x}=00000000") == "OK"
    assert client.pc.cpus.registers(0)["es"] == (0, 0, 0, 0)
    assert client.ask("Hg2") == "OK"  # in real mode
    assert client.ask(f"P{NUMBERS['es']:x}=34120000") == "OK"
    assert client.pc.cpus.registers(1)["es"][:3] == (0x1234, 0x12340, 0xFFFF)


def test_memory_is_read_and_written(client: Client) -> None:
    assert client.ask("M5000,3:010203") == "OK"
    assert client.ask("m4fff,5") == "0001020300"
    assert client.ask(b"X5001,3:}]}\x03\x00") == "OK"
    assert client.ask("m5000,5") == "017d230000"
    assert client.ask("X0,0:") == "OK"
    assert client.ask("m0,0") == ""
    assert client.ask("m5000,800") == "017d23" + "00" * 0x7FD
    assert client.ask("mf0000000,4") == "E14"
    assert client.ask("mfffffffffffffffe,10") == "E14"
    assert client.ask("Mf0000000,1:00") == "E14"
    for wrong in (
        "m",
        "m0",
        "m0,801",
        "m0,ffffffff",
        "mzz,1",
        "m-1,1",
        "M0,1",
        "M0,2:00",
        "M0,1:0",
        "X0,1:ab",
        "X0,1}",
    ):
        assert client.ask(wrong) == "E22", wrong


def test_physical_memory_can_be_chosen(client: Client) -> None:
    with client.pc.lock:
        client.pc.memory.write(0x9000, struct.pack("<I", 0xA000 | 7))
        client.pc.memory.write(0xA000 + 5 * 4, struct.pack("<I", 0x6000 | 7))
        client.pc.memory.write(0x6000, b"physical")
        client.pc.cpus.set_registers(0, {"cr0": 0x80000011, "cr3": 0x9000})
    assert bytes.fromhex(client.ask("m5000,8")) == b"physical"
    assert client.ask("m7000,1") == "E14"
    assert client.ask("qqemu.PhyMemMode") == "0"
    assert client.ask("Qqemu.PhyMemMode:1") == "OK"
    assert bytes.fromhex(client.ask("m6000,8")) == b"physical"
    assert client.ask("qqemu.PhyMemMode") == "1"
    assert client.ask("Qqemu.PhyMemMode:2") == "E22"
    with client.pc.lock:
        client.pc.cpus.set_registers(0, {"cr0": 0x11, "cr3": 0})


def test_breakpoints_and_watchpoints_are_kept_apart(client: Client) -> None:
    for kind in "01234":
        assert client.ask(f"Z{kind},1000,4") == "OK"
    for kind in "01234":
        assert client.ask(f"z{kind},1000,4") == "OK"
        if kind != "0":
            assert client.ask(f"z{kind},1000,4") == "E22"
    for wrong in ("Z", "Z0", "Z0,1", "Z0,zz,1", "Z0,1,zz", "Z2,1000,0", "Z2,ffffffffffffffff,2", "z0", "z3,1,1"):
        assert client.ask(wrong) == "E22", wrong
    assert [client.ask(f"Z2,{address:x},1") for address in range(30)] == ["OK"] * 28 + ["E22"] * 2
    client.ask("?")  # a debugger that comes knows of none


def test_the_guest_runs_to_a_breakpoint_and_events_tell_of_it(client: Client) -> None:
    client.load("40 41 42 eb fb")
    assert client.ask(f"Z0,{CODE + 2:x},1") == "OK"
    assert client.go("c") == "T05thread:01;"
    assert client.register("rip") == CODE + 2
    assert client.pc.run_state is RunState.DEBUG
    assert [name for name, _ in client.machine.take_events()] == ["RESUME", "STOP"]


def test_a_breakpoint_is_named_where_the_debugger_knows_the_names(client: Client) -> None:
    client.ask("qSupported:multiprocess+;swbreak+;hwbreak+")
    client.load("40 41 42 eb fb")
    client.ask(f"Z0,{CODE + 1:x},1")
    client.ask(f"Z1,{CODE + 2:x},1")
    assert client.go("vCont;c") == "T05thread:p01.01;swbreak:;"
    assert client.go("vCont;s:p1.1") == "T05thread:p01.01;"
    assert client.go("vCont;c:p1.1") == "T05thread:p01.01;hwbreak:;"


def test_steps(client: Client) -> None:
    client.load("40 41 42 eb fb")
    assert client.go("s") == "T05thread:01;"
    assert client.go("S05") == "T05thread:01;"
    assert client.register("rip") == CODE + 2
    assert client.go(f"s{CODE:x}") == "T05thread:01;"
    assert client.register("rip") == CODE + 1
    assert client.go("vCont;S05:1;c") == "T05thread:01;"
    assert client.register("rip") == CODE + 2
    for wrong in ("szz", "S", "Szz", "C", "czz", "vCont;s:p1.9", "vCont;s:"):
        assert client.ask(wrong) == "E22", wrong
    for unknown in ("vCont;", "vCont;x", "vCont;s5", "vCont;S", "vCont;t"):
        assert client.ask(unknown) == "", unknown


def test_step_bits(client: Client) -> None:
    assert client.ask("qqemu.sstepbits") == "ENABLE=1,NOIRQ=2"
    assert client.ask("qqemu.sstep") == "0x3"
    assert client.ask("Qqemu.sstep=8") == "E22"
    assert client.ask("Qqemu.sstep=1") == "OK"
    assert client.ask("qqemu.sstep") == "0x1"


def test_watchpoints(client: Client) -> None:
    client.load("ff 05 00 50 00 00 a1 04 50 00 00 eb f3")  # inc [0x5000]; mov eax, [0x5004]
    assert client.ask("Z2,5000,4") == "OK"
    assert client.ask("Z3,5004,4") == "OK"
    assert client.go("c") == "T05thread:01;watch:5000;"
    assert client.register("rip") == CODE + 6
    assert client.go("c") == "T05thread:01;rwatch:5004;"
    client.ask("z2,5000,4")
    client.ask("z3,5004,4")
    client.ask("Z4,5000,1")
    assert client.go("c") == "T05thread:01;awatch:5000;"


def test_a_running_guest_is_interrupted(client: Client) -> None:
    client.load("eb fe")
    assert client.send(frame(b"c")) == [Signal.ACK]
    assert client.pc.run_state is RunState.RUNNING
    assert client.send(b"\x03") == [b"T02thread:01;"]
    assert client.pc.run_state is RunState.PAUSED
    assert [name for name, _ in client.machine.take_events()] == ["RESUME", "STOP"]


def test_whatever_else_comes_while_the_guest_runs_stops_it_first(client: Client) -> None:
    client.load("eb fe")
    client.send(frame(b"c"))
    assert client.send(frame(b"qC")) == [Signal.ACK, b"T02thread:01;", b"QC01"]
    assert client.pc.run_state is RunState.PAUSED


def test_a_guest_that_somebody_else_stops_is_told(client: Client) -> None:
    client.load("eb fe")
    client.send(frame(b"c"))
    client.machine.execute("stop")
    assert client.take() == [b"T02thread:01;"]
    client.machine.execute("cont")
    client.machine.execute("stop")
    assert client.take() == []  # nobody waits


def test_a_debugger_that_leaves_lets_the_guest_run_without_its_breakpoints(client: Client) -> None:
    client.load("40 eb fd")
    client.ask(f"Z0,{CODE:x},1")
    assert client.ask("D;2") == "E22"
    assert client.ask("D;1") == "OK"
    client.machine.run()
    assert client.pc.run_state is RunState.RUNNING
    client.machine.execute("stop")


def test_a_guest_that_cannot_run_is_not_started(client: Client) -> None:
    client.pc.lifecycle.states._state = RunState.SUSPENDED
    try:
        assert client.ask("c") == "T8fthread:01;"
        assert client.ask("D") == "E22"
    finally:
        client.pc.lifecycle.states._state = RunState.PAUSED


def test_lines_of_the_monitor(client: Client) -> None:
    acknowledged, output, end = client.send(frame(b"qRcmd," + b"info status".hex().encode()))
    assert isinstance(output, bytes)
    assert re.fullmatch(rb"VM status: paused.*\r\n", bytes.fromhex(output[1:].decode()))
    assert (acknowledged, output[:1], end) == (Signal.ACK, b"O", b"OK")
    long = client.send(frame(b"qRcmd," + b"help".hex().encode()))
    assert len(long) > 3
    assert all(isinstance(each, bytes) and len(each) <= PACKET_SIZE for each in long[1:])
    assert [client.ask(wrong) for wrong in ("qRcmd,", "qRcmd,zz", "qRcmd,6")] == ["E22"] * 3


def test_attaching_to_the_one_process(client: Client) -> None:
    assert client.ask("vAttach;1") == "T05thread:01;"
    assert [client.ask("vAttach;2"), client.ask("vAttach;"), client.ask("vKill;2")] == ["E22"] * 3
    assert [client.ask("qAttached"), client.ask("qAttached:1"), client.ask("!")] == ["1", "1", "OK"]


# ---- The wire


def test_packets_are_acknowledged_until_both_agree_otherwise(client: Client) -> None:
    assert client.send(b"$qC#00") == [Signal.NACK]
    assert client.send(frame(b"qC") + b"-") == [Signal.ACK, b"QC01", b"QC01"]
    assert client.send(b"+-") == []
    assert client.send(frame(b"QStartNoAckMode")) == [Signal.ACK, b"OK"]
    assert client.send(frame(b"qC")) == [b"QC01"]


def test_a_packet_that_was_sent_again_is_answered_once(client: Client) -> None:
    assert client.send(frame(b"qC") + frame(b"qC")) == [Signal.ACK, b"QC01"]
    assert client.send(frame(b"qC") + b"+" + frame(b"qC")) == [Signal.ACK, b"QC01", Signal.ACK, b"QC01"]


def test_a_packet_that_is_too_long_is_an_error(client: Client) -> None:
    assert client.send(frame(b"m" * (PACKET_SIZE + 1))) == [Signal.ACK, b"E22"]


def test_a_peer_that_does_not_read_is_not_listened_to(client: Client) -> None:
    client.wire.room = 0
    asked = 0
    while client.server.can_receive():
        client.send(frame(b"g"))
        asked += 1
        assert asked < 1000
    client.wire.room = 1 << 30
    with client.pc.lock:
        client.server.writable()
    assert client.server.can_receive() > 0
    assert len([reply for reply in client.take() if isinstance(reply, bytes)]) == asked


_PIECES = st.sampled_from(
    b"m M X p P g G Z0 z0 Z2 H T q Q v qXfer:features:read: qThreadExtraInfo, Qqemu.sstep= vCont;s target.xml p1.1 -1 0"
    b" ffffffffffffffff 7fff , : ; = } .".split()
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.binary(max_size=4)), max_size=8).map(b"".join))
def test_any_packet_is_answered(client: Client, packet: bytes) -> None:
    if packet[:1] in (b"c", b"C", b"s", b"S", b"D", b"k") or packet.startswith((b"vCont", b"vKill", b"qRcmd")):
        return
    replies = client.send(frame(packet.replace(b"$", b"").replace(b"#", b"")))
    assert replies[0] is Signal.ACK
    assert all(isinstance(reply, bytes) and len(reply) <= PACKET_SIZE for reply in replies[1:])
    with client.pc.lock:
        client.server.event(ChardevEvent.OPENED)
    client.ask("?")


def test_tcp_listens_unless_it_says_otherwise() -> None:
    assert device_options("tcp::1234") == "tcp::1234,wait=off,nodelay=on,server=on"
    assert device_options("unix:/x,server=on") == "unix:/x,server=on"


def test_the_stub_moves_to_another_device(tmp_path: object) -> None:
    with Machine() as machine:
        say = lambda line: machine.execute("human-monitor-command", command_line=line)  # noqa: E731
        assert say("gdbserver none") == "Disabled gdbserver\r\n"
        assert say("gdbserver nonsense") == (
            "'nonsense' is not a valid char driver\r\nCould not open gdbserver on device 'nonsense'\r\n"
        )
        place = f"unix:{tmp_path}/gdb,server=on,wait=off"
        for _ in range(2):
            assert say(f"gdbserver {place}") == f"Waiting for gdb connection on device '{place}'\r\n"
            assert "gdb" in {each["label"] for each in machine.execute("query-chardev")}
        say("gdbserver none")
        assert "gdb" not in {each["label"] for each in machine.execute("query-chardev")}
