"""Commands of the human monitor, and the monitor on its chardev.  Expected texts are QEMU 7.2's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvm
from pyvm.api import Machine
from pyvm.chardev.base import ChardevEvent
from pyvm.chardev.registry import ChardevInfo
from pyvm.clock import ManualClock
from pyvm.cpu.registers import RegisterState, SegmentState
from pyvm.devices import lapic_regs as reg
from pyvm.devices.apic_bus import ApicBus
from pyvm.devices.ioapic import IoApic, IoApicState
from pyvm.devices.lapic import Lapic
from pyvm.devices.pic import PicPairState
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.commands import COMMANDS, show_value
from pyvm.monitor.hmp.interrupts import show_ioapic, show_lapic, show_pics
from pyvm.monitor.hmp.monitor import OUTPUT_LIMIT, HumanMonitor
from pyvm.monitor.hmp.registers import show
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.machine import VcpuInfo
from pyvm.native import LapicVectors
from pyvm.runstate import RunState
from tests.system import machine_rig
from tests.unit.monitor_support import NO_UUID, Bench, FakeBalloon, Wire

BANNER = "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) "
NOT_SUPPORTED = "Error: this feature or command is not currently supported\r\n"


class Person:
    """Somebody at a human monitor."""

    def __init__(self, bench: Bench, room: int | None = None) -> None:
        self.bench = bench
        self.wire = Wire(room)
        self.monitor = HumanMonitor(self.wire, bench.dispatcher, bench.machine, bench.scheduler)

    def connect(self) -> str:
        self.wire.connect()
        self.bench.scheduler.run()
        return self.take()

    def take(self) -> str:
        text = self.wire.output.decode("utf-8", "surrogateescape")
        self.wire.output.clear()
        return text

    def type(self, keys: bytes) -> str:
        self.wire.waiting += keys
        self.wire.accept_input()
        self.bench.scheduler.run()
        return self.take()

    def enter(self, line: str) -> str:
        """Enter a line; return what follows its echo, without the prompt."""
        text = self.type(line.encode() + b"\r").partition("\x1b[K\r\n" if line else "\r\n")
        while "\x1b[K" in text[2]:
            text = text[2].partition("\x1b[K\r\n")
        return text[2].removesuffix("(qemu) ")


def ask(bench: Bench, line: str, **arguments: Any) -> str:
    """Execute a line through QMP."""
    arguments["command-line"] = line
    *_, reply = bench.client().ask({"execute": "human-monitor-command", "arguments": arguments})
    result: str = reply["return"]
    return result


# ---- Commands


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", ""),
        ("   ", ""),
        ("foo", "unknown command: 'foo'\r\n"),
        ("  foo bar", "unknown command: 'foo'\r\n"),
        ("Stop", "unknown command: 'Stop'\r\n"),
        ("info foo", "unknown command: 'info foo'\r\n"),
        ("help foo", "unknown command: 'foo'\r\n"),
        ("help info foo", "unknown command: 'info foo'\r\n"),
        ("help stop foo", "stop|s  -- stop emulation\r\n"),
        ("? ?", "help|? [cmd] -- show the help\r\n"),
        ("help info status", "info status  -- show the current VM status (running|paused)\r\n"),
        (
            "quit x",
            'quit|q: extraneous characters at the end of line\r\nTry "help quit" for more information\r\n',
        ),
        (
            "info status x",
            'status: extraneous characters at the end of line\r\nTry "help info status" for more information\r\n',
        ),
        ("s x", 'stop|s: extraneous characters at the end of line\r\nTry "help s" for more information\r\n'),
        ("balloon", 'unexpected end of expression\r\nTry "help balloon" for more information\r\n'),
        (
            "info registers -z",
            'registers: unsupported option -z\r\nTry "help info registers" for more information\r\n',
        ),
        ("info status", "VM status: paused (prelaunch)\r\n"),
        ("  info   status  ", "VM status: paused (prelaunch)\r\n"),
        ("info version", f"7.2.22 (pyvm {pyvm.__version__})\r\n"),
        ("info name", ""),
        ("info uuid", f"{NO_UUID}\r\n"),
        ("info kvm", "kvm support: not compiled\r\n"),
        ("info balloon", "Error: No balloon device has been activated\r\n"),
        ("balloon 64", "Error: No balloon device has been activated\r\n"),
        ("balloon 8796093022208", "Error: No balloon device has been activated\r\n"),
        ("system_wakeup", "Error: wake-up from suspend is not supported by this guest\r\n"),
        ("info history", ""),
        ("cpu 7", "invalid CPU index\r\n"),
        ("p 2*3", "0x6\r\n"),
        ("p/d -1", "-1\r\n"),
        ("p/q 3", "invalid char in format: 'q'\r\nTry \"help p\" for more information\r\n"),
        ("p $pc", NOT_SUPPORTED),
        ("p $nosuch", 'unknown register\r\nTry "help p" for more information\r\n'),
        ("info registers", NOT_SUPPORTED),
        ("info lapic", NOT_SUPPORTED),
        ("info pic", NOT_SUPPORTED),
        ("info mtree", NOT_SUPPORTED),
        ("i/b 0x60", NOT_SUPPORTED),
        ("o/b 0x80 1", NOT_SUPPORTED),
    ],
)
def test_texts(line: str, text: str) -> None:
    assert ask(Bench(), line) == text


def test_commands_do_what_their_qmp_commands_do() -> None:
    bench = Bench()
    person = Person(bench)
    person.connect()
    machine = bench.machine
    assert person.enter("c") == ""
    assert machine.run_state is RunState.RUNNING
    assert person.enter("info status") == "VM status: running\r\n"
    assert person.enter("stop") == ""
    assert person.enter("info status") == "VM status: paused\r\n"
    machine.single_step = True
    assert person.enter("info status") == "VM status: paused (single step mode)\r\n"
    assert person.enter("nmi") == ""
    assert machine.nmis == 1
    machine.has_nmi = False
    assert person.enter("nmi") == NOT_SUPPORTED
    machine.balloon = FakeBalloon()
    assert person.enter("info balloon") == "balloon: actual=128\r\n"
    assert person.enter("balloon 64") == ""
    assert machine.balloon.target == 64 << 20
    assert person.enter("balloon 8796093022208") == "Error: Parameter 'target' expects a size\r\n"
    assert person.enter("balloon 0") == "Error: Parameter 'target' expects a size\r\n"
    assert machine.balloon.target == 64 << 20
    machine.name = "guest"
    assert person.enter("info name") == "guest\r\n"
    machine.devices = [ChardevInfo("serial0", "pty:/dev/pts/1", True)]
    assert person.enter("info chardev") == "serial0: filename=pty:/dev/pts/1\r\n"


def test_power_and_reset_send_their_events() -> None:
    bench = Bench()
    client = bench.client()
    for line, event in (("system_reset", "RESET"), ("system_powerdown", "POWERDOWN"), ("quit", "SHUTDOWN")):
        request = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
        assert [message.get("event", message.get("return")) for message in client.ask(request)] == [event, ""]
    assert bench.machine.ended is not None


def test_the_default_cpu() -> None:
    bench = Bench()
    bench.machine.cpus = [VcpuInfo(0, "/a", 10), VcpuInfo(1, "/b", 11)]
    person = Person(bench)
    person.connect()
    first, second = (
        "* CPU #0: thread_id=10\r\n  CPU #1: thread_id=11\r\n",
        "  CPU #0: thread_id=10\r\n* CPU #1: thread_id=11\r\n",
    )
    assert person.enter("info cpus") == first
    assert person.enter("cpu 1") == ""
    assert person.enter("info cpus") == second
    assert person.enter("cpu 2") == "invalid CPU index\r\n"
    assert ask(bench, "info cpus") == first
    assert ask(bench, "info cpus", **{"cpu-index": 1}) == second
    for index in (2, -1):
        error = bench.client().error("human-monitor-command", {"command-line": "info cpus", "cpu-index": index})
        assert error == "Parameter 'cpu-index' expects a CPU number"


def test_the_last_format_is_remembered_by_a_monitor() -> None:
    person = Person(Bench())
    person.connect()
    assert person.enter("p 10") == "0xa\r\n"
    assert person.enter("p/d 10") == "10\r\n"
    assert person.enter("p 11") == "11\r\n"


@pytest.mark.parametrize(
    ("value", "letter", "text"),
    [
        (0, "x", "0"),
        (-1, "x", "0xffffffffffffffff"),
        (8, "o", "010"),
        (-1, "u", "18446744073709551615"),
        (8, "i", "8"),
        (65, "c", "'A'"),
        (-1, "c", "'\\xffffffff'"),
        (10, "c", "'\\n'"),
        (39, "c", "'\\''"),
        (92, "c", "'\\\\'"),
        (200, "c", "'\\xc8'"),
    ],
)
def test_values_are_shown_as_the_format_says(value: int, letter: str, text: str) -> None:
    assert show_value(value, letter) == text


def test_help_lists_all_commands_in_order() -> None:
    # The help on some commands has several lines.
    lines = [line for line in ask(Bench(), "help").splitlines() if not line.startswith(("\t", "["))]
    assert lines == sorted(lines)
    assert "cont|c  -- resume emulation" in lines
    assert "balloon target -- request VM to change its memory allocation (in MB)" in lines
    subjects = ask(Bench(), "info")
    assert subjects == ask(Bench(), "help info")
    assert subjects.startswith("info balloon  -- show balloon information\r\ninfo block [-n] [-v] [device] -- ")


def test_before_the_machine_exists() -> None:
    bench = Bench()
    bench.machine.initialized = False
    person = Person(bench)
    person.connect()

    def enter(line: str) -> str:
        """Type a line; return what is shown between the line's end and the next prompt."""
        return person.type(line.encode() + b"\r").rpartition("\x1b[K\r\n")[2].removesuffix("(qemu) ")

    assert enter("info status") == "VM status: paused (prelaunch)\r\n"
    late = "not available until machine initialization has completed.\r\n"
    assert enter("stop") == f"Command 'stop' {late}"
    assert enter("info cpus") == f"Command 'info cpus' {late}"
    assert enter("help stop") == "unknown command: 'stop'\r\n"
    names = [line.split()[0] for line in enter("help").splitlines()]
    assert {"exit_preconfig", "help|?", "info", "object_add", "qom-set", "quit|q"} <= set(names)
    assert not {"stop|s", "x", "device_add"} & set(names)
    assert person.type(b"c\t") == "c\x1b[K\x1b[Dclosefd \x1b[K"


