"""The one parser of QEMU's ``key=value,key=value`` syntax, used by every option and by ``-readconfig``.

The syntax, as QEMU's manual page describes it: parameters are separated by commas; a comma inside a value is doubled;
the first parameter of most options may leave its key out (``-device virtio-rng-pci,id=a`` means ``driver=...``); a key
alone means ``on`` and with ``no`` before it ``off``, both deprecated.  Some options take a JSON object instead.  A
dotted key names a member of a structure (``cache.direct=on``).

An :class:`Options` holds the parameters of one option in the order given.  Its accessors convert and check values, and
the errors they raise carry the option as the user typed it and QEMU's wording of what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from pyvm.annotations import Any, Literal
from pyvm.errors import ConfigError
from pyvm.sizes import UINT64_MAX, read_number, read_size

Kind = Literal["string", "boolean", "number", "size"]
Value = str | int | float | bool | None | list[Any] | dict[str, Any]
"""A parameter's value: text where it came from ``key=value``, any JSON value where it came from JSON."""

HELP_WORDS = ("help", "?")
_ON = ("on", "yes", "true", "y")
_OFF = ("off", "no", "false", "n")
_KEY_LIMIT = 127
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")


class Group:
    """What the parameters of an option are called and of which kind they are.

    `parameters` None accepts any name.  `implied` is the key of a first parameter without one.  In a `strict` group,
    as in QEMU's newer options, a key alone is an error and not a boolean.
    """

    __slots__ = ("aliases", "implied", "name", "parameters", "strict")

    def __init__(
        self,
        name: str,
        implied: str | None = None,
        parameters: Mapping[str, Kind] | None = None,
        *,
        strict: bool = False,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.implied = implied
        self.parameters = parameters
        self.strict = strict
        self.aliases = aliases or {}


def warn(message: str) -> None:
    """Tell the person at the prompt of something that is odd but works."""
    print(f"pyvm: {message}", file=sys.stderr)


def _take_value(text: str, start: int) -> tuple[str, int]:
    """Return the value at `start`, its doubled commas undone, and where the next parameter begins."""
    parts = []
    while True:
        comma = text.find(",", start)
        if comma < 0:
            parts.append(text[start:])
            return "".join(parts), len(text)
        parts.append(text[start:comma])
        if text[comma + 1 : comma + 2] != ",":
            return "".join(parts), comma + 1
        parts.append(",")
        start = comma + 2


def _key_end(text: str, start: int) -> int:
    ends = [end for end in (text.find("=", start), text.find(",", start)) if end >= 0]
    return min(ends, default=len(text))


def split_pairs(
    text: str, implied: str | None = None, *, short: Callable[[str], tuple[str, str]]
) -> list[tuple[str, str]]:
    """Split ``key=value,...`` into pairs.

    `short` makes a pair of a key that has no value, or raises.
    """
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        end = _key_end(text, position)
        if text[end : end + 1] == "=":
            value, following = _take_value(text, end + 1)
            pairs.append((text[position:end], value))
        elif position == 0 and implied is not None:
            value, following = _take_value(text, 0)
            pairs.append((implied, value))
        else:
            pairs.append(short(text[position:end]))
            following = end + 1
        position = following
    return pairs


def escape(value: str) -> str:
    """Return `value` as it stands in ``key=value``: with its commas doubled."""
    return value.replace(",", ",,")


def parse_boolean(name: str, text: str) -> bool:
    """Return what ``on`` or ``off`` means."""
    if text in _ON:
        return True
    if text in _OFF:
        return False
    raise ConfigError(f"Parameter '{name}' expects 'on' or 'off'")


def parse_number(name: str, text: str) -> int:
    """Return a number in decimal, hexadecimal after ``0x``, or octal after ``0``, from 0 to 2^64-1."""
    number = read_number(text)
    if number is None or number < 0:
        raise ConfigError(f"Parameter '{name}' expects a number")
    if number > UINT64_MAX:
        raise ConfigError(f"Value '{text}' is too large for parameter '{name}'")
    return number


def parse_size(name: str, text: str, unit: str = "B") -> int:
    """Return a size in bytes: a number, fractions allowed, with a suffix k, M, G, T, P or E; without one in `unit`."""
    size = read_size(text, unit)
    if size is None:
        raise ConfigError(
            f"Parameter '{name}' expects a non-negative number below 2^64 (optional suffix k, M, G, T, P or E)"
        )
    if size > UINT64_MAX:
        raise ConfigError(f"Value '{text}' is out of range for parameter '{name}'")
    return size


def parse_uuid(text: str) -> str:
    """Return a UUID in its usual form, in lower case; raises ConfigError for any other form."""
    parts = text.split("-")
    if [len(part) for part in parts] != [8, 4, 4, 4, 12] or not set("".join(parts)) <= set("0123456789abcdefABCDEF"):
        raise ConfigError("Invalid UUID")
    return text.lower()


def is_identifier(text: str) -> bool:
    """Whether `text` can be the ID of a device, back end or drive."""
    return bool(text) and text[0].isascii() and text[0].isalpha() and _ID_CHARACTERS.issuperset(text)


def parse_identifier(name: str, text: str) -> str:
    """Return `text` where it can be an ID."""
    if not is_identifier(text):
        raise ConfigError(
            f"Parameter '{name}' expects an identifier (letters, digits, '-', '.', '_', starting with a letter)"
        )
    return text


def parse_json_object(text: str) -> dict[str, Value]:
    """Return the JSON object that `text` is, refusing duplicate keys and anything after it."""
    import json

    def unique(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ConfigError("JSON parse error, duplicate key")
        return members

    try:
        value, end = json.JSONDecoder(object_pairs_hook=unique).raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"JSON parse error, {getattr(error, 'msg', 'too deeply nested')}") from None
    if text[end:].strip():
        raise ConfigError("Expecting at most one JSON value")
    if not isinstance(value, dict):
        raise ConfigError("Expecting a JSON object")
    return value


class Options:
    """The parameters of one option, in the order given; of a key given twice the last counts."""

    __slots__ = ("group", "origin", "pairs", "typed")

    def __init__(self, group: Group, origin: str, pairs: list[tuple[str, Value]], *, typed: bool = False) -> None:
        self.group = group
        self.origin = origin
        """The option as typed, e.g. ``-m 512``; errors begin with it."""
        self.pairs = pairs
        self.typed = typed
        """Whether the values came from JSON and so have types of their own."""

    def error(self, message: str) -> ConfigError:
        """Return an error that names this option."""
        return ConfigError(f"{self.origin}: {message}" if self.origin else message)

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.pairs)

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return iter(self.pairs)

    def get(self, name: str) -> Value:
        """Return the value as given, or None where there is none."""
        for key, value in reversed(self.pairs):
            if key == name:
                return value
        return None

    def values(self, name: str) -> list[Value]:
        """Return all values given for `name`."""
        return [value for key, value in self.pairs if key == name]

    def string(self, name: str) -> str | None:
        """Return a value as text, or None where there is none."""
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.error(f"Invalid parameter type for '{name}', expected: string")

    def required(self, name: str) -> str:
        """Return a value as text; it is an error where there is none."""
        value = self.string(name)
        if value is None:
            raise self.error(f"Parameter '{name}' is missing")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """Return a value as a boolean, or `default` where there is none."""
        return bool(self._converted(name, default, bool, "boolean", lambda text: parse_boolean(name, text)))

    def number(self, name: str, default: int = 0, *, high: int = UINT64_MAX) -> int:
        """Return a value as a number from 0 to `high`, or `default` where there is none."""
        number = int(self._converted(name, default, int, "integer", lambda text: parse_number(name, text)))
        if name in self and not 0 <= number <= high:
            raise self.error(f"Parameter '{name}' expects a number from 0 to {high}")
        return number

    def size(self, name: str, default: int = 0, *, unit: str = "B") -> int:
        """Return a value as a size in bytes, or `default` where there is none."""
        size = int(self._converted(name, default, int, "integer", lambda text: parse_size(name, text, unit)))
        if not 0 <= size <= UINT64_MAX:
            raise self.error(f"Parameter '{name}' expects a non-negative number below 2^64")
        return size

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """Return a value that is one of `choices`, or `default` where there is none."""
        value = self.string(name)
        if value is None:
            return default
        if value not in choices:
            raise self.error(f"Parameter '{name}' does not accept value '{value}'")
        return value

    def identifier(self, name: str = "id") -> str | None:
        """Return a value that can be an ID, or None where there is none."""
        value = self.string(name)
        if value is None:
            return None
        return str(self.checked(lambda: parse_identifier(name, value)))

    def checked(self, convert: Callable[[], Any]) -> Any:
        """Return what `convert` returns; its ConfigError gets this option in front."""
        try:
            return convert()
        except ConfigError as error:
            raise self.error(str(error)) from None

    def _converted(self, name: str, default: Any, kind: type, expected: str, parse: Callable[[str], Any]) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, str) and not self.typed:
            return self.checked(lambda: parse(value))
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"Invalid parameter type for '{name}', expected: {expected}")
        return value

    @property
    def asks_for_help(self) -> bool:
        """Whether the word ``help`` stands among the parameters."""
        return any(key in HELP_WORDS for key, _ in self.pairs)

    def set(self, name: str, value: Value) -> None:
        """Give `name` another value, as ``-set`` does."""
        self.pairs.append((self.group.aliases.get(name, name), value))
        self.check()

    def merge(self, other: Options) -> None:
        """Take over the parameters of a later use of the same option."""
        self.pairs.extend(other.pairs)
        self.origin = other.origin

    def check(self) -> None:
        """Refuse names that the group does not have, and values that are not of their kind."""
        parameters = self.group.parameters
        if parameters is None:
            return
        for key, _ in self.pairs:
            kind = parameters.get(key)
            if key == "id" and kind is None and not self.group.strict:
                kind = "string"
            if kind is None:
                raise self.error(f"Invalid parameter '{key}'")
            if kind == "boolean":
                self.boolean(key)
            elif kind == "number":
                self.number(key)
            elif kind == "size":
                self.size(key)
            else:
                self.string(key)
        if not self.group.strict:
            self.identifier()

    def nested(self) -> dict[str, Value]:
        """Return the parameters as a structure: ``a.b=1,c.0=2`` is {"a": {"b": "1"}, "c": ["2"]}."""
        if self.typed:
            return dict(self.pairs)
        root: dict[str, Any] = {}
        for key, value in self.pairs:
            self._place(root, key, value)
        return {key: _as_lists(value) for key, value in root.items()}

    def _place(self, root: dict[str, Any], key: str, value: Value) -> None:
        parts = key.split(".")
        if not all(parts) or len(key) > _KEY_LIMIT:
            raise self.error(f"Invalid parameter '{key}'")
        node = root
        for depth, part in enumerate(parts[:-1], 1):
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise self.error(f"Parameters '{'.'.join(parts[:depth])}.*' used inconsistently")
            node = child
        if isinstance(node.get(parts[-1]), dict) and not isinstance(value, dict):
            raise self.error(f"Parameters '{key}.*' used inconsistently")
        node[parts[-1]] = value


