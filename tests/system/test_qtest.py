"""qtest: devices driven by text, and guest time that stands still."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.errors import ConfigError
from pyvm.machine.qtest import IdleVcpus, Qtest, SteppedClock
from tests.system.machine_rig import Machine


class Wire(Chardev):
    """A back end that keeps what is written; `room` is how much it takes at a time."""

    filename = "test"

    def __init__(self) -> None:
        super().__init__("wire")
        self.lines = b""
        self.room = 1 << 20

    def _write(self, data: Buffer) -> int:
        taken = min(len(data), self.room)
        self.lines += bytes(data[:taken])
        return taken

    def accept_input(self) -> None:
        """Nothing waits."""


class Client:
    """A client of a machine."""

    def __init__(self, machine: Machine, log: str = "none") -> None:
        self.wire = Wire()
        self.machine = machine
        self.qtest = Qtest(machine.pc, self.wire, log)

    def ask(self, line: str) -> str:
        """Return the answer to a command, events before it included."""
        self.wire.lines = b""
        with self.machine.pc.lock:
            self.qtest.receive(line.encode() + b"\n")
        return self.wire.lines.decode().rstrip("\n")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("-accel", "qtest") as made:
        yield made


@pytest.fixture
def client(machine: Machine) -> Iterator[Client]:
    made = Client(machine)
    yield made
    made.qtest.close()


def test_ports_and_memory(client: Client) -> None:
    assert client.ask("endianness") == "OK little"
    assert client.ask("outl 0xcf8 0x80000000") == "OK"
    assert client.ask("inl 0xcfc") == "OK 0x12378086"
    assert client.ask("outb 0x70 0xa") == "OK"
    assert client.ask("inb 0x71") == "OK 0x0026"
    assert client.ask("writel 0x1004 0xdeadbeef") == "OK"
    assert client.ask("writeb 0x1000 0x112") == "OK"
    assert client.ask("readq 0x1000") == "OK 0xdeadbeef00000012"
    assert client.ask("readw 4100") == "OK 0x000000000000beef"
    assert client.ask("read 0x1000 010") == "OK 0x12000000efbeadde"
    assert client.ask("readl 0xfee00030") == "OK 0x0000000000050014"
    assert client.ask("readq 0xffffffffffffffff") == "OK 0x0000000000000000"


def test_blocks_of_memory(client: Client) -> None:
    assert client.ask("write 0x2000 6 0x0102030405ff") == "OK"
    assert client.ask("b64read 0x2000 6") == "OK AQIDBAX/"
    assert client.ask("b64write 0x2001 2 //8=") == "OK"
    assert client.ask("memset 0x2004 1 0x1aa") == "OK"
    assert client.ask("read 0x2000 7") == "OK 0x01ffff04aaff00"
    assert client.ask("write 0x2000 4 0x55") == "OK"
    assert client.ask("read 0x2000 5") == "OK 0x55000000aa"


def test_time_passes_when_it_is_told_to(client: Client) -> None:
    clock = client.machine.pc.clock
    assert isinstance(clock, SteppedClock)
    fired: list[int] = []
    timer = clock.timer(lambda: fired.append(clock.now()))
    start = clock.now()
    timer.arm(start + 500)
    assert client.ask("clock_step 499") == f"OK {start + 499}"
    assert not fired
    assert client.ask("clock_step") == f"OK {start + 500}"
    assert fired == [start + 500]
    assert client.ask(f"clock_set {start + 9000}") == f"OK {start + 9000}"
    assert client.ask("clock_set 1") == f"OK {start + 9000}"


def test_interrupts_are_told(client: Client) -> None:
    assert client.ask("irq_intercept_in ioapic") == "OK"
    assert client.ask("irq_intercept_in ioapic") == "OK"
    assert client.ask("set_irq_in ioapic unnamed-gpio-in 4 1") == "IRQ raise 4\nOK"
    assert client.ask("set_irq_in ioapic unnamed-gpio-in 4 1") == "OK"
    assert client.ask("set_irq_in ioapic unnamed-gpio-in 4 0") == "IRQ lower 4\nOK"
    # The PIT, channel 0, rate generator.
    for port, value in ((0x43, 0x34), (0x40, 0x10), (0x40, 0x00)):
        assert client.ask(f"outb {port} {value}").endswith("OK")
    assert "IRQ raise 2" in client.ask("clock_step 100000")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("nothing", "FAIL Unknown command 'nothing'"),
        ("inb", "FAIL Missing argument"),
        ("inb x", "FAIL Invalid number 'x'"),
        ("read 0 0", "FAIL Invalid length '0'"),
        ("read 0 0x7fffffffffff", "FAIL Invalid length '0x7fffffffffff'"),
        ("write 0 1 zz", "FAIL Invalid data"),
        ("b64write 0 1 *", "FAIL Invalid data"),
        ("irq_intercept_in nowhere", "FAIL Unknown device"),
        ("set_irq_in ioapic other 1 1", "FAIL Unknown input 'other' 1"),
        ("set_irq_in ioapic unnamed-gpio-in 99 1", "FAIL Unknown input 'unnamed-gpio-in' 99"),
    ],
)
def test_what_cannot_be_done(client: Client, line: str, answer: str) -> None:
    assert client.ask(line) == answer


def test_a_client_that_reads_slowly(client: Client) -> None:
    client.wire.room = 5
    client.wire.lines = b""
    client.qtest.receive(b"endianness\n")
    client.wire.room = 0
    client.qtest.receive(b"endianness\n")
    assert client.qtest.can_receive() == 0
    client.wire.room = 100
    client.qtest.writable()
    assert client.wire.lines == b"OK little\nOK little\n"
    assert client.qtest.can_receive() > 0


@given(st.lists(st.binary(max_size=60), max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_input_is_answered(machine: Machine, chunks: list[bytes]) -> None:
    client = Client(machine)
    try:
        with machine.pc.lock:
            for chunk in chunks:
                client.qtest.receive(chunk)
            client.qtest.receive(b"\nendianness\n")
        assert client.wire.lines.endswith(b"OK little\n")
    finally:
        client.qtest.close()


def test_the_log(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "log"
    client = Client(machine, str(path))
    client.qtest.event(ChardevEvent.OPENED)
    client.ask("endianness")
    client.qtest.event(ChardevEvent.CLOSED)
    client.qtest.close()
    lines = path.read_text().splitlines()
    assert lines[-4] == "[I 0.000000] OPENED"
    assert [line.partition("] ")[2] for line in lines[-3:]] == ["endianness", "OK little", "CLOSED"]
    with pytest.raises(ConfigError, match="-qtest-log /nowhere/log: No such file or directory"):
        Client(machine, "/nowhere/log")


def test_the_log_ends_with_the_machine(machine: Machine, tmp_path: Path) -> None:
    """A client that is there until then has gone, too."""
    path = tmp_path / "log"
    client = Client(machine, str(path))
    client.qtest.event(ChardevEvent.OPENED)
    client.qtest.close()
    assert path.read_text().splitlines()[-1].endswith("] CLOSED")


def test_no_cpu_runs_and_firmware_does_nothing(machine: Machine) -> None:
    pc = machine.pc
    assert isinstance(pc.cpus, IdleVcpus)
    assert pc.cpus.registers(0)["rip"] == 0xFFF0
    with pc.lock:
        before = pc.clock.now()
        pc.vm_start()
        pc.vm_stop(pc.run_state.PAUSED)
        assert pc.clock.now() == before


def test_beside_a_cpu_time_goes_by_itself(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        with Machine("-qtest", f"unix:path={tmp_path}/s", "-qtest-log", "none") as made:
            client = Client(made)
            assert client.ask("clock_step") == "FAIL Guest time can be set with -accel qtest only"
            client.qtest.close()