@pytest.mark.parametrize(
    ("text", "length", "names"),
    [
        ("inf", 3, ["info"]),
        ("  sys", 3, ["system_powerdown", "system_reset", "system_wakeup"]),
        ("info st", 2, ["stats", "status"]),
        ("info  pi", 2, ["pic"]),
        ("help st", 2, ["stop", "stopcapture"]),
        ("? info ver", 3, ["version"]),
        ("info status ", 0, []),
        ("stop ", 0, []),
        ("zz ", 0, []),
    ],
)
def test_completion(text: str, length: int, names: list[str]) -> None:
    assert COMMANDS.complete(text, True) == (length, names)


@settings(max_examples=200)
@given(st.text(max_size=40) | st.text(alphabet="infohelpstqu?/-1 (", max_size=30))
def test_any_line_has_an_answer(line: str) -> None:
    bench = Bench()
    text = ask(bench, line.encode("utf-8", "replace").decode())
    assert text == "" or text.endswith("\r\n")
    length, names = COMMANDS.complete(line, True)
    assert length <= len(line)
    word = line[len(line) - length :]
    assert all(name.startswith(word) for name in names)


def test_no_name_is_taken_twice() -> None:
    table = CommandTable()
    table.command("a|b", description="")(lambda shell: None)
    with pytest.raises(ValueError, match="command b exists already"):
        table.command("b", description="")(lambda shell: None)


