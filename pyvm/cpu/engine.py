"""Loading the CPU engine: pyvm.native in front of libunicorn.

The functions of `pyvm.native` replace some of libunicorn's, which works only where the dynamic linker meets ours first.
So nothing in pyvm imports the `unicorn` package: its library is loaded here, behind ours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from types import ModuleType

    from pyvm.native import Engine


class EngineError(Exception):
    """The CPU engine cannot be used on this host or with this Unicorn."""


class GuestCodeLog(Protocol):
    """What is told of guest code while somebody wants to know; called on the vCPU thread.

    `registers` are those of the moment, as the engine has them, with what flags are yet to be worked out from:
    ``cc_src``, ``cc_dst`` and ``cc_op``.  The values of a block are its linear address, the base of its code segment,
    the state of the processor that it is for, how it was translated, its length, and where its translation is.
    """

    def block_translated(self, vcpu: int, values: Sequence[int], registers: dict[str, Any], /) -> None:
        """A block was translated."""

    def block_entered(self, vcpu: int, values: Sequence[int], registers: dict[str, Any] | None, /) -> None:
        """A block is entered."""

    def interrupt_taken(self, vcpu: int, values: Sequence[int], registers: dict[str, Any], /) -> None:
        """An interrupt or exception is about to be delivered.

        The values are vector, error code, whether it is of an INT instruction, whether it comes from outside, and the
        vector of the exception during whose delivery it was raised, or 2**32 - 1.
        """


class EngineCallbacks(GuestCodeLog, Protocol):
    """What guest code needs from the rest of the machine; called on the vCPU thread."""

    def port_read(self, port: int, size: int) -> int | memoryview:
        """Return what `size` bytes at a port read as; or more, in which this and the next reads of the port find it."""

    def port_consume(self, port: int, count: int) -> None:
        """So many bytes were taken of what was returned ahead."""

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes to a port."""

    def mmio_read(self, gpa: int, size: int) -> int:
        """Return what `size` bytes of memory that is not RAM read as."""

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        """Write `size` bytes of memory that is not RAM."""

    def acknowledge(self, vcpu: int) -> int | None:
        """Return the vector of the interrupt that a vCPU takes now; None where none is left."""

    def msr_read(self, vcpu: int, index: int) -> int | None:
        """Return an MSR of the local APIC; None raises #GP."""

    def msr_write(self, vcpu: int, index: int, value: int) -> bool:
        """Write an MSR of the local APIC; False raises #GP."""

    def cr8_read(self, vcpu: int) -> int:
        """Return the task priority."""

    def cr8_write(self, vcpu: int, value: int) -> None:
        """Set the task priority."""

    def firmware_call(self, vcpu: int) -> None:
        """Run the firmware service whose entry point a vCPU has reached; its state may be read and changed."""


def _library_path() -> str:
    spec = importlib.util.find_spec("unicorn")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the unicorn package is not installed")
    return os.path.join(spec.submodule_search_locations[0], "lib", "libunicorn.so.2")


def _load() -> ModuleType:
    if not sys.platform.startswith("linux"):
        raise EngineError("pyvm runs on Linux only: the CPU engine needs ELF symbol interposition")
    from pyvm import native

    try:
        native.load(_library_path())
    except RuntimeError as error:
        raise EngineError(str(error)) from error
    return native


def open_engine(vcpus: int, callbacks: EngineCallbacks, tsc_hz: int) -> Engine:
    """Return a new engine with `vcpus` vCPUs in their power-on state.

    Raises :class:`EngineError` where the installed Unicorn is not the one whose private layout is known.
    """
    native = _load()
    try:
        engine: Engine = native.Engine(vcpus, callbacks, tsc_hz)
    except RuntimeError as error:
        raise EngineError(str(error)) from error
    return engine
