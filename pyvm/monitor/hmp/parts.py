"""Subjects of `info` that show what QMP commands tell of the machine's parts, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.schema.record import record_class

INFORMATION = CommandTable()

_UNMAPPED = (1 << 64) - 1
_STATS_TARGETS = ("vm", "vcpu")
_PLACES = ("node-id", "socket-id", "die-id", "cluster-id", "core-id", "thread-id")
_StatsFilter = record_class("StatsFilter", ("target", "providers", "vcpus"))


def _onoff(value: bool) -> str:
    return "true" if value else "false"


def error_text(error: QmpError) -> str:
    """Return an error as commands show it that take it for information."""
    return f"{error.description}\n"


# ---- What is text already


def _describe(name: str, command: str, description: str) -> None:
    """Add a subject for a QMP command that returns text."""

    def show(shell: Shell) -> str:
        text: str = shell.qmp(command)["human-readable-text"]
        return text

    INFORMATION.command(name, description=description)(show)


for _name, _command, _description in (
    ("irq", "x-query-irq", "show the interrupts statistics (if available)"),
    ("jit", "x-query-jit", "show dynamic compiler info"),
    ("numa", "x-query-numa", "show NUMA information"),
    ("opcount", "x-query-opcount", "show dynamic compiler opcode counters"),
    ("profile", "x-query-profile", "show profiling information"),
    ("ramblock", "x-query-ramblock", "Display system ramblock information"),
    ("rdma", "x-query-rdma", "show RDMA state"),
    ("roms", "x-query-roms", "show roms"),
    ("usb", "x-query-usb", "show guest USB devices"),
):
    _describe(_name, _command, _description)


# ---- CPUs and memory


@INFORMATION.command("hotpluggable-cpus", description="Show information about hotpluggable CPUs", preconfig=True)
def hotpluggable_cpus(shell: Shell) -> str:
    """Show the places that CPUs can be in."""
    text = "Hotpluggable CPUs:\n"
    for place in shell.qmp("query-hotpluggable-cpus"):
        text += f'  type: "{place["type"]}"\n  vcpus_count: "{place["vcpus-count"]}"\n'
        if "qom-path" in place:
            text += f'  qom_path: "{place["qom-path"]}"\n'
        text += "  CPUInstance Properties:\n"
        text += "".join(f'    {name}: "{place["props"][name]}"\n' for name in _PLACES if name in place["props"])
    return text


@INFORMATION.command("memdev", description="show memory backends", preconfig=True)
def memdev(shell: Shell) -> str:
    """Show the memory backends."""
    text = ""
    for backend in shell.qmp("query-memdev"):
        text += f"memory backend: {backend['id']}\n  size:  {backend['size']}\n"
        for name in ("merge", "dump", "prealloc", "share", "reserve"):
            if name in backend:
                text += f"  {name}: {_onoff(backend[name])}\n"
        nodes = ",".join(map(str, backend["host-nodes"]))
        text += f"  policy: {backend['policy']}\n  host nodes: {nodes}\n"
    return text + "\n"


@INFORMATION.command("memory-devices", description="show memory devices")
def memory_devices(shell: Shell) -> str:
    """Show the memory devices that are plugged in."""
    text = ""
    for device in shell.qmp("query-memory-devices"):
        data = device["data"]
        text += f'Memory device [{device["type"]}]: "{data.get("id", "")}"\n'
        text += "".join(f"  {name}: {value}\n" for name, value in data.items() if name != "id")
    return text


@INFORMATION.command(
    "memory_size_summary",
    description="show the amount of initially allocated and present hotpluggable (if enabled) memory in bytes.",
)
def memory_size_summary(shell: Shell) -> str:
    """Show how much memory the machine was made with, and how much was plugged in."""
    info = shell.qmp("query-memory-size-summary")
    text = f"base memory: {info['base-memory']}\n"
    return text + (f"plugged memory: {info['plugged-memory']}\n" if "plugged-memory" in info else "")


@INFORMATION.command(
    "stats",
    "target:string names:string? provider:string?",
    parameters="target [names] [provider]",
    description="show statistics for the given target (vm or vcpu); optionally filter by name (comma-separated list, "
    "or * for all) and provider",
)
def stats(shell: Shell, target: str, names: str | None, provider: str | None) -> str:
    """Show the statistics of providers."""
    if target not in _STATS_TARGETS:
        return f"invalid stats target {target}\n"
    if provider is not None and provider != "kvm":
        return f"invalid stats provider {provider}\n"
    wanted: Any = _StatsFilter()
    wanted.target, wanted.providers, wanted.vcpus = target, None, None
    text = ""
    for result in shell.qmp("query-stats", arguments=wanted):
        text += f"provider: {result['provider']}\n"
        text += "".join(f"    {item['name']}: {item['value']}\n" for item in result["stats"])
    return text


# ---- Buses and devices


def _pci_region(region: dict[str, Any]) -> str:
    address = region["address"] & _UNMAPPED
    end = (address + region["size"] - 1) & _UNMAPPED
    text = f"      BAR{region['bar']}: "
    if region["type"] == "io":
        return text + f"I/O at 0x{address:04x} [0x{end:04x}].\n"
    width, prefetch = 64 if region["mem_type_64"] else 32, " prefetchable" if region["prefetch"] else ""
    return text + f"{width} bit{prefetch} memory at 0x{address:08x} [0x{end:08x}].\n"


def _pci_device(device: dict[str, Any]) -> str:
    text = f"  Bus {device['bus']:2}, device {device['slot']:3}, function {device['function']}:\n"
    kind, identity = device["class_info"], device["id"]
    name = kind.get("desc") or f"Class {kind['class']:04d}"
    text += f"    {name}: PCI device {identity['vendor']:04x}:{identity['device']:04x}\n"
    if identity.get("subsystem-vendor") is not None and identity.get("subsystem") is not None:
        text += f"      PCI subsystem {identity['subsystem-vendor']:04x}:{identity['subsystem']:04x}\n"
    if "irq" in device:
        text += f"      IRQ {device['irq']}, pin {chr(ord('A') + device['irq_pin'] - 1)}\n"
    text += "".join(map(_pci_region, device["regions"]))
    return text + f'      id "{device["qdev_id"]}"\n'


@INFORMATION.command("pci", description="show PCI info")
def pci(shell: Shell) -> str:
    """Show the functions on the PCI buses."""
    buses = shell.qmp("query-pci")
    if not buses:
        return "PCI devices not supported\n"
    return "".join(_pci_device(device) for bus in buses for device in bus["devices"])


@INFORMATION.command("usbhost", description="show host USB devices")
def usbhost(shell: Shell) -> str:
    """Show the host's USB devices, which no guest can have."""
    return 'Command "info usbhost" is not available.\n'