def test_a_command_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(shell: Any) -> str:
        await asyncio.sleep(0)
        return "done\n"

    async def fail(shell: Any) -> str:
        raise QmpError("it went wrong")

    monkeypatch.setattr(COMMANDS, "_commands", dict(COMMANDS._commands))
    COMMANDS.command("waiting", description="")(wait)
    COMMANDS.command("failing", description="")(fail)
    bench = Bench()
    person = Person(bench)
    person.connect()
    assert person.type(b"waiting\rinfo name\r").endswith("waiting\x1b[K\r\n")
    assert person.monitor.can_receive() == 0
    asyncio.run(bench.spawned.pop())
    bench.scheduler.run()
    text = person.take()
    assert text.startswith("done\r\n(qemu) i")
    assert text.endswith("info name\x1b[K\r\n(qemu) ")
    person.type(b"failing\r")
    asyncio.run(bench.spawned.pop())
    assert person.take() == "Error: it went wrong\r\n(qemu) "
    person.type(b"waiting\r")
    person.wire.disconnect()
    person.connect()
    asyncio.run(bench.spawned.pop())
    assert person.take() == ""
    assert person.enter("info status") == "VM status: paused (prelaunch)\r\n"


# ---- The monitor on its chardev


def test_greeting_echo_and_prompt() -> None:
    person = Person(Bench())
    assert person.type(b"stop\r") == ""
    assert (
        person.connect() == BANNER + "s\x1b[K\x1b[Dst\x1b[K\x1b[D\x1b[Dsto\x1b[K\x1b[D\x1b[D\x1b[Dstop\x1b[K\r\n(qemu) "
    )
    assert person.type(b"\r\n") == "\r\n(qemu) \r\n(qemu) "


