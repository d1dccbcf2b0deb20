"""Executes a line for whoever typed it, and is what handlers of commands see of the machine."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.dispatcher import load_handler
from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.hmp.arguments import ArgumentError, ArgumentReader, Format
from pyvm.monitor.hmp.expressions import ExpressionError
from pyvm.monitor.hmp.table import UnknownCommandError
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.monitor.hmp.table import CommandTable
    from pyvm.monitor.machine import MachineControl
    from pyvm.monitor.registry import Context
    from pyvm.monitor.schema.model import Schema


@record
class HumanState:
    """What a monitor remembers from one command to the next."""

    cpu: int = 0
    """The index of the vCPU that commands are about."""
    format: Format = field(default_factory=Format)
    """How values were shown last."""
    history: Sequence[str] = ()
    """The lines that were entered, the oldest first."""
    ended: bool = False
    """Whether the emulator is about to end, and no other line is wanted."""


@runtime_checkable
class HumanSession(Protocol):
    """A person's conversation, which remembers."""

    human: HumanState


@runtime_checkable
class FormatKeeper(Protocol):
    """A machine that keeps how values were shown last, for lines whose session does not remember."""

    shown_format: Format


class Shell:
    """What the handler of a command may use."""

    def __init__(self, context: Context, state: HumanState) -> None:
        self.state = state
        self._context = context

    @property
    def machine(self) -> MachineControl:
        """The machine, for what QMP does not show."""
        return self._context.machine

    @property
    def at_terminal(self) -> bool:
        """Whether a person waits at a monitor, as opposed to a QMP client that has lines executed."""
        return isinstance(self._context.session, HumanSession)

    @property
    def schema(self) -> Schema:
        """What QMP's handlers take."""
        return self._context.schema

    @property
    def initialized(self) -> bool:
        """Whether the machine exists."""
        return self._context.machine.initialized

    def qmp(self, name: str, /, **arguments: Any) -> Any:
        """Call the handler of a QMP command; return its result, for a coroutine function what can be awaited.

        The arguments are as the handler takes them.  Raises :class:`QmpError`.
        """
        command = self._context.schema.command(name)
        if command is None:
            raise KeyError(name)
        return load_handler(command)(self._context, **arguments)

    def request(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a QMP command with arguments as clients give them, those left out that are None; as :meth:`qmp`."""
        from pyvm.monitor.schema.validate import validator

        command = self._context.schema.command(name)
        if command is None:
            raise KeyError(name)
        given = {key: value for key, value in arguments.items() if value is not None}
        return self.qmp(name, **validator().arguments(command, given))

    def machine_part(self, name: str) -> Any:
        """Return an attribute of the machine that monitors do not see; raises QmpError where it has none."""
        part = getattr(self._context.machine, name, None)
        if part is None:
            raise unsupported()
        return part

    def register(self, name: str) -> int | None:
        """Return the value of a CPU register, None where there is no such register."""
        from pyvm.monitor.hmp.hardware import register_value

        return register_value(self.machine, self.state.cpu, name)


def execute(context: Context, line: str, cpu_index: int | None = None) -> str | Coroutine[Any, Any, str]:
    """Execute a line; return the text that it leads to, in lines ended by CR and LF.

    A session that remembers gets `cpu_index` and the rest of its :class:`HumanState` from there; others begin anew
    with each line.  Raises QmpError where there is no CPU of that index.
    """
    from pyvm.monitor.hmp.commands import COMMANDS

    session = context.session
    state = session.human if cpu_index is None and isinstance(session, HumanSession) else HumanState()
    keeper: object = context.machine if state is not getattr(session, "human", None) else None
    if isinstance(keeper, FormatKeeper):
        state.format = keeper.shown_format
    if cpu_index is not None:
        if not any(vcpu.index == cpu_index for vcpu in context.machine.vcpus()):
            raise QmpError("Parameter 'cpu-index' expects a CPU number")
        state.cpu = cpu_index
    result = _execute(Shell(context, state), COMMANDS, line)
    if isinstance(keeper, FormatKeeper):
        keeper.shown_format = state.format
    return _finish(result) if isinstance(result, CoroutineType) else _wire(_settled(result))


def _execute(shell: Shell, table: CommandTable, line: str) -> Any:
    """Call the handler for a line; return what that returns, or the text of an error."""
    if not line.strip():
        return ""
    traces = getattr(shell.machine, "traces", None)
    if traces is not None:
        traces.emit("handle_hmp_command", f"cmdline: {line}")
    try:
        command, typed, position = table.find(line)
    except UnknownCommandError as error:
        return f"{error}\n"
    if not shell.initialized and not command.preconfig:
        return f"Command '{typed}' not available until machine initialization has completed.\n"
    try:
        reader = ArgumentReader(line, position, command.label, shell.register, shell.state.format)
        arguments = reader.read(command.arguments)
    except (ArgumentError, ExpressionError) as error:
        return f'{error}\nTry "help {typed}" for more information\n'
    except QmpError as error:
        return _error(error)
    try:
        return command.handler(shell, **arguments)
    except QmpError as error:
        return _error(error)


async def _finish(result: Coroutine[Any, Any, str | None]) -> str:
    try:
        return _wire(_settled(await result))
    except QmpError as error:
        return _wire(_error(error))


def _settled(result: Any) -> str:
    return "" if result is None else str(result)


def _error(error: QmpError) -> str:
    return f"Error: {error.description}\n"


def _wire(text: str) -> str:
    return text.replace("\n", "\r\n")
