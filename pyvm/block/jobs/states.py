"""The states of a job, and which commands it takes in which state."""

from __future__ import annotations

from enum import Enum

from pyvm.block.errors import BlockError


class State(Enum):
    """Where a job is in its life."""

    UNDEFINED = "undefined"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    """It has done its work, and keeps up with changes until it is told to end."""
    STANDBY = "standby"
    """Paused while ready."""
    WAITING = "waiting"
    """It is done; others of its transaction are not."""
    PENDING = "pending"
    """All are done; what they did is yet to take effect."""
    ABORTING = "aborting"
    CONCLUDED = "concluded"
    """Nothing is left but to look at how it ended."""
    NULL = "null"


class Verb(Enum):
    """What a client asks of a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    SET_SPEED = "set-speed"
    COMPLETE = "complete"
    FINALIZE = "finalize"
    DISMISS = "dismiss"


_NEXT: dict[State, frozenset[State]] = {
    State.UNDEFINED: frozenset({State.CREATED}),
    State.CREATED: frozenset({State.RUNNING, State.ABORTING, State.NULL}),
    State.RUNNING: frozenset({State.PAUSED, State.READY, State.WAITING, State.ABORTING}),
    State.PAUSED: frozenset({State.RUNNING}),
    State.READY: frozenset({State.STANDBY, State.WAITING, State.ABORTING}),
    State.STANDBY: frozenset({State.READY}),
    State.WAITING: frozenset({State.PENDING, State.ABORTING}),
    State.PENDING: frozenset({State.ABORTING, State.CONCLUDED}),
    State.ABORTING: frozenset({State.ABORTING, State.CONCLUDED}),
    State.CONCLUDED: frozenset({State.NULL}),
    State.NULL: frozenset(),
}
_ACTIVE = frozenset({State.CREATED, State.RUNNING, State.PAUSED, State.READY, State.STANDBY})
_ALLOWED: dict[Verb, frozenset[State]] = {
    Verb.CANCEL: _ACTIVE | {State.WAITING, State.PENDING},
    Verb.PAUSE: _ACTIVE,
    Verb.RESUME: _ACTIVE,
    Verb.SET_SPEED: _ACTIVE,
    Verb.COMPLETE: frozenset({State.READY}),
    Verb.FINALIZE: frozenset({State.PENDING}),
    Verb.DISMISS: frozenset({State.CONCLUDED}),
}


def check_transition(before: State, after: State) -> None:
    """Raise ValueError where a job cannot go from one state to another: an error of pyvm."""
    if after not in _NEXT[before]:
        raise ValueError(f"a job that is {before.value} cannot be {after.value}")


def check_verb(identifier: str, state: State, verb: Verb) -> None:
    """Raise BlockError where a job does not take a command in its state."""
    if state not in _ALLOWED[verb]:
        raise BlockError(f"Job '{identifier}' in state '{state.value}' cannot accept command verb '{verb.value}'")
