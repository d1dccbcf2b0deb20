"""``-vnc``, and ``-display vnc=``, which means the same."""

from __future__ import annotations

from pyvm.commandline.groups import GROUPS
from pyvm.commandline.reader import CommandLine
from pyvm.config import MachineConfig
from pyvm.errors import ConfigError
from pyvm.options import parse

_LAYOUTS = ("en-us",)
"""Of keyboards, that viewers which send no numbers of keys can be understood with."""


def add_display(line: CommandLine, text: str, origin: str) -> None:
    """Take in the display that a ``-display vnc=...`` describes.  Raises ConfigError."""
    kind, equals, rest = text.partition("=")
    if kind != "vnc" or not equals:
        raise ConfigError(f"{origin}: VNC requires a display argument vnc=<display>")
    line.add("vnc", parse(GROUPS["vnc"], rest, origin), merge=False)


def configure_vnc(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records of the displays.  Raises ConfigError."""
    given = line.groups["vnc"]
    if not given:
        return
    from pyvm.vnc.options import next_identifier, vnc_options

    layout, layout_origin = line.values.get("k", (_LAYOUTS[0], ""))
    if layout not in _LAYOUTS:
        raise ConfigError(f"{layout_origin}: with -vnc only the layout {_LAYOUTS[0]} is supported by pyvm yet")
    audio = frozenset(str(options.get("id")) for options in line.groups["audiodev"])
    taken = [name for name in (options.identifier() for options in given) if name is not None]
    for options in given:
        name = options.identifier()
        if name is None:
            taken.append(name := next_identifier(taken))
        elif any(other.id == name for other in config.vnc):
            raise options.error(f"Duplicate ID '{name}' for vnc")
        config.vnc.append(vnc_options(options, name, audio=audio))
