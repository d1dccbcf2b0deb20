"""Commands about the machine: its CPUs, reset and power, and memory ballooning."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError
from pyvm.monitor.machine import Balloon
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState, ShutdownCause

COMMANDS = CommandTable()

_TARGET = "x86_64"


@COMMANDS.command("query-cpus-fast")
def query_cpus_fast(context: Context) -> list[dict[str, Any]]:
    """Return the vCPUs without disturbing them."""
    return [
        {
            "cpu-index": vcpu.index,
            "qom-path": vcpu.qom_path,
            "thread-id": vcpu.thread_id,
            "props": dict(vcpu.topology),
            "target": _TARGET,
        }
        for vcpu in context.machine.vcpus()
    ]


@COMMANDS.command("query-target")
def query_target(context: Context) -> dict[str, Any]:
    """Return the architecture of the guest."""
    return {"arch": _TARGET}


@COMMANDS.command("query-uuid")
def query_uuid(context: Context) -> dict[str, Any]:
    """Return the machine's UUID."""
    return {"UUID": context.machine.uuid}


@COMMANDS.command("query-kvm")
def query_kvm(context: Context) -> dict[str, Any]:
    """Return that there is no KVM: pyvm emulates the CPU."""
    return {"enabled": False, "present": False}


@COMMANDS.command("system_reset")
def system_reset(context: Context) -> None:
    """Reset the machine."""
    context.machine.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)


@COMMANDS.command("system_powerdown")
def system_powerdown(context: Context) -> None:
    """Press the power button."""
    context.machine.powerdown()


@COMMANDS.command("system_wakeup")
def system_wakeup(context: Context) -> None:
    """Wake the guest from suspend-to-RAM."""
    machine = context.machine
    if not machine.wakeup_supported:
        raise QmpError("wake-up from suspend is not supported by this guest")
    if machine.run_state is not RunState.SUSPENDED:
        raise QmpError("Unable to wake up: guest is not in suspended state")
    machine.wakeup()


@COMMANDS.command("inject-nmi")
def inject_nmi(context: Context) -> None:
    """Send a non-maskable interrupt."""
    context.machine.inject_nmi()


def _balloon(context: Context) -> Balloon:
    balloon = context.machine.balloon
    if balloon is None:
        raise QmpError("No balloon device has been activated", DEVICE_NOT_ACTIVE)
    return balloon


@COMMANDS.command("balloon")
def set_balloon(context: Context, value: int) -> None:
    """Ask the guest for memory, or give it memory."""
    balloon = _balloon(context)
    if value <= 0:
        raise QmpError("Parameter 'target' expects a size")
    balloon.set_target(value)


@COMMANDS.command("query-balloon")
def query_balloon(context: Context) -> dict[str, Any]:
    """Return how much memory the guest has."""
    return {"actual": _balloon(context).actual}
