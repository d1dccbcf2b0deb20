"""Secrets: what `-object secret` holds, for passwords and keys that must not be on the command line.

A secret is given as data or in a file, raw or in base64, and may itself be encrypted (AES-256 in CBC mode, PKCS #7
padding) with another secret, the master key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pyvm.annotations import Any
from pyvm.errors import ConfigError

PROPERTIES = ("data", "file", "format", "keyid", "iv")
"""Of the object; all are strings."""
_FORMATS = ("raw", "base64")
_MOST = 1 << 20
_KEY_BYTES = 32
_BLOCK = 16
_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


class Secrets:
    """All secrets of a program by the ID of their object."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytes] = {}
        self.credentials: dict[str, object] = {}
        """Objects of the `tls-creds` types, in programs that have no other place for them."""

    def add(self, identifier: str, properties: Mapping[str, Any]) -> None:
        """Take in a secret, and read its file.  Raises ConfigError."""
        given = {name: str(value) for name, value in properties.items()}
        kind = given.get("format", "raw")
        if kind not in _FORMATS:
            raise ConfigError(f"Parameter 'format' does not accept value '{kind}'")
        content = _content(given)
        if "keyid" in given:
            if kind == "base64":
                content = _decode(content)
            self._secrets[identifier] = _decrypt(content, self.find(given["keyid"]), given.get("iv"))
        else:
            self._secrets[identifier] = _decode(content) if kind == "base64" else content

    def remove(self, identifier: str) -> None:
        """Forget a secret, if there is such a one."""
        self._secrets.pop(identifier, None)

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._secrets

    def find(self, identifier: str) -> bytes:
        """Return a secret.  Raises ConfigError."""
        found = self._secrets.get(identifier)
        if found is None:
            raise ConfigError(f"No secret with id '{identifier}'")
        return found

    def find_text(self, identifier: str) -> bytes:
        """Return a secret that has to be text, in UTF-8.  Raises ConfigError."""
        found = self.find(identifier)
        try:
            found.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"Data from secret {identifier} is not valid UTF-8") from None
        return found


def _content(given: Mapping[str, str]) -> bytes:
    """Return what is in the properties or the file, as it is there."""
    if "file" in given and "data" in given:
        raise ConfigError("'file' and 'data' are mutually exclusive")
    if "data" in given:
        return given["data"].encode("utf-8", "surrogateescape")
    if "file" not in given:
        raise ConfigError("Either 'file' or 'data' must be provided")
    path = given["file"]
    doing = "Failed to open file"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        doing = "Error reading file"
        try:
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(_MOST + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"Unable to read {path}: {doing} \u201c{path}\u201d: {reason}") from None
    if len(content) > _MOST:
        raise ConfigError(f"Unable to read {path}: a secret has at most {_MOST} bytes")
    return content


def _decode(text: bytes) -> bytes:
    import binascii

    if not _BASE64.issuperset(text):
        raise ConfigError("Base64 data contains invalid characters")
    try:
        return binascii.a2b_base64(text)
    except binascii.Error:
        raise ConfigError("Base64 data is not complete") from None


def _decrypt(content: bytes, key: bytes, vector_text: str | None) -> bytes:
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"Key should be {_KEY_BYTES} bytes in length")
    if vector_text is None:
        raise ConfigError("IV is required to decrypt secret")
    vector = _decode(vector_text.encode("utf-8", "surrogateescape"))
    if len(vector) != _BLOCK:
        raise ConfigError(f"IV should be {_BLOCK} bytes in length not {len(vector)}")
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
    except ImportError:
        raise ConfigError("Encrypted secrets need the Python package 'cryptography' (pip install 'pyvm[luks]')") from (
            None
        )
    if not content or len(content) % _BLOCK:
        raise ConfigError(f"Length {len(content)} must be a multiple of block size {_BLOCK}")
    decryptor = Cipher(AES(key), modes.CBC(vector)).decryptor()
    plain = decryptor.update(content) + decryptor.finalize()
    padding = plain[-1]
    if not 1 <= padding <= _BLOCK:
        raise ConfigError(f"Incorrect number of padding bytes ({padding}) found on decrypted data")
    return plain[:-padding]
