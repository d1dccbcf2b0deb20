"""Encrypted qcow2 images ("Full disk encryption header pointer", "crypt_method" of the specification).

With LUKS, the header of the image names a place for the header and the key slots of a volume.  Data clusters are
encrypted with their place in the file that they are in; so a cluster reads the same through every table that names it,
and snapshots need no keys of their own.  Tables, bitmaps and compressed clusters are not encrypted.

The old method AES takes the place on the disk instead, and the password itself as key.  Tools read and write it, as
they have to get the data out; a machine refuses it, as QEMU's does.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyvm.annotations import TYPE_CHECKING, Any
from pyvm.block.drivers.encrypted import EncryptedData
from pyvm.block.drivers.qcow2.structures import CRYPT_AES, CRYPT_LUKS, CRYPT_NONE, Header
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.luks import CreateOptions as LuksOptions
    from pyvm.block.luks import Volume
    from pyvm.block.sector_ciphers import SectorCipher
    from pyvm.secrets import Secrets

PREFIX = "encrypt."
_FORMATS = {CRYPT_AES: "aes", CRYPT_LUKS: "luks"}
_AES_KEY_BYTES = 16
_MEMBERS = ("format", "key-secret")
_REFUSED = """\
Use of AES-CBC encrypted qcow2 images is no longer supported in system emulators
You can use 'pyvm-img convert' to convert your image to an alternative supported format, such as unencrypted qcow2, \
or raw with the LUKS format instead."""


@record
class AesOptions:
    """How an image with the old method is made."""

    key_secret: str | None
    payload_offset: int = 0
    """How long the encryption header is: there is none."""


def make_volume(options: LuksOptions | AesOptions, secrets: Secrets) -> tuple[bytes, bytes]:
    """Return the encryption header for a new image, and the passphrase.  Raises BlockError."""
    from pyvm.block.luks import find_passphrase, format_volume

    passphrase = find_passphrase(secrets, options.key_secret, PREFIX)
    if isinstance(options, AesOptions):
        from pyvm.block.sector_ciphers import require_library

        require_library()
        return b"", passphrase
    return format_volume(options, passphrase), passphrase


def choose_passphrase(
    header: Header, given: Mapping[str, Any] | None, secrets: Secrets, *, machine: bool = False
) -> bytes | None:
    """Return the passphrase that the option `encrypt` gives for an image; None for one that is not encrypted.

    `machine` says that it is to be a disk, and not what a tool works on.  Raises BlockError.
    """
    given = given or {}
    if not isinstance(given, Mapping):
        raise BlockError("Invalid parameter type for 'encrypt', expected: object")
    wanted = given.get("format")
    if header.crypt_method == CRYPT_NONE:
        if wanted is not None:
            raise BlockError(f"No encryption in image header, but options specified format '{wanted}'")
        return None
    found = _FORMATS[header.crypt_method]
    if wanted is not None and wanted != found:
        raise BlockError(f"Header reported '{found}' encryption format but options specify '{wanted}'")
    for name in given:
        if name not in _MEMBERS:
            raise BlockError(f"Parameter '{name}' is unexpected")
    if machine and header.crypt_method == CRYPT_AES:
        raise BlockError(_REFUSED)
    from pyvm.block.luks import find_passphrase

    secret = given.get("key-secret")
    return find_passphrase(secrets, None if secret is None else str(secret), PREFIX)


class Encryption:
    """How an image in `file` is encrypted; locked without a passphrase.  Raises BlockError, and OSError."""

    def __init__(self, file: Node, header: Header, passphrase: bytes | None) -> None:
        self.uses_disk_offsets = header.crypt_method == CRYPT_AES
        """Whether sectors are numbered by their place on the disk."""
        self.volume: Volume | None = None
        """Header and key slots, with LUKS."""
        self._cipher: SectorCipher | None = None
        if self.uses_disk_offsets:
            if passphrase is not None:
                from pyvm.block.sector_ciphers import CipherSpec, SectorCipher

                aes = CipherSpec("aes", "cbc", "plain64")
                self._cipher = SectorCipher(aes, passphrase[:_AES_KEY_BYTES].ljust(_AES_KEY_BYTES, b"\0"))
            return
        if header.crypto is None:
            raise BlockError(f"Missing CRYPTO header for crypt method {header.crypt_method}")
        from pyvm.block.luks import Area, Volume

        self.volume = Volume(Area(file, *header.crypto))
        if passphrase is not None:
            self._cipher = self.volume.unlock(passphrase)

    def wrap(self, data: Node) -> EncryptedData:
        """Return what the guest's data is read from and written to, in the place of the file that it is in."""
        return EncryptedData(data, self._cipher)

    def info(self) -> dict[str, Any]:
        """Return what query-block tells of it."""
        if self.volume is None:
            return {"format": "aes"}
        return {"format": "luks", **self.volume.info()}
