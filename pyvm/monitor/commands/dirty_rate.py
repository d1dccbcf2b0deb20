"""Commands that measure how fast the guest writes to its memory."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()

_MODES = ("page-sampling", "dirty-ring", "dirty-bitmap")
_LONGEST = 60
_SAMPLES = (128, 16384)
_DEFAULT_SAMPLES = 512
_NO_RING = "dirty ring is disabled, use sample-pages method or remeasure later."
_NO_LIMIT = "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"


class RateMeter(Protocol):
    """A measurement, at most one at a time."""

    @property
    def measuring(self) -> bool:
        """Whether it goes on."""

    def start(self, seconds: int, samples: int, *, all_pages: bool) -> None:
        """Begin to measure: `samples` pages of each GiB, or all of them."""

    def info(self) -> dict[str, Any]:
        """Return a DirtyRateInfo."""


class RateModel(Protocol):
    """Where a machine has it."""

    @property
    def dirty_rate(self) -> RateMeter:
        """The measurement."""


@runtime_checkable
class RateOwner(Protocol):
    """A machine whose memory can be watched."""

    @property
    def model(self) -> RateModel:
        """Its parts."""


def _meter(context: Context) -> RateMeter:
    if not isinstance(context.machine, RateOwner):
        raise unsupported()
    return context.machine.model.dirty_rate


@COMMANDS.command("calc-dirty-rate")
def calc_dirty_rate(context: Context, calc_time: int, sample_pages: int | None, mode: str | None) -> None:
    """Begin to measure."""
    meter = _meter(context)
    if meter.measuring:
        raise QmpError("the dirty rate is already being measured.")
    if not 1 <= calc_time <= _LONGEST:
        raise QmpError(f"calc-time is out of range[1, {_LONGEST}].")
    low, high = _SAMPLES
    if sample_pages is not None:
        if mode not in (None, _MODES[0]):
            raise QmpError(f"sample-pages is used only in {_MODES[0]} mode")
        if not low <= sample_pages <= high:
            raise QmpError(f"sample-pages is out of range[{low}, {high}].")
    if mode == "dirty-ring":
        raise QmpError(_NO_RING)
    meter.start(calc_time, sample_pages or _DEFAULT_SAMPLES, all_pages=mode == "dirty-bitmap")


@COMMANDS.command("query-dirty-rate")
def query_dirty_rate(context: Context) -> dict[str, Any]:
    """Return the result of the last measurement."""
    return _meter(context).info()


@COMMANDS.command("set-vcpu-dirty-limit")
def set_vcpu_dirty_limit(context: Context, cpu_index: int | None, dirty_rate: int) -> None:
    """Limits need KVM."""
    raise QmpError(_NO_LIMIT)


@COMMANDS.command("cancel-vcpu-dirty-limit")
def cancel_vcpu_dirty_limit(context: Context, cpu_index: int | None) -> None:
    """There are no limits to be taken away."""


@COMMANDS.command("query-vcpu-dirty-limit")
def query_vcpu_dirty_limit(context: Context) -> list[dict[str, Any]]:
    """Return the limits: there are none."""
    return []
