"""Commands about the object model: devices, users' objects, and the properties of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.machine.qom.devices import DeviceObject
    from pyvm.options import Group, Options
    from pyvm.qom.tree import Property, QomObject
    from pyvm.qom.types import PropertyInfo

Functions = dict[str, dict[str, Any]]
"""PciDeviceInfo by slot and function."""

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_HELP = ("help", "?")
_INDENT = 2
_UINT64 = (1 << 64) - 1
_SYSTEM_BUS = "/machine/unattached/sysbus"
_UNIT_LIMIT = 1000
"""From which number on the next larger unit is better."""
_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


# ---- Devices and users' objects


def _options(text: str, group: Group) -> Options:
    from pyvm.options import parse

    try:
        return parse(group, text)
    except ConfigError as error:
        raise QmpError(str(error)) from None


def _help(topic: str, subject: str | None) -> str:
    from pyvm.commandline.helptext import answer
    from pyvm.commandline.reader import HelpRequest

    try:
        return answer(HelpRequest(topic, subject)) + "\n"
    except ConfigError as error:
        raise QmpError(str(error).rpartition(": ")[2]) from None


def _asked(text: str) -> tuple[bool, str | None]:
    """Return whether `text` asks for help, and about what."""
    words = text.split(",")
    if words[0] in _HELP:
        return True, None
    return any(word in _HELP for word in words[1:]), words[0].rpartition("=")[2]


@COMMANDS.command(
    "device_add",
    "device:text",
    parameters="driver[,prop=value][,...]",
    description="add device, like -device on the command line",
)
def device_add(shell: Shell, device: str) -> str:
    """Plug a device in, or show what can be plugged in."""
    from pyvm.commandline.groups import GROUPS

    asked, subject = _asked(device)
    if asked:
        return _help("device", subject)
    shell.qmp("device_add", arguments=dict(_options(device, GROUPS["device"]).pairs))
    return ""


@COMMANDS.command("device_del", "id:string", parameters="device", description="remove device")
def device_del(shell: Shell, id: str) -> None:  # noqa: A002 - the name that its help has
    """Take a device out."""
    shell.qmp("device_del", id=id)


@COMMANDS.command(
    "object_add",
    "object:string",
    parameters="[qom-type=]type,id=str[,prop=value][,...]",
    description="create QOM object",
    preconfig=True,
)
def object_add(shell: Shell, object: str) -> str:  # noqa: A002 - as above
    """Create an object, or show what can be created."""
    from pyvm.commandline.groups import GROUPS
    from pyvm.commandline.objects import make_object

    asked, subject = _asked(object)
    if asked:
        return _help("object", subject)
    try:
        made = make_object(_options(object, GROUPS["object"]))
    except ConfigError as error:
        text = str(error)
        if text.startswith("Invalid parameter '"):
            text = f"Parameter {text.removeprefix('Invalid parameter ')} is unexpected"
        raise QmpError(text) from None
    shell.machine_part("model").objects.add(made.type, made.id, dict(made.properties))
    return ""


@COMMANDS.command("object_del", "id:string", parameters="id", description="destroy QOM object", preconfig=True)
def object_del(shell: Shell, id: str) -> None:  # noqa: A002 - as above
    """Delete an object."""
    shell.qmp("object-del", id=id)


# ---- Properties


@COMMANDS.command("qom-list", "path:string?", parameters="path", description="list QOM properties", preconfig=True)
def qom_list(shell: Shell, path: str | None) -> str:
    """Show the properties of an object, its children among them."""
    if path is None:
        return "/\n"
    return "".join(f"{item['name']} ({item['type']})\n" for item in shell.qmp("qom-list", path=path))


@COMMANDS.command(
    "qom-get", "path:string property:string", parameters="path property", description="print QOM property",
    preconfig=True,
)  # fmt: skip
def qom_get(shell: Shell, path: str, property: str) -> str:  # noqa: A002 - as above
    """Show the value of a property."""
    return json.dumps(_ordered(shell.qmp("qom-get", path=path, property=property)), indent=4) + "\n"


def _ordered(value: Any) -> Any:
    """Return a value with the members of objects in the order that they have on the wire."""
    from pyvm.wire_order import wire_order

    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in wire_order(value)}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


@COMMANDS.command(
    "qom-set",
    "-j path:string property:string value:text",
    parameters="[-j] path property value",
    description="set QOM property (-j: the value is specified in json format)",
    preconfig=True,
)
def qom_set(shell: Shell, j: bool, path: str, property: str, value: str) -> None:  # noqa: A002 - as above
    """Set a property."""
    if j:
        shell.qmp("qom-set", path=path, property=property, value=_json(value))
        return
    found: QomObject = shell.machine_part("model").qom.resolve(path)
    item = found.property(property)
    shell.qmp("qom-set", path=path, property=property, value=_typed(item, value))


def _json(text: str) -> Any:
    from pyvm.json.reader import JsonError, loads

    try:
        return loads(text)
    except JsonError as error:
        raise QmpError(str(error)) from None


def _typed(item: Property, text: str) -> Any:
    """Return a value that was typed as text as a property's kind has it; raises QmpError."""
    from pyvm.options import parse_boolean, parse_size

    try:
        if item.kind == "bool":
            return parse_boolean(item.name, text)
        if item.kind == "size":
            return parse_size(item.name, text)
    except ConfigError as error:
        raise QmpError(str(error)) from None
    if not item.kind.startswith(("int", "uint")):
        return text
    try:
        return int(text, 0)
    except ValueError:
        raise QmpError(f"Parameter '{item.name}' expects {'u' if item.kind[0] == 'u' else ''}int64") from None


