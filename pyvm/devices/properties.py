"""Device models and their properties: what ``-device``, ``-global`` and ``device_add`` may set, and how it is checked.

A model's property table is data.  Setting, help and introspection all read it; the errors are QEMU's, since clients
match them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pyvm.config import GlobalConfig
from pyvm.errors import ConfigError
from pyvm.options import Value, parse_boolean, parse_size
from pyvm.records import field, record

_INTEGER_BITS = {
    "uint8": (8, False),
    "uint16": (16, False),
    "uint32": (32, False),
    "uint64": (64, False),
    "int8": (8, True),
    "int16": (16, True),
    "int32": (32, True),
    "int64": (64, True),
    "int": (64, True),
}
PCI_SLOTS = 32
PCI_FUNCTIONS = 8
# Kinds that hold the ID of something else; help and introspection show them as strings.
_CHOICES = {
    "OnOffAuto": ("on", "off", "auto"),
    "BlockdevOnError": ("report", "ignore", "enospc", "stop", "auto"),
    "BiosAtaTranslation": ("auto", "none", "lba", "large", "rechs"),
    "FdcDriveType": ("144", "288", "120", "none", "auto"),
}
_REFERENCES = frozenset({"chardev", "drive", "netdev", "macaddr"})


@record(frozen=True)
class Property:
    """One property of a device model, under QEMU's name."""

    kind: str
    """``bool``, ``uint8`` to ``uint64``, ``int8`` to ``int64``, ``int``, ``size``, ``str``, a choice such as
    ``OnOffAuto``, ``pci-addr`` (slot and function), ``chardev``, ``drive`` (IDs of those), or ``link<TYPE>`` (ID of an
    object)."""
    default: bool | int | str | None = None
    """None: not set."""
    description: str = ""


Properties = dict[str, Property]

PCI_PROPERTIES: dict[str, Property] = {
    "addr": Property("pci-addr", None, "Slot and optional function number, example: 06.0 or 06"),
    "multifunction": Property("bool", False, "on/off"),
    "romfile": Property("str", None, "file with the ROM that firmware finds at the device"),
    "rombar": Property("uint32", 1, "0: the device has no ROM"),
    "romsize": Property("uint32", 0xFFFFFFFF, "bytes of the ROM's BAR; as many as the file needs where not set"),
    "acpi-index": Property("uint32", 0, "number by which the guest names the device, 1 to 16383; 0 for none"),
}
"""What every PCI device has."""


@record(frozen=True)
class DeviceModel:
    """A model that ``-device`` can name."""

    name: str
    bus: str | None
    """The kind of bus that it is plugged into, as in ``PCI``; None where it needs none."""
    category: str
    """Its heading in the list of models, as in ``Storage``."""
    properties: Properties = field(default_factory=dict)
    description: str = ""
    aliases: tuple[str, ...] = ()


def find_model(models: Mapping[str, DeviceModel], driver: str) -> DeviceModel:
    """Return the model called `driver`, by its name or an alias; raises ConfigError."""
    model = models.get(driver)
    if model is None:
        model = next((other for other in models.values() if driver in other.aliases), None)
    if model is None:
        raise ConfigError(f"'{driver}' is not a valid device model name")
    return model


def set_properties(
    model: DeviceModel, given: Mapping[str, Value], *, typed: bool = False, overrides: Iterable[GlobalConfig] = ()
) -> dict[str, Any]:
    """Return the value of every property of a new device.

    Later sources win: the model's defaults, `overrides` (of all models; those of others do not matter), `given`.
    `typed` says that `given` came from JSON, whose values must be of the right JSON type.  Properties that are not
    set are None.  A ``pci-addr`` is slot x 8 + function.  Raises ConfigError.
    """
    values: dict[str, Any] = {name: item.default for name, item in model.properties.items()}
    for override in overrides:
        if override.driver == model.name or override.driver in model.aliases:
            try:
                values[override.property] = parse_property(model, override.property, override.value)
            except ConfigError as error:
                setting = f"{override.driver}.{override.property}={override.value}"
                raise ConfigError(f"can't apply global {setting}: {error}") from None
    for name, value in given.items():
        values[name] = parse_property(model, name, value, typed=typed)
    return values


def parse_property(model: DeviceModel, name: str, value: Value, *, typed: bool = False) -> Any:
    """Return the value that `value` means for the property `name` of `model`; raises ConfigError."""
    item = model.properties.get(name)
    if item is None:
        _check_unchangeable(model, name, value, typed=typed)
        return None
    kind = item.kind
    if kind == "pci-addr":
        return _pci_address(model, name, value)
    if kind == "bool":
        return _boolean(name, value, typed=typed)
    if kind in _INTEGER_BITS:
        return _integer(kind, name, value, typed=typed)
    if kind == "size":
        return _size(name, value, typed=typed)
    if not isinstance(value, str):
        raise ConfigError(f"Invalid parameter type for '{name}', expected: string")
    if value not in _CHOICES.get(kind, (value,)):
        raise ConfigError(f"Parameter '{name}' does not accept value '{value}'")
    return value


