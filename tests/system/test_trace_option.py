"""Trace events of the command line: `-trace`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvm.commandline import HelpRequest, parse_arguments
from pyvm.commandline.helptext import answer
from pyvm.errors import ConfigError
from pyvm.runstate import RunState
from tests.system.machine_rig import Machine


def enabled(machine: Machine) -> set[str]:
    return {
        event["name"] for event in machine.execute("trace-event-get-state", name="*") if event["state"] == "enabled"
    }


def test_names_patterns_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events"
    events.write_text("# a comment\n\nqmp_enter_query_s*\n-qmp_enter_query_status\nzz\n")
    options = ("-trace", "runstate_set", "-trace", f"events={events}", "-trace", "qq", "-trace", "enable=qq*")
    with Machine(*options) as machine:
        found = enabled(machine)
        assert {"runstate_set", "qmp_enter_query_stats", "qmp_enter_query_spice"} <= found
        assert "qmp_enter_query_status" not in found
        assert not any(name.startswith("qmp_exit") for name in found)
        machine.execute("trace-event-set-state", name="*", enable=False)
        assert enabled(machine) == set()
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [
        f"pyvm: {events}:5: warning: trace event 'zz' does not exist",
        "pyvm: -trace qq: warning: trace event 'qq' does not exist",
    ]


def test_a_file_for_what_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    with Machine("-trace", f"enable=runstate_set,file={log}") as machine:
        machine.pc.lifecycle.states.set(RunState.RUNNING)
    assert log.read_text() == "runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n"
    assert "runstate_set" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("zz=1", "-trace zz=1: Invalid parameter 'zz'"),
        ("events=/none/x", "/none/x: No such file or directory"),
    ],
)
def test_mistakes(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["-trace", text])
    assert str(caught.value) == error


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Error opening logfile"):
        Machine("-trace", f"runstate_set,file={tmp_path}/none/log")


def test_help_lists_the_events() -> None:
    with pytest.raises(HelpRequest) as caught:
        parse_arguments(["-trace", "help"])
    names = answer(caught.value).splitlines()
    assert {"runstate_set", "qmp_enter_query_status", "balloon_event"} <= set(names)
    assert names == sorted(names)
