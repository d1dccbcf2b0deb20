"""Encryption of disks sector by sector: block cipher modes, and what each sector's initialisation vector is.

Sources: IEEE 1619 (XTS); "LUKS1 On-Disk Format Specification" 1.2.3, section "Cipher and Hash specification registry",
for the names.  The block cipher itself is that of the package *cryptography*.  A context of that package costs more to
make than a sector does to encrypt, so longer runs are not done sector by sector: each mode is a few passes over the
whole run, of which the block cipher is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

SECTOR = 512
BLOCK = 16
_BLOCKS = SECTOR // BLOCK
_SLACK = BLOCK - 1
"""What the library wants an output buffer to be longer than its input."""
_RUN = 256 << 10
"""Bytes done at once: with all that goes with them, they fit into the processor's cache."""
_FEW = {("xts", True): 8, ("xts", False): 8, ("cbc", True): 64}
"""Up to so many sectors are encrypted (or not: decrypted) in a mode of the library, one after the other."""
_AES_KEY_BYTES = (16, 24, 32)
MODES = ("ecb", "cbc", "xts", "ctr")
IV_GENERATORS = ("plain", "plain64", "essiv")


@dataclass(frozen=True)
class CipherSpec:
    """A cipher as a LUKS header names it."""

    cipher: str
    """The algorithm: ``aes``."""
    mode: str
    """One of :data:`MODES`."""
    iv: str = ""
    """One of :data:`IV_GENERATORS`; empty where none is given."""
    iv_hash: str = ""
    """The hash of ``essiv``."""

    @property
    def mode_text(self) -> str:
        """The mode in one word: ``cbc-essiv:sha256``."""
        words = f"{self.mode}-{self.iv}" if self.iv else self.mode
        return f"{words}:{self.iv_hash}" if self.iv_hash else words


def require_library() -> None:
    """Raise BlockError unless the package is there that the ciphers are from."""
    try:
        import cryptography.hazmat.primitives.ciphers
    except ImportError:
        raise BlockError("Encrypted images need the Python package 'cryptography' (pip install 'pyvm[luks]')") from None
    del cryptography


