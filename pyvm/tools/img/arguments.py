"""Reading a subcommand's arguments as GNU getopt_long does.

Options and operands may be mixed, ``--`` ends the options, short options may be joined, long ones abbreviated, and a
long option's value may follow after ``=`` or as the next argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from pyvm.annotations import TYPE_CHECKING, NamedTuple
from pyvm.records import field, record
from pyvm.secrets import Secrets
from pyvm.tools.img.errors import HelpAsked, ImgError, UsageError

if TYPE_CHECKING:
    from pyvm.config import ObjectConfig

IMAGE_LONG = {"object": "object=", "image-opts": "image-opts"}
"""Long options of almost every subcommand."""


class Cache(NamedTuple):
    """A cache mode: how an image is opened."""

    writeback: bool = True
    direct: bool = False
    no_flush: bool = False


CACHE_MODES = {
    "none": Cache(direct=True),
    "off": Cache(direct=True),
    "directsync": Cache(writeback=False, direct=True),
    "writeback": Cache(),
    "unsafe": Cache(no_flush=True),
    "writethrough": Cache(writeback=False),
}


@record
class Arguments:
    """The options of a subcommand by name (a short option's letter, a long one's name), and its operands."""

    options: list[tuple[str, str]] = field(default_factory=list)
    operands: list[str] = field(default_factory=list)
    secrets: Secrets = field(default_factory=Secrets)
    """What was given with ``--object secret``: see :meth:`add_objects`."""

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.options)

    def get(self, name: str) -> str | None:
        """Return the value of an option, the last one where it was given several times."""
        return next((value for key, value in reversed(self.options) if key == name), None)

    def all(self, name: str) -> list[str]:
        """Return all values of an option, in the order given."""
        return [value for key, value in self.options if key == name]

    def operand(self, message: str = "Expecting one image file name") -> str:
        """Return the one operand that there must be."""
        if len(self.operands) != 1:
            raise UsageError(message)
        return self.operands[0]

    def json(self) -> bool:
        """Whether ``--output=json`` was given."""
        output = self.get("output")
        if output not in (None, "human", "json"):
            raise ImgError("--output must be used with human or json as argument.")
        return output == "json"

    def cache(self, name: str, default: str, message: str, status: int = 1) -> Cache:
        """Return the cache mode of option `name`; `message` is the error's, with ``{}`` for the mode."""
        mode = self.get(name) or default
        if mode not in CACHE_MODES:
            raise ImgError(message.format(mode), status)
        return CACHE_MODES[mode]

    def creation_options(self) -> str | None:
        """Return the parameters of all ``-o`` options as one text; None where there is none."""
        texts = self.all("o")
        for text in texts:
            if not text or text.startswith(",") or _ends_in_comma(text):
                raise ImgError(f"Invalid option list: {text}")
        return ",".join(texts) if texts else None

    def add_objects(self) -> None:
        """Make the objects given with ``--object``: secrets and credentials have a use here.  Raises ConfigError."""
        if "object" not in self:
            return
        from pyvm.commandline.groups import GROUPS
        from pyvm.commandline.objects import make_object
        from pyvm.options import parse

        for text in self.all("object"):
            record = make_object(parse(GROUPS["object"], text, ""))
            if record.type == "secret":
                self.secrets.add(record.id, record.properties)
            elif record.type.startswith("tls-creds-"):
                _add_credentials(self.secrets, record)


def _add_credentials(secrets: Secrets, record: ObjectConfig) -> None:
    from pyvm.errors import ConfigError
    from pyvm.machine.object_kinds import TlsCredentialsObject
    from pyvm.machine.user_objects import ObjectHost
    from pyvm.monitor.errors import QmpError

    try:
        made = TlsCredentialsObject(ObjectHost(secrets), record.type, record.id, dict(record.properties))
    except QmpError as error:
        raise ConfigError(error.description) from None
    secrets.credentials[record.id] = made


def _ends_in_comma(text: str) -> bool:
    """Whether the text ends in a comma that is not the second of a doubled one."""
    return (len(text) - len(text.rstrip(","))) % 2 == 1


def scan(argv: Sequence[str], short: str, long: Mapping[str, str] | None = None) -> Arguments:
    """Take the arguments of a subcommand apart.  Raises UsageError, and HelpAsked for ``-h`` and ``--help``.

    `short` has the letters of the short options, with a colon after one that has a value.  `long` says for each long
    option under which name it is to be found, with ``=`` behind where it has a value.
    """
    with_value = {letter for letter, follower in itertools.pairwise(short) if follower == ":"}
    names = {"help": "h", **(long or {})}
    for target in names.values():
        if target.endswith("="):
            with_value.add(target[:-1])
    found = Arguments()
    pending = list(argv)
    while pending:
        argument = pending.pop(0)
        if argument == "--":
            found.operands += pending
            break
        if argument.startswith("--"):
            _take_long(argument, names, with_value, pending, found)
        elif argument.startswith("-") and argument != "-":
            _take_short(argument, short.replace(":", ""), with_value, pending, found)
        else:
            found.operands.append(argument)
    if "h" in found:
        raise HelpAsked
    return found


def _take_long(
    argument: str, names: Mapping[str, str], with_value: set[str], pending: list[str], found: Arguments
) -> None:
    given, equals, value = argument[2:].partition("=")
    matching = [given] if given in names else [name for name in names if name.startswith(given)]
    targets = {names[name].rstrip("=") for name in matching}
    if len(targets) != 1:
        raise UsageError(f"unrecognized option '{argument}'")
    target = targets.pop()
    if target not in with_value:
        if equals:
            raise UsageError(f"unrecognized option '{argument}'")
    elif not equals:
        if not pending:
            raise UsageError(f"missing argument for option '{argument}'")
        value = pending.pop(0)
    found.options.append((target, value))


def _take_short(argument: str, letters: str, with_value: set[str], pending: list[str], found: Arguments) -> None:
    for index, letter in enumerate(argument[1:], 1):
        if letter not in letters:
            raise UsageError(f"unrecognized option '{argument}'")
        if letter not in with_value:
            found.options.append((letter, ""))
            continue
        value = argument[index + 1 :]
        if not value:
            if not pending:
                raise UsageError(f"missing argument for option '{argument}'")
            value = pending.pop(0)
        found.options.append((letter, value))
        return
