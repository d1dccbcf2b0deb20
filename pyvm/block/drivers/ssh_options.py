"""Options and file names of the SSH driver: ``ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=CHECK]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from pyvm.block.errors import BlockError
from pyvm.block.options import Dialect, Option, convert

DEFAULT_PORT = "22"
HASHES = ("md5", "sha1", "sha256")
CheckMode = Literal["none", "hash", "known_hosts"]
_SERVER = {
    "host": Option(required=True),
    "port": Option(required=True),
    "ipv4": Option("boolean"),
    "ipv6": Option("boolean"),
    "keep-alive": Option("boolean"),
}
_CHECK = {"mode": Option(choices=("none", "hash", "known_hosts")), "type": Option(choices=HASHES), "hash": Option()}
_HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class HostKeyCheck:
    """How the key of the server is checked: not at all, by its hash, or by the person's known_hosts file."""

    mode: CheckMode = "known_hosts"
    kind: str = ""
    """The hash function."""
    digest: str = ""
    """The hash, as lower-case hexadecimal digits."""

    @property
    def text(self) -> str:
        """How it stands in a file name."""
        return {"none": "no", "known_hosts": "yes"}.get(self.mode, f"{self.kind}:{self.digest}")


@dataclass(frozen=True)
class RemoteFile:
    """A file, and how to get to it."""

    host: str
    port: int
    path: str
    user: str | None = None
    check: HostKeyCheck = HostKeyCheck()
    family: Literal["any", "ipv4", "ipv6"] = "any"

    @property
    def filename(self) -> str:
        """The name that opens it."""
        user = f"{quote(self.user)}@" if self.user is not None else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = self.path if self.path.startswith("/") else f"/{self.path}"
        check = f"?host_key_check={self.check.text}" if self.check.mode != "known_hosts" else ""
        return f"ssh://{user}{host}:{self.port}{quote(path)}{check}"


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that a file name stands for.  Raises BlockError."""
    try:
        url = urlsplit(name)
        port = url.port
        query = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError:
        raise BlockError("invalid URI") from None
    if url.scheme != "ssh":
        raise BlockError("URI scheme must be 'ssh'")
    if not url.hostname:
        raise BlockError("missing hostname in URI")
    if not url.path:
        raise BlockError("missing remote path in URI")
    own: dict[str, Any] = {"host": unquote(url.hostname), "port": str(port or DEFAULT_PORT), "path": unquote(url.path)}
    if url.username:
        own["user"] = unquote(url.username)
    for key, value in query:
        if key == "host_key_check":
            own["host_key_check"] = value
    return own


def find_file(own: dict[str, Any]) -> RemoteFile:
    """Return what the options say.  Raises BlockError."""
    host, port, family = _find_server(own)
    path = own.get("path")
    if path is None:
        raise BlockError("Parameter 'path' is missing")
    return RemoteFile(host, port, path, own.get("user"), _find_check(own), family)


def _find_server(own: dict[str, Any]) -> tuple[str, int, Literal["any", "ipv4", "ipv6"]]:
    family: Literal["any", "ipv4", "ipv6"] = "any"
    if "server" in own:
        if "host" in own or "port" in own:
            raise BlockError("'server' and host/port cannot be used at the same time")
        server = _structure(own["server"], "server", _SERVER)
        for key in ("host", "port"):
            if key not in server:
                raise BlockError(f"Parameter 'server.{key}' is missing")
        host, port = server["host"], server["port"]
        ipv4, ipv6 = server.get("ipv4"), server.get("ipv6")
        if ipv4 is not ipv6:
            family = "ipv4" if ipv4 or ipv6 is False else "ipv6"
    elif "host" in own:
        host, port = own["host"], own.get("port", DEFAULT_PORT)
    else:
        raise BlockError("Parameter 'server' is missing")
    if not (port.isascii() and port.isdigit()):
        raise BlockError("Parameter 'port' expects a number")
    if len(port) > 5 or not 0 < int(port) < 1 << 16:
        raise BlockError(f"'{port}' is not a port number")
    return host, int(port), family


def _structure(given: Any, name: str, members: dict[str, Option]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BlockError(f"Invalid parameter type for '{name}', expected: object")
    values = {}
    for key, value in given.items():
        if key not in members:
            raise BlockError(f"Parameter '{key}' is unexpected")
        option = members[key]
        if option.choices and value not in option.choices:
            raise BlockError(f"Parameter '{key}' does not accept value '{value}'")
        values[key] = convert(value, option, Dialect.DRIVE, f"{name}.{key}", key)
    return values


def _find_check(own: dict[str, Any]) -> HostKeyCheck:
    text = own.get("host_key_check")
    if "host-key-check" in own:
        if text is not None:
            raise BlockError("'host-key-check' and 'host_key_check' cannot be used at the same time")
        given = _structure(own["host-key-check"], "host-key-check", _CHECK)
        mode: CheckMode | None = given.get("mode")
        if mode is None:
            raise BlockError("Parameter 'host-key-check.mode' is missing")
        if mode != "hash":
            return HostKeyCheck(mode)
        for key in ("type", "hash"):
            if key not in given:
                raise BlockError(f"Parameter 'host-key-check.{key}' is missing")
        return _hash_check(given["type"], given["hash"])
    if text in (None, "yes"):
        return HostKeyCheck()
    if text == "no":
        return HostKeyCheck("none")
    kind, colon, digest = str(text).partition(":")
    if not colon or kind not in HASHES:
        raise BlockError(f"unknown host_key_check setting ({text})")
    return _hash_check(kind, digest)


def _hash_check(kind: str, digest: str) -> HostKeyCheck:
    digits = digest.replace(":", "").lower()
    if not digits or not _HEXADECIMAL.issuperset(digits):
        raise BlockError(f"the hash of the host key has to be hexadecimal digits: '{digest}'")
    return HostKeyCheck("hash", kind, digits)
