"""The machine's hardware, for commands that show what QMP does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import unsupported
from pyvm.monitor.hmp.registers import GPR_NAMES

if TYPE_CHECKING:
    from pyvm.clock import RunningClock
    from pyvm.cpu.registers import RegisterState
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.machine.board import Board
    from pyvm.memory import IoSpace
    from pyvm.monitor.machine import MachineControl

_PORTS = 1 << 16
_ADDRESSES = 1 << 64
_FOUR_GIB = 1 << 32
_SEGMENTS = ("cs", "ds", "es", "ss", "fs", "gs")


@runtime_checkable
class Inspectable(Protocol):
    """A machine whose parts can be looked at."""

    board: Board
    cpus: VcpuSet
    clock: RunningClock


def inspect(machine: MachineControl) -> Inspectable:
    """Return the machine's parts; raises QmpError where it has none that can be looked at."""
    if not isinstance(machine, Inspectable):
        raise unsupported()
    return machine


def cpu_states(machine: MachineControl, index: int | None = None) -> dict[int, RegisterState]:
    """Return the registers of vCPU `index`, or of all, by index; none where there is no such vCPU.

    A guest that runs is held up while its registers are read.
    """
    from pyvm.cpu.registers import RegisterState

    parts = inspect(machine)
    wanted = [place for place in parts.cpus.present if index in (None, place)]
    with parts.cpus.paused():
        return {place: RegisterState.from_engine(parts.cpus.registers(place)) for place in wanted}


def register_value(machine: MachineControl, index: int, name: str) -> int | None:
    """Return the value of a vCPU's register by the name that expressions use; None where there is none."""
    if name not in _READERS:
        return None
    state = cpu_states(machine, index).get(index)
    return None if state is None else int(_READERS[name](state))


def _readers() -> dict[str, Any]:
    """Return how each register is read.  The 32-bit names stand for the whole registers, as in QEMU."""

    def general(number: int) -> Any:
        return lambda state: int.from_bytes(state.gpr[8 * number : 8 * number + 8], "little")

    def selector(name: str) -> Any:
        return lambda state: getattr(state, name).selector

    readers: dict[str, Any] = {name: selector(name) for name in _SEGMENTS}
    for number, name in enumerate(GPR_NAMES):
        readers[name.lower()] = general(number)
        if number < 8:
            readers[f"e{name[1:].lower()}"] = general(number)
    readers["sp"], readers["fp"] = readers["rsp"], readers["rbp"]
    for name in ("eflags", "rflags"):
        readers[name] = lambda state: state.rflags
    for name in ("eip", "rip"):
        readers[name] = lambda state: state.rip
    readers["pc"] = lambda state: state.cs.base + state.rip
    return readers


_READERS = _readers()


def _region(indent: int, start: int, end: int, text: str) -> str:
    return f"{' ' * indent}{start:016x}-{end - 1:016x} {text}\n"


def _registers_of(space: IoSpace) -> list[tuple[int, str]]:
    return [
        (region.base, _region(4, region.base, region.base + region.size, f"(prio 0, i/o): {region.name}"))
        for region in space.regions()
    ]


def show_spaces(board: Board) -> str:
    """Return what `info mtree` shows: RAM and registers by their addresses."""
    ram = []
    for block in board.memory.blocks:
        name = "ram-below-4g" if block.gpa < _FOUR_GIB else "ram-above-4g"
        where = f"{block.offset:016x}-{block.offset + block.size - 1:016x}"
        text = f"(prio 0, ram): alias {name} @pc.ram {where}"
        ram.append((block.gpa, _region(4, block.gpa, block.end, text)))
    for module in board.memory.modules:
        ram.append((module.gpa, _region(4, module.gpa, module.end, "(prio 0, ram): pc-dimm")))
    memory = "".join(line for _, line in sorted(ram + _registers_of(board.mmio)))
    ports = "".join(line for _, line in _registers_of(board.ports))
    return (
        "address-space: memory\n"
        + _region(2, 0, _ADDRESSES, "(prio 0, i/o): system")
        + memory
        + "\naddress-space: I/O\n"
        + _region(2, 0, _PORTS, "(prio 0, i/o): io")
        + ports
        + "\n"
    )


def _flat(space: IoSpace) -> list[tuple[int, str]]:
    return [
        (
            region.base,
            _region(
                2,
                region.base,
                region.base + region.size,
                f"(prio 0, {'i/o' if region.ram is None else 'ram'}): {region.name}",
            ),
        )
        for region in space.regions()
    ]


def _flat_view(number: int, space: str, root: str, lines: list[tuple[int, str]]) -> str:
    head = f'FlatView #{number}\n AS "{space}", root: {root}\n Root memory region: {root}\n'
    return head + "".join(line for _, line in sorted(lines)) + "\n"


def show_flat(board: Board) -> str:
    """Return what `info mtree -f` shows: what a vCPU finds at each address and port."""
    ram = []
    for block in board.memory.blocks:
        offset = f" @{block.offset:016x}" if block.offset else ""
        ram.append((block.gpa, _region(2, block.gpa, block.end, f"(prio 0, ram): pc.ram{offset}")))
    for module in board.memory.modules:
        ram.append((module.gpa, _region(2, module.gpa, module.end, "(prio 0, ram): pc-dimm")))
    return _flat_view(0, "memory", "system", ram + _flat(board.mmio)) + _flat_view(1, "I/O", "io", _flat(board.ports))
