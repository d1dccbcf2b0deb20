"""The reference of the monitor: it says all there is, and the file in the tree is the present one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvm.monitor import reference as module
from pyvm.monitor.reference import ABSENT_CHAPTERS, ABSENT_COMMANDS, FORMER, is_sent, reference, support
from pyvm.monitor.schema.model import CHAPTERS, load

FILE = Path(__file__).parents[2] / "docs" / "qmp-reference.md"


@pytest.fixture(scope="module")
def text() -> str:
    return reference(load())


def test_the_file_is_the_present_one(text: str) -> None:
    assert FILE.read_text() == text, "run `make docs`"


def test_every_command_event_and_type_is_there(text: str) -> None:
    schema = load()
    rows = re.findall(r"^\| `([^` ]+)` \|.*\|$", text.partition("## The human monitor\n\n")[0], re.MULTILINE)
    assert sorted(rows) == sorted([*schema.command_names, *schema.event_names])
    types = set(re.findall(r"^(?:enum|struct|union|alternate) (\S+?):?(?: |$)", text, re.MULTILINE))
    assert set(schema.type_names) <= types


def test_what_is_called_absent_or_former_exists(text: str) -> None:
    assert set(ABSENT_CHAPTERS) <= set(CHAPTERS)
    names = set(load().command_names)
    assert names >= set(ABSENT_COMMANDS)
    for name in names & FORMER:
        assert re.search(rf"^\\| `{re.escape(name)}` \\|.*, up to 4\\.2 \\|", text, re.MULTILINE)


def test_support() -> None:
    schema = load()

    def of(name: str) -> str:
        command = schema.command(name)
        assert command is not None
        return support(command)

    assert of("query-status") == "yes"
    assert of("query-rocker") == "absent: there is no such switch"
    assert of("query-kvm") == "absent: there is no KVM"
    assert of("block_passwd") == "refused"
    assert is_sent("SHUTDOWN")
    assert not is_sent("SPICE_INITIALIZED")


def test_the_row_of_a_command(text: str) -> None:
    assert "| `query-status` |  | `StatusInfo` | yes, preconfig | Return the run state. |" in text
    assert re.search(r"^\| `qom-get` \| `path: str`, `property: str` \| `any` \| yes", text, re.MULTILINE)
    assert re.search(r"^\| `change` \|.*up to 4\.2 \|", text, re.MULTILINE)


def test_human_commands(text: str) -> None:
    human = text.partition("## The human monitor")[2]
    assert "| `info status` |" in human
    assert "| `cont\\|c` | resume emulation |" in human
    rows = [line for line in human.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(re.fullmatch(r"\| `[^`]+` \| [^|\\]*(\\\|[^|\\]*)*.*\|", row) for row in rows)


def test_the_program_writes_it(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main([str(tmp_path / "r.md")]) == 0
    assert (tmp_path / "r.md").read_text() == text
    assert module.main([]) == 1
    assert capsys.readouterr().err.startswith("usage:")
