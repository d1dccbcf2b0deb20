"""How firmware programs the two interrupt controllers of a PC: Intel 8259A, initialization command words 1 to 4."""

from __future__ import annotations

from typing import Final

MASTER: Final = 0x20
SLAVE: Final = 0xA0

_CASCADE_EDGE_ICW4: Final = 0x11
_MASTER_VECTOR, _SLAVE_VECTOR = 0x08, 0x70
_SLAVE_ON_IRQ_2, _SLAVE_NUMBER = 0x04, 0x02
_MODE_8086: Final = 0x01


def pic_setup(master_mask: int, slave_mask: int) -> tuple[tuple[int, int], ...]:
    """Return the ports and bytes to write: IRQ 0 is vector 08h, IRQ 8 vector 70h; bits of a mask shut an IRQ out."""
    return (
        *((MASTER, _CASCADE_EDGE_ICW4), (SLAVE, _CASCADE_EDGE_ICW4)),
        *((MASTER + 1, _MASTER_VECTOR), (SLAVE + 1, _SLAVE_VECTOR)),
        *((MASTER + 1, _SLAVE_ON_IRQ_2), (SLAVE + 1, _SLAVE_NUMBER)),
        *((MASTER + 1, _MODE_8086), (SLAVE + 1, _MODE_8086)),
        *((MASTER + 1, master_mask), (SLAVE + 1, slave_mask)),
    )
