"""CPUs that are to be plugged in: where they would go.  The board cannot tell a guest of them yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError
from pyvm.options import parse_number
from pyvm.qom.types import CPU_SUFFIX, load

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc

_LEVELS = ("socket-id", "die-id", "core-id", "thread-id")


def refuse_cpu(pc: Pc, driver: str, properties: Mapping[str, str]) -> NoReturn:
    """Raise QmpError for a CPU that is to be plugged in: what is wrong with it, or that it cannot be done."""
    known = load()[driver].properties
    place: dict[str, int] = {}
    for name, text in properties.items():
        if name not in known:
            raise QmpError(f"Property '{driver}.{name}' not found")
        if name in _LEVELS:
            place[name] = _number(name, text)
    expected = f"{pc.cpus.model.name}{CPU_SUFFIX}"
    if driver != expected:
        raise QmpError(f"Invalid CPU type, expected cpu type: '{expected}'")
    smp = pc.config.smp
    most = {"socket-id": smp.sockets, "die-id": smp.dies, "core-id": smp.cores, "thread-id": smp.threads}
    for name in _LEVELS:
        if name == "die-id" and smp.dies == 1:
            place.setdefault(name, 0)
        if name not in place:
            raise QmpError(f"CPU {name} is not set")
        if not 0 <= place[name] < most[name]:
            raise QmpError(f"Invalid CPU {name}: {place[name]} must be in range 0:{most[name] - 1}")
    index = (place["socket-id"] * smp.cores + place["core-id"]) * smp.threads + place["thread-id"]
    if index < pc.cpus.count:
        raise QmpError(f"CPU[{index}] with APIC ID {pc.cpus.apic_ids[index]} exists")
    raise QmpError("CPUs cannot be plugged in by pyvm yet")


def _number(name: str, text: str) -> int:
    negative = text.startswith("-")
    try:
        number = parse_number(name, text.removeprefix("-"))
    except ConfigError:
        raise QmpError(f"Parameter '{name}' expects integer") from None
    return -number if negative else number
