"""What a VNC display is asked to be: one record for each `-vnc`.

Error texts are QEMU's, since its clients match them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pyvm.chardev.address import InetAddress, UnixAddress
from pyvm.errors import ConfigError
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.options import Options

FIRST_PORT: Final = 5900
_LAST_DISPLAY: Final = 0xFFFF - FIRST_PORT
DEFAULT_CONNECTIONS: Final = 32
DEFAULT_KEY_DELAY: Final = 10
_UNSUPPORTED: Final = {
    "websocket": "VNC over WebSocket",
    "tls-creds": "VNC over TLS",
    "tls-authz": "VNC over TLS",
    "sasl": "VNC with SASL",
    "sasl-authz": "VNC with SASL",
    "reverse": "calling a viewer that listens",
}
SharePolicy = Literal["allow-exclusive", "force-shared", "ignore"]
_POLICIES: Final[dict[str, SharePolicy]] = {
    "allow-exclusive": "allow-exclusive",
    "force-shared": "force-shared",
    "ignore": "ignore",
}


@record(kw_only=True)
class VncOptions:
    """One display."""

    id: str
    address: InetAddress | UnixAddress | None = None
    """Where to listen; None: nowhere, until the monitor says where or hands a connection over."""
    password: bool = False
    """Whether viewers need a password, which the monitor sets."""
    password_secret: str | None = None
    """ID of the secret that is the password."""
    share: SharePolicy = "allow-exclusive"
    """Whether a viewer may have the display for itself, whether all have to share it, or whether nobody is asked."""
    connections: int = DEFAULT_CONNECTIONS
    """Most viewers, and most of those that have not got in yet."""
    key_delay_ms: int = DEFAULT_KEY_DELAY
    lock_key_sync: bool = True
    power_control: bool = False
    display: str | None = None
    """ID of the display device that is shown; None: the first."""
    head: int = 0
    origin: str = ""


def vnc_options(options: Options, identifier: str, *, audio: frozenset[str] = frozenset()) -> VncOptions:
    """Return the record of a ``-vnc``; `audio` has the IDs of audio back ends.  Raises ConfigError."""
    for name, what in _UNSUPPORTED.items():
        if options.string(name) not in (None, "off"):
            raise options.error(f"{name}: {what} is not supported by pyvm yet")
    share = _POLICIES.get(options.string("share") or "allow-exclusive")
    if share is None:
        raise options.error("unknown vnc share= option")
    secret, password = options.string("password-secret"), options.boolean("password")
    if secret is not None and "password" in options:
        raise options.error("'password' flag is redundant with 'password-secret'")
    sound = options.string("audiodev")
    if sound is not None and sound not in audio:
        raise options.error(f"Audiodev '{sound}' not found")
    for name in ("lossy", "non-adaptive"):
        options.boolean(name)  # all that is sent is exact, and chosen without measuring the line
    to = options.number("to", high=_LAST_DISPLAY) + FIRST_PORT if "to" in options else None
    return VncOptions(
        id=identifier,
        address=options.checked(lambda: vnc_address(options.string("vnc") or "", to=to, **_families(options))),
        password=password or secret is not None,
        password_secret=secret,
        share=share,
        connections=options.number("connections", DEFAULT_CONNECTIONS, high=1 << 16),
        key_delay_ms=options.number("key-delay-ms", DEFAULT_KEY_DELAY, high=1000),
        lock_key_sync=options.boolean("lock-key-sync", True),
        power_control=options.boolean("power-control"),
        display=options.string("display"),
        head=options.number("head"),
        origin=options.origin,
    )


def _families(options: Options) -> dict[str, bool | None]:
    return {name: options.boolean(name) if name in options else None for name in ("ipv4", "ipv6")}


def vnc_address(
    text: str, *, to: int | None = None, ipv4: bool | None = None, ipv6: bool | None = None
) -> InetAddress | UnixAddress | None:
    """Return the address that ``host:display``, ``unix:path`` or ``none`` means.  Raises ConfigError."""
    if text in ("", "none"):
        return None
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ConfigError("no path given for the unix socket")
        return UnixAddress(path)
    host, colon, number = text.rpartition(":")
    if not colon:
        raise ConfigError("no vnc port specified")
    if host.startswith("[") and host.endswith("]"):
        host, ipv6 = host[1:-1], ipv4 is None or ipv6
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"can't convert to a number: {number}")
    if len(number) > 5 or int(number) > _LAST_DISPLAY:
        raise ConfigError(f"port {number} out of range")
    return InetAddress(host, str(int(number) + FIRST_PORT), to=to, ipv4=ipv4, ipv6=ipv6)


def next_identifier(taken: list[str]) -> str:
    """Return the name of a display that has been given none."""
    if "default" not in taken:
        return "default"
    number = 2
    while f"vnc{number}" in taken:
        number += 1
    return f"vnc{number}"
