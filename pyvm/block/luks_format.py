"""The structures of a LUKS volume, version 1, apart from all logic.

Source: "LUKS1 On-Disk Format Specification" 1.2.3: sections "Partition header", "PBKDF2", "AF Splitter".  All numbers
are big-endian; offsets are in sectors of 512 bytes.  What is parsed here comes from outside: :func:`parse_header`
raises :class:`BlockError` for what cannot be, and bounds the work that opening the volume will be.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import struct
import time
from dataclasses import dataclass, field

from pyvm.block.errors import BlockError
from pyvm.block.sector_ciphers import SECTOR, CipherSpec

MAGIC = b"LUKS\xba\xbe"
VERSION = 1
SLOTS = 8
STRIPES = 4000
DIGEST_BYTES = 20
SALT_BYTES = 32
SLOT_ENABLED = 0x00AC71F3
SLOT_DISABLED = 0x0000DEAD
MIN_ITERATIONS = 1000
MAX_ITERATIONS = 1 << 28
"""Most rounds of PBKDF2 for one key: minutes, not days, of what nobody can interrupt."""
MAX_KEY_BYTES = 64
_ALIGNMENT = 4096 // SECTOR
"""Key material starts where a page does."""

# magic, version, cipher-name, cipher-mode, hash-spec, payload-offset, key-bytes, mk-digest, mk-digest-salt,
# mk-digest-iter, uuid
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
# active, iterations, salt, key-material-offset, stripes
_SLOT = struct.Struct(">II32sII")
SLOT_BYTES = _SLOT.size
HEADER_BYTES = _HEADER.size + SLOTS * _SLOT.size

HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
"""Names that QEMU knows; whether there is such a hash depends on Python's."""
_CALIBRATION_NS = 100_000_000
_FIRST_TRY = 1 << 14


@dataclass
class KeySlot:
    """A key slot.  The fields are named as in the specification."""

    active: bool = False
    iterations: int = 0
    salt: bytes = bytes(SALT_BYTES)
    key_material_offset: int = 0
    stripes: int = STRIPES

    def encode(self) -> bytes:
        """Return the slot as it is in the header."""
        state = SLOT_ENABLED if self.active else SLOT_DISABLED
        return _SLOT.pack(state, self.iterations, self.salt, self.key_material_offset, self.stripes)


