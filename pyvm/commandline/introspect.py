"""The options of the command line and their parameters, as `query-command-line-options` shows them.

An option is listed where pyvm takes it.  Parameters come from the tables that do the checking; what these leave open,
because another part of pyvm checks it, is named here.
"""

from __future__ import annotations

from typing import Any

from pyvm.block.limit_names import LIMIT_NAMES
from pyvm.commandline.groups import GROUPS
from pyvm.commandline.table import OPTIONS

_CHARDEV = {
    "string": "backend path host port fd localaddr localport name size chardev logfile",
    "boolean": "ipv4 ipv6 wait server delay nodelay telnet mux signal append logappend tight abstract",
    "number": "to reconnect",
}
_DRIVE: dict[str, tuple[str, str]] = {
    "node-name": ("string", "name of the block node"),
    "driver": ("string", "block driver"),
    "cache.direct": ("boolean", "keep the host's page cache out"),
    "cache.no-flush": ("boolean", "ignore the guest's flushes"),
    "auto-read-only": ("boolean", "open it for reading where writing is not allowed"),
    "discard": ("string", "whether discarded blocks are given back: ignore/off, unmap/on"),
    "force-share": ("boolean", "let others write meanwhile"),
    "snapshot": ("boolean", "keep what is written in a temporary file"),
    "aio": ("string", "how the host does I/O: threads, native, io_uring"),
    "cache.writeback": ("boolean", "the guest sees a volatile write cache"),
    "format": ("string", "image format"),
    "werror": ("string", "what follows a write error"),
    **{f"throttling.{name}": ("number", "limit of " + name.replace("-", " ")) for name in LIMIT_NAMES},
    "throttling.group": ("string", "name of the group that shares the limits"),
    "detect-zeroes": ("string", "what becomes of zeros that are written: off, on, unmap"),
    "stats-account-invalid": ("boolean", "count requests that make no sense"),
    "stats-account-failed": ("boolean", "count requests that failed"),
    "bus": ("number", "number of the bus"),
    "unit": ("number", "place on the bus"),
    "index": ("number", "place among the drives of the interface"),
    "media": ("string", "disk or cdrom"),
    "if": ("string", "interface: virtio, ide, floppy, none"),
    "file": ("string", "file name of the image"),
    "read-only": ("boolean", "the guest cannot write"),
    "rerror": ("string", "what follows a read error"),
    "copy-on-read": ("boolean", "keep what was read from the backing file"),
}
_MACHINE: dict[str, tuple[str, str]] = {
    "type": ("string", "the machine"),
    "accel": ("string", "what runs guest code; only tcg"),
    "kernel": ("string", "kernel to boot"),
    "initrd": ("string", "initial RAM disk of the kernel"),
    "append": ("string", "command line of the kernel"),
    "acpi": ("string", "whether there is ACPI"),
    "hpet": ("boolean", "whether there is an HPET"),
    "memory-backend": ("string", "ID of the memory backend that is the RAM"),
    "usb": ("boolean", "whether there is USB; only off"),
    "mem-merge": ("boolean", "the host may merge equal pages of the guest"),
    "dump-guest-core": ("boolean", "guest memory is part of core dumps"),
    "suppress-vmdesc": ("boolean", "leave descriptions out of migration streams"),
    "kernel_irqchip": ("boolean", "interrupt controllers in the host's kernel"),
    "dea-key-wrap": ("boolean", "key wrapping of other processors"),
    "aes-key-wrap": ("boolean", "key wrapping of other processors"),
}
_OPEN = ("accel", "audiodev", "compat", "object", "device", "net", "nic", "netdev", "numa", "smbios", "tpmdev", "trace")
"""Options that are listed without parameters: those depend on what is made."""
_SANDBOX = {"enable": "boolean"}
_UNLISTED = frozenset({"blockdev", "audiodev", "compat"})
"""Options that clients find in the schema."""


def option_infos() -> list[dict[str, Any]]:
    """Return a CommandLineOptionInfo for each option that has parameters."""
    found = {"machine": _described(_MACHINE), "drive": _described(_DRIVE), "chardev": _chardev()}
    found["sandbox"] = [{"name": name, "type": kind} for name, kind in _SANDBOX.items()]
    for name, group in GROUPS.items():
        if name in found or name in _UNLISTED:
            continue
        parameters = {} if name in _OPEN else group.parameters or {}
        found[name] = [{"name": key, "type": kind} for key, kind in parameters.items()]
    for name in _OPEN:
        spec = OPTIONS.get(name)
        if spec is not None and spec.handling != "missing" and name not in _UNLISTED:
            found.setdefault(name, [])
    return [{"option": name, "parameters": parameters} for name, parameters in found.items()]


def _described(parameters: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "help": text} for name, (kind, text) in parameters.items()]


def _chardev() -> list[dict[str, Any]]:
    return [{"name": name, "type": kind} for kind, names in _CHARDEV.items() for name in names.split()]
