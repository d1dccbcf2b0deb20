"""Hostile clients: commands made from the schema against a whole machine, and bytes against the parser beside QEMU's.

PYVM_FUZZ_SECONDS sets how long (10 where it is not set), PYVM_FUZZ_SEED where to begin: a random place, which is named
when a case fails, or a number.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("PYVM_FUZZ_SECONDS", "10"))
FIXED_SEED = 1
QEMU = shutil.which("qemu-system-x86_64")
PATIENCE = 60.0


def hunt(directory: Path, seed: int, seconds: float) -> None:
    """Run the cases from a seed on for some time, in a process and a folder of their own."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.qmp_inputs"]
    command += ["--seed", str(seed), "--seconds", str(seconds)]
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + 200,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout[-6000:]}"
    sent, accepted = map(int, done.stdout.splitlines()[-1].replace(",", "").split()[3::2])
    assert accepted > sent / 10, "most commands are refused before anything is done"


@pytest.mark.timeout(3600)
def test_commands_that_are_always_the_same(tmp_path: Path) -> None:
    hunt(tmp_path, FIXED_SEED, SECONDS / 2)


@pytest.mark.timeout(3600)
def test_commands_that_are_new_each_time(tmp_path: Path) -> None:
    hunt(tmp_path, int(os.environ.get("PYVM_FUZZ_SEED", random.randrange(1 << 32))), SECONDS / 2)


class Wire:
    """An emulator that does not run its guest, and a connection to its monitor."""

    def __init__(self, command: list[str], path: Path) -> None:
        words = ["-S", "-machine", "none", "-nodefaults", "-display", "none"]
        self._process = subprocess.Popen(
            [*command, *words, "-qmp", f"unix:{path},server=on,wait=off"], stdin=subprocess.DEVNULL
        )
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < end, "nobody listens"
                time.sleep(0.01)
        self._reader = self._socket.makefile("rb")
        self._count = 0
        assert "QMP" in json.loads(self._reader.readline())
        assert b'{"return": {}}' in self.talk(b'{"execute": "qmp_capabilities"}')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._reader.close()
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def talk(self, data: bytes) -> list[bytes]:
        """Send bytes; return the lines that they led to."""
        self._count += 1
        marker = f"end-{self._count}"
        # A byte that is in no message ends whatever is open; the rest of its line is not looked at.
        self._socket.sendall(data + b"\xff\n" + json.dumps({"execute": "query-name", "id": marker}).encode() + b"\n")
        lines = []
        while True:
            line = self._reader.readline()
            assert line, "the connection has ended"
            if marker.encode() in line:
                return lines
            lines.append(line.rstrip())


SEEDS = [
    b'{"execute": "query-name"}',
    b'{"execute": "query-name", "id": 1}',
    b"{'execute': 'query-status', 'id': 'x'}",
    b'{"execute": "nothing", "arguments": {"a": [1, 2.5, -3e2, true, null, "\\u00e9\\n\\"\\\\"]}, "id": {"a": [1]}}',
    b'{"exec-oob": "query-yank"}',
    b'{"execute": "object-del", "arguments": {"id": "x"}}',
    b'{"execute": "device-list-properties", "arguments": {"typename": 5, "x": 1}}',
    b'{"execute": "query-name", "execute": "query-name"}',
    b'["a", {}, [], [[]]] 5 "text" true',
    b'{"id": 18446744073709551616, "execute": "x"} {"id": -9223372036854775809, "execute": "x"} {"id": 1e400}',
]
PIECES = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"'", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\u0000", b"\\x", b"\n",
    b"\r", b"\t", b" ", b"0", b"01", b"-", b"-0", b"1.", b".5", b"1e", b"1e+", b"9" * 25, b"NaN", b"nul", b"null",
    b"true", b"%p", b"%", b"\x00", b"\x1b", b"\x7f", b"\xc0\x80", b"\xc3\xa9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"\xfe", b"\xff", b"/*", b"execute", b'"id"', b'"arguments": 1', b"[" * 1030, b'{"a":' * 1030, b"x" * 300,
]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    """Return a message in which something was put in, taken out or put elsewhere."""
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            data[at:at] = chance.choice(PIECES)
        elif kind == 1:
            del data[at : at + chance.choice((1, 1, 3, 10))]
        elif kind == 2:
            data[at : at + 1] = bytes((chance.randrange(256),))
        elif kind == 3:
            data[at:at] = data[max(at - chance.randrange(12), 0) : at]
        else:
            data += chance.choice((b"", b"\n", b"\r\n")) + chance.choice(SEEDS)
    return bytes(data)


@pytest.fixture(scope="module")
def wires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wire, Wire]]:
    assert QEMU is not None
    directory = tmp_path_factory.mktemp("w")
    with Wire([sys.executable, "-m", "pyvm"], directory / "a") as ours, Wire([QEMU], directory / "b") as theirs:
        yield ours, theirs


@pytest.mark.parity
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [FIXED_SEED, None])
def test_bytes_lead_to_what_qemu_answers(wires: tuple[Wire, Wire], seed: int | None) -> None:
    ours, theirs = wires
    chosen = random.randrange(1 << 32) if seed is None else seed
    chance = random.Random(chosen)
    end = time.monotonic() + SECONDS / 2
    count = 0
    while count < 200 or time.monotonic() < end:
        data = mutated(chance)
        count += 1
        expected = theirs.talk(data)
        assert ours.talk(data) == expected, f"seed {chosen}, message {count}: {data!r}"
