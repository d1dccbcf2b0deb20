"""Commands of the human monitor about input, dumps, character devices, traces and the host.  Texts are QEMU 7.2's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.chardev.registry import ChardevHost, ChardevSet
from pyvm.clock import ManualClock
from pyvm.cpu.registers import RegisterState
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.input import InputRouter, KeyboardInput, MouseInput
from pyvm.machine.dump.dumper import Dumper
from pyvm.memory import GuestMemory, IoSpace, pc_ram_blocks
from pyvm.monitor.schema.model import load
from pyvm.monitor.trace import TraceEvents
from tests.unit.chardev_support import running_loop
from tests.unit.monitor_support import Bench

SIZE = 1 << 20


class Desk:
    """A machine with what these commands are about."""

    def __init__(self, devices: ChardevSet) -> None:
        self.bench = Bench()
        self.clock = ManualClock()
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self.mouse.write(0xF4)
        self.mouse.take()
        self.input = InputRouter(self.clock, lambda: True)
        self.input.register(KeyboardInput(self.keyboard, lambda: None))
        self.input.register(MouseInput(self.mouse, lambda: None))
        self.memory = GuestMemory(SIZE, pc_ram_blocks(SIZE))
        self.order = ""
        self.actions: dict[str, str] = {}
        machine: Any = self.bench.machine
        machine.input, machine.chardev_set, machine.chardevs = self.input, devices, devices.query
        machine.memory, machine.mmio = self.memory, IoSpace("memory")
        machine.register_states = lambda: [RegisterState()]
        machine.dumper = Dumper(machine, self.bench.events.emit)
        machine.traces = TraceEvents(lambda: load().command_names)
        machine.set_boot_order = self._boot_from
        machine.set_actions = self.actions.update
        self.client = self.bench.client()

    def _boot_from(self, letters: str) -> None:
        self.order = letters

    def ask(self, line: str) -> str:
        messages = self.client.ask({"execute": "human-monitor-command", "arguments": {"command-line": line}})
        while self.bench.spawned:
            asyncio.run(self.bench.spawned.pop(0))  # type: ignore[arg-type]
            messages += self.client.messages()
        text: str = next(message["return"] for message in messages if "return" in message)
        return text.replace("\r\n", "\n")

    def typed(self) -> bytes:
        return bytes(iter(self.keyboard.take, None))


@pytest.fixture
def desk() -> Iterator[Desk]:
    with running_loop() as loop:
        devices = ChardevSet(loop, host=ChardevHost())
        made = Desk(devices)
        yield made
        made.bench.machine.traces.close()  # type: ignore[attr-defined]
        made.memory.close()
        devices.close_all()


def test_sendkey(desk: Desk) -> None:
    assert desk.ask("sendkey ctrl-c") == ""
    desk.clock.advance(1_000_000_000)
    assert desk.typed() == bytes((0x14, 0x21, 0xF0, 0x21, 0xF0, 0x14))
    assert desk.ask("sendkey 0x10-< 5") == "invalid parameter: <\n"
    assert desk.ask("sendkey <") == ""
    desk.clock.advance(1_000_000_000)
    assert desk.typed() == bytes((0x61, 0xF0, 0x61))
    desk.ask("sendkey 0x10 5")
    desk.clock.advance(5_000_000)
    assert desk.typed() == bytes((0x15, 0xF0, 0x15))
    assert desk.ask("sendkey zzz") == "invalid parameter: zzz\n"
    assert desk.ask("sendkey ctrl-alt-") == "invalid parameter: \n"
    assert desk.ask("sendkey") == 'sendkey: string expected\nTry "help sendkey" for more information\n'


def test_mouse(desk: Desk) -> None:
    def packets() -> bytes:
        return bytes(iter(desk.mouse.take, None))

    assert desk.ask("mouse_move 5 -0x3") == ""
    assert packets() == bytes((0x08, 5, 3))
    assert desk.ask("mouse_button 1") == ""
    assert packets() == bytes((0x09, 0, 0))
    assert desk.ask("mouse_button 0") == ""
    assert packets() == bytes((0x08, 0, 0))
    assert desk.ask("mouse_move zz 99999999999999999999") == ""
    assert desk.ask("info mice") == "* Mouse #2: QEMU PS/2 Mouse\n"
    assert desk.ask("mouse_set 7") == "Mouse at index '7' not found\n"
    assert desk.ask("mouse_set 2") == ""


def test_character_devices(desk: Desk, tmp_path: Path) -> None:
    assert desk.ask("chardev-add null,id=h1") == ""
    twice = "Error: attempt to add duplicate property 'h1' to object (type 'container')\n"
    assert desk.ask("chardev-add null,id=h1") == twice
    assert desk.ask("chardev-add null,id=1x") == (
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.\n"
        "Error: Parsing chardev args failed\n"
    )
    assert desk.ask("chardev-add foo") == "Error: chardev: no id specified\n"
    assert desk.ask("chardev-add foo,id=x") == "Error: 'foo' is not a valid char driver name\n"
    assert desk.ask("chardev-add file,id=f") == "Error: chardev: file: no filename given\n"
    assert desk.ask(f"chardev-add socket,id=s,path={tmp_path}/s,server=on") == ""
    assert desk.ask("chardev-change zz null") == "Error: Chardev 'zz' does not exist\n"
    assert desk.ask(f"chardev-change h1 file,path={tmp_path}/f") == ""
    assert "h1: filename=file\n" in desk.ask("info chardev")
    assert desk.ask("chardev-send-break h1") == ""
    assert desk.ask("chardev-send-break zz") == "Error: Chardev 'zz' not found\n"
    assert desk.ask("chardev-remove h1") == ""
    assert desk.ask("chardev-remove h1") == "Error: Chardev 'h1' not found\n"


def test_ring_buffers(desk: Desk) -> None:
    desk.ask("chardev-add ringbuf,id=ring")
    assert desk.ask("ringbuf_write ring abc") == ""
    assert desk.ask("ringbuf_read ring 10") == "abc\n"
    assert desk.ask(r"ringbuf_write ring ab\x01c") == ""
    desk.client.execute("ringbuf-write", device="ring", data="\x01\x7f\t")
    assert desk.ask("ringbuf_read ring 50") == "ab\\\\x01c\\u0001\\u007F\t\n"
    assert desk.ask("ringbuf_read zz 5") == "Error: Device 'zz' not found\n"


def test_memory(desk: Desk, tmp_path: Path) -> None:
    desk.memory.write(0x1000, b"abcdefgh")
    for command in ("memsave", "pmemsave"):
        assert desk.ask(f'{command} 0x1002 4 "{tmp_path}/m"') == ""
        assert (tmp_path / "m").read_bytes() == b"cdef"
    assert (
        desk.ask('memsave 0x10000000000 4 "/none/x"') == "Error: Could not open '/none/x': No such file or directory\n"
    )
    assert desk.ask("sum 0x1000 1") == "00097\n"
    total = 0
    for byte in b"abcdefgh" + bytes(8):
        total = ((total >> 1 | (total & 1) << 15) + byte) & 0xFFFF
    assert desk.ask("sum 0x1000 16") == f"{total:05d}\n"
    assert desk.ask("sum 0 -1").startswith("'sum' has failed: integer is for 32-bit values\n")


def test_dumps(desk: Desk, tmp_path: Path) -> None:
    assert desk.ask("info dump") == "Status: none\n"
    assert desk.ask(f"dump-guest-memory {tmp_path}/d") == ""
    assert (tmp_path / "d").read_bytes().startswith(b"\x7fELF")
    assert desk.ask("info dump") == "Status: completed\n"
    assert desk.ask(f"dump-guest-memory -z {tmp_path}/z") == ""
    assert (tmp_path / "z").read_bytes().startswith(b"makedumpfile")
    assert desk.ask(f"dump-guest-memory -p {tmp_path}/p 0 4096") == ""
    assert desk.ask(f"dump-guest-memory -d {tmp_path}/e") == ""
    only_one = "Error: only one of '-z|-l|-s|-w' can be set\n"
    assert desk.ask(f"dump-guest-memory -z -l {tmp_path}/x") == only_one
    assert desk.ask(f"dump-guest-memory -p {tmp_path}/x 0") == "Error: Parameter 'length' is missing\n"
    assert desk.ask(f"dump-guest-memory -w {tmp_path}/w") == "Error: win-dump: invalid vmcoreinfo note size\n"
    assert desk.ask("info dump") == "Status: failed\n"


def test_traces_and_the_log(desk: Desk, tmp_path: Path) -> None:
    assert desk.ask(f"logfile {tmp_path}/log") == ""
    assert desk.ask("trace-event handle_hmp_command on") == ""
    assert desk.ask("info trace-events handle_hmp*") == "handle_hmp_command : state 1\n"
    assert (tmp_path / "log").read_text() == "handle_hmp_command cmdline: info trace-events handle_hmp*\n"
    assert desk.ask("log none") == ""
    assert desk.ask("info trace-events handle_hmp*") == "handle_hmp_command : state 0\n"
    assert desk.ask("log trace:runstate*") == ""
    assert desk.ask("info trace-events runstate_set") == "runstate_set : state 1\n"
    assert "runstate_set\n" in desk.ask("log trace:help")
    assert desk.ask("log zz").startswith("Log items (comma separated):\nnone ")
    for line in ("trace-event zz off", "info trace-events zz"):
        assert desk.ask(line) == 'unknown event "zz"\n'
    assert desk.ask("trace-event zz* off") == ""
    expected = "Expected 'on' or 'off'\nTry \"help trace-event\" for more information\n"
    assert desk.ask("trace-event runstate_set maybe") == expected
    assert desk.ask("trace-event runstate_set") == expected
    assert desk.ask("trace-event runstate_set off 7") == "invalid vCPU index 7\n"
    assert desk.ask("logfile %d%d") == "Bad logfile template: %d%d\n"
    assert desk.ask("logfile /none/l") == "Error opening logfile /none/l: No such file or directory\n"


def test_boot_order(desk: Desk) -> None:
    assert desk.ask("boot_set dc") == "boot device list now set to dc\n"
    assert desk.order == "dc"
    assert desk.ask("boot_set cdz") == "Invalid boot device 'z'\n"
    assert desk.ask("boot_set cc") == "Boot device 'c' was given twice\n"
    assert desk.ask("boot_set abcdefg") == "Too many boot devices for PC\n"
    assert desk.ask("boot_set b") == "Invalid boot device for PC: 'b'\n"
    assert desk.order == "dc"


def test_actions_and_passwords(desk: Desk) -> None:
    assert desk.ask("watchdog_action pause") == ""
    assert desk.actions == {"watchdog": "pause"}
    assert desk.ask("watchdog_action zz") == "Error: invalid parameter value: zz\n"
    assert desk.ask("set_password vnc x") == "Error: Could not set password\n"
    assert desk.ask("set_password vnc x keep") == "Error: Could not set password\n"
    for line in ("set_password zz x", "set_password vnc x zz"):
        assert desk.ask(line) == "Error: invalid parameter value: zz\n"
    assert desk.ask("expire_password vnc now") == "Error: Could not set password expire time\n"
    assert desk.ask("expire_password spice now") == "Error: SPICE is not in use\n"


def test_descriptors(desk: Desk) -> None:
    assert desk.ask("getfd a") == "Error: No file descriptor supplied via SCM_RIGHTS\n"
    assert desk.ask("closefd a") == "Error: File descriptor named 'a' not found\n"


def test_what_the_machine_lacks(desk: Desk) -> None:
    assert desk.ask("replay_break 5") == "setting the breakpoint is allowed only in play mode\n"
    assert desk.ask("replay_delete_break") == "replay breakpoints are allowed only in play mode\n"
    assert desk.ask("replay_seek 5") == "replay must be enabled to seek\n"
    assert desk.ask("info replay") == "Record/replay is not active\n"
    assert desk.ask("info tpm") == ""
    for subject in ("rocker", "rocker-ports", "rocker-of-dpa-flows", "rocker-of-dpa-groups"):
        assert desk.ask(f"info {subject} x") == "Error: rocker x not found\n"


def test_without_any_of_it() -> None:
    client = Bench().client()
    for line in ("mouse_move 1 1", "chardev-add null,id=x", "logfile /x", "boot_set c"):
        text = client.execute("human-monitor-command", **{"command-line": line})
        assert text == "Error: this feature or command is not currently supported\r\n"