def test_the_next_person_begins_anew_but_for_the_history() -> None:
    person = Person(Bench())
    person.connect()
    person.enter("stop")
    person.type(b"half a line\x1b[")
    person.wire.disconnect()
    assert person.type(b"lost") == ""
    person.wire.waiting.clear()
    assert person.connect() == BANNER
    assert person.enter("info history") == "0: 'stop'\r\n1: 'info history'\r\n"


def test_no_prompt_follows_the_end() -> None:
    person = Person(Bench())
    person.connect()
    assert person.type(b"q\rstop\r") == "q\x1b[K\r\n"


def test_sharing_a_multiplexer() -> None:
    person = Person(Bench())
    monitor = person.monitor
    monitor.event(ChardevEvent.OPENED)
    monitor.event(ChardevEvent.MUX_IN)
    monitor.event(ChardevEvent.MUX_OUT)
    person.bench.scheduler.run()
    assert person.take() == ""
    assert monitor.can_receive() == 0
    monitor.event(ChardevEvent.MUX_IN)
    person.bench.scheduler.run()
    assert person.take() == BANNER
    person.type(b"abc")
    monitor.event(ChardevEvent.BREAK)
    monitor.event(ChardevEvent.MUX_OUT)
    assert person.take() == "\r\n"
    monitor.event(ChardevEvent.MUX_IN)
    assert person.take() == "(qemu) "
    assert person.enter("zz") == "unknown command: 'zz'\r\n"


def test_a_terminal_that_does_not_read_is_not_read_from() -> None:
    person = Person(Bench(), room=len(BANNER))
    assert person.connect() == BANNER
    keys = b"help\r" * 10_000
    person.type(keys)
    waiting = len(person.monitor._output)
    assert OUTPUT_LIMIT < waiting < OUTPUT_LIMIT + 10_000
    assert person.monitor.can_receive() == 0
    assert len(person.wire.waiting) > len(keys) // 2
    person.wire.waiting.clear()
    person.wire.read_all(1 << 30)
    person.bench.scheduler.run()
    assert len(person.take()) >= waiting
    person.wire.room = None
    person.type(b"\x15\r")
    assert person.enter("info name") == ""


def test_closing() -> None:
    bench = Bench()
    person = Person(bench)
    person.connect()
    person.monitor.close()
    assert person.wire.frontend is None
    bench.scheduler.run()
    assert person.take() == ""
    HumanMonitor(person.wire, bench.dispatcher, bench.machine, bench.scheduler)
    with pytest.raises(ValueError, match="is in use"):
        HumanMonitor(person.wire, bench.dispatcher, bench.machine, bench.scheduler)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"help\r", b"info\t", b"\x1b[A\r"]), max_size=20))
