"""What can go wrong between a client and the guest agent."""

from __future__ import annotations


class AgentFailure(Exception):  # noqa: N818 - says what it is
    """Base of all errors of the agent's client."""


class AgentError(AgentFailure):
    """The agent refused or failed to carry out a command."""

    def __init__(self, error_class: str, desc: str, command: str = "") -> None:
        super().__init__(f"{command}: {desc}" if command else desc)
        self.error_class = error_class
        """``GenericError``, ``CommandNotFound`` and so on."""
        self.desc = desc
        self.command = command


class AgentTimeout(AgentFailure, TimeoutError):  # noqa: N818 - says what it is
    """The agent did not answer in time.  Its answer, if it still comes, is dropped."""


class AgentDisconnected(AgentFailure, ConnectionError):  # noqa: N818 - says what it is
    """The connection could not be made, or ended."""


class AgentAbsent(AgentDisconnected):
    """The connection could not be made: nobody is there."""


class AgentRestarted(AgentFailure):
    """The agent that was given the command has gone, and another is there, as after a reset of the guest."""


class AgentProtocolError(AgentFailure):
    """What the agent sent is not an answer that the protocol knows."""


class ExecTimeout(AgentTimeout):
    """A program in the guest did not end in time; it still runs there."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid
        """Its process ID in the guest, for `exec_status`."""


class ExecError(AgentFailure):
    """A program in the guest ended with a status other than 0, or by a signal."""
