"""Handlers of commands, and what they are handed.

A module of :mod:`pyvm.monitor.commands` has one :class:`CommandTable` named `COMMANDS`, filled by its decorator.  A
handler takes a :class:`Context` and the command's arguments as keywords, by their Python names and with the types that
the schema gives them: a struct comes as a :class:`~pyvm.monitor.schema.record.Record`, an absent optional argument as
None.  It returns what the schema says, with names as on the wire, or None for nothing; it raises
:class:`~pyvm.monitor.errors.QmpError`.  A handler that has to wait is a coroutine function.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyvm.monitor.descriptors import NamedFds
    from pyvm.monitor.machine import MachineControl
    from pyvm.monitor.schema.model import Schema

Handler = Callable[..., Any]
Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs a coroutine in the main loop, e.g. ``asyncio.AbstractEventLoop.create_task``."""


class Session(Protocol):
    """A client's conversation, as handlers of the monitor's own commands see it."""

    def enable_capabilities(self, names: Iterable[str]) -> None:
        """Leave capabilities negotiation with these capabilities; raises QmpError where one is not offered."""

    @property
    def named_fds(self) -> NamedFds:
        """The descriptors that clients of this monitor gave names to."""

    def take_fd(self) -> int | None:
        """Return the descriptor that the client passed last, which the caller closes; None where there is none."""


class Context:
    """What a handler may use."""

    __slots__ = ("machine", "schema", "session", "spawn")

    def __init__(self, machine: MachineControl, schema: Schema, session: Session, spawn: Spawn) -> None:
        self.machine = machine
        self.schema = schema
        self.session = session
        self.spawn = spawn
        """Runs a coroutine whose end the client does not wait for."""


class CommandTable:
    """The handlers of one chapter by the names of their commands."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def command(self, name: str) -> Callable[[Handler], Handler]:
        """Return a decorator that makes a function the handler of the command `name`."""

        def register(handler: Handler) -> Handler:
            if name in self.handlers:
                raise ValueError(f"command {name} has a handler already")
            self.handlers[name] = handler
            return handler

        return register
