"""Commands that describe parts of the machine for people."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


class TextModel(Protocol):
    """A machine that can describe its parts; all texts end in a newline, or are empty."""

    def irq_text(self) -> str:
        """Return how often each interrupt came."""

    def jit_text(self) -> str:
        """Return what the translator did."""

    def numa_text(self) -> str:
        """Return the NUMA nodes."""

    def ram_text(self) -> str:
        """Return the blocks of memory."""

    def rom_text(self) -> str:
        """Return what is loaded by firmware."""


@runtime_checkable
class TextOwner(Protocol):
    """A machine with such parts."""

    @property
    def model(self) -> TextModel:
        """Its parts."""


def _model(context: Context) -> TextModel:
    if not isinstance(context.machine, TextOwner):
        raise unsupported()
    return context.machine.model


def _text(text: str) -> dict[str, Any]:
    return {"human-readable-text": text}


@COMMANDS.command("x-query-irq")
def query_irq(context: Context) -> dict[str, Any]:
    """Return how often each interrupt came."""
    return _text(_model(context).irq_text())


@COMMANDS.command("x-query-jit")
def query_jit(context: Context) -> dict[str, Any]:
    """Return what the translator did."""
    return _text(_model(context).jit_text())


@COMMANDS.command("x-query-numa")
def query_numa(context: Context) -> dict[str, Any]:
    """Return the NUMA nodes."""
    return _text(_model(context).numa_text())


@COMMANDS.command("x-query-opcount")
def query_opcount(context: Context) -> dict[str, Any]:
    """The translator does not count operations."""
    return _text("[TCG profiler not compiled]\n")


@COMMANDS.command("x-query-profile")
def query_profile(context: Context) -> dict[str, Any]:
    """The translator has no profiler."""
    raise QmpError("Internal profiler not compiled")


@COMMANDS.command("x-query-ramblock")
def query_ramblock(context: Context) -> dict[str, Any]:
    """Return the blocks of memory."""
    return _text(_model(context).ram_text())


@COMMANDS.command("x-query-rdma")
def query_rdma(context: Context) -> dict[str, Any]:
    """There are no RDMA devices."""
    return _text("")


@COMMANDS.command("x-query-roms")
def query_roms(context: Context) -> dict[str, Any]:
    """Return what is loaded by firmware."""
    return _text(_model(context).rom_text())


@COMMANDS.command("x-query-usb")
def query_usb(context: Context) -> dict[str, Any]:
    """There is no USB."""
    raise QmpError("USB support not enabled")
