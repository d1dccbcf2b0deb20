"""Small bare-metal programs print under pyvm what they print under QEMU, byte for byte.

Each program also checks itself.  Where QEMU is installed it runs as well, so that what is recorded of it stays true.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.baremetal import programs

PROGRAMS = programs.all_programs()
PYVM = [str(Path(sys.executable).parent / "pyvm")]

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(programs.compiler() is None, reason="no C compiler for x86-64"),
]


def _lines(outcome: programs.Outcome) -> list[str]:
    return (outcome.output + outcome.messages).splitlines()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_pyvm_prints_what_qemu_prints(program: programs.Program, tmp_path: Path) -> None:
    outcome = programs.run(PYVM, program, tmp_path)
    assert _lines(outcome) == program.expected.read_text().splitlines()
    assert outcome.status == program.status


@pytest.mark.skipif(programs.qemu() is None, reason="qemu-system-x86_64 is not installed")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_what_is_recorded_of_qemu_is_true(program: programs.Program, tmp_path: Path) -> None:
    emulator = programs.qemu()
    assert emulator is not None
    outcome = programs.run(emulator, program, tmp_path)
    assert outcome.output.splitlines() == program.expected.read_text().splitlines()
    assert outcome.status == program.status