def test_hostile_keys(chunks: list[bytes]) -> None:
    person = Person(Bench())
    person.connect()
    for chunk in chunks:
        person.type(chunk)
    if person.bench.machine.ended is None:
        person.type(b"\x1bx\x15\r")
        assert person.enter("info version") == f"7.2.22 (pyvm {pyvm.__version__})\r\n"
    assert not person.monitor._output


# ---- Hardware as text


def test_registers_after_reset() -> None:
    real = SegmentState(0, 0, 0xFFFF, 0x9300)
    state = RegisterState(
        gpr=(b"\0" * 16 + 0x60FB1.to_bytes(8, "little")).ljust(128, b"\0"),
        rip=0xFFF0,
        cs=SegmentState(0xF000, 0xFFFF0000, 0xFFFF, 0x9B00),
        ldt=SegmentState(0, 0, 0xFFFF, 0x8200),
        tr=SegmentState(0, 0, 0xFFFF, 0x8B00),
        gdt=SegmentState(0, 0, 0xFFFF, 0),
        cr0=0x60000010,
        fpu_tags=b"\1" * 8,
        **dict.fromkeys(("es", "ss", "ds", "fs", "gs"), real),
    )
    lines = show(state).splitlines()
    assert lines[:7] == [
        "EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1",
        "ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000",
        "EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0",
        "ES =0000 00000000 0000ffff 00009300",
        "CS =f000 ffff0000 0000ffff 00009b00",
        "SS =0000 00000000 0000ffff 00009300",
        "DS =0000 00000000 0000ffff 00009300",
    ]
    assert lines[9:19] == [
        "LDT=0000 00000000 0000ffff 00008200",
        "TR =0000 00000000 0000ffff 00008b00",
        "GDT=     00000000 0000ffff",
        "IDT=     00000000 00000000",
        "CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000",
        "DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 ",
        "DR6=00000000ffff0ff0 DR7=0000000000000400",
        "EFER=0000000000000000",
        "FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80",
        "FPR0=0000000000000000 0000 FPR1=0000000000000000 0000",
    ]
    assert lines[-1] == "XMM06=0000000000000000 0000000000000000 XMM07=0000000000000000 0000000000000000"


def test_registers_in_long_mode() -> None:
    fpu = bytearray(128)
    fpu[16 * 6 : 16 * 6 + 10] = bytes.fromhex("35c26821a2da0fc90040")
    state = RegisterState(
        gpr=b"".join(number.to_bytes(8, "little") for number in range(0x10, 0x20)),
        rip=0xFFFFFFFF81000000,
        rflags=0xCD7,
        interrupt_shadow=True,
        activity="halted",
        cs=SegmentState(0x33, 0, 0xFFFFFFFF, 0x00AFFB00),
        ss=SegmentState(0x2B, 0, 0xFFFFFFFF, 0x00CFF300),
        ldt=SegmentState(0, 0, 0xFFFF, 0x8200),
        tr=SegmentState(0x20, 0xFFFFFE0000003000, 0xFFF, 0x808900),
        gdt=SegmentState(0, 0x4332010, 0x2F, 0),
        cr0=0x80050033,
        cr2=0xFFFF,
        efer=0x500,
        fpu_top=6,
        fpu_tags=bytes((1, 1, 1, 1, 1, 1, 0, 0)),
        fpu_registers=bytes(fpu),
        xmm=bytes(range(16)) + b"\0" * 240,
    )
    lines = show(state).splitlines()
    assert lines[0] == "RAX=0000000000000010 RBX=0000000000000013 RCX=0000000000000011 RDX=0000000000000012"
    assert lines[3] == "R12=000000000000001c R13=000000000000001d R14=000000000000001e R15=000000000000001f"
    assert lines[4] == "RIP=ffffffff81000000 RFL=00000cd7 [DOSZAPC] CPL=3 II=1 A20=1 SMM=0 HLT=1"
    assert lines[5] == "ES =0000 0000000000000000 00000000 00000000"
    assert lines[6] == "CS =0033 0000000000000000 ffffffff 00affb00 DPL=3 CS64 [-RA]"
    assert lines[7] == "SS =002b 0000000000000000 ffffffff 00cff300 DPL=3 DS   [-WA]"
    assert lines[11] == "LDT=0000 0000000000000000 0000ffff 00008200 DPL=0 LDT"
    assert lines[12] == "TR =0020 fffffe0000003000 00000fff 00808900 DPL=0 TSS64-avl"
    assert lines[13] == "GDT=     0000000004332010 0000002f"
    assert lines[15] == "CR0=80050033 CR2=000000000000ffff CR3=0000000000000000 CR4=00000000"
    assert lines[19] == "FCW=037f FSW=3000 [ST=6] FTW=c0 MXCSR=00001f80"
    assert lines[23] == "FPR6=c90fdaa22168c235 4000 FPR7=0000000000000000 0000"
    assert lines[24].startswith("XMM00=0f0e0d0c0b0a0908 0706050403020100 XMM01=")
    assert lines[-1].startswith("XMM14=")


