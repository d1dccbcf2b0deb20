"""What the arguments of commands may become when a person presses Tab.

What there is to choose from is asked for as a QMP client would ask; names of files come from the host's directories.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.arguments import Kind
from pyvm.monitor.hmp.commands import COMMANDS
from pyvm.monitor.hmp.line_editor import MAX_CANDIDATES
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import Command, UnknownCommandError
from pyvm.monitor.schema.model import EnumType, SchemaError

Source = Callable[[Shell, str], Iterable[str]]
"""What a person may choose from, for what is typed of it; more than that is left out later."""

_SWITCH = ("on", "off")
_FILES = 4 * MAX_CANDIDATES
"""Most entries of a directory that are looked at."""


def _query(shell: Shell, command: str, **arguments: Any) -> list[Any]:
    try:
        found = shell.qmp(command, **arguments)
    except (QmpError, KeyError):
        return []
    return found if isinstance(found, list) else []


def _enum(name: str) -> Source:
    def values(shell: Shell, typed: str) -> Iterable[str]:
        try:
            kind = shell.schema.type(name)
        except SchemaError:
            return ()
        return [value.name for value in kind.values] if isinstance(kind, EnumType) else ()

    return values


def _children(path: str) -> Source:
    def names(shell: Shell, typed: str) -> Iterable[str]:
        entries = _query(shell, "qom-list", path=path)
        return [entry["name"] for entry in entries if entry["type"].startswith("child<")]

    return names


def _device_models(shell: Shell, typed: str) -> Iterable[str]:
    from pyvm.machine.plug.models import DEVICE_MODELS

    return DEVICE_MODELS


def _object_types(shell: Shell, typed: str) -> Iterable[str]:
    from pyvm.commandline.objects import OBJECT_TYPES

    return OBJECT_TYPES


def _chardevs(shell: Shell, typed: str) -> Iterable[str]:
    return [entry["label"] for entry in _query(shell, "query-chardev")]


def _ring_buffers(shell: Shell, typed: str) -> Iterable[str]:
    return [entry["label"] for entry in _query(shell, "query-chardev") if entry["filename"] == "ringbuf"]


def _chardev_backends(shell: Shell, typed: str) -> Iterable[str]:
    return [entry["name"] for entry in _query(shell, "query-chardev-backends")]


def _trace_events(shell: Shell, typed: str) -> Iterable[str]:
    return [entry["name"] for entry in _query(shell, "trace-event-get-state", name=f"{typed}*", vcpu=None)]


def _switch(shell: Shell, typed: str) -> Iterable[str]:
    return _SWITCH


def _keys(shell: Shell, typed: str) -> Iterable[str]:
    from pyvm.devices.keycodes import key_names

    return key_names()


def _snapshots(shell: Shell, typed: str) -> Iterable[str]:
    nodes = _query(shell, "query-named-block-nodes", flat=True)
    snapshots = itertools.chain.from_iterable(node["image"].get("snapshots", ()) for node in nodes)
    return [name for snapshot in snapshots for name in (snapshot["id"], snapshot["name"])]


def _drives(shell: Shell, typed: str) -> Iterable[str]:
    return [entry["device"] or entry.get("qdev", "") for entry in _query(shell, "query-block")]


def _net_clients(shell: Shell, *, cards: bool) -> list[str]:
    network = getattr(shell.machine, "network", None)
    return [] if network is None else [client.name for client in network.clients if cards or client.kind != "nic"]


def _netdevs(shell: Shell, typed: str) -> Iterable[str]:
    return _net_clients(shell, cards=False)


def _links(shell: Shell, typed: str) -> Iterable[str]:
    return _net_clients(shell, cards=True)


def _files(shell: Shell, typed: str) -> Iterable[str]:
    directory, slash, name = typed.rpartition("/")
    found = []
    try:
        with os.scandir(f"{directory}{slash}" or ".") as entries:
            for entry in itertools.islice(entries, _FILES):
                if name or not entry.name.startswith("."):
                    found.append(f"{directory}{slash}{entry.name}{'/' if entry.is_dir() else ''}")
    except (OSError, ValueError):
        return ()
    return found


_ARGUMENTS: dict[str, tuple[Source, ...]] = {
    "chardev-add": (_chardev_backends,),
    "chardev-remove": (_chardevs,),
    "chardev-send-break": (_chardevs,),
    "delvm": (_snapshots,),
    "device_add": (_device_models,),
    "device_del": (_children("/machine/peripheral"),),
    "info trace-events": (_trace_events,),
    "loadvm": (_snapshots,),
    "migrate_set_capability": (_enum("MigrationCapability"), _switch),
    "migrate_set_parameter": (_enum("MigrationParameter"),),
    "netdev_add": (_enum("NetClientDriver"),),
    "netdev_del": (_netdevs,),
    "object_add": (_object_types,),
    "object_del": (_children("/objects"),),
    "ringbuf_read": (_ring_buffers,),
    "ringbuf_write": (_ring_buffers,),
    "sendkey": (_keys,),
    "set_link": (_links, _switch),
    "trace-event": (_trace_events, _switch),
    "watchdog_action": (_enum("WatchdogAction"),),
}
"""By the name of a command, what each of its arguments may be, where their kind does not say it."""
_KINDS: dict[Kind, Source] = {Kind.FILENAME: _files, Kind.BLOCK: _drives, Kind.SWITCH: _switch}


def _source(path: str, command: Command, words: list[str]) -> Source | None:
    """Return what the argument behind `words` may be."""
    flags = {f"-{argument.name}" for argument in command.arguments if argument.kind is None}
    index = sum(word not in flags for word in words)
    named = _ARGUMENTS.get(path, ())
    if index < len(named):
        return named[index]
    arguments = [argument for argument in command.arguments if argument.kind is not None]
    kind = arguments[index].kind if index < len(arguments) else None
    return None if kind is None else _KINDS.get(kind)


def complete(shell: Shell, text: str) -> tuple[int, list[str]]:
    """Return how long the last word of `text` is, and what it may become, sorted."""
    length, names = COMMANDS.complete(text, shell.initialized)
    if names:
        return length, names
    try:
        command, typed, position = COMMANDS.find(text)
    except UnknownCommandError:
        return 0, []
    rest = text[position:]
    if not rest[:1].isspace() or command.subcommands is not None or not (shell.initialized or command.preconfig):
        return 0, []
    words = rest.split()
    prefix = words.pop() if words and not rest[-1].isspace() else ""
    # A command may have been typed by its short name, and has the arguments of the long one.
    path = " ".join([*typed.split()[:-1], command.names[0]])
    source = _source(path, command, words)
    if source is None:
        return len(prefix), []
    if source is _keys:
        prefix = prefix.rpartition("-")[2]  # of keys that are joined by hyphens, the last one is typed
    found = {name for name in source(shell, prefix) if name.startswith(prefix) and name}
    return len(prefix), sorted(found)
