"""Subcommands that only ask: what the guest is, and what it has."""

from __future__ import annotations

import argparse
from typing import Any

from pyvm.agent import AgentClient
from pyvm.agent import records as r
from pyvm.tools.ga.output import show_json, show_pairs, show_table, size

_NANOSECONDS = 1_000_000_000
_ONLINE = {True: "online", False: "offline"}


def _json(agent: AgentClient, options: argparse.Namespace, command: str) -> bool:
    """Show the answer as it came, if that was asked for."""
    if options.json:
        show_json(agent.command(command))
    return bool(options.json)


def ping(agent: AgentClient, options: argparse.Namespace) -> int:
    """Answer whether the agent does."""
    agent.ping()
    if options.json:
        show_json({})
    return 0


def sync(agent: AgentClient, options: argparse.Namespace) -> int:
    """Drop what the agent still sends of earlier conversations."""
    agent.synchronise()
    if options.json:
        show_json({})
    return 0


def info(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show the agent's version and commands."""
    if _json(agent, options, "guest-info"):
        return 0
    answer = agent.info()
    show_pairs([("version", answer.version), ("commands", len(answer.supported_commands))])
    disabled = sorted(command.name for command in answer.supported_commands if not command.enabled)
    show_pairs([("disabled", " ".join(disabled) or None)])
    if options.commands:
        states = {True: "enabled", False: "disabled"}
        commands = sorted(answer.supported_commands, key=lambda command: command.name)
        show_table(("COMMAND", "STATE"), [(command.name, states[command.enabled]) for command in commands])
    return 0


def osinfo(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show the guest's operating system, its name and its time zone."""
    if _json(agent, options, "guest-get-osinfo"):
        return 0
    answer, zone = agent.get_osinfo(), agent.get_timezone()
    show_pairs(
        [
            ("system", answer.pretty_name or answer.name),
            ("kernel", answer.kernel_release),
            ("build", answer.kernel_version),
            ("machine", answer.machine),
            ("variant", answer.variant),
            ("host name", agent.get_host_name()),
            ("time zone", f"{zone.zone or ''} {_offset(zone.offset)}".strip()),
        ]
    )
    return 0


def _offset(seconds: int) -> str:
    hours, rest = divmod(abs(seconds), 3600)
    return f"UTC{'-' if seconds < 0 else '+'}{hours:02}:{rest // 60:02}"


def show_time(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show the guest's time, and how far it is from the host's."""
    import time

    if _json(agent, options, "guest-get-time"):
        return 0
    before = time.time_ns()
    now = agent.get_time()
    away = (now - (before + time.time_ns()) // 2) / _NANOSECONDS
    try:
        shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now // _NANOSECONDS))
    except (ValueError, OverflowError):
        shown = f"{now} ns"
    show_pairs([("time", shown), ("from the host's", f"{away:+.3f} s")])
    return 0


def users(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show who is logged in."""
    import time

    if _json(agent, options, "guest-get-users"):
        return 0
    rows = [
        (user.user, user.domain, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(user.login_time)))
        for user in agent.get_users()
    ]
    show_table(("USER", "DOMAIN", "SINCE"), rows)
    return 0


def _address(disk: r.GuestDiskAddress) -> str:
    """Return where a disk is, as in ``virtio 0000:00:06.0``."""
    pci = disk.pci_controller
    place = "" if pci.slot < 0 else f" {pci.domain:04x}:{pci.bus:02x}:{pci.slot:02x}.{pci.function}"
    unit = f" {disk.bus}:{disk.target}:{disk.unit}" if (disk.bus, disk.target, disk.unit) != (0, 0, 0) else ""
    return f"{disk.bus_type}{place}{unit}"


def fsinfo(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show mounted file systems."""
    if _json(agent, options, "guest-get-fsinfo"):
        return 0
    rows = [
        (
            item.name,
            item.mountpoint,
            item.type,
            size(item.total_bytes),
            size(item.used_bytes),
            ", ".join(_address(disk) for disk in item.disk) or "-",
        )
        for item in agent.get_fsinfo()
    ]
    show_table(("NAME", "MOUNTED AT", "TYPE", "SIZE", "USED", "DISK"), rows)
    return 0


def disks(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show disks and partitions."""
    if _json(agent, options, "guest-get-disks"):
        return 0
    rows = [
        (
            item.name,
            "partition" if item.partition else "disk",
            " ".join(item.dependencies or ()) or None,
            item.alias,
            _address(item.address) if item.address else None,
            item.address.serial if item.address else None,
        )
        for item in agent.get_disks()
    ]
    show_table(("NAME", "KIND", "ON", "ALIAS", "DISK", "SERIAL"), rows)
    return 0


def network(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show network interfaces."""
    if _json(agent, options, "guest-network-get-interfaces"):
        return 0
    rows: list[tuple[Any, ...]] = []
    for item in agent.network_get_interfaces():
        addresses: list[str | None] = [f"{entry.ip_address}/{entry.prefix}" for entry in item.ip_addresses or ()]
        counts = item.statistics
        traffic = (size(counts.rx_bytes), size(counts.tx_bytes)) if counts else (None, None)
        rows.append((item.name, item.hardware_address, addresses[0] if addresses else None, *traffic))
        rows += [("", "", other, "", "") for other in addresses[1:]]
    show_table(("NAME", "HARDWARE", "ADDRESS", "RECEIVED", "SENT"), rows)
    return 0


def vcpus(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show which CPUs are switched on."""
    if _json(agent, options, "guest-get-vcpus"):
        return 0
    rows = [(item.logical_id, _ONLINE[item.online], item.can_offline) for item in agent.get_vcpus()]
    show_table(("CPU", "STATE", "MAY GO OFFLINE"), rows)
    return 0


def memory_blocks(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show which blocks of memory are switched on."""
    if _json(agent, options, "guest-get-memory-blocks"):
        return 0
    length = agent.get_memory_block_info().size
    rows = [
        (item.phys_index, f"{item.phys_index * length:#x}", _ONLINE[item.online], item.can_offline)
        for item in sorted(agent.get_memory_blocks(), key=lambda item: item.phys_index)
    ]
    show_pairs([("block size", size(length))])
    show_table(("BLOCK", "ADDRESS", "STATE", "MAY GO OFFLINE"), rows)
    return 0
