"""The options of the command line and their parameters, as `query-command-line-options` shows them.

The list is QEMU's, so that clients find in it what they look for: it has the parameters of an option, in QEMU's order
and of QEMU's kinds, whether or not a machine of pyvm has any use for one.  Options are listed where pyvm takes them.
"""

from __future__ import annotations

from typing import Any

from pyvm.commandline.table import OPTIONS

LIMIT_ORDER = (
    *("iops-size", "bps-write-max-length", "bps-read-max-length", "bps-total-max-length", "iops-write-max-length"),
    *("iops-read-max-length", "iops-total-max-length", "bps-write-max", "bps-read-max", "bps-total-max"),
    *("iops-write-max", "iops-read-max", "iops-total-max", "bps-write", "bps-read", "bps-total", "iops-write"),
    *("iops-read", "iops-total"),
)
"""Limits of drives in the order of the list."""
_KINDS = {"s": "string", "b": "boolean", "n": "number", "z": "size"}

# Option, and its parameters as NAME:KIND; a parameter that ends in `?` has a line of help below.
_OPTIONS: tuple[tuple[str, str], ...] = (
    (
        "machine",
        (
            "loadparm:s? dea-key-wrap:b? aes-key-wrap:b? suppress-vmdesc:b? iommu:b? firmware:s? usb:b? mem-merge:b? "
            "dump-guest-core:b? dt_compatible:s? phandle_start:n? dumpdtb:s? dtb:s? append:s? initrd:s? kernel:s? "
            "kvm_shadow_mem:z? kernel_irqchip:b? accel:s? type:s?"
        ),
    ),
    ("sandbox", "resourcecontrol:s spawn:s elevateprivileges:s obsolete:s enable:b"),
    ("smbios", ""),
    ("acpi", ""),
    (
        "vnc",
        (
            "power-control:b audiodev:s non-adaptive:b lossy:b sasl-authz:s tls-authz:s sasl:b key-delay-ms:n "
            "lock-key-sync:b reverse:b password-secret:s password:b ipv6:b ipv4:b to:n connections:n head:n display:s "
            "share:s tls-creds:s websocket:s vnc:s"
        ),
    ),
    ("action", "watchdog:s panic:s reboot:s shutdown:s"),
    ("fw_cfg", "gen_id:s? string:s? file:s? name:s?"),
    ("icount", "rrsnapshot:s rrfile:s rr:s sleep:b align:b shift:s"),
    ("numa", ""),
    ("name", "debug-threads:b? process:s? guest:s?"),
    ("msg", "guest-name:b? timestamp:b"),
    ("overcommit", "cpu-pm:b mem-lock:b"),
    ("tpmdev", ""),
    ("object", ""),
    ("add-fd", "opaque:s? set:n? fd:n?"),
    ("boot-opts", "strict:b reboot-timeout:n splash-time:n splash:s menu:b once:s order:s"),
    ("smp-opts", "maxcpus:n threads:n cores:n clusters:n dies:n sockets:n cpus:n"),
    ("memory", "maxmem:z slots:n size:z"),
    ("accel", ""),
    ("option-rom", "romfile:s bootindex:n"),
    ("plugin", ""),
    ("trace", "file:s events:s enable:s"),
    ("mon", "pretty:b chardev:s mode:s"),
    ("global", "value:s property:s driver:s"),
    ("rtc", "driftfix:s clock:s base:s"),
    ("net", ""),
    ("nic", ""),
    ("netdev", ""),
    ("device", ""),
    (
        "chardev",
        (
            "abstract:b tight:b clipboard:b mouse:b logappend:b logfile:s append:b chardev:s size:z debug:n name:s "
            "signal:b mux:b rows:n cols:n height:n width:n websocket:b tls-authz:s tls-creds:s tn3270:b telnet:b "
            "reconnect:n nodelay:b delay:b server:b wait:b ipv6:b ipv4:b to:n localport:s localaddr:s fd:s port:s "
            "host:s path:s backend:s"
        ),
    ),
    (
        "drive",
        "copy-on-read:b? werror:s? rerror:s? read-only:b? file:s? if:s? media:s? index:n? unit:n? bus:n? "
        "stats-account-failed:b? stats-account-invalid:b? detect-zeroes:s? throttling.group:s? "
        + "".join(f"throttling.{name}:n? " for name in LIMIT_ORDER)
        + "werror:s? format:s? cache.writeback:b? aio:s? snapshot:b? force-share:b? discard:s? auto-read-only:b? "
        "cache.no-flush:b? cache.direct:b? driver:s? node-name:s?",
    ),
)
_NAMES = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot", "acpi": "acpitable"}
"""How an option is typed where that is not what the list calls it."""
_DEFAULTS = {("chardev", "tight"): "on"}

