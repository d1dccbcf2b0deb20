"""Networks on the command line: ``-netdev``, ``-nic`` and ``-net``, made into back ends and devices.

The schema says what a back end takes.  ``-nic`` is a back end and a card for it; ``-net`` is the older form, where
everything is plugged into hub 0.
"""

from __future__ import annotations

from typing import Any

from pyvm.commandline.groups import GROUPS
from pyvm.commandline.reader import CommandLine
from pyvm.config import DeviceConfig, MachineConfig, NetdevConfig
from pyvm.errors import ConfigError
from pyvm.options import Options, is_identifier, parse

NIC_MODELS = {
    "e1000": "e1000",
    "e1000-82544gc": "e1000-82544gc",
    "e1000-82545em": "e1000-82545em",
    "virtio": "virtio-net-pci",
    "virtio-net-pci": "virtio-net-pci",
    "virtio-net-pci-transitional": "virtio-net-pci-transitional",
    "virtio-net-pci-non-transitional": "virtio-net-pci-non-transitional",
}
"""Cards that ``-nic model=`` can name."""
DEFAULT_NIC = "e1000"
_MODERN = ("stream", "dgram")
"""Types whose options have structures."""
_LISTS = ("hostfwd", "guestfwd", "dnssearch")
_CARD_OPTIONS = ("model", "mac", "macaddr", "addr", "vectors")
_HELP = ("help", "?")


def configure(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records about networks."""
    netdevs = line.groups["netdev"]
    # As QEMU makes them: first what is given in the newer form.
    for newer in (True, False):
        for options in netdevs:
            if _is_newer(options) is newer:
                config.netdevs.append(_netdev(options, _members(options)))
    cards: list[DeviceConfig] = []
    for options in line.groups["nic"]:
        _nic(options, config, cards)
    for options in line.groups["net"]:
        _net(options, config, cards)
    config.devices[:0] = cards


def _is_newer(options: Options) -> bool:
    return options.typed or options.get("type") in _MODERN


def _members(options: Options) -> dict[str, Any]:
    """Return the parameters as the schema names them, all still text where they were."""
    values = options.nested() if _is_newer(options) else dict(options)
    if options.typed:
        return values
    for name in _LISTS:
        if name in values:
            values[name] = [{"str": text} for text in options.values(name)]
    network = values.pop("ipv6-net", None)
    if network is not None:
        prefix, slash, length = str(network).partition("/")
        values["ipv6-prefix"] = prefix
        if slash:
            values["ipv6-prefixlen"] = length
    return values


def netdev_options(values: dict[str, Any], *, typed: bool) -> dict[str, Any]:
    """Return the options of a back end, checked by the schema; `typed` where they came from JSON.

    Raises ConfigError.
    """
    from pyvm.monitor.errors import QmpError
    from pyvm.monitor.schema.model import ObjectType, load
    from pyvm.monitor.schema.text_values import typed_members
    from pyvm.monitor.schema.validate import validator

    kind = load().type("Netdev")
    assert isinstance(kind, ObjectType)
    if "type" not in values:
        raise ConfigError("Parameter 'type' is missing")
    if not typed:
        values = typed_members(kind, values)
    try:
        validator().check("Netdev", values)
    except QmpError as error:
        message = error.description
        if not typed and message.endswith("is unexpected"):
            message = "Invalid parameter " + message.split()[1]
        raise ConfigError(message) from None
    if not is_identifier(values["id"]) and not values["id"].startswith("#net"):
        raise ConfigError(
            "Parameter 'id' expects an identifier (letters, digits, '-', '.', '_', starting with a letter)"
        )
    return values


def parse_netdev(text: str) -> dict[str, Any]:
    """Return the checked options of what `-netdev` takes; raises ConfigError."""
    options = parse(GROUPS["netdev"], text)
    return netdev_options(_members(options), typed=options.typed)


def _netdev(options: Options, values: dict[str, Any], *, listed: bool = True) -> NetdevConfig:
    checked = options.checked(lambda: netdev_options(values, typed=options.typed))
    return NetdevConfig(checked, listed, options.origin)


def _card(options: Options, values: dict[str, Any], netdev: str | None) -> DeviceConfig:
    """Return the card that options ask for, on a back end."""
    from pyvm.net.nic import parse_mac

    name = str(values.get("model") or DEFAULT_NIC)
    model = NIC_MODELS.get(name)
    if model is None:
        raise ConfigError(f"Unsupported NIC model: {name}")
    properties: dict[str, Any] = {}
    mac = values.get("mac", values.get("macaddr"))
    if mac is not None:
        if parse_mac(str(mac)) is None:
            raise options.error("invalid syntax for ethernet address")
        properties["mac"] = str(mac)
    for key in ("addr", "vectors"):
        if values.get(key) is not None:
            properties[key] = str(values[key])
    if netdev is not None:
        properties["netdev"] = netdev
    return DeviceConfig(model, properties=properties, origin=options.origin)


def _generated(config: MachineConfig) -> str:
    return f"#net{len(config.netdevs):03}"


def _nic(options: Options, config: MachineConfig, cards: list[DeviceConfig]) -> None:
    """Take in a ``-nic``: a back end and its card."""
    values = _members(options)
    kind = values.get("type")
    if kind == "none":
        return
    card = {name: values.pop(name) for name in _CARD_OPTIONS if name in values}
    if kind is None:
        raise options.error("Parameter 'type' is missing")
    if kind == "nic":
        raise options.error("Parameter 'type' does not accept value 'nic'")
    identifier = values.setdefault("id", _generated(config))
    config.netdevs.append(_netdev(options, values))
    cards.append(_card(options, card, identifier))


def _net(options: Options, config: MachineConfig, cards: list[DeviceConfig]) -> None:
    """Take in a ``-net``: something that is plugged into hub 0."""
    values = _members(options)
    kind = values.get("type")
    if kind == "none":
        return
    if kind == "hubport":
        raise options.error("network backend 'hubport' is only supported with -netdev/-nic")
    port = f"hub0port{sum(item.is_legacy_port for item in config.netdevs)}"
    if kind == "nic":
        values.setdefault("id", "nic")
        checked = options.checked(lambda: netdev_options(values, typed=options.typed))
        netdev = checked.get("netdev")
        if netdev is None:
            netdev = port
            config.netdevs.append(NetdevConfig({"type": "hubport", "id": port, "hubid": 0}, False, options.origin))
        cards.append(_card(options, checked, netdev))
        return
    identifier = values.setdefault("id", _generated(config))
    config.netdevs.append(_netdev(options, values, listed=False))
    hub = {"type": "hubport", "id": port, "hubid": 0, "netdev": identifier}
    config.netdevs.append(NetdevConfig(hub, False, options.origin))
