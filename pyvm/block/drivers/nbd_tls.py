"""TLS for NBD connections, on either side, by Python's *ssl* module.

The credentials are those of a `tls-creds-x509` object: names of PEM files in a folder.  A socket that encrypts may be
sent to by one thread while another receives, which OpenSSL by itself does not allow: it works on memory here, one
thread at a time, and the waiting happens outside.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Protocol

from pyvm.block.drivers.nbd_stream import ConnectionLost
from pyvm.block.errors import BlockError
from pyvm.block.vectors import Buffers
from pyvm.errors import ConfigError
from pyvm.secrets import Secrets

_RECEIVE = 256 << 10
_MOST_WAITS = 64
"""How often a handshake waits for bytes."""
_RECORDS = 256 << 10
"""How much is encrypted at a time, before it is sent."""
_SHORT_NAMES = {
    "commonName": "CN", "countryName": "C", "localityName": "L", "stateOrProvinceName": "ST", "organizationName": "O",
    "organizationalUnitName": "OU", "streetAddress": "STREET", "domainComponent": "DC", "userId": "UID",
    "emailAddress": "EMAIL",
}  # fmt: skip
"""How RFC 4514 abbreviates the types that make up a distinguished name."""


class Credentials(Protocol):
    """What is needed of a `tls-creds-*` object."""

    type: str
    id: str
    values: dict[str, Any]
    files: dict[str, str]


def check_credentials(found: object, name: str, endpoint: str) -> Credentials:
    """Return an object as credentials for one side, ``server`` or ``client``.  Raises BlockError."""
    if found is None:
        raise BlockError(f"No TLS credentials with id '{name}'")
    kind = getattr(found, "type", "")
    if not kind.startswith("tls-creds-"):
        raise BlockError(f"Object with id '{name}' is not TLS credentials")
    credentials: Credentials = found  # type: ignore[assignment]
    if credentials.values["endpoint"] != endpoint:
        raise BlockError(f"Expected TLS credentials for a {endpoint} endpoint")
    if kind != "tls-creds-x509":
        raise BlockError(f"'{kind}' is not supported by pyvm yet: NBD connections are encrypted with certificates only")
    return credentials


def make_context(credentials: Credentials, secrets: Secrets) -> ssl.SSLContext:
    """Return what certificates are checked with, and proven by.  Raises BlockError."""
    values, files = credentials.values, credentials.files
    is_server = values["endpoint"] == "server"
    side = "server" if is_server else "client"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if values["verify-peer"] else ssl.CERT_NONE
    path = files["ca-cert.pem"]
    try:
        password = secrets.find(values["passwordid"]) if values.get("passwordid") else b""
        context.load_verify_locations(path)
        if f"{side}-cert.pem" in files and f"{side}-key.pem" in files:
            path = files[f"{side}-cert.pem"]
            context.load_cert_chain(path, files[f"{side}-key.pem"], password=lambda: password)
        if "ca-crl.pem" in files:
            path = files["ca-crl.pem"]
            context.load_verify_locations(path)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        if is_server and "dh-params.pem" in files:
            path = files["dh-params.pem"]
            context.load_dh_params(path)
    except ConfigError as error:
        raise BlockError(str(error)) from None
    except (OSError, ValueError) as error:
        raise BlockError(f"Unable to import certificate {path}: {_reason(error)}") from None
    return context


def client_wrap(
    found: object, name: str, secrets: Secrets, hostname: str | None
) -> Callable[[socket.socket], TlsSocket]:
    """Return what encrypts a client's connections with the credentials `found` under a name.  Raises BlockError.

    The server's certificate must be `hostname`'s, where one is given.
    """
    context = make_context(check_credentials(found, name, "client"), secrets)
    verify = hostname if context.verify_mode is ssl.CERT_REQUIRED else None
    return lambda sock: TlsSocket(sock, context, verify)


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


class TlsSocket:
    """A socket that encrypts.  The handshake happens here; raises ConnectionLost, and BlockError where it fails."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, hostname: str | None = None) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._lock = threading.Lock()
        """Guards what OpenSSL knows."""
        self._order = threading.Lock()
        """Keeps what was encrypted in its order."""
        is_server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, is_server, hostname or None)
        self._buffer = bytearray(_RECEIVE)
        try:
            self._shake_hands()
            if hostname and not is_server:
                self._check_name(hostname)
        except ssl.SSLError as error:
            self._push()
            raise BlockError(f"TLS handshake failed: {_reason(error)}") from None

    def _shake_hands(self) -> None:
        for _ in range(_MOST_WAITS):
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._push()
                if not self._pull():
                    raise ConnectionLost("the connection was closed in the middle of the TLS handshake") from None
            else:
                self._push()
                return
        raise ConnectionLost("the TLS handshake comes drop by drop")

    def _check_name(self, hostname: str) -> None:
        """Raise BlockError unless the certificate is the one of `hostname`."""
        certificate = self._ssl.getpeercert() or {}
        names = [it[1] for it in certificate.get("subjectAltName", ()) if it[0] in ("DNS", "IP Address")]
        names = names or [value for kind, value in _subject(certificate) if kind == "commonName"]
        if not any(_names(str(name), hostname) for name in names):
            raise BlockError(f"Certificate does not match the hostname {hostname}")

    @property
    def identity(self) -> str:
        """The name in the other side's certificate, its parts as RFC 4514 writes them but in their order."""
        subject = _subject(self._ssl.getpeercert() or {})
        return ",".join(f"{_SHORT_NAMES.get(kind, kind)}={_escape(value)}" for kind, value in subject)

    # ---- Bytes

    def _push(self) -> None:
        """Send what OpenSSL has ready."""
        with self._order:
            with self._lock:
                data = self._outgoing.read()
            if data:
                self._socket.sendall(data)

    def _pull(self) -> bool:
        """Wait for bytes, and hand them to OpenSSL; return whether there were any before the end."""
        count = self._socket.recv_into(self._buffer)
        with self._lock:
            if count:
                self._incoming.write(memoryview(self._buffer)[:count])
            else:
                self._incoming.write_eof()
        return count > 0

    def recvmsg_into(self, buffers: Buffers, ancillary: int = 0, flags: int = 0) -> tuple[int, list[Any], int, Any]:
        """Receive into the first buffer that is not empty."""
        del ancillary, flags
        target = next((buffer for buffer in buffers if len(buffer)), None)
        while target is not None:
            try:
                with self._lock:
                    count = self._ssl.read(len(target), target)
                return int(count), [], 0, None
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    self._push()
                if not self._pull():
                    break
            except ssl.SSLError as error:
                raise ConnectionLost(f"TLS: {_reason(error)}") from None
        return 0, [], 0, None

    def sendmsg(self, buffers: Buffers, ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send the buffers, or as much of them as is encrypted at a time."""
        del ancillary
        if flags & socket.MSG_DONTWAIT:
            raise BlockingIOError
        sent = 0
        with self._order:
            try:
                with self._lock:
                    for buffer in buffers:
                        if sent >= _RECORDS:
                            break
                        sent += self._ssl.write(buffer[: _RECORDS - sent]) if len(buffer) else 0
                    data = self._outgoing.read()
            except ssl.SSLError as error:
                raise ConnectionLost(f"TLS: {_reason(error)}") from None
            self._socket.sendall(data)
        return sent

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        """Set an option of the socket."""
        self._socket.setsockopt(level, name, value)

    def shutdown(self, how: int) -> None:
        """End the connection."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _subject(certificate: Any) -> list[tuple[str, str]]:
    return [(str(member[0]), str(member[1])) for part in certificate.get("subject", ()) for member in part]


def _escape(value: str) -> str:
    text = "".join(f"\\{it}" if it in ',+"\\<>;=' else it for it in value)
    if text[:1] in ("#", " "):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text


def _names(pattern: str, hostname: str) -> bool:
    """Whether a name in a certificate means the host; its first label may be a star."""
    pattern, hostname = pattern.lower().rstrip("."), hostname.lower().rstrip(".")
    if pattern.startswith("*."):
        first, dot, rest = hostname.partition(".")
        return bool(first and dot) and rest == pattern[2:]
    return pattern == hostname
