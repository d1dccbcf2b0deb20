"""What can go wrong, as exit status and one line."""

from __future__ import annotations

from pyvm.agent.errors import (
    AgentAbsent,
    AgentDisconnected,
    AgentError,
    AgentFailure,
    AgentRestarted,
    AgentTimeout,
)

PROGRAM = "pyvm-ga"

FAILED = 1
USAGE = 2
ABSENT = 115
SILENT = 116
UNKNOWN = 117
BLOCKED = 118
RESTARTED = 119
CANNOT_RUN = 126
NOT_FOUND = 127
BY_SIGNAL = 128

STATUSES = (
    (0, "done; exec: the program's own status"),
    (FAILED, "the agent, or a file here, refused what was asked"),
    (USAGE, "the command line makes no sense"),
    (ABSENT, "nobody is at the socket: it is not there, or refuses"),
    (SILENT, "the agent does not answer in time"),
    (UNKNOWN, "the agent is too old, or of a system that has no such command"),
    (BLOCKED, "the agent may not carry out the command: disabled, or file systems are frozen"),
    (RESTARTED, "the connection ended, or the guest was reset, while the agent was at work"),
    (CANNOT_RUN, "exec: the program cannot be run"),
    (NOT_FOUND, "exec: the guest has no such program"),
    (BY_SIGNAL, "exec: plus N, signal N ended the program; 130 as well where Ctrl-C ended pyvm-ga"),
)
"""Exit statuses and what they mean, for the help text."""


class GaError(Exception):
    """Something cannot be done; the message is for the person at the prompt."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


def explain(error: AgentFailure) -> GaError:
    """Return a failure of the agent's client with its exit status."""
    if isinstance(error, AgentAbsent):
        return GaError(str(error), ABSENT)
    if isinstance(error, AgentTimeout):
        return GaError(str(error), SILENT)
    if isinstance(error, AgentRestarted):
        return GaError(f"{error}: was the guest reset?", RESTARTED)
    if isinstance(error, AgentDisconnected):
        return GaError(f"{error}: was the machine reset or switched off?", RESTARTED)
    if isinstance(error, AgentError) and error.error_class == "CommandNotFound":
        if "disabled" in error.desc:
            return GaError(f"{error.command}: the agent may not carry this out: {error.desc}", BLOCKED)
        return GaError(f"{error.command}: the agent does not know this command; it may be too old", UNKNOWN)
    return GaError(str(error))