_HELP = {
    "machine": {
        "loadparm": "parameter for boot loaders of other machines",
        "dea-key-wrap": "key wrapping of other processors",
        "aes-key-wrap": "key wrapping of other processors",
        "suppress-vmdesc": "leave descriptions out of migration streams",
        "iommu": "whether there is an IOMMU",
        "firmware": "firmware of the machine",
        "usb": "whether there is USB; only off",
        "mem-merge": "the host may merge equal pages of the guest",
        "dump-guest-core": "guest memory is part of core dumps",
        "dt_compatible": "name in the device tree of other machines",
        "phandle_start": "first handle in the device tree of other machines",
        "dumpdtb": "write the device tree of other machines",
        "dtb": "device tree of other machines",
        "append": "command line of the kernel",
        "initrd": "initial RAM disk of the kernel",
        "kernel": "kernel to boot",
        "kvm_shadow_mem": "memory for KVM's shadow page tables",
        "kernel_irqchip": "interrupt controllers in the host's kernel",
        "accel": "what runs guest code; only tcg",
        "type": "the machine",
    },
    "fw_cfg": {
        "gen_id": "object that makes the content",
        "string": "the content",
        "file": "file that has the content",
        "name": "name under which the guest finds it",
    },
    "name": {
        "debug-threads": "threads carry names",
        "process": "name of the process",
        "guest": "name of the guest",
    },
    "msg": {"guest-name": "messages begin with the guest's name"},
    "add-fd": {
        "opaque": "remark about the descriptor",
        "set": "number of the set",
        "fd": "the inherited descriptor",
    },
    "drive": {
        "copy-on-read": "keep what was read from the backing file",
        "werror": "what follows a write error",
        "rerror": "what follows a read error",
        "read-only": "the guest cannot write",
        "file": "file name of the image",
        "if": "interface: virtio, ide, floppy, none",
        "media": "disk or cdrom",
        "index": "place among the drives of the interface",
        "unit": "place on the bus",
        "bus": "number of the bus",
        "stats-account-failed": "count requests that failed",
        "stats-account-invalid": "count requests that make no sense",
        "detect-zeroes": "what becomes of zeros that are written: off, on, unmap",
        "throttling.group": "name of the group that shares the limits",
        **{f"throttling.{name}": "limit of " + name.replace("-", " ") for name in LIMIT_ORDER},
        "format": "image format",
        "cache.writeback": "the guest sees a volatile write cache",
        "aio": "how the host does I/O: threads, native, io_uring",
        "snapshot": "keep what is written in a temporary file",
        "force-share": "let others write meanwhile",
        "discard": "whether discarded blocks are given back: ignore/off, unmap/on",
        "auto-read-only": "open it for reading where writing is not allowed",
        "cache.no-flush": "ignore the guest's flushes",
        "cache.direct": "keep the host's page cache out",
        "driver": "block driver",
        "node-name": "name of the block node",
    },
}


def option_infos() -> list[dict[str, Any]]:
    """Return a CommandLineOptionInfo for each option that pyvm takes and that has parameters."""
    return [
        {"option": name, "parameters": [_parameter(name, word) for word in parameters.split()]}
        for name, parameters in _OPTIONS
        if _is_taken(_NAMES.get(name, name))
    ]


def _is_taken(name: str) -> bool:
    spec = OPTIONS.get(name)
    return spec is not None and spec.handling != "missing"


def _parameter(option: str, word: str) -> dict[str, Any]:
    name, _, kind = word.rpartition(":")
    info: dict[str, Any] = {"name": name, "type": _KINDS[kind[0]]}
    if kind.endswith("?"):
        info["help"] = _HELP[option][name]
    if (option, name) in _DEFAULTS:
        info["default"] = _DEFAULTS[option, name]
    return info