class SectorCipher:
    """Encrypts and decrypts whole sectors with one key; may be used by several threads.

    Raises BlockError for what there is not.
    """

    def __init__(self, spec: CipherSpec, key: bytes) -> None:
        require_library()
        if spec.cipher != "aes":
            raise BlockError(f"Algorithm '{spec.cipher}' not supported")
        if spec.mode not in MODES:
            raise BlockError(f"Unsupported cipher mode {spec.mode}")
        if spec.iv and spec.iv not in IV_GENERATORS:
            raise BlockError(f"Unsupported IV generator '{spec.iv}'")
        if not spec.iv and spec.mode != "ecb":
            raise BlockError(f"Cipher mode {spec.mode} needs an IV generator")
        self._spec = spec
        self._key, self._tweak_key = key, b""
        if spec.mode == "xts":
            self._key, self._tweak_key = key[: len(key) // 2], key[len(key) // 2 :]
        if len(key) != len(self._key) + len(self._tweak_key) or len(self._key) not in _AES_KEY_BYTES:
            raise BlockError(f"Algorithm '{spec.cipher}' with key size {len(key)} bytes not supported")
        # Keys that the library does not take for XTS.
        self._batch_only = spec.mode == "xts" and (len(key) == 48 or self._key == self._tweak_key)
        self._whole_key = key
        self._iv_key = _essiv_key(spec.iv_hash, key) if spec.iv == "essiv" else b""

    # ---- Runs of sectors

    def encrypt(self, sector: int, source: memoryview, target: memoryview) -> None:
        """Encrypt whole sectors, the first of them number `sector`; `target` may be `source`."""
        self._run(sector, source, target, encrypt=True)

    def decrypt(self, sector: int, source: memoryview, target: memoryview) -> None:
        """Decrypt whole sectors, the first of them number `sector`; `target` may be `source`."""
        self._run(sector, source, target, encrypt=False)

    def _run(self, sector: int, source: memoryview, target: memoryview, *, encrypt: bool) -> None:
        if len(source) % SECTOR or len(source) != len(target):
            raise ValueError("only whole sectors can be encrypted")
        few = 0 if self._batch_only else _FEW.get((self._spec.mode, encrypt), 0)
        if len(source) <= few * SECTOR:
            self._one_by_one(sector, source, target, encrypt)
            return
        work = {"ecb": self._ecb, "cbc": self._cbc, "xts": self._xts, "ctr": self._ctr}[self._spec.mode]
        for start in range(0, len(source), _RUN):
            part = source[start : start + _RUN]
            work(sector + start // SECTOR, part, target[start : start + _RUN], encrypt)

    def _one_by_one(self, sector: int, source: memoryview, target: memoryview, encrypt: bool) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes
        from cryptography.hazmat.primitives.ciphers.algorithms import AES

        algorithm, mode = AES(self._whole_key), modes.XTS if self._spec.mode == "xts" else modes.CBC
        vectors = self._vectors(sector, len(source) // SECTOR).tobytes()
        for number in range(len(source) // SECTOR):
            cipher: Any = Cipher(algorithm, mode(vectors[number * BLOCK : (number + 1) * BLOCK]))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            place = slice(number * SECTOR, (number + 1) * SECTOR)
            target[place] = context.update(source[place])

    # ---- Initialisation vectors

    def _vectors(self, sector: int, count: int) -> Words:
        """Return the initialisation vectors of sectors, two words each."""
        import numpy as np

        vectors = np.zeros((count, 2), np.uint64)
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(sector)
        vectors[:, 0] = numbers & np.uint64(0xFFFF_FFFF) if self._spec.iv == "plain" else numbers
        if self._iv_key:
            return self._blocks(self._iv_key, vectors, encrypt=True)
        return vectors

    def _blocks(self, key: bytes, data: Words, *, encrypt: bool) -> Words:
        """Return words, each block of them encrypted or decrypted by itself."""
        import numpy as np
        from cryptography.hazmat.primitives.ciphers import Cipher, modes
        from cryptography.hazmat.primitives.ciphers.algorithms import AES

        cipher: Any = Cipher(AES(key), modes.ECB())
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        found = np.empty(data.nbytes + _SLACK, np.uint8)
        context.update_into(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data, found.data)
        return found[: data.nbytes].view(np.uint64).reshape(data.shape)

    # ---- Modes

    def _ecb(self, sector: int, source: memoryview, target: memoryview, encrypt: bool) -> None:
        del sector
        _store(target, self._blocks(self._key, _words(source), encrypt=encrypt))

    def _cbc(self, sector: int, source: memoryview, target: memoryview, encrypt: bool) -> None:
        import numpy as np

        data = _words(source).reshape(-1, _BLOCKS, 2)
        vectors = self._vectors(sector, len(data))
        if not encrypt:
            before = np.concatenate((vectors[:, None, :], data[:, :-1, :]), axis=1)
            _store(target, self._blocks(self._key, data, encrypt=False) ^ before)
            return
        # Sectors do not depend on each other: the same block of all of them at once.
        found = np.empty_like(data)
        for block in range(_BLOCKS):
            vectors = self._blocks(self._key, data[:, block, :] ^ vectors, encrypt=True)
            found[:, block, :] = vectors
        _store(target, found)

    def _xts(self, sector: int, source: memoryview, target: memoryview, encrypt: bool) -> None:
        tweaks = self._tweaks(sector, len(source) // SECTOR)
        found = self._blocks(self._key, _words(source) ^ tweaks, encrypt=encrypt)
        found ^= tweaks
        _store(target, found)

    def _tweaks(self, sector: int, count: int) -> Words:
        """Return the tweaks of all blocks: in a sector, each is the one before it times x in GF(2^128)."""
        import numpy as np

        tweaks = np.empty((count, _BLOCKS, 2), np.uint64)
        tweaks[:, 0, :] = self._blocks(self._tweak_key, self._vectors(sector, count), encrypt=True)
        low, high = tweaks[:, :, 0], tweaks[:, :, 1]
        known = 1
        while known < _BLOCKS:
            # Times x to the power of `known`; what leaves at the top comes back by x^128 = x^7 + x^2 + x + 1.
            shift, rest = np.uint64(known), np.uint64(64 - known)
            carry = high[:, :known] >> rest
            high[:, known : 2 * known] = high[:, :known] << shift | low[:, :known] >> rest
            back = carry ^ carry << np.uint64(1) ^ carry << np.uint64(2) ^ carry << np.uint64(7)
            low[:, known : 2 * known] = low[:, :known] << shift ^ back
            known *= 2
        return tweaks.reshape(-1)

    def _ctr(self, sector: int, source: memoryview, target: memoryview, encrypt: bool) -> None:
        import numpy as np

        del encrypt
        start = self._vectors(sector, len(source) // SECTOR).byteswap()
        low = start[:, 1:] + np.arange(_BLOCKS, dtype=np.uint64)
        counters = np.empty((len(start), _BLOCKS, 2), np.uint64)
        counters[:, :, 0] = start[:, :1] + (low < start[:, 1:]).astype(np.uint64)
        counters[:, :, 1] = low
        stream = self._blocks(self._key, counters.byteswap(), encrypt=True).reshape(-1)
        _store(target, _words(source) ^ stream)


def _words(data: memoryview) -> Words:
    import numpy as np

    return np.frombuffer(data, np.uint64)


def _store(target: memoryview, words: Words) -> None:
    import numpy as np

    target[:] = words.reshape(-1).view(np.uint8).data


def _essiv_key(hash_name: str, key: bytes) -> bytes:
    """Return the key that the numbers of sectors are encrypted with.  Raises BlockError."""
    import hashlib

    try:
        found = hashlib.new(hash_name, key).digest()
    except ValueError:
        raise BlockError(f"Hash algorithm '{hash_name}' not supported") from None
    if len(found) not in _AES_KEY_BYTES:
        raise BlockError(f"No AES cipher with key size {len(found)} available")
    return found