def _check_unchangeable(model: DeviceModel, name: str, value: Value, *, typed: bool) -> None:
    """Accept a property of QEMU's that pyvm has in one setting only, where that is asked for; raises ConfigError."""
    # Only a property that the model does not have itself leads here: the table of types is not read otherwise.
    from pyvm.qom.types import UNSET, load

    kind = load().get(model.name)
    item = None if kind is None else kind.properties.get(name)
    if item is None or item.kind.startswith("child<") or item not in kind.device_properties:  # type: ignore[union-attr]
        raise ConfigError(f"Property '{model.name}.{name}' not found")
    stand_in = DeviceModel(model.name, None, "", {name: Property(item.kind)})
    only = {"str": "", "bool": False}.get(item.kind, 0) if item.default is UNSET else item.default
    if parse_property(stand_in, name, value, typed=typed) != only:
        shown = {True: "on", False: "off"}[only] if isinstance(only, bool) else only
        raise ConfigError(f"{name}={value} is not supported by pyvm yet (only '{shown}')")


def _owner(model: DeviceModel) -> str:
    """Return the type that has a model's property for a back end: of a virtio device on PCI the one behind that."""
    plain = model.name.removesuffix("-non-transitional").removesuffix("-transitional")
    return plain.removesuffix("-pci") + "-device" if plain.startswith("virtio-") and model.bus == "PCI" else model.name


def not_found(model: DeviceModel, name: str, value: str) -> ConfigError:
    """Return the error for a property that names a chardev or drive that is not there."""
    return ConfigError(f"Property '{_owner(model)}.{name}' can't find value '{value}'")


def in_use(model: DeviceModel, name: str, value: str) -> ConfigError:
    """Return the error for a property that names a chardev or drive that somebody else has."""
    if name == "chardev":
        return ConfigError(f"Property '{_owner(model)}.{name}' can't take value '{value}': Device '{value}' is in use")
    return ConfigError(f"Property '{_owner(model)}.{name}' can't take value '{value}', it's in use")


def _boolean(name: str, value: Value, *, typed: bool) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and not typed:
        return parse_boolean(name, value)
    raise ConfigError(f"Invalid parameter type for '{name}', expected: boolean")


def _integer(kind: str, name: str, value: Value, *, typed: bool) -> int:
    bits, signed = _INTEGER_BITS[kind]
    if isinstance(value, str) and not typed:
        number = _number(name, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise ConfigError(f"Parameter '{name}' expects {'int64' if signed else 'uint64'}")
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= number <= high:
        raise ConfigError(f"Parameter '{name}' expects {'int' if signed else 'uint'}{bits}_t")
    return number


def _number(name: str, text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    digits = text[1:] if text[:1] in ("-", "+") else text
    base = 16 if digits[:2].lower() == "0x" else 10
    digits = digits[2:] if base == 16 else digits
    if not digits.isascii() or not digits.isalnum() or len(digits) > 64:
        raise ConfigError(f"Parameter '{name}' expects integer")
    try:
        return sign * int(digits, base)
    except ValueError:
        raise ConfigError(f"Parameter '{name}' expects integer") from None


def _size(name: str, value: Value, *, typed: bool) -> int:
    if isinstance(value, str) and not typed:
        try:
            return parse_size(name, value)
        except ConfigError:
            raise ConfigError(f"Parameter '{name}' expects a size value") from None
    return _integer("uint64", name, value, typed=True)


def _pci_address(model: DeviceModel, name: str, value: Value) -> int:
    """Return slot x 8 + function from ``SLOT[.FUNCTION]`` in hexadecimal, or from that number itself."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < PCI_SLOTS * PCI_FUNCTIONS:
        return value
    if isinstance(value, str):
        slot, dot, function = value.partition(".")
        try:
            place = int(slot, 16), int(function, 16) if dot else 0
        except ValueError:
            place = -1, -1
        plain = (slot + function).isascii() and (slot + function).isalnum()
        if plain and 0 <= place[0] < PCI_SLOTS and 0 <= place[1] < PCI_FUNCTIONS:
            return place[0] * PCI_FUNCTIONS + place[1]
    raise ConfigError(f"Property '{model.name}.{name}' doesn't take value '{value}'")


def shown_kind(item: Property) -> str:
    """Return a property's kind as help and ``device-list-properties`` show it."""
    if item.kind == "pci-addr":
        return "int32"
    return "str" if item.kind in _REFERENCES else item.kind


def model_list(models: Mapping[str, DeviceModel]) -> str:
    """Return the answer to ``-device help``."""
    categories: dict[str, list[str]] = {}
    for model in models.values():
        line = f'name "{model.name}"'
        line += f", bus {model.bus}" if model.bus else ""
        line += f', alias "{model.aliases[0]}"' if model.aliases else ""
        line += f', desc "{model.description}"' if model.description else ""
        categories.setdefault(model.category, []).append(line)
    parts = [f"{category} devices:\n" + "\n".join(sorted(lines)) for category, lines in sorted(categories.items())]
    return "\n\n".join(parts)


def property_list(model: DeviceModel) -> str:
    """Return the answer to ``-device MODEL,help``."""
    lines = [f"{model.name} options:"]
    for name, item in sorted(model.properties.items()):
        line = f"  {name}=<{shown_kind(item)}>"
        default = ""
        if item.kind == "pci-addr":
            default = " (default: -1)"
        elif item.default is not None:
            shown = {True: "true", False: "false"}[item.default] if isinstance(item.default, bool) else item.default
            default = f' (default: "{shown}")' if isinstance(item.default, str) else f" (default: {shown})"
        if item.description or default:
            line = f"{line:<24} - {item.description}{default}"
        lines.append(line)
    return "\n".join(lines)
