"""Numbers as they are typed, and sizes and times as they are shown."""

from __future__ import annotations

from pyvm.sizes import INT64_MAX, read_number, read_size

MAX_REQUEST = 2147483136
"""Most bytes of one request: whole sectors below 2 GiB."""
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


class CommandError(Exception):
    """A command failed.  The text, where there is one, is for the person at the prompt."""


class Usage(CommandError):  # noqa: N818 - it is what is shown
    """The arguments are wrong: how the command is used is shown."""


def take_size(text: str) -> int:
    """Return an offset or length: a number, with fractions before a suffix k, M, G, T, P or E.  Raises CommandError."""
    size = None if text.startswith(".") else read_size(text)
    if size is None:
        raise CommandError(f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
    if size > INT64_MAX:
        raise CommandError(f"Parsing error: argument too large -- {text}")
    return size


def take_pattern(text: str) -> int:
    """Return the value of a byte.  Raises CommandError."""
    value = read_number(text)
    if value is None or not 0 <= value <= 255:
        raise CommandError(f"{text} is not a valid pattern byte")
    return value


def show_size(value: float) -> str:
    """Return a number of bytes for people: in the largest unit of which there is at least one."""
    shift = 0
    while shift < len(_UNITS) and value >= 1 << (10 * (shift + 1)):
        shift += 1
    text = f"{value / (1 << 10 * shift):.3f}" if shift else f"{value:f}"
    unit = _UNITS[shift - 1] if shift else "bytes"
    return f"{text.partition('.000')[0] if '.000' in text else text} {unit}"


def show_time(seconds: float, *, full: bool = False) -> str:
    """Return a time for people, or with `full` one that programs can read."""
    total, hundredths = divmod(round(seconds * 100), 100)
    hours, rest = divmod(total, 3600)
    minutes, whole = divmod(rest, 60)
    if full or hours:
        return f"{hours}:{minutes:02}:{whole:02}.{hundredths:02}"
    if minutes:
        return f"{minutes:02}:{whole:02}.{hundredths:02}"
    return f"{whole:02}.{hundredths:02} sec"
