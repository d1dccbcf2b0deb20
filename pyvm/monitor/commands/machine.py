"""Commands about the machine: its CPUs and memory, reset and power, and memory ballooning."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError, unsupported
from pyvm.monitor.machine import Balloon
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState, ShutdownCause

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS = CommandTable()

_TARGET = "x86_64"


class PartsModel(Protocol):
    """What a machine consists of, for the commands of this chapter."""

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        """Return a HotpluggableCPU for each place that a CPU can be in; raises QmpError."""

    def add_cpu(self, index: int) -> None:
        """Plug a CPU in; raises QmpError."""

    def memory_backends(self) -> list[dict[str, Any]]:
        """Return the Memdev of each memory backend."""

    def memory_sizes(self) -> dict[str, int]:
        """Return a MemoryInfo."""

    def memory_devices(self) -> list[dict[str, Any]]:
        """Return a MemoryDeviceInfo for each memory device that is plugged in."""

    def describe_numa(self, options: Mapping[str, Any]) -> None:
        """Take in a NUMA description before the machine is made; raises QmpError."""

    def finish(self) -> str | None:
        """Make the machine that waits with `-preconfig`, and start it; return what is wrong with it, if anything."""

    @property
    def generation_id(self) -> str | None:
        """The identifier that changes when the machine goes on from a saved state, where it has a device for it."""

    def vcpu_states(self) -> list[dict[str, Any]]:
        """Return program counter (``pc``) and whether it is ``halted`` of each vCPU."""


@runtime_checkable
class PartsOwner(Protocol):
    """A machine whose parts can be looked at."""

    @property
    def model(self) -> PartsModel:
        """The parts."""


def _model(context: Context) -> PartsModel:
    if not isinstance(context.machine, PartsOwner):
        raise unsupported()
    return context.machine.model


# ---- Machines and their CPUs


@COMMANDS.command("query-machines")
def query_machines(context: Context) -> list[dict[str, Any]]:
    """Return the machines that `-machine` takes."""
    from pyvm.config import DEFAULT_CPU, DEFAULT_MACHINE, MACHINE_TYPES, MAIN_MEMORY

    infos = []
    for machine in MACHINE_TYPES.values():
        is_pc = machine.name != "none"
        info: dict[str, Any] = {
            "name": machine.name,
            "cpu-max": machine.max_cpus,
            "hotpluggable-cpus": is_pc,
            "numa-mem-supported": False,
            "deprecated": False,
        }
        if machine.name == DEFAULT_MACHINE:
            info["is-default"] = True
        if machine.alias is not None:
            info["alias"] = machine.alias
        if is_pc:
            info |= {"default-cpu-type": f"{DEFAULT_CPU}-{_TARGET}-cpu", "default-ram-id": MAIN_MEMORY}
        else:
            info["default-ram-id"] = "ram"
        infos.append(info)
    # The default does not come first: clients look for `is-default`.
    return sorted(infos, key=lambda info: (info["name"] == "none", info.get("is-default", False)))


@COMMANDS.command("query-current-machine")
def query_current_machine(context: Context) -> dict[str, Any]:
    """Return what the machine can do."""
    return {"wakeup-suspend-support": context.machine.wakeup_supported}


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


@COMMANDS.command("query-cpus")
def query_cpus(context: Context) -> list[dict[str, Any]]:
    """Return the vCPUs with what they are doing, as QEMU did until 5.2."""
    states = _model(context).vcpu_states()
    return [
        {
            "CPU": vcpu.index,
            "current": vcpu.index == 0,
            "halted": state["halted"],
            "pc": state["pc"],
            "qom_path": vcpu.qom_path,
            "thread_id": vcpu.thread_id,
            "props": dict(vcpu.topology),
            "arch": "x86",
        }
        for vcpu, state in zip(context.machine.vcpus(), states, strict=True)
    ]


@COMMANDS.command("cpu-add")
def cpu_add(context: Context, id: int) -> None:  # noqa: A002 - the name that the schema gives it
    """Plug a CPU in, as clients of QEMU did until 5.1."""
    _model(context).add_cpu(id)


@COMMANDS.command("query-hotpluggable-cpus")
def query_hotpluggable_cpus(context: Context) -> list[dict[str, Any]]:
    """Return the places that CPUs can be in."""
    return _model(context).hotpluggable_cpus()


@COMMANDS.command("query-target")
def query_target(context: Context) -> dict[str, Any]:
    """Return the architecture of the guest."""
    return {"arch": _TARGET}


@COMMANDS.command("query-uuid")
def query_uuid(context: Context) -> dict[str, Any]:
    """Return the machine's UUID."""
    return {"UUID": context.machine.uuid}


@COMMANDS.command("query-vm-generation-id")
def query_vm_generation_id(context: Context) -> dict[str, Any]:
    """Return the identifier that changes when the machine goes on from a saved state."""
    machine = context.machine
    guid = machine.model.generation_id if isinstance(machine, PartsOwner) else None
    if guid is None:
        raise QmpError("VM Generation ID device not found")
    return {"guid": guid}


@COMMANDS.command("query-kvm")
def query_kvm(context: Context) -> dict[str, Any]:
    """Return that there is no KVM: pyvm emulates the CPU."""
    return {"enabled": False, "present": False}


@COMMANDS.command("dumpdtb")
def dump_device_tree(context: Context, filename: str) -> None:
    """A PC has no device tree."""
    raise QmpError("This machine doesn't have a FDT")


# ---- Before the machine is made


@COMMANDS.command("set-numa-node")
def set_numa_node(context: Context, arguments: dict[str, Any]) -> None:
    """Describe a NUMA node, a distance, or where CPUs are."""
    if context.machine.initialized:
        raise QmpError("The command is permitted only before the machine has been created")
    _model(context).describe_numa(arguments)


@COMMANDS.command("x-exit-preconfig")
async def exit_preconfig(context: Context) -> None:
    """Make the machine.  One that cannot be made ends the process, and nobody hears of it but its user."""
    if context.machine.initialized:
        raise QmpError("The command is permitted only before machine initialization")
    if _model(context).finish() is not None:
        await asyncio.get_running_loop().create_future()


# ---- Power


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


# ---- Memory


@COMMANDS.command("query-memdev")
def query_memdev(context: Context) -> list[dict[str, Any]]:
    """Return the memory backends."""
    return _model(context).memory_backends()


@COMMANDS.command("query-memory-size-summary")
def query_memory_size_summary(context: Context) -> dict[str, Any]:
    """Return how much memory the machine was made with, and how much was plugged in."""
    return _model(context).memory_sizes()


@COMMANDS.command("query-memory-devices")
def query_memory_devices(context: Context) -> list[dict[str, Any]]:
    """Return the memory devices that are plugged in."""
    return _model(context).memory_devices()


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
