"""The run state and its transitions."""

from __future__ import annotations

import pytest

from pyvm.runstate import TRANSITIONS, RunState, RunStateError, RunStateHolder, ShutdownCause


def holder_in(state: RunState) -> RunStateHolder:
    return RunStateHolder(state)


def test_the_table_names_only_run_states_and_has_a_line_for_each() -> None:
    assert set(TRANSITIONS) == set(RunState)
    for state, following in TRANSITIONS.items():
        names = following.split()
        assert len(names) == len(set(names))
        assert state not in {RunState(name) for name in names}


def test_every_state_leads_back_to_running() -> None:
    for start in RunState:
        reached = {start}
        while True:
            more = {RunState(name) for state in reached for name in TRANSITIONS[state].split()} | reached
            if more == reached:
                break
            reached = more
        assert RunState.RUNNING in reached


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("prelaunch", "running"),
        ("running", "paused"),
        ("paused", "running"),
        ("paused", "prelaunch"),
        ("running", "shutdown"),
        ("shutdown", "prelaunch"),
        ("running", "suspended"),
        ("suspended", "running"),
        ("running", "guest-panicked"),
        ("guest-panicked", "prelaunch"),
        ("inmigrate", "paused"),
        ("running", "finish-migrate"),
        ("finish-migrate", "postmigrate"),
        ("io-error", "running"),
        ("internal-error", "prelaunch"),
    ],
)
def test_changes_that_happen(old: str, new: str) -> None:
    holder = holder_in(RunState(old))
    assert holder.allowed(RunState(new))
    holder.set(RunState(new))
    assert holder.state is RunState(new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shutdown", "running"),
        ("internal-error", "running"),
        ("paused", "shutdown"),
        ("prelaunch", "paused"),
        ("suspended", "paused"),
        ("save-vm", "paused"),
    ],
)
def test_changes_that_must_not_happen(old: str, new: str) -> None:
    holder = holder_in(RunState(old))
    with pytest.raises(RunStateError, match=f"invalid run state transition: {old} -> {new}"):
        holder.set(RunState(new))
    assert holder.state is RunState(old)


def test_listeners_hear_of_each_change_in_order_and_of_nothing_else() -> None:
    holder = RunStateHolder()
    heard: list[tuple[str, RunState, RunState]] = []
    holder.listen(lambda old, new: heard.append(("first", old, new)))
    stop_listening = holder.listen(lambda old, new: heard.append(("second", old, new)))

    holder.set(RunState.PRELAUNCH)
    assert heard == []
    holder.set(RunState.RUNNING)
    assert heard == [
        ("first", RunState.PRELAUNCH, RunState.RUNNING),
        ("second", RunState.PRELAUNCH, RunState.RUNNING),
    ]
    heard.clear()
    stop_listening()
    holder.set(RunState.PAUSED)
    assert [name for name, _, _ in heard] == ["first"]


def test_a_listener_sees_the_new_state() -> None:
    holder = RunStateHolder()
    seen: list[bool] = []
    holder.listen(lambda old, new: seen.append(holder.running))
    holder.set(RunState.RUNNING)
    holder.set(RunState.DEBUG)
    assert seen == [True, False]


def test_only_a_reset_ends_these_states() -> None:
    needing = {state for state in RunState if holder_in(state).needs_reset}
    assert needing == {RunState.INTERNAL_ERROR, RunState.SHUTDOWN}
    assert all("running" not in TRANSITIONS[state].split() for state in needing)


def test_causes_by_the_guest_and_causes_without_an_event() -> None:
    assert {cause.value for cause in ShutdownCause if cause.by_guest} == {
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
    }
    assert {cause.value for cause in ShutdownCause if cause.silent} == {"none", "subsystem-reset", "snapshot-load"}
