"""Secrets: where they come from, how they are encoded, and what is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.errors import ConfigError
from pyvm.secrets import Secrets


def refused(properties, secrets=None):
    with pytest.raises(ConfigError) as caught:
        (secrets or Secrets()).add("s", properties)
    return str(caught.value)


def test_data_raw_and_base64(tmp_path):
    secrets = Secrets()
    secrets.add("a", {"data": "hällo"})
    secrets.add("b", {"data": "aGVs\nbG8=", "format": "base64"})
    path = tmp_path / "key"
    path.write_bytes(b"\0binary\xff")
    secrets.add("c", {"file": str(path), "format": "raw"})
    assert secrets.find("a") == "hällo".encode()
    assert secrets.find_text("b") == b"hello"
    assert secrets.find("c") == b"\0binary\xff"
    assert "a" in secrets
    secrets.remove("a")
    assert "a" not in secrets
    secrets.remove("a")


def test_what_is_not_there_or_no_text(tmp_path):
    secrets = Secrets()
    secrets.add("c", {"data": base64.b64encode(b"\x80").decode(), "format": "base64"})
    with pytest.raises(ConfigError, match="Data from secret c is not valid UTF-8"):
        secrets.find_text("c")
    with pytest.raises(ConfigError, match="No secret with id 'x'"):
        secrets.find("x")


def test_refused(tmp_path):
    assert refused({}) == "Either 'file' or 'data' must be provided"
    assert refused({"data": "a", "file": "b"}) == "'file' and 'data' are mutually exclusive"
    assert refused({"data": "a", "format": "hex"}) == "Parameter 'format' does not accept value 'hex'"
    assert refused({"data": "!!", "format": "base64"}) == "Base64 data contains invalid characters"
    assert refused({"data": "abc", "format": "base64"}) == "Base64 data is not complete"
    missing = tmp_path / "no"
    for path, why in (
        (missing, f"Failed to open file \u201c{missing}\u201d: No such file or directory"),
        (tmp_path, f"Error reading file \u201c{tmp_path}\u201d: Is a directory"),
    ):
        assert refused({"file": str(path)}) == f"Unable to read {path}: {why}"
    assert "Unable to read" in refused({"file": "a\0b"})
    large = tmp_path / "large"
    large.write_bytes(bytes((1 << 20) + 1))
    assert refused({"file": str(large)}).endswith("a secret has at most 1048576 bytes")


def encrypted(key: bytes, vector: bytes, plain: bytes) -> bytes:
    modes = pytest.importorskip("cryptography.hazmat.primitives.ciphers.modes")
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    context = Cipher(AES(key), modes.CBC(vector)).encryptor()
    return context.update(plain) + context.finalize()


def test_encrypted_with_another_secret():
    key, vector = bytes(range(32)), bytes(range(16))
    secrets = Secrets()
    secrets.add("master", {"data": base64.b64encode(key).decode(), "format": "base64"})
    secrets.add("short", {"data": "short"})
    iv = base64.b64encode(vector).decode()
    data = base64.b64encode(encrypted(key, vector, b"123456" + bytes([10]) * 10)).decode()
    secrets.add("s", {"data": data, "format": "base64", "keyid": "master", "iv": iv})
    assert secrets.find("s") == b"123456"
    common = {"format": "base64", "keyid": "master", "iv": iv}
    assert refused({**common, "data": data, "keyid": "no"}, secrets) == "No secret with id 'no'"
    assert refused({**common, "data": data, "keyid": "short"}, secrets) == "Key should be 32 bytes in length"
    assert refused({"data": data, "keyid": "master"}, secrets) == "IV is required to decrypt secret"
    assert refused({**common, "data": data, "iv": "AAA="}, secrets) == "IV should be 16 bytes in length not 2"
    assert refused({**common, "data": "aGVsbG8="}, secrets) == "Length 5 must be a multiple of block size 16"
    bad = base64.b64encode(encrypted(key, vector, bytes(15) + b"\x20")).decode()
    expected = "Incorrect number of padding bytes (32) found on decrypted data"
    assert refused({**common, "data": bad}, secrets) == expected


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["data", "format", "keyid", "iv"]), st.text(max_size=20), max_size=4))
def test_anything_is_taken_or_refused(properties):
    secrets = Secrets()
    secrets.add("k", {"data": "12345678901234567890123456789012"})
    if properties.get("keyid"):
        properties["keyid"] = "k"
    try:
        secrets.add("s", properties)
    except ConfigError:
        assert "s" not in secrets
    else:
        assert isinstance(secrets.find("s"), bytes)
