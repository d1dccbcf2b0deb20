"""Character device back ends as the user writes them: ``-chardev``, and the short forms of ``-serial`` and the like.

What the parameters mean is known to :mod:`pyvm.chardev.options` and :mod:`pyvm.chardev.uri`; here the option that they
stand in is added to their errors.
"""

from __future__ import annotations

from pyvm.chardev.base import ChardevError
from pyvm.chardev.options import parse_chardev
from pyvm.chardev.uri import ChardevReference, parse_uri
from pyvm.config import ChardevConfig
from pyvm.errors import ConfigError
from pyvm.options import Options, Value


def from_chardev_option(options: Options) -> ChardevConfig:
    """Return the back end that a ``-chardev`` describes."""
    try:
        return ChardevConfig(parse_chardev({key: _text(value) for key, value in options}), options.origin)
    except ChardevError as error:
        raise options.error(str(error)) from None


def from_short_form(text: str, identifier: str, origin: str, *, implicit_server: bool = False) -> ChardevConfig | str:
    """Return the back end that a short form such as ``unix:/tmp/s,server=on`` describes, or the ID it refers to."""
    try:
        parsed = parse_uri(identifier, text, implicit_server=implicit_server)
    except ChardevError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return parsed.id if isinstance(parsed, ChardevReference) else ChardevConfig(parsed, origin)


def _text(value: Value) -> str:
    """Return a value that came from JSON as ``key=value`` has it."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