class _Cpu:
    vectors = LapicVectors(lambda pending: None)

    def nmi(self) -> None: ...

    def init(self) -> None: ...

    def startup(self, vector: int) -> None: ...


def test_local_apic() -> None:
    clock = ManualClock()
    chip = Lapic(0, clock, ApicBus(), _Cpu(), lambda: 0)
    for offset, value in (
        (reg.SVR, 0x1FF),
        (reg.LDR, 0x02000000),
        (reg.TPR, 0x20),
        (reg.LVT_TIMER, 0x200EC),
        (reg.TIMER_DIVIDE, 3),
        (reg.TIMER_INITIAL, 1000),
        (reg.LVT_LINT0, 0x2734),
        (reg.LVT_LINT1, 0xA135),
        (reg.LVT_PERFORMANCE, 0x10200),
        (reg.LVT_THERMAL, 0x5FE),
        (reg.ICR_HIGH, 0x02000000),
        (reg.ICR_LOW, 0x4841),
        (reg.ICR_LOW, 0x4863),
    ):
        chip.write(offset, 4, value)
    clock.advance(1600)
    assert show_lapic(0, chip).splitlines() == [
        "dumping local APIC state for CPU 0 ",
        "",
        "LVT0\t 0x00002734 active-lo edge                              ExtINT (vec 52)",
        "LVT1\t 0x0000a135 active-lo level                             ...    (vec 53)",
        "LVTPC\t 0x00010200 active-hi edge  masked                      SMI    (vec 0)",
        "LVTERR\t 0x00010000 active-hi edge  masked                      Fixed  (vec 0)",
        "LVTTHMR\t 0x000005fe active-hi edge                              INIT   (vec 254)",
        "LVTT\t 0x000200ec active-hi edge                 periodic     Fixed  (vec 236)",
        "Timer\t DCR=0x3 (divide by 16) initial_count = 1000 current_count = 900",
        "SPIV\t 0x000001ff APIC enabled, focus=off, spurious vec 255",
        "ICR\t 0x00004863 logical edge assert no-shorthand",
        "ICR2\t 0x02000000 mask 00000010 (APIC ID)",
        "ESR\t 0x00000000",
        "ISR\t (none)",
        "IRR\t 65 99 ",
        "",
        "APR 0x60 TPR 0x20 DFR 0x0f LDR 0x02 PPR 0x20",
    ]
    chip.write(reg.LVT_LINT1, 4, 0x400)
    assert "LVT1\t 0x00000400 active-hi edge                              NMI   " in show_lapic(0, chip).splitlines()
    assert chip.write_apic_base(chip.apic_base | reg.BASE_X2APIC)
    assert "current_count = 900" in show_lapic(0, chip)


