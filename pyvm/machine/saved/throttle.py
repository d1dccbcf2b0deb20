"""Slowing a guest down: its vCPUs stand still for a share of the time, while its clock goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.monitor.machine import Scheduler
    from pyvm.runstate import RunStateHolder

_SLICE = 0.01
"""Seconds for which the guest runs between two pauses."""


class Throttle:
    """Holds the vCPUs of one machine up, again and again.  Called in the main loop, with the machine lock held."""

    def __init__(self, cpus: VcpuSet, states: RunStateHolder, scheduler: Scheduler) -> None:
        self._cpus = cpus
        self._states = states
        self._scheduler = scheduler
        self._share = 0.0
        self._ticking = False
        self._held = False

    def set(self, percentage: int) -> None:
        """Hold the guest up for so many per cent of the time, up to 99; 0 lets it go."""
        self._share = percentage / 100
        if not percentage:
            self._release()
        elif not self._ticking:
            self._ticking = True
            self._hold()

    def _hold(self) -> None:
        if not self._share:
            self._ticking = False
            return
        if self._states.running:
            self._held = True
            self._cpus.stop()
        self._later(_SLICE * self._share / (1 - self._share), self._run)

    def _run(self) -> None:
        self._release()
        self._later(_SLICE, self._hold)

    def _later(self, seconds: float, action: Any) -> None:
        self._scheduler.call_later(seconds, action)

    def _release(self) -> None:
        if self._held:
            self._held = False
            if self._states.running:
                self._cpus.go_on()
