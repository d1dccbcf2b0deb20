"""vmgenid: an identifier in guest memory that changes when the machine goes on from a saved state.

"Virtual Machine Generation ID" (Microsoft); QEMU documentation, docs/specs/vmgenid: the 16 bytes of the identifier are
in memory that firmware reserves, whose address ACPI tells the guest, and a general-purpose event says that they have
changed.  A guest then knows that its random numbers and transaction identifiers may have been used before.

Where that memory is the device learns from whoever puts it there: the built-in firmware, or firmware in the guest that
writes the address to a file of fw_cfg.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import ClassVar, Final
from uuid import UUID

from pyvm.devices.properties import Properties, Property
from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.state import State, uint

ADDRESS_FILE: Final = "etc/vmgenid_addr"
"""The fw_cfg file that firmware writes the identifier's address to, 64 bits."""
ADDRESS_SIZE: Final = 8
GUID_SIZE: Final = 16
AUTO: Final = "auto"
GPE: Final = 5
"""The general-purpose event that announces a change."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class VmGenIdState(State):
    """The identifier's address, 0 while nobody has told.  The identifier itself is not to live on."""

    address: int = uint(64)


class VmGenId:
    """The device.  `notify` raises the event by which the guest learns of a change."""

    PROPERTIES: ClassVar[Properties] = {
        "guid": Property("str", AUTO, 'UUID (aka GUID) or "auto" for random value (default)'),
    }

    def __init__(self, memory: GuestMemory, guid: str, notify: Callable[[], None]) -> None:
        """Raises ValueError where `guid` is neither a UUID nor ``auto``."""
        self._memory = memory
        self._notify = notify
        self._address = 0
        if guid != AUTO and not _UUID.fullmatch(guid):
            raise ValueError(f"'{guid}' is not a UUID")
        self._automatic = guid == AUTO
        self._guid = self._random() if self._automatic else UUID(guid)

    @staticmethod
    def _random() -> UUID:
        return UUID(bytes=os.urandom(GUID_SIZE), version=4)

    @property
    def guid(self) -> UUID:
        """The identifier."""
        return self._guid

    def regenerate(self, guid: UUID | None = None) -> None:
        """Become `guid`, by default a random one, and tell the guest: it goes on from a state that it has left."""
        self._guid = guid or self._random()
        self._show()
        if self._address:
            self._notify()

    def put_at(self, address: int) -> None:
        """Firmware has reserved memory at GPA `address`."""
        self._address = address
        self._show()

    def address_written(self, data: bytes) -> None:
        """Firmware in the guest has told the address."""
        self.put_at(int.from_bytes(data[:ADDRESS_SIZE], "little"))

    def _show(self) -> None:
        """Put the identifier where the guest looks for it; a guest that told nonsense does not find it."""
        if self._address:
            try:
                self._memory.write(self._address, self._guid.bytes_le)
            except GuestMemoryError:
                self._address = 0

    def reset(self) -> None:
        """The identifier stays; firmware tells again where it is to be."""
        self._address = 0

    def save(self) -> VmGenIdState:
        """Return where the identifier is."""
        return VmGenIdState(self._address)

    def load(self, state: VmGenIdState) -> None:
        """Go on from a saved state, whose memory is there already: with another identifier, unless one was given."""
        state.check()
        self._address = state.address
        self.regenerate(None if self._automatic else self._guid)
