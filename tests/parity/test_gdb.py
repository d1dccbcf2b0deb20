"""A debugger at work on a bare-metal program with two processors: Debian's gdb, and a client by hand.

What gdb shows of the program under pyvm is what it shows under QEMU, from the moment at which the program runs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from pyvm.monitor.gdb.packets import PacketReader, Signal, frame
from tests.baremetal import programs
from tests.unit.listeners import listens

PYVM = [str(Path(sys.executable).parent / "pyvm")]
SECONDS = 120

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(programs.compiler() is None, reason="no C compiler for x86-64"),
]


def _program() -> tuple[Path, dict[str, int]]:
    """Return the image, and where its functions and variables are."""
    image = programs.build(programs.load(programs.HERE / "smp64.c"))
    listed = subprocess.run(["nm", str(image)], capture_output=True, text=True, check=True).stdout
    return image, {name: int(address, 16) for address, _, name in (line.split() for line in listed.splitlines())}


@contextmanager
def _machine(emulator: list[str], image: Path, path: Path) -> Iterator[None]:
    options = ["-m", "64", "-smp", "2", "-nodefaults", "-display", "none", "-S", "-kernel", str(image)]
    options += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-gdb", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen([*emulator, *options], stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + SECONDS
            while not listens(path):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.kill()


class _Client:
    """A debugger by hand."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(str(path))
        self._reader = PacketReader()
        self._received: list[bytes | Signal] = []

    def close(self) -> None:
        self._socket.close()

    def next(self) -> bytes:
        """Return the next packet."""
        while not (packets := [item for item in self._received if isinstance(item, bytes)]):
            self._received = self._reader.feed(self._socket.recv(65536))
        self._received.remove(packets[0])
        return packets[0]

    def ask(self, packet: str) -> str:
        self._socket.sendall(frame(packet.encode()))
        return self.next().decode("latin-1")

    def rip(self) -> int:
        return int.from_bytes(bytes.fromhex(self.ask("p10")), "little")


def test_a_client_by_hand_debugs_two_processors(tmp_path: Path) -> None:
    image, places = _program()
    with ExitStack() as stack:
        stack.enter_context(_machine(PYVM, image, tmp_path / "gdb"))
        client = stack.enter_context(closing(_Client(tmp_path / "gdb")))
        assert client.ask("QStartNoAckMode") == "OK"
        assert "PacketSize=" in client.ask("qSupported:multiprocess+;swbreak+;hwbreak+")
        assert client.ask("?") == "T05thread:p01.01;"
        assert client.ask(f"Z0,{places['ap_entry']:x},1") == "OK"
        assert client.ask("vCont;c") == "T05thread:p01.02;swbreak:;"
        assert client.ask("Hgp1.2") == "OK"
        assert client.rip() == places["ap_entry"]
        assert client.ask("Hgp1.1") == "OK"
        held = client.rip()
        for _ in range(20):
            assert client.ask("vCont;s:p1.2") == "T05thread:p01.02;"
        assert client.ask("Hgp1.1") == "OK"
        assert client.rip() == held
        assert client.ask(f"z0,{places['ap_entry']:x},1") == "OK"
        assert client.ask(f"Z2,{places['pings']:x},4") == "OK"
        assert client.ask("vCont;c") == f"T05thread:p01.02;watch:{places['pings']:x};"
        assert client.ask(f"m{places['pings']:x},4") == "01000000"
        assert client.ask(f"z2,{places['pings']:x},4") == "OK"
        assert client.ask("vCont;c") == f"W{programs.PASSED:02x}"


def _shown(emulator: list[str], commands: list[str], image: Path, path: Path) -> str:
    """Return what gdb shows when it executes commands, one of which may end the program."""
    start = ["set pagination off", "set confirm off", "set architecture i386:x86-64", f"target remote {path}"]
    arguments = [word for command in start + commands for word in ("-ex", command)]
    with _machine(emulator, image, path):
        done = subprocess.run(
            ["gdb", "-nx", "-q", "-batch", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    path.unlink(missing_ok=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_shows_what_it_shows_under_qemu(tmp_path: Path) -> None:
    image, places = _program()
    commands = [
        f"hbreak *{places['kit_main']}", "continue", "x/6i $pc", "stepi", "stepi", "bt 1",
        "info registers rax rip eflags cs ss fs_base cr0 cr3 cr4 efer xmm1", "delete",
        f"rwatch *(int*){places['checks']}", "continue", "continue", "p $rip", "delete",
        f"break *{places['ap_entry']}", "continue", "info threads", "stepi", "thread 1", "stepi", "delete",
        "set $xmm3.v4_int32[1] = 7", "p $xmm3.v4_int32", "set $r9 = 5", "p $r9", "set $st0 = 1.5", "p $st0",
        "set *(int*)0x5000 = 0x12345678", "x/2x 0x5000", "monitor info status",
    ]  # fmt: skip
    shown = _shown(PYVM, commands, image, tmp_path / "gdb")
    marker = "Hardware assisted breakpoint 1"
    assert "hit Breakpoint 2" in shown or "hit Breakpoint 3" in shown
    assert "VM status: paused (debug)" in shown
    emulator = programs.qemu()
    if emulator is not None:
        assert shown.partition(marker)[2] == _shown(emulator, commands, image, tmp_path / "gdb").partition(marker)[2]
