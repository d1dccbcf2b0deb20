"""Commands that write guest memory to files, or look at much of it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_PIECE = 1 << 16
_WORD = 0xFFFF


@COMMANDS.command(
    "memsave",
    "val:int64 size:uint32 filename:string",
    parameters="addr size file",
    description="save to disk virtual memory dump starting at 'addr' of size 'size'",
)
def memsave(shell: Shell, val: int, size: int, filename: str) -> Any:
    """Copy memory at a linear address to a file."""
    return shell.qmp("memsave", val=val, size=size, filename=filename, cpu_index=shell.state.cpu)


@COMMANDS.command(
    "pmemsave",
    "val:int64 size:uint32 filename:string",
    parameters="addr size file",
    description="save to disk physical memory dump starting at 'addr' of size 'size'",
)
def pmemsave(shell: Shell, val: int, size: int, filename: str) -> Any:
    """Copy memory at a physical address to a file."""
    return shell.qmp("pmemsave", val=val, size=size, filename=filename)


@COMMANDS.command(
    "dump-guest-memory",
    "-p -d -w -z -l -s filename:filename begin:int64? length:int64?",
    parameters="[-p] [-d] [-z|-l|-s|-w] filename [begin length]",
    description="dump guest memory into file 'filename' (-p: with linear addresses; -d: do not wait for the end; "
    "-z, -l, -s: kdump-compressed format with zlib, lzo or snappy; -w: Windows crash dump; begin, length: a part of "
    "physical memory only)",
)
def dump_guest_memory(
    shell: Shell,
    p: bool,
    d: bool,
    w: bool,
    z: bool,
    l: bool,
    s: bool,
    filename: str,
    begin: int | None,
    length: int | None,
) -> Awaitable[None] | None:
    """Write a core file of the guest."""
    formats = {"win-dmp": w, "kdump-zlib": z, "kdump-lzo": l, "kdump-snappy": s}
    chosen = [name for name, given in formats.items() if given]
    if len(chosen) > 1:
        raise QmpError("only one of '-z|-l|-s|-w' can be set")
    arguments = {"paging": p, "protocol": f"file:{filename}", "detach": d, "begin": begin, "length": length}
    result: Awaitable[None] | None = shell.qmp("dump-guest-memory", **arguments, format=(chosen or ["elf"])[0])
    return result


@INFORMATION.command("dump", description="Display the latest dump status")
def dump(shell: Shell) -> str:
    """Show how the last dump fares."""
    info = shell.qmp("query-dump")
    text = f"Status: {info['status']}\n"
    if info["status"] == "active":
        text += f"Finished: {100.0 * info['completed'] / info['total']:.2f} %\n"
    return text


@COMMANDS.command(
    "sum", "start:uint32 size:uint32", parameters="addr size", description="compute the checksum of a memory region"
)
def checksum(shell: Shell, start: int, size: int) -> str:
    """Show the checksum of a part of physical memory that BSD's sum(1) would give."""
    from pyvm.machine.dump.dumper import PhysicalMemory

    machine: Any = shell.machine
    physical = PhysicalMemory(machine.memory, machine.mmio)
    total = 0
    for offset in range(0, size, _PIECE):
        for byte in physical.read(start + offset, min(_PIECE, size - offset)):
            total = (total >> 1 | (total & 1) << 15) + byte & _WORD
    return f"{total:05d}\n"
