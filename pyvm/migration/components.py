"""What a machine's state consists of, whatever file or stream holds it: clock, vCPUs, the board's components, memory.

Components are known by the names that the board gives them; the machine that takes a state must have the same ones.
Host resources, and disk images, are not part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.cpu.registers import RegisterState
from pyvm.migration.page_scan import Ranges, touched
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.migration.stream import Section

MAIN_RAM = "pc.ram"
"""The name of the block with the guest's RAM."""
_COMPONENT = "device/"
_DISPLAY_RAM = "vga.vram"
_STATES: dict[type, Any] = {}
"""By kind of component, the kind of record that its state is in."""


def marks_of_machine(pc: Pc) -> dict[str, Any]:
    """Return by what one knows that another machine is of the same make."""
    return {
        "board": pc.config.board.type,
        "cpu": pc.cpus.model.name,
        "cpus": pc.cpus.count,
        "modules": [[module.slot, module.block.gpa, module.block.size] for module in pc.model.sockets.modules],
    }


def memory_of(pc: Pc) -> dict[str, memoryview]:
    """Return the blocks of memory by name: the guest's RAM first, then those of devices."""
    blocks = {MAIN_RAM: memoryview(pc.memory.mapping)[: pc.memory.size]}
    for module in pc.model.sockets.modules:
        blocks[f"dimm/{module.slot}"] = pc.memory.view(module.block.gpa, module.block.size)
    for vga in pc.displays():
        blocks[_DISPLAY_RAM] = vga.vram.view
    return blocks


def ranges_of(pc: Pc) -> Ranges:
    """Return where something may be in blocks of memory of which that is known; nothing runs meanwhile."""
    model = pc.model
    ranges: dict[str, Iterable[tuple[int, int]]] = {}
    if model.layered is not None and model.window is None:
        ranges[MAIN_RAM] = model.layered.touched()
    elif model.memory_fd >= 0:
        ranges[MAIN_RAM] = touched(model.memory_fd, pc.memory.size)
    for vga in pc.displays():
        ranges[_DISPLAY_RAM] = touched(vga.vram.fd, vga.vram.size)
    return ranges


def state_of(pc: Pc) -> dict[str, Any]:
    """Return the state of a machine that is stopped, but for its memory: sections of plain values by name."""
    sections: dict[str, Any] = {
        "clock": {"now": pc.clock.now()},
        "cpus": [state.to_dict() for state in pc.cpus.save()],
    }
    for name, component in pc.board.components.items():
        sections[_COMPONENT + name] = component.save().to_dict()
    return sections


def fields_of(pc: Pc, sections: Iterable[Section], others: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the state in sections by name, but for `others`, which the caller knows.

    What is neither, and not optional either, is refused: raises StateError.
    """
    known = {"clock", "cpus", *(_COMPONENT + name for name in pc.board.components)}
    fields = {}
    for section in sections:
        if section.name in known:
            fields[section.name] = section.fields
        elif section.name not in others and not section.optional:
            if section.name.startswith(_COMPONENT):
                raise StateError(f"the machine was saved with '{section.name.removeprefix(_COMPONENT)}'")
            raise StateError(f"the machine was saved with a section '{section.name}', which is not known here")
    return fields


def check_machine(pc: Pc, header: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """Raise StateError unless `pc` is of the same make as the machine that was saved."""
    for name, value in marks_of_machine(pc).items():
        if header.get(name) != value:
            raise StateError(f"the machine was saved with {name} {header.get(name)!r}, not {value!r}")
    saved = {name.removeprefix(_COMPONENT) for name in sections if name.startswith(_COMPONENT)}
    for name in sorted(saved ^ pc.board.components.keys()):
        raise StateError(f"the machine was saved {'with' if name in saved else 'without'} '{name}'")


def load_state(pc: Pc, sections: Mapping[str, Any]) -> None:
    """Take over the clock, the vCPUs and all components of a machine that does not run.  Raises StateError."""
    now = saved_time(sections)
    states = sections.get("cpus")
    if not isinstance(states, list) or len(states) != pc.cpus.count:
        raise StateError("section 'cpus' makes no sense")
    pc.clock.set(now)
    pc.cpus.load([RegisterState.from_dict(state, f"cpu {index}") for index, state in enumerate(states)])
    with pc.board.shadow.deferred():
        for name, component in pc.board.components.items():
            kind = _STATES.get(type(component))
            if kind is None:
                # What kind of record a component has is known by what it saves now.
                kind = _STATES[type(component)] = type(component.save())
            component.load(kind.from_dict(sections[_COMPONENT + name], name))


def saved_time(sections: Mapping[str, Any]) -> int:
    """Return the guest time at which a machine was saved, in ns.  Raises StateError."""
    clock = sections.get("clock")
    now = clock.get("now") if isinstance(clock, dict) else None
    if not isinstance(now, int) or not 0 <= now < 1 << 63:
        raise StateError("section 'clock' makes no sense")
    return now