@dataclass
class Header:
    """The partition header.  The fields are named as in the specification."""

    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_offset: int
    key_bytes: int
    mk_digest: bytes
    mk_digest_salt: bytes
    mk_digest_iterations: int
    uuid: str
    slots: list[KeySlot] = field(default_factory=list)

    @property
    def spec(self) -> CipherSpec:
        """The cipher.  Raises BlockError where its mode is not as the specification has them."""
        return parse_mode(self.cipher_name, self.cipher_mode)

    @property
    def material_sectors(self) -> int:
        """How long the key material of a slot is."""
        return -(-self.key_bytes * STRIPES // SECTOR)

    def encode(self) -> bytes:
        """Return the header with its slots."""
        fixed = _HEADER.pack(
            MAGIC,
            VERSION,
            self.cipher_name.encode(),
            self.cipher_mode.encode(),
            self.hash_spec.encode(),
            self.payload_offset,
            self.key_bytes,
            self.mk_digest,
            self.mk_digest_salt,
            self.mk_digest_iterations,
            self.uuid.encode(),
        )
        return fixed + b"".join(slot.encode() for slot in self.slots)


def slot_offset(number: int) -> int:
    """Return where in the header a key slot is, in bytes."""
    return _HEADER.size + number * _SLOT.size


def parse_header(data: bytes) -> Header:
    """Parse the beginning of a volume.  Raises BlockError."""
    if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
        raise BlockError("Volume is not in LUKS format")
    _, version, cipher, mode, hash_spec, payload, key_bytes, digest, salt, rounds, uuid = _HEADER.unpack_from(data)
    if version != VERSION:
        raise BlockError(f"LUKS version {version} is not supported")
    header = Header(
        _text(cipher, "cipher name"),
        _text(mode, "cipher mode"),
        _text(hash_spec, "hash spec"),
        payload,
        key_bytes,
        digest,
        salt,
        rounds,
        # It is only shown.
        uuid.partition(b"\0")[0].decode("ascii", "replace"),
    )
    for number in range(SLOTS):
        header.slots.append(_parse_slot(data, number))
    _check_header(header)
    _check_places(header)
    return header


def _text(content: bytes, what: str) -> str:
    text, zero, _ = content.partition(b"\0")
    if not zero:
        raise BlockError(f"LUKS header {what} is not NUL terminated")
    if not text.isascii() or not text.decode().isprintable():
        raise BlockError(f"LUKS header {what} is not a name")
    return text.decode()


def _parse_slot(data: bytes, number: int) -> KeySlot:
    state, iterations, salt, offset, stripes = _SLOT.unpack_from(data, slot_offset(number))
    if stripes != STRIPES:
        raise BlockError(f"Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})")
    if state not in (SLOT_ENABLED, SLOT_DISABLED):
        raise BlockError(f"Keyslot {number} state (active/disable) is corrupted")
    slot = KeySlot(state == SLOT_ENABLED, iterations, salt, offset, stripes)
    if slot.active and not iterations:
        raise BlockError(f"Keyslot {number} iteration count is zero")
    if slot.active and iterations > MAX_ITERATIONS:
        raise BlockError(f"Keyslot {number} iteration count {iterations} is larger than {MAX_ITERATIONS}")
    return slot


def _check_header(header: Header) -> None:
    if not header.mk_digest_iterations:
        raise BlockError("LUKS key iteration count is zero")
    if header.mk_digest_iterations > MAX_ITERATIONS:
        raise BlockError(f"LUKS key iteration count {header.mk_digest_iterations} is larger than {MAX_ITERATIONS}")
    if not 0 < header.key_bytes <= MAX_KEY_BYTES:
        raise BlockError(f"LUKS key length {header.key_bytes} is not between 1 and {MAX_KEY_BYTES}")


def _check_places(header: Header) -> None:
    """Check that header, key material and payload do not overlap."""
    first = -(-HEADER_BYTES // SECTOR)
    if header.payload_offset < first:
        raise BlockError("LUKS payload is overlapping with the header")
    length = header.material_sectors
    starts = [slot.key_material_offset for slot in header.slots]
    for number, start in enumerate(starts):
        if start < first:
            raise BlockError(f"Keyslot {number} is overlapping with the LUKS header")
        if start + length > header.payload_offset:
            raise BlockError(f"Keyslot {number} is overlapping with the encrypted payload")
    for number, other in itertools.combinations(range(SLOTS), 2):
        if abs(starts[number] - starts[other]) < length:
            raise BlockError(f"Keyslots {number} and {other} are overlapping in the header")


def parse_mode(cipher: str, text: str) -> CipherSpec:
    """Return what a name and a mode (``xts-plain64``, ``cbc-essiv:sha256``) stand for.  Raises BlockError."""
    mode, dash, rest = text.partition("-")
    if not dash and mode != "ecb":
        raise BlockError(f"Unexpected cipher mode string format '{text}'")
    iv, colon, iv_hash = rest.partition(":")
    if (iv == "essiv") != bool(colon and iv_hash):
        raise BlockError(f"Unexpected cipher mode string format '{text}'")
    return CipherSpec(cipher, mode, iv, iv_hash)


def make_layout(key_bytes: int) -> tuple[list[int], int]:
    """Return where the key material of the slots starts, and the payload, in sectors."""
    length = -(-key_bytes * STRIPES // SECTOR)
    step = -(-length // _ALIGNMENT) * _ALIGNMENT
    first = -(-HEADER_BYTES // SECTOR // _ALIGNMENT) * _ALIGNMENT or _ALIGNMENT
    return [first + number * step for number in range(SLOTS)], first + SLOTS * step


# ---- Keys


def stretch(hash_name: str, password: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """Return `length` bytes of key for a password, by PBKDF2.  Raises BlockError."""
    try:
        return hashlib.pbkdf2_hmac(hash_name, password, salt, iterations, length)
    except ValueError:
        raise BlockError(f"PBKDF does not support hash algorithm {hash_name}") from None


def check_hash(hash_name: str) -> None:
    """Raise BlockError unless there is such a hash."""
    stretch(hash_name, b"", bytes(SALT_BYTES), 1, 1)


@functools.cache
def _rounds_per_second(hash_name: str) -> int:
    """Measure how fast PBKDF2 is for one block of output, in time of this processor."""
    rounds = _FIRST_TRY
    while True:
        start = time.thread_time_ns()
        stretch(hash_name, b"calibration", bytes(SALT_BYTES), rounds, 1)
        spent = time.thread_time_ns() - start
        if spent >= _CALIBRATION_NS:
            return rounds * 1_000_000_000 // spent
        rounds *= 2


def calibrate(hash_name: str, length: int, milliseconds: int) -> int:
    """Return how many rounds of PBKDF2 for `length` bytes of key take so long.  Raises BlockError."""
    blocks = -(-length // hashlib.new(hash_name).digest_size)
    rounds = _rounds_per_second(hash_name) * milliseconds // 1000 // blocks
    if rounds > MAX_ITERATIONS:
        raise BlockError(f"PBKDF iterations {rounds} larger than {MAX_ITERATIONS}")
    return max(rounds, MIN_ITERATIONS)


# ---- Anti-forensic splitter


def split_key(hash_name: str, key: bytes, stripes: int = STRIPES) -> bytes:
    """Return key material from which all of `key` is lost when any part of it is."""
    parts = [os.urandom(len(key)) for _ in range(stripes - 1)]
    mixed = _mix(hash_name, parts, len(key))
    parts.append(_xor(mixed, key))
    return b"".join(parts)


def merge_key(hash_name: str, material: bytes, length: int, stripes: int = STRIPES) -> bytes:
    """Return the key of `length` bytes that was split into `material`."""
    parts = [material[start : start + length] for start in range(0, length * stripes, length)]
    return _xor(_mix(hash_name, parts[:-1], length), parts[-1])


def _mix(hash_name: str, parts: list[bytes], length: int) -> bytes:
    mixed = bytes(length)
    for part in parts:
        mixed = _diffuse(hash_name, _xor(mixed, part))
    return mixed


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


def _diffuse(hash_name: str, data: bytes) -> bytes:
    """Hash block after block, each with its number before it; of the last hash there is as much as of its block."""
    size = hashlib.new(hash_name).digest_size
    parts = []
    for number, start in enumerate(range(0, len(data), size)):
        part = data[start : start + size]
        parts.append(hashlib.new(hash_name, number.to_bytes(4, "big") + part).digest()[: len(part)])
    return b"".join(parts)
