"""Commands about trace events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.monitor.trace import TraceEvents

COMMANDS = CommandTable()
_UINT32 = 0xFFFF_FFFF


@runtime_checkable
class Traceable(Protocol):
    """A machine that tells of its own work."""

    traces: TraceEvents


def events_of(context: Context) -> TraceEvents:
    """Return the trace events of the machine."""
    machine = context.machine
    if not isinstance(machine, Traceable):
        raise unsupported()
    return machine.traces


def _find(context: Context, pattern: str, vcpu: int | None) -> list[str]:
    """Return the events that are meant; raises QmpError where a name, no pattern, is unknown."""
    if vcpu is not None and not 0 <= vcpu < len(context.machine.vcpus()):
        raise QmpError(f"invalid vCPU index {vcpu & _UINT32}")
    names = events_of(context).find(pattern)
    if not names and not set("*?") & set(pattern):
        raise QmpError(f'unknown event "{pattern}"')
    # No event of pyvm is told for one vCPU alone.
    if vcpu is not None and not set("*?") & set(pattern):
        raise QmpError(f'event "{pattern}" is not vCPU-specific')
    return names if vcpu is None else []


@COMMANDS.command("trace-event-get-state")
def trace_event_get_state(context: Context, name: str, vcpu: int | None = None) -> list[dict[str, Any]]:
    """Return which trace events are told."""
    traces = events_of(context)
    return [
        {"vcpu": False, "state": "enabled" if traces.enabled(event) else "disabled", "name": event}
        for event in _find(context, name, vcpu)
    ]


@COMMANDS.command("trace-event-set-state")
def trace_event_set_state(
    context: Context,
    name: str,
    enable: bool,
    ignore_unavailable: bool | None = None,
    vcpu: int | None = None,
) -> None:
    """Have trace events told, or not."""
    events_of(context).enable(_find(context, name, vcpu), enable)
