"""What a configuration may ask for and this machine does not have: refused, never silently left out."""

from __future__ import annotations

from collections.abc import Iterator

from pyvm.config import MachineConfig
from pyvm.errors import ConfigError


def _machine_limits(config: MachineConfig) -> Iterator[tuple[bool, str]]:
    yield config.smp.dies > 1, "-smp: more than one die in a socket"
    yield not config.board.acpi, "-machine: acpi=off"


def refuse_unsupported(config: MachineConfig) -> None:
    """Raise ConfigError for the first thing that is asked for and not there."""
    for asked, what in _machine_limits(config):
        if asked:
            raise ConfigError(f"{what} is not supported by pyvm yet")
    if config.globals:
        from pyvm.machine.chip_globals import check_chip_globals

        check_chip_globals(config)