def _as_lists(node: Any) -> Any:
    """Turn dicts whose keys are 0, 1, 2 ... into lists, all the way down."""
    if not isinstance(node, dict):
        return node
    members = {key: _as_lists(value) for key, value in node.items()}
    if members and set(members) == {str(index) for index in range(len(members))}:
        return [members[str(index)] for index in range(len(members))]
    return members


def _short_boolean(group: Group, origin: str, key: str) -> tuple[str, str]:
    """Return the pair that a key without a value means in `group`."""
    if key in HELP_WORDS:
        return key, "on"
    if group.strict:
        raise ConfigError(f"{origin}: Expected '=' after parameter '{key}'")
    name, value = (key[2:], "off") if key.startswith("no") else (key, "on")
    warn(f"{origin}: warning: short-form boolean option '{key}' deprecated; please use {name}={value} instead")
    return name, value


def parse(group: Group, text: str, origin: str = "") -> Options:
    """Return the parameters in `text`, which is ``key=value,...`` or a JSON object, checked against `group`.

    `origin` is the option as the user typed it.  Raises ConfigError.
    """
    if text.startswith("{"):
        options = Options(group, origin, [], typed=True)
        options.pairs = list(options.checked(lambda: parse_json_object(text)).items())
    else:
        pairs = split_pairs(text, group.implied, short=lambda key: _short_boolean(group, origin, key))
        options = Options(group, origin, [(group.aliases.get(key, key), value) for key, value in pairs])
    if options.typed or not options.asks_for_help:
        options.check()
    return options