# ---- virtio


def _query_virtio(shell: Shell, command: str, path: str, **arguments: Any) -> Any:
    if not shell.initialized:
        raise QmpError(f"Path {path} is not a {'VirtIO device' if command.endswith('element') else 'VirtIODevice'}")
    return shell.qmp(command, path=path, **arguments)


@INFORMATION.command("virtio", description="List all available virtio devices", preconfig=True)
def virtio(shell: Shell) -> str:
    """Show the virtio devices."""
    devices = shell.qmp("x-query-virtio") if shell.initialized else []
    if not devices:
        return "No VirtIO devices\n"
    return "".join(f"{device['path']} [{device['name']}]\n" for device in devices)


def _word_list(words: Iterable[str]) -> str:
    return ",\n".join(f"\t{word}" for word in words) + "\n"


def _features(title: str, found: dict[str, Any]) -> str:
    text = f"  {title} features:\n" + _word_list(found["transports"])
    if found.get("dev-features"):
        text += _word_list(found["dev-features"])
    if "unknown-dev-features" in found:
        text += f"  unknown-features(0x{found['unknown-dev-features']:016x})\n"
    return text


@INFORMATION.command(
    "virtio-status",
    "path:string",
    parameters="path",
    description="Display status of a given virtio device",
    preconfig=True,
)
def virtio_status(shell: Shell, path: str) -> str:
    """Show what a virtio device is doing."""
    info = _query_virtio(shell, "x-query-virtio-status", path)
    rows = [
        ("device_name", info["name"] + " "),
        ("device_id", info["device-id"]),
        ("vhost_started", _onoff(info["vhost-started"])),
        ("bus_name", info["bus-name"] or "(null)"),
        *((name, _onoff(info[name.replace("_", "-")])) for name in ("broken", "disabled", "disable_legacy_check")),
        *((name, _onoff(info[name.replace("_", "-")])) for name in ("started", "use_started", "start_on_kick")),
        ("use_guest_notifier_mask", _onoff(info["use-guest-notifier-mask"])),
        ("vm_running", _onoff(info["vm-running"])),
        ("num_vqs", info["num-vqs"]),
        ("queue_sel", info["queue-sel"]),
        ("isr", info["isr"]),
        ("endianness", info["device-endian"]),
    ]
    text = f"{path}:\n" + "".join(f"  {name + ':':<24} {value}\n" for name, value in rows)
    status = info["status"]
    text += "  status:\n" + _word_list(status["statuses"])
    if "unknown-statuses" in status:
        text += f"  unknown-statuses(0x{status['unknown-statuses']:016x})\n"
    for title in ("Guest", "Host", "Backend"):
        text += _features(title, info[f"{title.lower()}-features"])
    return text


