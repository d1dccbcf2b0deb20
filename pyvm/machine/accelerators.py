"""What runs guest code, and what guest time follows: the parts of a machine that `-accel` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.clock import RunningClock

if TYPE_CHECKING:
    from pyvm.block.requests import BackendEvents
    from pyvm.clock import Clock
    from pyvm.config import MachineConfig
    from pyvm.cpu.vcpu import VcpuSet

_LATENCY = 1_000_000
"""What a request is said to have taken in ns, where guest time does not pass by itself."""


def make_clock(config: MachineConfig) -> RunningClock:
    """Return the clock that guest time is read from."""
    if config.accelerator == "qtest":
        from pyvm.machine.qtest import SteppedClock

        return SteppedClock()
    return RunningClock()


def vcpu_class(config: MachineConfig) -> type[VcpuSet]:
    """Return what the vCPUs are made of."""
    if config.accelerator == "qtest":
        from pyvm.machine.qtest import IdleVcpus

        return IdleVcpus
    from pyvm.cpu.vcpu import VcpuSet

    return VcpuSet


def account_by_guest_time(config: MachineConfig, clock: Clock, events: BackendEvents) -> None:
    """Have disks count their requests by guest time, where that is what a client steps."""
    if config.accelerator == "qtest":
        events.now, events.latency = clock.now, _LATENCY
