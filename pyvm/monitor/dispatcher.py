"""From a request to a reply: finds the command, checks its arguments, and calls its handler.

One dispatcher serves all monitors of a machine.  It executes one command at a time, whichever monitor it came from,
in turns; only out-of-band commands run while another command waits.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.json.writer import encode
from pyvm.monitor.descriptors import FdSets
from pyvm.monitor.errors import COMMAND_NOT_FOUND, QmpError
from pyvm.monitor.registry import CommandTable, Context, Handler, Session, Spawn
from pyvm.monitor.trace import TraceEvents
from pyvm.pace import Pace
from pyvm.runstate import RunState
from pyvm.wire_order import wire_order

if TYPE_CHECKING:
    from pyvm.monitor.machine import MachineControl
    from pyvm.monitor.schema.model import Command, Schema
    from pyvm.monitor.schema.validate import Validator

Reply = dict[str, Any]

NEGOTIATION = "qmp_capabilities"
"""The one command that exists before capabilities are negotiated."""


def error_reply(error: QmpError) -> Reply:
    """Return the reply that tells a client of `error`."""
    return {"error": {"class": error.error_class, "desc": error.description}}


def check_request(request: dict[str, Any], allow_oob: bool) -> str:
    """Check the members of a request; return which of them names the command.

    Raises :class:`QmpError` for the first member that is wrong, in the order in which QEMU walks them.
    """
    found = None
    for name in wire_order(request):
        value = request[name]
        if name == "execute" or (name == "exec-oob" and allow_oob):
            if type(value) is not str:
                raise QmpError(f"QMP input member '{name}' must be a string")
            if found is not None:
                raise QmpError(f"QMP input member '{name}' clashes with '{found}'")
            found = name
        elif name == "arguments":
            if type(value) is not dict:
                raise QmpError("QMP input member 'arguments' must be an object")
        elif name != "id":
            raise QmpError(f"QMP input member '{name}' is unexpected")
    if found is None:
        raise QmpError("QMP input lacks member 'execute'")
    return found


@runtime_checkable
class FdSetOwner(Protocol):
    """A machine that opens files from sets of descriptors."""

    fdsets: FdSets


class Client(Session, Protocol):
    """A conversation whose requests are executed here."""

    @property
    def negotiating(self) -> bool:
        """Whether capabilities are not negotiated yet."""

    @property
    def oob_enabled(self) -> bool:
        """Whether out-of-band execution was negotiated."""

    def reply(self, reply: Reply) -> None:
        """Take the reply to the client's oldest request that has none."""


