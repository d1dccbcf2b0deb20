"""What is put right when a machine goes on from a saved state, or from another machine that it was made of.

The guest keeps its MAC addresses, as its drivers know them; the network is told that they are here now.  The RTC shows
the host's time, as always.  Guest time goes on where it stood, or is stepped forward as if the machine had run
meanwhile: a guest whose clock source is the time stamp counter then has the right time at once.  The identifier of the
machine's generation, where it has one, is another one, and the guest is told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc


def step_clock(pc: Pc, saved_at: int) -> None:
    """Step guest time by what has passed since `saved_at`, in ns since the epoch; it never goes back."""
    pc.clock.set(pc.clock.now() + max(time.time_ns() - saved_at, 0))


def put_right(pc: Pc, *, copied: bool) -> None:
    """All is loaded, and nothing runs yet; `copied` says that the other machine goes on, too."""
    device = pc.plugger.plugged.generation_id
    if device is not None:
        # Loading may have overwritten the event that told the guest.
        device.regenerate(None if copied else device.guid)


def announce(pc: Pc) -> None:
    """The machine runs: tell the network where its cards are now."""
    if any(pc.network.cards(None)):
        from pyvm.net.announce import AnnounceTimes

        pc.network.announce(AnnounceTimes(), None, "")
