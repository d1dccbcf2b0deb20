"""LUKS volumes, version 1: making one, unlocking it with a passphrase, changing its key slots.

All that is not data is in an :class:`Area`: the beginning of a file, or the encryption header of a qcow2 image.  See
:mod:`pyvm.block.luks_format` for the structures.
"""

from __future__ import annotations

import hmac
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyvm.block import luks_format as structures
from pyvm.block.errors import BlockError
from pyvm.block.luks_format import DIGEST_BYTES, HASHES, HEADER_BYTES, SALT_BYTES, SLOTS, Header, KeySlot
from pyvm.block.node import Node
from pyvm.block.sector_ciphers import IV_GENERATORS, MODES, SECTOR, CipherSpec, SectorCipher
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.secrets import Secrets

_CIPHERS = {"aes-128": 16, "aes-192": 24, "aes-256": 32}
_MISSING_CIPHERS = (
    *("3des", "cast5-128", "des", "serpent-128", "serpent-192", "serpent-256"),
    *("twofish-128", "twofish-192", "twofish-256"),
)
DEFAULT_ITERATION_MS = 2000
_DIGEST_PART = 8
"""The digest of the key gets this part of the time: it protects a key that is random anyway."""
_ERASE_PASSES = 8


class Area:
    """A range of a node, from byte `start` on, `length` bytes long (None: to the end of the node)."""

    def __init__(self, node: Node, start: int = 0, length: int | None = None) -> None:
        self.node = node
        self._start = start
        self._length = length

    def read(self, offset: int, length: int) -> bytes:
        """Return a part.  Raises BlockError where it is not all there, and OSError."""
        end = offset + length
        if (self._length is not None and end > self._length) or self._start + end > self.node.length():
            raise BlockError("The encryption header is not wholly there")
        return bytes(self.node.read(self._start + offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Write a part, to stable storage.  Raises OSError."""
        self.node.write(self._start + offset, data)
        self.node.flush()


@dataclass(frozen=True)
class CreateOptions:
    """What a new volume is to be."""

    key_secret: str
    cipher: CipherSpec
    key_bytes: int
    hash: str
    iteration_ms: int

    @property
    def payload_offset(self) -> int:
        """Where the data will start, in bytes: how long the header is."""
        return structures.make_layout(self.key_bytes)[1] * SECTOR


def read_options(given: Mapping[str, Any], prefix: str = "") -> CreateOptions:
    """Return the options of a new volume; they have QEMU's names, with `prefix` before them.  Raises BlockError."""

    def choice(name: str, choices: tuple[str, ...], default: str) -> str:
        value = str(given.get(prefix + name, default))
        if value not in choices:
            raise BlockError(f"Parameter '{name}' does not accept value '{value}'")
        return value

    secret = given.get(f"{prefix}key-secret")
    algorithm = choice("cipher-alg", (*_CIPHERS, *_MISSING_CIPHERS), "aes-256")
    mode = choice("cipher-mode", MODES, "xts")
    hash_name = choice("hash-alg", HASHES, "sha256")
    iv = choice("ivgen-alg", IV_GENERATORS, "plain64")
    iv_hash = choice("ivgen-hash-alg", HASHES, "sha256") if iv == "essiv" else ""
    if algorithm not in _CIPHERS:
        raise BlockError(f"Algorithm '{algorithm}' not supported")
    if secret is None:
        raise BlockError(f"Parameter '{prefix}key-secret' is required for cipher")
    key_bytes = _CIPHERS[algorithm] * (2 if mode == "xts" else 1)
    milliseconds = int(given.get(f"{prefix}iter-time", DEFAULT_ITERATION_MS))
    spec = CipherSpec("aes", mode, iv, iv_hash)
    # Whatever is not there shows before anything is made.
    SectorCipher(spec, bytes(key_bytes))
    structures.check_hash(hash_name)
    return CreateOptions(str(secret), spec, key_bytes, hash_name, milliseconds)


def find_passphrase(secrets: Secrets, secret: str | None, prefix: str = "") -> bytes:
    """Return the passphrase of which `secret` is the ID.  Raises BlockError."""
    if secret is None:
        raise BlockError(f"Parameter '{prefix}key-secret' is required for cipher")
    try:
        return secrets.find_text(secret)
    except ConfigError as error:
        raise BlockError(str(error)) from None


class Volume:
    """A LUKS volume; locked until :meth:`unlock`.  Raises BlockError for a broken header, and OSError."""

    def __init__(self, area: Area) -> None:
        self.area = area
        """Where the header is."""
        self.header = structures.parse_header(area.read(0, HEADER_BYTES))
        self._key = self._passphrase = b""

    @property
    def payload_offset(self) -> int:
        """Where the data starts, in bytes."""
        return self.header.payload_offset * SECTOR

    @property
    def algorithm(self) -> str:
        """The cipher as QEMU names it: ``aes-256``."""
        bits = self.header.key_bytes * (4 if self.header.spec.mode == "xts" else 8)
        return f"{self.header.cipher_name}-{bits}"

    def info(self) -> dict[str, Any]:
        """Return what query-block tells of the volume."""
        header = self.header
        spec = header.spec
        found: dict[str, Any] = {
            "cipher-alg": self.algorithm,
            "cipher-mode": spec.mode,
            "hash-alg": header.hash_spec,
            "ivgen-alg": spec.iv or "plain",
        }
        if spec.iv_hash:
            found["ivgen-hash-alg"] = spec.iv_hash
        found.update(
            {
                "master-key-iters": header.mk_digest_iterations,
                "payload-offset": self.payload_offset,
                "slots": [_describe(slot) for slot in header.slots],
                "uuid": header.uuid,
            }
        )
        return found

    # ---- Unlocking

    def unlock(self, passphrase: bytes) -> SectorCipher:
        """Find the key of the volume, and return its cipher.  Raises BlockError, and OSError."""
        # What is not there is said before a password is asked for in vain.
        SectorCipher(self.header.spec, bytes(self.header.key_bytes))
        for number in range(SLOTS):
            key = self._try_slot(number, passphrase)
            if key is not None:
                self._key, self._passphrase = key, passphrase
                return SectorCipher(self.header.spec, key)
        raise BlockError("Invalid password, cannot unlock any keyslot")

    def _try_slot(self, number: int, passphrase: bytes) -> bytes | None:
        """Return the key of the volume where the passphrase is that of an active slot."""
        header, slot = self.header, self.header.slots[number]
        if not slot.active:
            return None
        stretched = structures.stretch(header.hash_spec, passphrase, slot.salt, slot.iterations, header.key_bytes)
        start, length = slot.key_material_offset * SECTOR, header.material_sectors * SECTOR
        material = bytearray(self.area.read(start, length))
        SectorCipher(header.spec, stretched).decrypt(0, memoryview(material), memoryview(material))
        key = structures.merge_key(
            header.hash_spec, bytes(material[: header.key_bytes * slot.stripes]), header.key_bytes
        )
        return key if hmac.compare_digest(_digest(header, key), header.mk_digest) else None

    # ---- Key slots

    def add_key(self, passphrase: bytes, *, slot: int | None, iteration_ms: int, force: bool = False) -> int:
        """Let another passphrase unlock the volume, which must be unlocked; return the number of its key slot.

        Without `slot` the first one is taken that is free.  Raises BlockError, and OSError.
        """
        if slot is None:
            free = [number for number, it in enumerate(self.header.slots) if not it.active]
            if not free:
                raise BlockError("Can't add a keyslot - all keyslots are in use")
            slot = free[0]
        _check_slot(slot)
        if self.header.slots[slot].active and not force:
            raise BlockError(f"Refusing to overwrite active keyslot {slot} - please erase it first")
        rounds = structures.calibrate(self.header.hash_spec, self.header.key_bytes, iteration_ms)
        filled, material = _fill_slot(self.header, slot, self._key, passphrase, rounds)
        if self.header.slots[slot].active:
            self._put_slot(slot, KeySlot(key_material_offset=filled.key_material_offset))
        # The slot counts only when its key material is there.
        self.area.write(filled.key_material_offset * SECTOR, material)
        self._put_slot(slot, filled)
        return slot

    def _put_slot(self, number: int, slot: KeySlot) -> None:
        self.area.write(structures.slot_offset(number), slot.encode())
        self.header.slots[number] = slot

    def erase_slot(self, number: int) -> None:
        """Let a key slot be free, and its key material gone.  Raises OSError."""
        offset = self.header.slots[number].key_material_offset
        self._put_slot(number, KeySlot(key_material_offset=offset))
        for _ in range(_ERASE_PASSES):
            self.area.write(offset * SECTOR, os.urandom(self.header.material_sectors * SECTOR))

    def erase_key(self, *, slot: int | None, passphrase: bytes | None, force: bool = False) -> None:
        """Erase a key slot, or all that have a passphrase; not the last one unless `force`.

        Raises BlockError, and OSError.
        """
        active = [number for number, it in enumerate(self.header.slots) if it.active]
        if slot is not None:
            self._check_erasable(slot, passphrase, active, force)
            self.erase_slot(slot)
            return
        if passphrase is None:
            raise BlockError(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must"
                " be given"
            )
        matching = [number for number in active if self._try_slot(number, passphrase) is not None]
        if not matching:
            raise BlockError("No keyslots match given (old) password for erase operation")
        if matching == active and not force:
            raise BlockError(
                "All the active keyslots match the (old) password that was given and erasing them will erase all the"
                " data in the image irreversibly - refusing operation"
            )
        for number in matching:
            self.erase_slot(number)

    def _check_erasable(self, slot: int, passphrase: bytes | None, active: list[int], force: bool) -> None:
        _check_slot(slot)
        if passphrase is not None and self._try_slot(slot, passphrase) is None:
            raise BlockError(f"Given keyslot {slot} doesn't contain the given old password for erase operation")
        if force:
            return
        if slot not in active:
            raise BlockError(f"Given keyslot {slot} is already erased (inactive) ")
        if len(active) == 1:
            raise BlockError(
                f"Attempt to erase the only active keyslot {slot} which will erase all the data in the image"
                " irreversibly - refusing operation"
            )

    def amend(
        self,
        options: Mapping[str, Any],
        secrets: Secrets,
        *,
        force: bool = False,
        prefix: str = "",
        unlocking: str | None = None,
    ) -> None:
        """Change key slots as QEMU's options for that say, which begin with `prefix`; the volume must be unlocked.

        `unlocking` names the secret that has to unlock it for another key; without it, what did so before has to.
        Raises BlockError, and OSError.
        """
        given = {name: options.get(prefix + name) for name in AMEND_OPTIONS}
        state, slot, milliseconds = given["state"], given["keyslot"], given["iter-time"]
        if state is None:
            raise BlockError("Parameter 'state' is missing")
        if state not in ("active", "inactive"):
            raise BlockError(f"Parameter 'state' does not accept value '{state}'")
        if state == "active":
            if given["new-secret"] is None:
                raise BlockError("'new-secret' is required to activate a keyslot")
            if given["old-secret"] is not None:
                raise BlockError("'old-secret' must not be given when activating keyslots")
            # It has to unlock a slot now: it may have been erased since.
            self.unlock(self._passphrase if unlocking is None else find_passphrase(secrets, unlocking))
            passphrase = find_passphrase(secrets, given["new-secret"])
            chosen = DEFAULT_ITERATION_MS if milliseconds is None else milliseconds
            self.add_key(passphrase, slot=slot, iteration_ms=chosen, force=force)
            return
        for name in ("new-secret", "iter-time"):
            if given[name] is not None:
                raise BlockError(f"'{name}' must not be given when erasing keyslots")
        old = None if given["old-secret"] is None else find_passphrase(secrets, given["old-secret"])
        self.erase_key(slot=slot, passphrase=old, force=force)


AMEND_OPTIONS = ("state", "new-secret", "old-secret", "keyslot", "iter-time")


def _describe(slot: KeySlot) -> dict[str, Any]:
    offset = slot.key_material_offset * SECTOR
    if not slot.active:
        return {"active": False, "key-offset": offset}
    return {"active": True, "iters": slot.iterations, "key-offset": offset, "stripes": slot.stripes}


def _check_slot(number: int) -> None:
    if not 0 <= number < SLOTS:
        raise BlockError(f"Invalid keyslot {number} specified, must be between 0 and {SLOTS - 1}")


def _digest(header: Header, key: bytes) -> bytes:
    return structures.stretch(header.hash_spec, key, header.mk_digest_salt, header.mk_digest_iterations, DIGEST_BYTES)


def _fill_slot(header: Header, number: int, key: bytes, passphrase: bytes, rounds: int) -> tuple[KeySlot, bytes]:
    """Return a key slot for a passphrase, and its key material as it is to be written."""
    slot = KeySlot(True, rounds, os.urandom(SALT_BYTES), header.slots[number].key_material_offset)
    stretched = structures.stretch(header.hash_spec, passphrase, slot.salt, rounds, header.key_bytes)
    split = structures.split_key(header.hash_spec, key)
    material = memoryview(bytearray(split.ljust(header.material_sectors * SECTOR, b"\0")))
    SectorCipher(header.spec, stretched).encrypt(0, material, material)
    return slot, bytes(material)


def format_volume(options: CreateOptions, passphrase: bytes) -> bytes:
    """Return the beginning of a new volume, up to its data: a random key, for one passphrase.  Raises BlockError."""
    places, payload = structures.make_layout(options.key_bytes)
    key = os.urandom(options.key_bytes)
    header = Header(
        options.cipher.cipher,
        options.cipher.mode_text,
        options.hash,
        payload,
        options.key_bytes,
        b"",
        os.urandom(SALT_BYTES),
        structures.calibrate(options.hash, DIGEST_BYTES, options.iteration_ms // _DIGEST_PART),
        str(uuid.uuid4()),
        [KeySlot(key_material_offset=place) for place in places],
    )
    header.mk_digest = _digest(header, key)
    rounds = structures.calibrate(options.hash, options.key_bytes, options.iteration_ms)
    header.slots[0], material = _fill_slot(header, 0, key, passphrase, rounds)
    found = bytearray(payload * SECTOR)
    encoded = header.encode()
    found[: len(encoded)] = encoded
    start = places[0] * SECTOR
    found[start : start + len(material)] = material
    return bytes(found)
