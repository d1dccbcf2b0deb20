"""The short form of a back end that `-serial`, `-monitor` and `-qmp` take: ``unix:PATH,server=on``, ``mon:stdio`` ...

It becomes the same records as `-chardev`.
"""

from __future__ import annotations

import re

from pyvm.chardev.base import ChardevError
from pyvm.chardev.options import ChardevOptions, parse_chardev, split_options
from pyvm.records import record

_PLAIN = ("null", "pty", "stdio")
_TCP = re.compile(r"(?P<host>\[[^\],]*\]|[^:,]{0,255}):(?P<port>[^,]{1,32})", re.DOTALL)
_UDP_HALF = r"(?P<{0}>\[[^\],@]*\]|[^:,@]{{0,255}}):(?P<{0}port>[^@,]{{1,32}})"
_UDP = re.compile(_UDP_HALF.format("host") + "(?:@" + _UDP_HALF.format("local") + ")?", re.DOTALL)
_VC = re.compile(r"vc(:\d+C?x\d+C?)?(,|\Z)", re.ASCII)


@record(frozen=True)
class ChardevReference:
    """``chardev:ID``: a device that `-chardev` makes."""

    id: str


def parse_uri(
    label: str, text: str, *, allow_mux: bool = True, implicit_server: bool = False
) -> ChardevOptions | ChardevReference:
    """Turn `text` into the record of a back end called `label`; raises ChardevError.

    `allow_mux` permits ``mon:``, which shares the back end with the monitor.  For `implicit_server` see
    :func:`pyvm.chardev.options.parse_chardev`.
    """
    if text.startswith("chardev:"):
        return ChardevReference(text.removeprefix("chardev:"))
    values = {"id": label}
    if text.startswith("mon:") and allow_mux:
        text = text.removeprefix("mon:")
        values["mux"] = "on"
        if text == "stdio":
            values["signal"] = "off"  # the terminal is the guest's too, and there Ctrl-C does not end pyvm
    given = _values(text)
    if given is None:
        raise ChardevError(f"'{text}' is not a valid char driver")
    return parse_chardev(given | values, implicit_server=implicit_server)


def _values(text: str) -> dict[str, str] | None:
    """Return the `-chardev` options that mean the same, None where `text` is no known form."""
    if text in _PLAIN:
        return {"backend": text}
    if text.startswith("/dev/"):
        return {"backend": "serial", "path": text}
    kind, separator, rest = text.partition(":")
    if _VC.match(text):
        return {"backend": "vc"}
    if not separator:
        return None
    match kind:
        case "file" | "pipe":
            return {"backend": kind, "path": rest}
        case "unix":
            return _with_options("path", rest)
        case "tcp" | "telnet" | "websocket" | "tn3270":
            return _inet(kind, rest)
        case "udp":
            return _udp(rest)
    return None


def _with_options(first: str, rest: str) -> dict[str, str]:
    given = split_options(rest, first)
    for name in ("id", "backend", "mux"):
        if name in given:
            raise ChardevError(f"Invalid parameter '{name}'")
    return {"backend": "socket"} | given


def _inet(kind: str, rest: str) -> dict[str, str]:
    found = _TCP.match(rest)
    if found is None or rest[found.end() : found.end() + 1] not in ("", ","):
        raise ChardevError("chardev: socket: no port given")
    values = _with_options("", rest[found.end() + 1 :]) if found.end() < len(rest) else {"backend": "socket"}
    values |= {"host": _bare(found["host"]), "port": found["port"]}
    if kind != "tcp":
        values[kind] = "on"
    return values


def _udp(rest: str) -> dict[str, str]:
    found = _UDP.fullmatch(rest)
    if found is None:
        raise ChardevError("chardev: udp: remote port not specified")
    values = {"backend": "udp", "host": _bare(found["host"]), "port": found["hostport"]}
    if found["localport"] is not None:
        values |= {"localaddr": _bare(found["local"]), "localport": found["localport"]}
    return values


def _bare(host: str) -> str:
    """Return an IPv6 address without its brackets."""
    return host.removeprefix("[").removesuffix("]")
