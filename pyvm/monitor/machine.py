"""What the monitor may ask of a machine.

Command handlers know the machine only by these protocols; `pyvm.machine` implements them.  All calls are made in the
main loop with the machine lock held.  What a call does is done when it returns, the events of it included: a client
sees RESET before the reply to `system_reset`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from pyvm.records import field, record
from pyvm.runstate import RunState, ShutdownCause

if TYPE_CHECKING:
    from pyvm.chardev.registry import ChardevInfo


@record(frozen=True)
class VcpuInfo:
    """One vCPU as `query-cpus-fast` shows it."""

    index: int
    qom_path: str
    thread_id: int
    """The host's identifier of the thread that runs the vCPU."""
    topology: dict[str, int] = field(default_factory=dict)
    """Where the CPU is: ``socket-id``, ``die-id``, ``core-id``, ``thread-id``, ``node-id``."""


class Balloon(Protocol):
    """The memory balloon of a machine; all sizes in bytes."""

    @property
    def actual(self) -> int:
        """How much memory the guest has now."""

    def set_target(self, size: int) -> None:
        """Ask the guest to give memory back, or to take it, until it has `size`; more than there is means all."""


class Scheduler(Protocol):
    """What the monitor needs of the main loop."""

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Run a callback in the main loop, soon; from any thread."""

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> object:
        """Run a callback after `seconds` of host time; from the main loop only."""


class MachineControl(Protocol):
    """A machine as its monitors see it."""

    @property
    def name(self) -> str | None:
        """The name that the user gave the machine, or None."""

    def save_devices(self, path: str) -> None:
        """Save the state of the machine without its memory in a file; raises OSError, and goes on in any case."""

    def load_devices(self, path: str) -> None:
        """Load such a file into the stopped machine; raises ConfigError."""

    @property
    def uuid(self) -> str:
        """The machine's UUID in lower case; all zeros where the user gave none."""

    @property
    def initialized(self) -> bool:
        """Whether the machine exists; False while `-preconfig` waits for `x-exit-preconfig`."""

    @property
    def run_state(self) -> RunState:
        """The present run state."""

    @property
    def single_step(self) -> bool:
        """Whether each vCPU runs one instruction at a time (`-singlestep`)."""

    @property
    def needs_reset(self) -> bool:
        """Whether the guest can go on only after a reset."""

    @property
    def autostart(self) -> bool:
        """Whether the guest will run once an incoming migration is complete; settable."""

    @autostart.setter
    def autostart(self, value: bool) -> None: ...

    def vm_stop(self, state: RunState) -> None:
        """Stop a running guest and enter `state`; STOP is sent.  Nothing happens where the guest does not run."""

    def vm_start(self) -> None:
        """Let the guest run; RESUME is sent.  Nothing happens where it runs.

        Raises :class:`pyvm.monitor.errors.QmpError` where it cannot, e.g. because an image is in use elsewhere.
        """

    def reset(self, cause: ShutdownCause) -> None:
        """Reset the machine; RESET is sent, or SHUTDOWN where a reset is to end the machine (`-no-reboot`)."""

    def powerdown(self) -> None:
        """Press the power button; POWERDOWN is sent."""

    def quit(self, cause: ShutdownCause) -> None:
        """End the process soon, once replies are on their way; SHUTDOWN is sent."""

    @property
    def wakeup_supported(self) -> bool:
        """Whether the machine has a suspended state to be woken from."""

    def wakeup(self) -> None:
        """Wake the guest from suspend-to-RAM; WAKEUP is sent.  The run state is SUSPENDED when this is called."""

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to the vCPUs, as the machine's NMI button does.

        Raises :class:`pyvm.monitor.errors.QmpError` where the machine has no such button.
        """

    def vcpus(self) -> Sequence[VcpuInfo]:
        """Return the vCPUs in the order of their index."""

    def chardevs(self) -> Sequence[ChardevInfo]:
        """Return the character devices, in any order."""

    @property
    def balloon(self) -> Balloon | None:
        """The memory balloon, or None where the machine has none."""
