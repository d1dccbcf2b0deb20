"""`-global` for chips of the board: other defaults of properties that no `-device` could set.

Two of them mean something: the sleeping states that ACPI offers.  The others exist in one setting only.
"""

from __future__ import annotations

import sys

from pyvm.config import GlobalConfig, MachineConfig
from pyvm.devices.properties import DeviceModel, parse_property
from pyvm.errors import ConfigError
from pyvm.options import parse_number

POWER_CHIP = "PIIX4_PM"
_SLEEP_STATES = ("disable_s3", "disable_s4")


def chip_number(config: MachineConfig, chip: str, name: str) -> int:
    """Return the number that a property of a chip was given, 0 where it was not.  Raises ConfigError."""
    number = 0
    for item in config.globals:
        if (item.driver, item.property) == (chip, name):
            number = parse_number(name, item.value)
    return number


def check_chip_globals(config: MachineConfig) -> None:
    """Raise ConfigError for a setting that a chip cannot have; warn of one for what does not exist."""
    if not config.globals:
        return
    from pyvm.machine.plug.models import DEVICE_MODELS

    aliases = {alias for model in DEVICE_MODELS.values() for alias in model.aliases}
    for item in config.globals:
        if item.driver not in DEVICE_MODELS and item.driver not in aliases:
            _check(item)


def _check(item: GlobalConfig) -> None:
    from pyvm.qom.types import load

    setting = f"{item.driver}.{item.property}={item.value}"
    kind = load().get(item.driver)
    if kind is None:
        name = f"{item.driver}.{item.property}"
        print(f"pyvm: warning: global {name} has invalid class name", file=sys.stderr)
        return
    if kind.abstract or not kind.implements("device"):
        return
    try:
        if item.driver == POWER_CHIP and item.property in _SLEEP_STATES:
            parse_number(item.property, item.value)
        else:
            parse_property(DeviceModel(item.driver, None, ""), item.property, item.value)
    except ConfigError as error:
        raise ConfigError(f"can't apply global {setting}: {error}") from None