def test_io_apic_and_pics() -> None:
    chip = IoApic(ApicBus())
    lines = show_ioapic(chip.save()).splitlines()
    assert lines[0] == "ioapic0: ver=0x20 id=0x00 sel=0x00"
    assert lines[1] == "  pin 0  0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical"
    assert lines[-2:] == ["  IRR      (none)", "  Remote IRR (none)"]
    entries = [0x030000000000E931, 0x232, 0x400, 0x733, 0x18534, 0x335, *[0x10000] * 18]
    lines = show_ioapic(IoApicState(ioregsel=0x1A, lines=0b101, entries=entries)).splitlines()
    assert lines[0] == "ioapic0: ver=0x20 id=0x00 sel=0x1a (redir[5])"
    assert lines[1:7] == [
        "  pin 0  0x030000000000e931 dest=3 vec=49  active-lo level        lowest logical",
        "  pin 1  0x0000000000000232 dest=0 vec=50  active-hi edge         SMI    physical",
        "  pin 2  0x0000000000000400 dest=0 vec=0   active-hi edge         NMI    physical",
        "  pin 3  0x0000000000000733 dest=0 vec=51  active-hi edge         extINT physical",
        "  pin 4  0x0000000000018534 dest=0 vec=52  active-hi level masked INIT   physical",
        "  pin 5  0x0000000000000335 dest=0 vec=53  active-hi edge         ...    physical",
    ]
    assert lines[-2:] == ["  IRR      0 2 ", "  Remote IRR 0 "]
    pics = PicPairState()
    pics.master.base, pics.master.irr, pics.slave.elcr = 8, 1, 0x0C
    assert show_pics(pics) == (
        "pic1: irr=00 imr=00 isr=00 hprio=0 irq_base=00 rr_sel=0 elcr=0c fnm=0\n"
        "pic0: irr=01 imr=00 isr=00 hprio=0 irq_base=08 rr_sel=0 elcr=00 fnm=0\n"
    )


# ---- A whole machine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose firmware jumps to where it is for ever."""
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"\xf4" * 0xFFF0 + b"\xeb\xfe" * 8)
    with Machine("-S", "-nodefaults", "-bios", str(firmware), m=16, smp=2, agent=False) as made:
        yield made


def test_a_whole_machine(machine: Machine) -> None:
    def ask(line: str) -> str:
        text: str = machine.qmp("human-monitor-command", command_line=line)
        return text

    stopped = ask("info registers")
    assert stopped.startswith("\r\nCPU#0\r\nEAX=00000000 ")
    assert "\r\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 " in stopped
    assert ask("info registers -a").count("\r\nCPU#") == 2
    assert ask("info registers 1").startswith("\r\nCPU#1\r\n")
    assert ask("info registers 2") == "CPU#2 not available\r\n"
    assert ask("cont") == ""
    assert ask("info registers") == stopped
    assert ask("info status") == "VM status: running\r\n"
    assert ask("p $pc") == "0xfffffff0\r\n"
    assert ask("p $cs + $eax") == "0xf000\r\n"
    assert ask("info lapic").startswith("dumping local APIC state for CPU 0 \r\n")
    assert ask("info lapic 1").startswith("dumping local APIC state for CPU 1 \r\n")
    assert ask("info lapic 2") == "No CPU available\r\n"
    assert ask("info pic").startswith("ioapic0: ver=0x20 ")
    assert ask("o/b 0x21 0xa5") == ""
    assert ask("i/b 0x21") == "portb[0x0021] = 0xa5\r\n"
    assert " imr=a5 " in ask("info pic")
    assert ask("i/w 0x10021") == "portl[0x0021] = 0xffffffa5\r\n"
    tree = ask("info mtree").split("\r\n")
    ram = "alias ram-below-4g @pc.ram 0000000000000000-000000000009ffff"
    assert f"    0000000000000000-000000000009ffff (prio 0, ram): {ram}" in tree
    assert "    00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic" in tree
    assert "    0000000000000020-0000000000000021 (prio 0, i/o): pic1" in tree


def test_what_the_command_line_has_is_told_apart_from_what_came_later() -> None:
    with machine_rig.Machine("-chardev", "null,id=given") as machine:
        say = lambda line: machine.execute("human-monitor-command", command_line=line)  # noqa: E731
        assert say("chardev-add null,id=given") == (
            "Duplicate ID 'given' for chardev\r\nError: Parsing chardev args failed\r\n"
        )
        assert say("info/x status") == "unknown command: 'info'\r\n"
        assert say("netdev_add") == "Error: Parameter 'id' is missing\r\n"
        assert say("drive_backup d0").startswith("drive_backup: string expected\r\n")
