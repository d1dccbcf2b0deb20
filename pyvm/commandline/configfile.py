"""Files for ``-readconfig``: sections of parameters, each section one option.

::

    # a comment
    [device "net0"]
      driver = "virtio-balloon-pci"

    [machine]
      type = "pc"

A section's head names an option group, and the ID where the group's records have one.
"""

from __future__ import annotations

from pyvm.errors import ConfigError
from pyvm.options import Value, parse_identifier

_SIZE_LIMIT = 1 << 20


class Section:
    """One section: what it configures, and with what."""

    __slots__ = ("group", "origin", "pairs")

    def __init__(self, group: str, origin: str) -> None:
        self.group = group
        self.origin = origin
        self.pairs: list[tuple[str, Value]] = []


def read_sections(path: str, origin: str) -> list[Section]:
    """Return the sections of the file at `path`; raises ConfigError naming the file and line that is wrong."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{origin}: Could not open '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{origin}: '{path}' is not a text file") from None
    if len(text) > _SIZE_LIMIT:
        raise ConfigError(f"{origin}: '{path}' is larger than {_SIZE_LIMIT} bytes")
    return parse_sections(text, path)


def parse_sections(text: str, path: str) -> list[Section]:
    """Return the sections in `text`; `path` names the file in errors."""
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{path}:{number}"
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        if content.startswith("["):
            sections.append(_head(content, place))
        elif not sections:
            raise ConfigError(f"{place}: no group defined")
        else:
            sections[-1].pairs.append(_pair(content, place))
    return sections


def _head(content: str, place: str) -> Section:
    if not content.endswith("]"):
        raise ConfigError(f"{place}: parse error")
    group, _, identifier = content[1:-1].strip().partition(" ")
    section = Section(group, f"{place}: {content}")
    if identifier:
        quoted = identifier.strip()
        if len(quoted) < 3 or quoted[0] != '"' or quoted[-1] != '"':
            raise ConfigError(f"{place}: parse error")
        try:
            section.pairs.append(("id", parse_identifier("id", quoted[1:-1])))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return section


def _pair(content: str, place: str) -> tuple[str, Value]:
    name, equals, quoted = (part.strip() for part in content.partition("="))
    if not equals or not name or len(quoted) < 2 or quoted[0] != '"' or quoted[-1] != '"' or '"' in quoted[1:-1]:
        raise ConfigError(f"{place}: parse error")
    return name, quoted[1:-1]
