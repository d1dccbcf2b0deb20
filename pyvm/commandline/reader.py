"""The command line as it is read: QEMU's options in any order, collected by what they are about.

Reading only sorts and checks each option by itself.  What the options mean together is the business of
:func:`pyvm.commandline.configure`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvm.commandline.groups import GROUPS
from pyvm.commandline.table import OPTIONS, OptionSpec
from pyvm.errors import ConfigError
from pyvm.options import HELP_WORDS, Options, parse


class HelpRequest(Exception):  # noqa: N818 - a request, not an error
    """The user asked for help or the version instead of a machine.

    `topic` is an option's name, ``help`` or ``version``; `subject` is what help is about within it, if anything.
    """

    def __init__(self, topic: str, subject: str | None = None) -> None:
        super().__init__(topic, subject)
        self.topic = topic
        self.subject = subject


class CommandLine:
    """All options given, sorted."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.values: dict[str, tuple[str, str]] = {}
        """Name to text and origin, for options of which the last use counts."""
        self.groups: dict[str, list[Options]] = {name: [] for name in GROUPS}
        self.serials: list[tuple[str, str]] = []
        """Text and origin of each ``-serial``."""
        self.monitors: list[tuple[str, str, str] | Options] = []
        """Kind, text and origin of each ``-monitor`` or ``-qmp``, and the parameters of each ``-mon``."""
        self._calls: dict[str, Callable[[str, str], None]] = {
            "set": self._set,
            "readconfig": self._readconfig,
            "parallel": self._only_none,
        }

    def read(self, arguments: Sequence[str]) -> None:
        """Take in the options in `arguments`; raises ConfigError, or HelpRequest where the user wants to know."""
        position = 0
        while position < len(arguments):
            word = arguments[position]
            position += 1
            if not word.startswith("-"):
                self.use(OPTIONS["hda"], word, word)
                continue
            spec = OPTIONS.get(word[2:] if word.startswith("--") else word[1:])
            if spec is None:
                raise ConfigError(f"{word}: invalid option")
            text = ""
            if spec.arguments:
                if position == len(arguments):
                    raise ConfigError(f"{word}: requires an argument")
                text = arguments[position]
                position += 1
            self.use(spec, text, f"{word} {text}" if spec.arguments else word)

    def use(self, spec: OptionSpec, text: str, origin: str) -> None:
        """Take in one option; `origin` is how it was typed."""
        handling = spec.handling
        if handling == "missing":
            raise ConfigError(f"-{spec.name}: not supported by pyvm yet")
        if handling == "alias":
            name, _, prefix = spec.target.partition(" ")
            self.use(OPTIONS[name], prefix + text, origin)
        elif handling == "flag":
            self.flags.add(spec.target)
        elif handling == "value":
            self._value(spec, text, origin)
        elif handling in ("merge", "add"):
            self._parameters(spec, text, origin)
        elif handling == "serial":
            self.serials.append((text, origin))
        elif handling == "monitor":
            self._monitor(spec, text, origin)
        elif handling == "disk":
            group = GROUPS["drive"]
            pairs = [*parse(group, spec.target).pairs, ("file", text)]
            self.add("drive", Options(group, origin, pairs), merge=False)
        elif handling == "call":
            self._call(spec, text, origin)
        elif handling == "harmless":
            self.values[spec.name] = (text, origin)

    def last(self, group: str) -> Options:
        """Return the merged parameters of a group that is used as one record; empty where it was not used."""
        records = self.groups[group]
        return records[0] if records else Options(GROUPS[group], "", [])

    def value(self, name: str) -> str | None:
        """Return the text of the last use of an option, or None where it was not used."""
        given = self.values.get(name)
        return given[0] if given else None

    def _value(self, spec: OptionSpec, text: str, origin: str) -> None:
        if spec.name in ("cpu", "display", "vga") and text in HELP_WORDS:
            raise HelpRequest(spec.name)
        self.values[spec.target] = (text, origin)

    def _parameters(self, spec: OptionSpec, text: str, origin: str) -> None:
        if text in HELP_WORDS:
            raise HelpRequest(spec.name)
        if spec.target == "global":
            options = _parse_global(text, origin)
        else:
            options = parse(GROUPS[spec.target], text, origin)
        self._ask_for_help(spec, options)
        self.add(spec.target, options, merge=spec.handling == "merge")

    def add(self, group: str, options: Options, *, merge: bool) -> None:
        """Take in the parameters of one option."""
        records = self.groups[group]
        if merge and records:
            records[0].merge(options)
        else:
            records.append(options)

    def _ask_for_help(self, spec: OptionSpec, options: Options) -> None:
        if spec.name == "drive" and options.get("format") in HELP_WORDS:
            raise HelpRequest("drive", "format")
        if options.typed or not options.asks_for_help:
            return
        subject = options.get(options.group.implied or "")
        raise HelpRequest(spec.name, subject if isinstance(subject, str) else None)

    def _monitor(self, spec: OptionSpec, text: str, origin: str) -> None:
        if spec.target == "mon":
            self.monitors.append(parse(GROUPS["mon"], text, origin))
        else:
            self.monitors.append((spec.target, text, origin))

    def _call(self, spec: OptionSpec, text: str, origin: str) -> None:
        if spec.target in ("help", "version"):
            raise HelpRequest(spec.target)
        self._calls[spec.target](text, origin)

    def _only_none(self, text: str, origin: str) -> None:
        if text != "none":
            raise ConfigError(f"{origin}: not supported by pyvm yet (only none)")

    def _set(self, text: str, origin: str) -> None:
        """Carry out ``-set GROUP.ID.PARAMETER=VALUE``."""
        path, equals, value = text.partition("=")
        parts = path.split(".", 2)
        if not equals or len(parts) != 3 or not all(parts):
            raise ConfigError(f'{origin}: can\'t parse: "{text}"')
        group, identifier, parameter = parts
        if group not in self.groups:
            raise ConfigError(f"{origin}: there is no option group '{group}'")
        for options in self.groups[group]:
            if options.get("id") == identifier:
                options.set(parameter, value)
                return
        raise ConfigError(f'{origin}: there is no {group} "{identifier}" defined')

    def _readconfig(self, path: str, origin: str) -> None:
        from pyvm.commandline.configfile import read_sections

        for section in read_sections(path, origin):
            spec = _SECTION_OPTIONS.get(section.group)
            if spec is None or section.group not in GROUPS:
                raise ConfigError(f"{section.origin}: there is no option group '{section.group}'")
            options = Options(GROUPS[section.group], section.origin, [])
            for name, value in section.pairs:
                options.pairs.append((options.group.aliases.get(name, name), value))
            options.check()
            if section.group == "mon":
                self.monitors.append(options)
            else:
                self.add(section.group, options, merge=spec.handling == "merge")


def _section_options() -> dict[str, OptionSpec]:
    return {spec.target: spec for spec in OPTIONS.values() if spec.handling in ("merge", "add", "monitor")}


_SECTION_OPTIONS = _section_options()


def _parse_global(text: str, origin: str) -> Options:
    """Return the parameters of ``-global MODEL.PROPERTY=VALUE`` or ``-global driver=...,property=...,value=...``."""
    group = GROUPS["global"]
    path, equals, value = text.partition("=")
    model, dot, name = path.partition(".")
    if equals and dot and "," not in path:
        return Options(group, origin, [("driver", model), ("property", name), ("value", value)])
    return parse(group, text, origin)
