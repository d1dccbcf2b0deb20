"""DES as VNC authentication needs it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.vnc.des import encrypt, respond


def test_known_answers() -> None:
    # FIPS 81 and NBS Special Publication 500-20.
    for key, plain, cipher in (
        ("133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"),
        ("0101010101010101", "8000000000000000", "95f8a5e5dd31d900"),
        ("8001010101010101", "0000000000000000", "95a8d72813daa94d"),
        ("0123456789abcdef", "4e6f772069732074", "3fa40e8a984d4815"),
        ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
    ):
        assert encrypt(bytes.fromhex(key), bytes.fromhex(plain)).hex() == cipher


def test_blocks_are_independent() -> None:
    key = b"\x12\x34\x56\x78\x9a\xbc\xde\xf0"
    assert encrypt(key, bytes(8) + b"12345678") == encrypt(key, bytes(8)) + encrypt(key, b"12345678")


@settings(max_examples=20)
@given(st.binary(max_size=20), st.binary(min_size=16, max_size=16))
def test_a_response_depends_on_eight_bytes_with_their_bits_reversed(password: bytes, challenge: bytes) -> None:
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password[:8].ljust(8, b"\0"))
    assert respond(password, challenge) == encrypt(key, challenge)
    assert respond(password[:8], challenge) == respond(password, challenge)
