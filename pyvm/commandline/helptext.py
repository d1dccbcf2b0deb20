"""Answers to ``-help``, ``-version`` and ``-OPTION help``, all made from the tables that also do the checking."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from pyvm import __version__
from pyvm.commandline.objects import OBJECT_TYPES, property_kinds
from pyvm.commandline.reader import HelpRequest
from pyvm.commandline.table import OPTIONS, SECTIONS, OptionSpec
from pyvm.config import DEFAULT_MACHINE, MACHINE_TYPES
from pyvm.errors import ConfigError

COMPATIBLE = "QEMU emulator version 7.2.22"
_WIDTH = 100
_INDENT = " " * 8


def answer(request: HelpRequest) -> str:
    """Return the text that `request` asks for; raises ConfigError where it asks about nothing."""
    if request.topic == "device":
        return _devices(request.subject)
    if request.topic == "object" and request.subject is not None:
        return _object(request.subject)
    if request.topic == "drive" and request.subject == "format":
        return _formats()
    topics: dict[str, Callable[[], str]] = {
        "help": _options,
        "version": version,
        "machine": _machines,
        "cpu": _cpus,
        "chardev": _chardevs,
        "object": _objects,
        "netdev": _netdevs,
        "accel": lambda: "Accelerators supported by pyvm:\ntcg",
        "display": lambda: "Available display backend types:\nnone",
        "trace": _traces,
        "d": _log_items,
        "vga": lambda: f"{'none':<20} no graphic card\n{'std':<20} standard VGA (default)",
    }
    topic = topics.get(request.topic)
    return topic() if topic else _one_option(OPTIONS[request.topic])


def _formats() -> str:
    """Return the answer to ``-drive format=help``: all drivers, in two lines as scripts expect them."""
    from pyvm.block.options import DRIVERS

    drivers = sorted((driver for driver in DRIVERS.values() if driver.module), key=lambda driver: driver.name)
    writable = " ".join(driver.name for driver in drivers if not driver.read_only)
    readable = " ".join(driver.name for driver in drivers)
    return f"Supported formats: {writable}\nSupported formats (read-only): {readable}"


def version() -> str:
    """Return the answer to ``-version``."""
    return f"pyvm {__version__}, compatible with {COMPATIBLE}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _one_option(spec: OptionSpec) -> str:
    return f"-{spec.name} {spec.arguments}".rstrip() + "\n" + _wrapped(spec.help, _INDENT)


def _options() -> str:
    parts = [version(), "usage: pyvm [options]"]
    for section, title in SECTIONS.items():
        entries = [_one_option(spec) for spec in OPTIONS.values() if spec.section == section]
        parts.append(f"{title}:\n" + "\n".join(entries))
    harmless = sorted(spec.name for spec in OPTIONS.values() if spec.handling == "harmless")
    missing = sorted(spec.name for spec in OPTIONS.values() if spec.handling == "missing")
    for title, names in (
        ("Options of QEMU that may be given and change nothing:", harmless),
        ("Options of QEMU that pyvm does not have yet:", missing),
    ):
        parts.append(title + "\n" + _wrapped(" ".join(f"-{name}" for name in names), _INDENT))
    return "\n\n".join(parts)


def _machines() -> str:
    lines = ["Supported machines are:"]
    for machine in MACHINE_TYPES.values():
        if machine.alias:
            lines.append(f"{machine.alias:<20} {machine.description} (alias of {machine.name})")
        default = " (default)" if machine.name == DEFAULT_MACHINE else ""
        lines.append(f"{machine.name:<20} {machine.description}{default}")
    return "\n".join(lines)


def _netdevs() -> str:
    from pyvm.net.make import BACKENDS

    return "\n".join(("Available netdev backend types:", *BACKENDS))


def _cpus() -> str:
    from pyvm.cpu.cpuid import available_features, model_names

    features = textwrap.fill(
        " ".join(sorted(available_features())), _WIDTH, initial_indent="  ", subsequent_indent="  "
    )
    models = "\n".join(f"x86 {name}" for name in model_names())
    return f"Available CPUs:\n{models}\n\nRecognized CPUID flags:\n{features}"


def _chardevs() -> str:
    from pyvm.chardev.options import BACKENDS

    return "Available chardev backend types:\n" + "\n".join(f"  {name}" for name in sorted(BACKENDS))


def _log_items() -> str:
    from pyvm.monitor.log_items import listing

    return listing("-d").rstrip("\n")


def _traces() -> str:
    from pyvm.monitor.schema.model import load
    from pyvm.monitor.trace import TraceEvents

    return "\n".join(sorted(TraceEvents(lambda: load().command_names).names()))


def _objects() -> str:
    return "List of user creatable objects:\n" + "\n".join(f"  {name}" for name in OBJECT_TYPES)


def _object(name: str) -> str:
    try:
        kinds = property_kinds(name)
    except ConfigError as error:
        raise ConfigError(f"-object {name},help: {error}") from None
    lines = [f"{name} options:"] + [f"  {key}=<{kind}>" for key, kind in sorted(kinds.items())]
    return "\n".join(lines) if kinds else f"There are no options for {name}."


def _devices(subject: str | None) -> str:
    from pyvm.devices.properties import find_model, model_list, property_list
    from pyvm.machine import DEVICE_MODELS

    if subject is None:
        return model_list(DEVICE_MODELS)
    try:
        return property_list(find_model(DEVICE_MODELS, subject))
    except ConfigError as error:
        raise ConfigError(f"-device {subject},help: {error}") from None
