"""Trace events: what pyvm tells of its own work on standard error, or in a log file, when asked to.

Events have names and a text; which of them are told is a set of names.  The names are those that users of QEMU know.
For each QMP command there is one event when it begins and one when it ends.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pyvm.errors import ConfigError
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.config import TraceConfig
    from pyvm.monitor.events import EventBus, EventMessage
    from pyvm.runstate import RunStateHolder

_GENERAL = (
    "balloon_event",
    "handle_hmp_command",
    "handle_qmp_command",
    "input_event_key_qcode",
    "input_event_btn",
    "input_event_rel",
    "input_event_abs",
    "input_event_sync",
    "monitor_protocol_event_emit",
    "monitor_qmp_cmd_in_band",
    "monitor_qmp_cmd_out_of_band",
    "monitor_qmp_err_in_band",
    "monitor_qmp_respond",
    "qemu_system_powerdown_request",
    "qemu_system_shutdown_request",
    "runstate_set",
    "system_wakeup_request",
)
_REQUESTS = {
    "POWERDOWN": "qemu_system_powerdown_request",
    "SHUTDOWN": "qemu_system_shutdown_request",
    "WAKEUP": "system_wakeup_request",
}
JOB_ACTIONS = ("cancel", "pause", "resume", "complete", "finalize", "dismiss")
"""What a client may do with a job; there is a trace event for each."""


def _write_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # no stderr, and nobody to tell


def trace_life(traces: TraceEvents, events: EventBus, states: RunStateHolder) -> None:
    """Tell of what happens to the machine as a whole."""
    numbers = {state: index for index, state in enumerate(RunState)}

    def state_changed(old: RunState, new: RunState) -> None:
        text = f"current_run_state {numbers[old]} ({old.value}) new_state {numbers[new]} ({new.value})"
        traces.emit("runstate_set", text)

    def event_sent(event: EventMessage) -> None:
        if not traces.active:
            return
        message = event.message
        if message["event"] in _REQUESTS:
            name = _REQUESTS[message["event"]]
            traces.emit(name, " ".join(f"{key}={value}" for key, value in message.get("data", {}).items()))
        traces.emit("monitor_protocol_event_emit", f"event={message['event']}")

    states.listen(state_changed)
    events.subscribe(event_sent)


def start_traces(traces: TraceEvents, config: TraceConfig) -> None:
    """Do what the command line says of trace events; raises ConfigError."""
    if config.file is not None:
        try:
            traces.set_file(config.file)
        except LogFileError as error:
            raise ConfigError(str(error)) from None
    traces.items, traces.ranges = config.items, config.ranges
    for pattern, origin in config.patterns:
        name = pattern.removeprefix("-")
        found = traces.find(name)
        if not found and not set("*?") & set(name):
            _write_stderr(f"pyvm: {origin}warning: trace event '{name}' does not exist\n")
        traces.enable(found, pattern == name)


class LogFileError(Exception):
    """A log file cannot be used; the message is one line for the person at the prompt."""


class TraceEvents:
    """The trace events of one process, and where their text goes."""

    def __init__(self, commands: Callable[[], Iterable[str]] = lambda: ()) -> None:
        """`commands` returns the names of all QMP commands; asked when the events are first listed."""
        self._commands = commands
        self.items: frozenset[str] = frozenset()
        """What else the log is to have: see :mod:`pyvm.monitor.log_items`."""
        self.ranges: list[tuple[int, int]] | None = None
        """First and last address of the guest code that the log is to be about; None for all."""
        self.on_items: Callable[[], None] = lambda: None
        """Called when that has changed."""
        self._enabled: set[str] = set()
        self._log_fd = -1

    def names(self) -> list[str]:
        """Return the names of all events, the last defined first."""
        defined = [*_GENERAL, *(f"qmp_job_{action}" for action in JOB_ACTIONS)]
        for command in self._commands():
            name = command.replace("-", "_")
            defined += (f"qmp_enter_{name}", f"qmp_exit_{name}")
        return defined[::-1]

    def find(self, pattern: str) -> list[str]:
        """Return the names that match a pattern, in which `*` and `?` stand for any characters and any one."""
        return [name for name in self.names() if fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))]

    @property
    def active(self) -> bool:
        """Whether any event is told at all."""
        return bool(self._enabled)

    def enabled(self, name: str) -> bool:
        """Return whether an event is told."""
        return name in self._enabled

    def enable(self, names: Iterable[str], on: bool) -> None:
        """Have these events told, or not told any more."""
        if on:
            self._enabled.update(names)
        else:
            self._enabled.difference_update(names)

    def set_items(self, items: frozenset[str]) -> None:
        """Have these items in the log from now on."""
        self.items = items
        self.on_items()

    def emit(self, name: str, text: str = "") -> None:
        """Tell of an event, where it is enabled."""
        if name in self._enabled:
            self.log(f"{name} {text}\n")

    def log(self, text: str) -> None:
        """Write to the log file, or to standard error where there is none."""
        if self._log_fd < 0:
            _write_stderr(text)
            return
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._log_fd, data) :]
        except OSError:
            self.close()

    def set_file(self, template: str) -> None:
        """Write the log to a file from now on; `%d` in the name becomes the process ID.

        Raises :class:`LogFileError`.
        """
        if template.count("%") > 1 or (template.count("%") and "%d" not in template):
            raise LogFileError(f"Bad logfile template: {template}")
        path = template.replace("%d", str(os.getpid()))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LogFileError(f"Error opening logfile {path}: {reason}") from None
        self.close()
        self._log_fd = fd

    def close(self) -> None:
        """Close the log file."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
