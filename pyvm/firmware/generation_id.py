"""The ACPI table of the generation identifier: where its memory is, and the event that says that it has changed.

"Virtual Machine Generation ID" (Microsoft); ACPI specification 6.5, section 5.6.4 "General-Purpose Event Handling".
"""

from __future__ import annotations

from pyvm.devices.vmgenid import GPE
from pyvm.firmware import aml

POINTER_SIZE = 4
_DEVICE = "\\_SB.VGEN"
_CHANGED = 0x80
_PLACEHOLDER = 0xFFFFFFFF


def build(offset: int) -> tuple[bytes, int]:
    """Return the table's byte code, and where in it the pointer to the identifier is: at first `offset`."""
    head = aml.name("VGIA", aml.integer(_PLACEHOLDER))
    pointer = len(head) - POINTER_SIZE
    head = head[:pointer] + offset.to_bytes(POINTER_SIZE, "little")
    address = aml.path("\\VGIA")
    device = aml.device(
        "VGEN",
        aml.name("_HID", aml.string("QEMUVGID")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.method(
            "ADDR",
            0,
            aml.store(aml.package(aml.ZERO, aml.ZERO), aml.local(0)),
            aml.store(address, aml.index(aml.local(0), aml.ZERO)),
            aml.return_(aml.local(0)),
        ),
    )
    event = aml.method(f"\\_GPE._E{GPE:02X}", 0, aml.notify(aml.path(_DEVICE), _CHANGED))
    return head + aml.scope("\\_SB", device) + event, pointer
