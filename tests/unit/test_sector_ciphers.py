"""Sector ciphers: against the library's own modes, and test vectors of IEEE 1619."""

from __future__ import annotations

import hashlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from pyvm.block.errors import BlockError
from pyvm.block.sector_ciphers import SECTOR, CipherSpec, SectorCipher

KEYS = {"ecb": (16, 24, 32), "cbc": (16, 24, 32), "ctr": (16, 24, 32), "xts": (32, 64)}
SPECS = [
    CipherSpec("aes", mode, iv, "sha256" if iv == "essiv" else "")
    for mode in KEYS
    for iv in ("plain", "plain64", "essiv")
]


def make_key(length: int) -> bytes:
    return bytes(range(7, 7 + length))


def make_vector(spec: CipherSpec, key: bytes, sector: int) -> bytes:
    if spec.iv == "plain":
        return (sector & 0xFFFFFFFF).to_bytes(16, "little")
    plain = sector.to_bytes(16, "little")
    if spec.iv == "plain64":
        return plain
    context = Cipher(AES(hashlib.sha256(key).digest()), modes.ECB()).encryptor()
    return context.update(plain)


def reference(spec: CipherSpec, key: bytes, sector: int, data: bytes) -> bytes:
    """Encrypt sector by sector with the library's modes."""
    found = b""
    for start in range(0, len(data), SECTOR):
        vector = make_vector(spec, key, sector + start // SECTOR)
        mode = {"ecb": modes.ECB, "cbc": modes.CBC, "ctr": modes.CTR, "xts": modes.XTS}[spec.mode]
        cipher = Cipher(AES(key), mode() if spec.mode == "ecb" else mode(vector))
        found += cipher.encryptor().update(data[start : start + SECTOR])
    return found


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.mode_text)
def test_every_mode_does_what_the_library_does(spec):
    for length in KEYS[spec.mode]:
        key = make_key(length)
        cipher = SectorCipher(spec, key)
        for sectors, first in ((1, 0), (3, 5), (8, 0xFFFFFFFE), (9, 0xFFFFFFFE), (70, (1 << 40) - 3)):
            data = bytes((7 * place + place // 251) & 0xFF for place in range(sectors * SECTOR))
            work = memoryview(bytearray(data))
            cipher.encrypt(first, work, work)
            assert work == reference(spec, key, first, data), (length, sectors)
            back = memoryview(bytearray(len(data)))
            cipher.decrypt(first, work, back)
            assert back == data


def test_runs_longer_than_what_is_done_at_once():
    key = make_key(64)
    cipher = SectorCipher(CipherSpec("aes", "xts", "plain64"), key)
    data = memoryview(bytearray(700 << 10))
    work = memoryview(bytearray(len(data)))
    cipher.encrypt(9, data, work)
    for sector in (0, 511, 512, 513, 1399):
        part = bytes(work[sector * SECTOR : (sector + 1) * SECTOR])
        assert part == reference(CipherSpec("aes", "xts", "plain64"), key, 9 + sector, bytes(SECTOR))


def test_xts_vector_of_the_standard():
    # IEEE 1619-2007, vector 4: the start of the 512 bytes 00 01 02 ... encrypted as data unit 0.
    key = bytes.fromhex("27182818284590452353602874713526" + "31415926535897932384626433832795")
    cipher = SectorCipher(CipherSpec("aes", "xts", "plain64"), key)
    data = memoryview(bytearray(bytes(range(256)) * 2))
    cipher.encrypt(0, data, data)
    assert data[:32].hex() == "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"


def test_xts_of_keys_that_the_library_does_not_take():
    for key in (make_key(48), make_key(32) * 2):
        cipher = SectorCipher(CipherSpec("aes", "xts", "plain64"), key)
        data = memoryview(bytearray(b"something" * 57)[:SECTOR])
        work = memoryview(bytearray(SECTOR))
        cipher.encrypt(3, data, work)
        half = len(key) // 2
        tweak = Cipher(AES(key[half:]), modes.ECB()).encryptor().update((3).to_bytes(16, "little"))
        first = bytes(one ^ other for one, other in zip(data[:16], tweak, strict=True))
        expected = Cipher(AES(key[:half]), modes.ECB()).encryptor().update(first)
        assert work[:16] == bytes(one ^ other for one, other in zip(expected, tweak, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    sectors=st.integers(1, 24),
    first=st.integers(0, (1 << 55) - 1),
    data=st.binary(min_size=1, max_size=64),
)
def test_decrypting_is_the_reverse(spec, sectors, first, data):
    cipher = SectorCipher(spec, make_key(KEYS[spec.mode][-1]))
    plain = (data * (sectors * SECTOR))[: sectors * SECTOR]
    work = memoryview(bytearray(plain))
    cipher.encrypt(first, work, work)
    single = memoryview(bytearray(work[-SECTOR:]))
    cipher.decrypt(first + sectors - 1, single, single)
    assert single == plain[-SECTOR:]
    cipher.decrypt(first, work, work)
    assert work == plain


@pytest.mark.parametrize(
    ("spec", "length", "message"),
    [
        (CipherSpec("serpent", "xts", "plain64"), 64, "Algorithm 'serpent' not supported"),
        (CipherSpec("aes", "gcm", "plain64"), 32, "Unsupported cipher mode gcm"),
        (CipherSpec("aes", "cbc", "benbi"), 32, "Unsupported IV generator 'benbi'"),
        (CipherSpec("aes", "cbc"), 32, "Cipher mode cbc needs an IV generator"),
        (CipherSpec("aes", "cbc", "plain"), 33, "Algorithm 'aes' with key size 33 bytes not supported"),
        (CipherSpec("aes", "xts", "plain"), 16, "Algorithm 'aes' with key size 16 bytes not supported"),
        (CipherSpec("aes", "cbc", "essiv", "sha1"), 32, "No AES cipher with key size 20 available"),
        (CipherSpec("aes", "cbc", "essiv", "nosuch"), 32, "Hash algorithm 'nosuch' not supported"),
    ],
)
def test_what_there_is_not_is_refused(spec, length, message):
    with pytest.raises(BlockError) as caught:
        SectorCipher(spec, make_key(length))
    assert str(caught.value) == message


def test_parts_of_sectors_are_refused():
    cipher = SectorCipher(CipherSpec("aes", "xts", "plain64"), make_key(64))
    with pytest.raises(ValueError, match="whole sectors"):
        cipher.encrypt(0, memoryview(bytearray(100)), memoryview(bytearray(100)))


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(BlockError) as caught:
        SectorCipher(CipherSpec("aes", "xts", "plain64"), make_key(64))
    assert str(caught.value) == "Encrypted images need the Python package 'cryptography' (pip install 'pyvm[luks]')"
