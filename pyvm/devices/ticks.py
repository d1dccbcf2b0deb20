"""What periodic interrupt sources do about ticks that the host was too slow to deliver.

A busy host, or one that was suspended, runs a timer's callback late, sometimes by many periods.  PIT, HPET and local
APIC timer then deliver one interrupt, not the storm of all that were due, and go on with the next point of the grid
that the guest set up: ticks may be lost, but none is out of phase, and time never drifts.  Guests cope, because they
take the passage of time from a counter and not from the number of interrupts.

A guest may program a period shorter than any host can serve.  Ticks closer together than :data:`MINIMUM_GAP` are
thinned out in the same way, so a hostile guest cannot keep the main loop busy with one timer.
"""

from __future__ import annotations

MINIMUM_GAP = 20_000
"""The shortest time between two periodic interrupts of one timer, in ns."""


def next_tick(origin: int, period: int, now: int, minimum_gap: int = MINIMUM_GAP) -> int:
    """Return the first point of the grid `origin` + k x `period`, k >= 1, that lies after `now`.

    Where `period` is shorter than `minimum_gap` it is the first point at least that gap after `now`.  All four share
    one unit, which `minimum_gap` only has a default for if that is the ns.
    """
    if period < minimum_gap:
        now += minimum_gap - 1
    return origin + max((now - origin) // period + 1, 1) * period