class Dispatcher:
    """Executes the commands of all monitors of one machine."""

    def __init__(
        self,
        machine: MachineControl,
        spawn: Spawn,
        *,
        schema: Schema | None = None,
        find_handler: Callable[[Command], Handler] | None = None,
        traces: TraceEvents | None = None,
    ) -> None:
        """`spawn` runs the handlers that are coroutines; the rest is pyvm's own where it is not given."""
        self._traces = traces or TraceEvents()
        self._machine = machine
        self._spawn = spawn
        self._schema = schema
        self._find_handler = find_handler or load_handler
        self._validator: Validator | None = None
        self._commands: dict[str, tuple[Command, Handler]] = {}
        self.pace = Pace(lambda: machine.run_state is RunState.RUNNING)
        self._clients: set[Client] = set()
        self._queue: deque[tuple[Client, Any]] = deque()
        self._busy = False
        self._task: object = None
        self._detached: dict[object, object] = {}

    @property
    def schema(self) -> Schema:
        """The schema of what clients may ask; loaded when first needed."""
        if self._schema is None:
            from pyvm.monitor.schema.model import load

            self._schema = load()
        return self._schema

    @property
    def validator(self) -> Validator:
        """The checkers of the schema; made when first needed."""
        if self._validator is None:
            from pyvm.monitor.schema.validate import Validator

            self._validator = Validator(self.schema)
        return self._validator

    def attach(self, client: Client) -> None:
        """Take note of a client that has come."""
        self._clients.add(client)

    def submit(self, client: Client, request: Any) -> None:
        """Execute a request, or tell of an error in its place, after those that were submitted before it."""
        if self._traces.active:
            self._trace_request(client, request)
        self._queue.append((client, request))
        self._run()

    def context(self, client: Client) -> Context:
        """Return what handlers may use that are called for a client."""
        return Context(self._machine, self.schema, client, self._spawn_detached)

    def withdraw(self, client: Client) -> None:
        """Forget the requests of a client that is gone; one that is being executed goes on."""
        self._queue = deque(entry for entry in self._queue if entry[0] is not client)
        self._clients.discard(client)
        if isinstance(self._machine, FdSetOwner):
            running = self._machine.run_state is RunState.RUNNING
            self._machine.fdsets.clean(running=running, watched=bool(self._clients))

    def execute_at_once(self, client: Client, request: Any) -> Reply:
        """Execute an out-of-band request, past those that wait; return its reply."""
        if self._traces.active:
            self._traces.emit("monitor_qmp_cmd_out_of_band", _shown(request.get("id")))
        reply = self._execute(client, request)
        assert type(reply) is dict, "out-of-band commands do not wait"
        return reply

    def _run(self) -> None:
        while self._queue and not self._busy:
            self._busy = True
            client, request = self._queue.popleft()
            reply = self._execute(client, request)
            if isinstance(reply, CoroutineType):
                # The event loop itself keeps no hold of the tasks that it runs.
                self._task = self._spawn(self._finish(client, request, reply))
                return
            self._deliver(client, reply)

    def _deliver(self, client: Client, reply: Reply) -> None:
        if self._traces.active:
            self._traces.emit("monitor_qmp_respond", f"mon {id(client):#x} resp: {_shown(reply)}")
        try:
            client.reply(reply)
        finally:
            self._busy = False

    async def _finish(self, client: Client, request: Any, result: Awaitable[Any]) -> None:
        try:
            reply = _success(await result)
        except QmpError as error:
            reply = error_reply(error)
        except Exception as error:  # noqa: BLE001 - whatever fails in a handler, the monitor goes on
            reply = _internal_error(error)
            _log_failure(error)
        self._deliver(client, _identified(reply, request))
        self._run()

    def _execute(self, client: Client, request: Any) -> Any:
        """Execute a request; return its reply, or the coroutine that will return its result."""
        try:
            result = self._call(client, request)
            if isinstance(result, CoroutineType):
                return result
            reply = _success(result)
        except QmpError as error:
            reply = error_reply(error)
        except Exception as error:  # noqa: BLE001 - whatever fails in a handler, the monitor goes on
            reply = _internal_error(error)
            _log_failure(error)
        return _identified(reply, request)

    def _call(self, client: Client, request: Any) -> Any:
        if type(request) is not dict:
            raise request if isinstance(request, QmpError) else QmpError("QMP input must be a JSON object")
        member = check_request(request, client.oob_enabled)
        command, handler = self._find(request[member], client.negotiating)
        if member == "exec-oob" and not command.oob:
            raise QmpError(f"The command {command.name} does not support OOB")
        if not command.preconfig and not self._machine.initialized and not _is_human(client):
            raise QmpError(f"The command '{command.name}' is permitted only after machine initialization has completed")
        values = request.get("arguments") or {}
        arguments = self.validator.arguments(command, values)
        context = self.context(client)
        if self._traces.active:
            return self._call_traced(command.name, values, lambda: handler(context, **arguments))
        return handler(context, **arguments)

    def _spawn_detached(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run what a client does not wait for; the event loop itself keeps no hold of the tasks that it runs."""
        key = object()

        async def run() -> None:
            try:
                await coroutine
            except Exception as error:  # noqa: BLE001 - there is nobody to tell but the log
                _log_failure(error)
            finally:
                del self._detached[key]

        self._detached[key] = None
        self._detached[key] = self._spawn(run())

    def _trace_request(self, client: Client, request: Any) -> None:
        if isinstance(request, QmpError):
            self._traces.emit("monitor_qmp_err_in_band", request.description)
            return
        if not _is_human(client):
            self._traces.emit("handle_qmp_command", f"mon {id(client):#x} req: {_shown(request)}")
            self._traces.emit("monitor_qmp_cmd_in_band", _shown(request.get("id")) if type(request) is dict else "")

    def _call_traced(self, name: str, values: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Call a handler, telling of it; one that has to wait has done its part when it begins to."""
        traces, event = self._traces, name.replace("-", "_")
        traces.emit(f"qmp_enter_{event}", _shown(values))
        if name.startswith("job-"):
            traces.emit(f"qmp_job_{name.removeprefix('job-')}", f"job {values.get('id')}")
        try:
            result = call()
        except QmpError as error:
            traces.emit(f"qmp_exit_{event}", f"{error.description} 0")
            raise
        traces.emit(f"qmp_exit_{event}", f"{_shown({} if result is None else result)} 1")
        return result

    def _find(self, name: str, negotiating: bool) -> tuple[Command, Handler]:
        if negotiating and name != NEGOTIATION:
            raise QmpError(f"Expecting capabilities negotiation with '{NEGOTIATION}'", COMMAND_NOT_FOUND)
        found = self._commands.get(name)
        if found is None:
            command = self.schema.command(name)
            if command is None:
                raise QmpError(f"The command {name} has not been found", COMMAND_NOT_FOUND)
            found = self._commands[name] = command, self._find_handler(command)
        return found


def _shown(value: Any) -> str:
    """Return a value as JSON text for a trace event; nothing for what has no such form."""
    if value is None or isinstance(value, CoroutineType):
        return ""
    return encode(value).decode("ascii").rstrip()


def _is_human(client: Client) -> bool:
    """Return whether a person types, to whom other commands are open before the machine exists than to programs."""
    from pyvm.monitor.hmp.shell import HumanSession

    return isinstance(client, HumanSession)


def load_handler(command: Command) -> Handler:
    """Return the handler of a command; imports the module of its chapter.

    Raises KeyError where that has none.
    """
    table: CommandTable = importlib.import_module(f"pyvm.monitor.commands.{command.chapter.replace('-', '_')}").COMMANDS
    return table.handlers[command.name]


def _success(result: Any) -> Reply:
    return {"return": {} if result is None else result}


def _internal_error(error: Exception) -> Reply:
    """Return the reply for an error of pyvm: the monitor goes on."""
    return error_reply(QmpError(f"Internal error: {type(error).__name__}: {error}"))


def _log_failure(error: Exception) -> None:
    import logging

    logging.getLogger(__name__).error("a command failed unexpectedly", exc_info=error)


def _identified(reply: Reply, request: Any) -> Reply:
    """Add the request's `id`, where it has one, to its reply."""
    if type(request) is dict and "id" in request:
        reply["id"] = request["id"]
    return reply