_RING = ("num", "num-default", "align")
_RING_ADDRESSES = ("desc", "avail", "used")


@INFORMATION.command(
    "virtio-queue-status",
    "path:string queue:uint32",
    parameters="path queue",
    description="Display status of a given virtio queue",
    preconfig=True,
)
def virtio_queue_status(shell: Shell, path: str, queue: int) -> str:
    """Show where a queue's rings are, and how far they are used."""
    info = _query_virtio(shell, "x-query-virtio-queue-status", path, queue=queue)
    rows = [("device_name", info["name"]), ("queue_index", info["queue-index"])]
    rows += [(name.replace("-", "_"), info[name]) for name in ("inuse", "used-idx", "signalled-used")]
    rows.append(("signalled_used_valid", _onoff(info["signalled-used-valid"])))
    rows += [(name.replace("-", "_"), info[name]) for name in ("last-avail-idx", "shadow-avail-idx") if name in info]
    text = f"{path}:\n" + "".join(f"  {name + ':':<21} {value}\n" for name, value in rows) + "  VRing:\n"
    text += "".join(f"    {name.replace('-', '_') + ':':<13} {info[f'vring-{name}']}\n" for name in _RING)
    return text + "".join(f"    {name + ':':<13} 0x{info[f'vring-{name}']:016x}\n" for name in _RING_ADDRESSES)


@INFORMATION.command(
    "virtio-vhost-queue-status",
    "path:string queue:uint32",
    parameters="path queue",
    description="Display status of a given vhost queue",
    preconfig=True,
)
def virtio_vhost_queue_status(shell: Shell, path: str, queue: int) -> None:
    """Refuse: no device is served by the host's kernel."""
    _query_virtio(shell, "x-query-virtio-vhost-queue-status", path, queue=queue)


@INFORMATION.command(
    "virtio-queue-element",
    "path:string queue:uint32 index:uint32?",
    parameters="path queue [index]",
    description="Display element of a given virtio queue",
    preconfig=True,
)
def virtio_queue_element(shell: Shell, path: str, queue: int, index: int | None) -> str:
    """Show a request in a queue."""
    info = _query_virtio(shell, "x-query-virtio-queue-element", path, queue=queue, index=index)
    text = f"{path}:\n  device_name: {info['name']}\n  index:   {info['index']}\n  desc:\n    descs:\n"
    for item in info["descs"]:
        flags = f" ({', '.join(item['flags'])})" if item["flags"] else ""
        text += f"        addr 0x{item['addr']:x} len {item['len']}{flags}\n"
    avail, used = info["avail"], info["used"]
    text += f"  avail:\n    flags: {avail['flags']}\n    idx:   {avail['idx']}\n    ring:  {avail['ring']}\n"
    return text + f"  used:\n    flags: {used['flags']}\n    idx:   {used['idx']}\n"


# ---- What this machine lacks


@INFORMATION.command("sev", description="show SEV information")
def sev(shell: Shell) -> str:
    """Show that memory is not encrypted."""
    return "SEV is enabled\n" if shell.qmp("query-sev")["enabled"] else "SEV is not enabled\n"


@INFORMATION.command("sgx", description="show intel SGX information")
def sgx(shell: Shell) -> str:
    """Show that there are no enclaves."""
    try:
        shell.qmp("query-sgx")
    except QmpError as error:
        return error_text(error)
    return ""


@INFORMATION.command("vm-generation-id", description="Show Virtual Machine Generation ID")
def vm_generation_id(shell: Shell) -> str:
    """Show the identifier that changes with each copy of a machine."""
    return f"{shell.qmp('query-vm-generation-id')['guid']}\n"


@INFORMATION.command("spice", description="show the spice server status")
def spice(shell: Shell) -> str:
    """Show that there is no SPICE server."""
    return "Server: enabled\n" if shell.qmp("query-spice")["enabled"] else "Server: disabled\n"


@INFORMATION.command("capture", description="show capture information")
def capture(shell: Shell) -> str:
    """Show what sound is recorded: none."""
    return ""
