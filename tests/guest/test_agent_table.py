"""docs/agent-commands.md is complete, and says what comes of the commands today: the quick ones are tried again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.agent_machine import GUESTS, HEADINGS, demo_guest, session
from benchmarks.agent_steps import STEPS
from benchmarks.agent_table import cell, read_sections, read_table, results
from benchmarks.machine import Emulator
from images.build import Image
from pyvm.agent.commands import COMMANDS

FILE = Path(__file__).parents[2] / "docs" / "agent-commands.md"


@pytest.mark.parametrize("guest", GUESTS)
def test_each_command_has_its_line(guest: str) -> None:
    table = read_table(read_sections(FILE.read_text())[HEADINGS[guest]])
    assert {command for command, _ in table} == set(COMMANDS)
    assert list(table) == [(step.command, step.asked) for step in STEPS]


def test_nothing_differs_without_a_reason() -> None:
    text = FILE.read_text()
    assert "not explained yet" not in text
    assert "failed:" not in text


def test_quick_commands_do_what_the_table_says(demo: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step for step in STEPS if step.quick]
    with session(Emulator("pyvm", (sys.executable, "-m", "pyvm")), demo_guest(demo), tmp_path) as found:
        texts = results(steps, found)
    capsys.readouterr()
    table = read_table(read_sections(FILE.read_text())[HEADINGS["demo"]])
    expected = {(step.command, step.asked): table[step.command, step.asked] for step in steps}
    assert {(step.command, step.asked): cell(text) for step, text in zip(steps, texts, strict=True)} == expected