# ---- Trees


@INFORMATION.command(
    "qom-tree", "path:string?", parameters="[path]", description="show QOM composition tree", preconfig=True
)
def qom_tree(shell: Shell, path: str | None) -> str:
    """Show objects as a tree, by default those of the machine."""
    try:
        start: QomObject = shell.machine_part("model").qom.resolve(path or "/machine")
    except QmpError:
        return f"Path '{path}' could not be resolved.\n"
    return "".join(_composition(start, 0))


def _composition(found: QomObject, indent: int) -> Iterator[str]:
    yield f"{' ' * indent}/{found.name} ({found.type})\n"
    for _, child in sorted(found.children().items()):
        yield from _composition(child, indent + _INDENT)


@INFORMATION.command("qdm", description="show qdev device model list")
def qdm(shell: Shell) -> str:
    """Show the models of devices."""
    return _help("device", None)


@INFORMATION.command("qtree", description="show device tree")
def qtree(shell: Shell) -> str:
    """Show buses, the devices on them, and their properties."""
    root: QomObject = shell.machine_part("model").qom.resolve(_SYSTEM_BUS)
    functions = {
        f"{device['slot']:02x}.{device['function']:x}": device
        for bus in shell.qmp("query-pci")
        for device in bus["devices"]
    }
    return "".join(_bus(root, "main-system-bus", 0, functions))


def _bus(bus: QomObject, name: str, indent: int, functions: Functions) -> Iterator[str]:
    from pyvm.machine.qom.devices import DeviceObject

    yield f"{' ' * indent}bus: {name}\n"
    yield f"{' ' * indent}  type {bus.type}\n"
    numbered = [(int(link[6:-1]), device) for link, device in bus.links().items() if link.startswith("child[")]
    for _, device in sorted(numbered, key=lambda item: item[0], reverse=True):
        if isinstance(device, DeviceObject):
            yield from _device(device, indent + _INDENT, functions)


def _device(device: DeviceObject, indent: int, functions: Functions) -> Iterator[str]:
    from pyvm.machine.qom.devices import BusObject

    space = " " * (indent + _INDENT)
    yield f'{" " * indent}dev: {device.type}, id "{device.identifier or ""}"\n'
    address = None
    for item in device.kind.device_properties:
        if item.name == "addr" and device.kind.implements("pci-device"):
            address = device.get("legacy-addr")
            yield f"{space}addr = {address}\n"
        elif not item.kind.startswith("child<"):
            yield f"{space}{item.name} = {_shown(device, item)}\n"
    if address in functions:
        yield from (f"{space}{line}\n" for line in _function(functions[address]))
    for name, child in device.children().items():
        if isinstance(child, BusObject):
            yield from _bus(child, name, indent + _INDENT, functions)


def _function(info: dict[str, Any]) -> Iterator[str]:
    """Yield what is said of a PCI function below its properties."""
    kind, identity = info["class_info"], info["id"]
    yield (
        f"class {kind.get('desc') or format(kind['class'], '04x')}, addr 00:{info['slot']:02x}.{info['function']:x}, "
        f"pci id {identity['vendor']:04x}:{identity['device']:04x} "
        f"(sub {identity['subsystem-vendor']:04x}:{identity['subsystem']:04x})"
    )
    for region in info["regions"]:
        start = region["address"] & _UINT64
        end = start + region["size"] - 1 & _UINT64
        yield f"bar {region['bar']}: {'i/o' if region['type'] == 'io' else 'mem'} at {start:#x} [{end:#x}]"


def _shown(device: DeviceObject, item: PropertyInfo) -> str:
    """Return the value of a property as `info qtree` has it."""
    value = device.value(item)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        unsigned = value & _UINT64
        return f"{value} ({_size(unsigned)})" if item.kind == "size" else f"{value} ({unsigned:#x})"
    return f'"{"" if value is None else value}"'


def _size(value: int) -> str:
    unit = 0
    number = float(value)
    while number >= _UNIT_LIMIT and unit + 1 < len(_SIZE_UNITS):
        number, unit = number / 1024, unit + 1
    return f"{number:.3g} {_SIZE_UNITS[unit]}"
