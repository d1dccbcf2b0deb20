"""Client of the QEMU guest agent.

>>> agent = AgentClient("/tmp/ga.sock")                     # doctest: +SKIP
>>> agent.run("uname -r").text                              # doctest: +SKIP
'6.1.0-42-cloud-amd64'
"""

from __future__ import annotations

from pyvm.agent.client import AgentClient, ExecResult
from pyvm.agent.errors import (
    AgentAbsent,
    AgentDisconnected,
    AgentError,
    AgentFailure,
    AgentProtocolError,
    AgentRestarted,
    AgentTimeout,
    ExecError,
    ExecTimeout,
)

__all__ = [
    "AgentAbsent",
    "AgentClient",
    "AgentDisconnected",
    "AgentError",
    "AgentFailure",
    "AgentProtocolError",
    "AgentRestarted",
    "AgentTimeout",
    "ExecError",
    "ExecResult",
    "ExecTimeout",
]
