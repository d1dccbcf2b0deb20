"""The options of ``pyvm-nbd``, checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pyvm.records import field, record
from pyvm.tools.img.arguments import CACHE_MODES, Arguments, Cache, scan
from pyvm.tools.img.errors import ImgError, UsageError

SHORT = "hVb:o:p:k:e:f:tl:x:D:AB:Lrsc:dvnT:"
LONG = {
    "version": "V", "bind": "b=", "offset": "o=", "port": "p=", "socket": "k=", "shared": "e=", "format": "f=",
    "persistent": "t", "load-snapshot": "l=", "export-name": "x=", "description": "D=", "allocation-depth": "A",
    "bitmap": "B=", "list": "L", "read-only": "r", "snapshot": "s", "connect": "c=", "disconnect": "d",
    "verbose": "v", "nocache": "n", "trace": "T=", "cache": "cache=", "aio": "aio=", "discard": "discard=",
    "detect-zeroes": "detect-zeroes=", "image-opts": "image-opts", "object": "object=", "fork": "fork",
    "pid-file": "pid-file=", "tls-creds": "tls-creds=", "tls-hostname": "tls-hostname=", "tls-authz": "tls-authz=",
    "selinux-label": "selinux-label=",
}  # fmt: skip
DEFAULT_PORT = "10809"
_REFUSED = {
    "c": "--connect: the NBD client of the kernel is not supported by pyvm",
    "d": "--disconnect: the NBD client of the kernel is not supported by pyvm",
    "selinux-label": "--selinux-label is not supported by pyvm",
}
_PER_DEVICE = ("x", "D", "o", "c", "d", "f", "l", "B", "A", "aio", "discard", "cache", "n")
_DISCARD = {"ignore": False, "off": False, "unmap": True, "on": True}
_SIZE = re.compile(r"(?:0[xX][0-9a-fA-F]+|[0-9]+)")


@record
class NbdSettings:
    """What ``pyvm-nbd`` is to do."""

    file: str = ""
    listing: bool = False
    bind: str | None = None
    port: str | None = None
    socket: str | None = None
    shared: int = 1
    """How many clients there may be at a time; 0: any number."""
    persistent: bool = False
    verbose: bool = False
    name: str = ""
    description: str | None = None
    bitmaps: list[str] = field(default_factory=list)
    allocation_depth: bool = False
    format: str | None = None
    image_opts: bool = False
    read_only: bool = False
    snapshot: bool = False
    """Whether what clients write goes to a temporary file."""
    load_snapshot: str | None = None
    offset: int = 0
    cache: Cache = field(default_factory=Cache)
    aio: str | None = None
    discard: bool = False
    detect_zeroes: str = "off"
    fork: bool = False
    pid_file: str | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    tls_authz: str | None = None
    objects: list[Any] = field(default_factory=list)
    trace: str | None = None


def read(argv: Sequence[str]) -> NbdSettings | None:
    """Return what the arguments say; None for the version.  Raises ImgError, HelpAsked and ConfigError."""
    arguments = scan(argv, SHORT, LONG)
    if "V" in arguments:
        return None
    for option, text in _REFUSED.items():
        if option in arguments:
            raise ImgError(text)
    settings = NbdSettings(listing="L" in arguments)
    _read_image(arguments, settings)
    _read_server(arguments, settings)
    _read_security(arguments, settings)
    if settings.listing:
        _check_listing(arguments)
    elif len(arguments.operands) != 1:
        raise UsageError("Invalid number of arguments")
    else:
        settings.file = arguments.operands[0]
    return settings


def _read_image(arguments: Arguments, settings: NbdSettings) -> None:
    settings.format = arguments.get("f")
    settings.image_opts = "image-opts" in arguments
    if settings.image_opts and settings.format is not None:
        raise ImgError("--image-opts and -f are mutually exclusive")
    settings.load_snapshot = arguments.get("l")
    settings.read_only = "r" in arguments or settings.load_snapshot is not None
    settings.snapshot = "s" in arguments
    settings.offset = _offset(arguments.get("o"))
    if len(arguments.all("cache") + arguments.all("n")) > 1:
        raise ImgError("-n and --cache can only be specified once")
    mode = "none" if "n" in arguments else arguments.get("cache") or "writeback"
    if mode not in CACHE_MODES:
        raise ImgError(f"Invalid cache mode `{mode}'")
    settings.cache = CACHE_MODES[mode]
    _once(arguments, "aio")
    settings.aio = arguments.get("aio")
    if settings.aio not in (None, "threads", "native", "io_uring"):
        raise ImgError(f"Invalid aio mode '{settings.aio}'")
    _once(arguments, "discard")
    discard = arguments.get("discard") or "ignore"
    if discard not in _DISCARD:
        raise ImgError(f"Invalid discard mode `{discard}'")
    settings.discard = _DISCARD[discard]
    settings.detect_zeroes = arguments.get("detect-zeroes") or "off"
    if settings.detect_zeroes not in ("off", "on", "unmap"):
        raise ImgError(f"Failed to parse detect_zeroes mode: invalid parameter value: {settings.detect_zeroes}")
    if settings.detect_zeroes == "unmap" and not settings.discard:
        raise ImgError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")


def _once(arguments: Arguments, name: str) -> None:
    if len(arguments.all(name)) > 1:
        raise ImgError(f"--{name} can only be specified once")


def _offset(text: str | None) -> int:
    if text is None:
        return 0
    if not _SIZE.fullmatch(text) or int(text, 0 if text[:2] in ("0x", "0X") else 10) >= 1 << 64:
        raise ImgError(f"Invalid offset '{text}'")
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _read_server(arguments: Arguments, settings: NbdSettings) -> None:
    settings.bind, settings.port, settings.socket = (arguments.get(name) for name in "bpk")
    if settings.socket is not None and not settings.socket.startswith("/"):
        raise ImgError("socket path must be absolute")
    shared = arguments.get("e")
    if shared is not None:
        if not shared.isascii() or not shared.isdigit() or int(shared) > (1 << 31) - 1:
            raise ImgError(f"Invalid shared device number '{shared}'")
        settings.shared = int(shared)
    settings.persistent = "t" in arguments
    settings.verbose = "v" in arguments
    settings.name = arguments.get("x") or ""
    settings.description = arguments.get("D")
    settings.bitmaps = arguments.all("B")
    settings.allocation_depth = "A" in arguments
    settings.fork = "fork" in arguments
    settings.pid_file = arguments.get("pid-file")
    settings.trace = arguments.get("T")


def _read_security(arguments: Arguments, settings: NbdSettings) -> None:
    settings.tls_creds, settings.tls_hostname, settings.tls_authz = (
        arguments.get(name) for name in ("tls-creds", "tls-hostname", "tls-authz")
    )
    if settings.tls_creds is None:
        if settings.tls_authz is not None:
            raise ImgError("--tls-authz is not permitted without --tls-creds")
        if settings.tls_hostname is not None:
            raise ImgError("--tls-hostname is not permitted without --tls-creds")
    if settings.listing and settings.tls_authz is not None:
        raise ImgError("TLS authorization is incompatible with export list")
    if not settings.listing and settings.tls_hostname is not None:
        raise ImgError("TLS hostname is only supported with export list")
    if "object" in arguments:
        from pyvm.commandline.groups import GROUPS
        from pyvm.commandline.objects import make_object
        from pyvm.options import parse

        settings.objects = [make_object(parse(GROUPS["object"], text, "")) for text in arguments.all("object")]


def _check_listing(arguments: Arguments) -> None:
    if arguments.operands:
        raise ImgError("List mode is incompatible with a file name")
    if any(name in arguments for name in _PER_DEVICE):
        raise ImgError("List mode is incompatible with per-device settings")
    if "fork" in arguments:
        raise ImgError("List mode is incompatible with forking")
