"""What a configuration may ask for and this machine does not have: refused, never silently left out."""

from __future__ import annotations

from collections.abc import Iterator

from pyvm.config import MachineConfig
from pyvm.errors import ConfigError


def _machine_limits(config: MachineConfig) -> Iterator[tuple[bool, str]]:
    yield config.smp.max_cpus > config.smp.cpus, "-smp: CPUs that are plugged in later (maxcpus)"
    yield config.smp.dies > 1, "-smp: more than one die in a socket"
    yield bool(config.memory.slots or config.memory.max_size > config.memory.size), "-m: slots and maxmem"
    yield config.board.memory_backend is not None, "-machine: memory-backend"
    yield not config.board.acpi, "-machine: acpi=off"
    yield config.rtc.driftfix != "none", "-rtc: driftfix"


def refuse_unsupported(config: MachineConfig) -> None:
    """Raise ConfigError for the first thing that is asked for and not there."""
    for asked, what in _machine_limits(config):
        if asked:
            raise ConfigError(f"{what} is not supported by pyvm yet")
