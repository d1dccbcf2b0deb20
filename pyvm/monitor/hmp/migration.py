"""Commands about migration, exports and dirty rates, which show or set what their QMP commands do."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_GLOBALS = """\
globals:
store-global-state: on
only-migratable: off
send-configuration: on
send-section-footer: on
decompress-error-check: on
clear-bitmap-shift: 18
"""
_MAPPING = "block-bitmap-mapping"
_SHOWN = (
    "announce-initial", "announce-max", "announce-rounds", "announce-step", "compress-level", "compress-threads",
    "compress-wait-thread", "decompress-threads", "throttle-trigger-threshold", "cpu-throttle-initial",
    "cpu-throttle-increment", "cpu-throttle-tailslow", "max-cpu-throttle", "tls-creds", "tls-hostname",
    "max-bandwidth", "downtime-limit", "x-checkpoint-delay", "block-incremental", "multifd-channels",
    "multifd-compression", "xbzrle-cache-size", "max-postcopy-bandwidth", "tls-authz",
)  # fmt: skip
_UNITS = {
    **dict.fromkeys(
        ("announce-initial", "announce-max", "announce-step", "downtime-limit", "x-checkpoint-delay"), "ms"
    ),
    "max-bandwidth": "bytes/second",
    "xbzrle-cache-size": "bytes",
}
_QUOTED = ("tls-creds", "tls-hostname", "tls-authz")
_IN_MIB = ("max-bandwidth", "xbzrle-cache-size", "max-postcopy-bandwidth")
"""Sizes that a person gives in MiB unless there is a suffix."""
_UINT64 = (1 << 64) - 1
_UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling")
_POLL_SECONDS = 0.1


def _onoff(value: Any) -> Any:
    return ("on" if value else "off") if isinstance(value, bool) else value


# ---- Settings


@INFORMATION.command("migrate", description="show migration status")
def migrate_status(shell: Shell) -> str:
    """Show how a migration goes, and what holds for all."""
    from pyvm.monitor.hmp.migration_status import lines

    return _GLOBALS + "".join(f"{line}\n" for line in lines(shell.qmp("query-migrate")))


@INFORMATION.command("migrate_capabilities", description="show current migration capabilities")
def migrate_capabilities(shell: Shell) -> str:
    """Show which capabilities are switched on."""
    items = shell.qmp("query-migrate-capabilities")
    return "".join(f"{item['capability']}: {_onoff(item['state'])}\n" for item in items)


@INFORMATION.command("migrate_parameters", description="show current migration parameters")
def migrate_parameters(shell: Shell) -> str:
    """Show the parameters."""
    values = shell.qmp("query-migrate-parameters")
    text = ""
    for name in _SHOWN:
        value = f"'{values[name]}'" if name in _QUOTED else _onoff(values[name])
        text += f"{name}: {value}" + (f" {_UNITS[name]}" if name in _UNITS else "") + "\n"
    if _MAPPING in values:
        text += f"{_MAPPING}:\n"
        for node in values[_MAPPING]:
            text += f"  '{node['node-name']}' -> '{node['alias']}'\n"
            text += "".join(f"    '{bitmap['name']}' -> '{bitmap['alias']}'\n" for bitmap in node["bitmaps"])
    return text


@COMMANDS.command(
    "migrate_set_capability",
    "capability:string state:switch",
    parameters="capability state",
    description="Enable/Disable the usage of a capability for migration",
)
def migrate_set_capability(shell: Shell, capability: str, state: bool) -> None:
    """Switch a capability on or off."""
    known = [item["capability"] for item in shell.qmp("query-migrate-capabilities")]
    if capability not in known:
        raise QmpError(f"invalid parameter value: {capability}")
    shell.request("migrate-set-capabilities", {"capabilities": [{"capability": capability, "state": state}]})


@COMMANDS.command(
    "migrate_set_parameter",
    "parameter:string value:string",
    parameters="parameter value",
    description="Set the parameter for migration",
)
def migrate_set_parameter(shell: Shell, parameter: str, value: str) -> None:
    """Set a parameter."""
    from pyvm.migration.settings import DEFAULTS

    if parameter == _MAPPING:
        raise QmpError(f"The {_MAPPING} parameter can only be set through QMP")
    if parameter not in DEFAULTS:
        raise QmpError(f"invalid parameter value: {parameter}")
    shell.request("migrate-set-parameters", {parameter: _typed(parameter, value, DEFAULTS[parameter])})


def _typed(name: str, text: str, default: Any) -> Any:
    from pyvm.errors import ConfigError
    from pyvm.options import parse_boolean, parse_size

    try:
        if isinstance(default, bool):
            return parse_boolean(name, text)
        if name in _IN_MIB:
            return _size(text, lambda: parse_size(name, text, "M"))
    except ConfigError as error:
        raise QmpError(str(error)) from None
    if isinstance(default, str):
        return text
    try:
        return int(text, 0)
    except ValueError:
        raise QmpError(f"Parameter '{name}' expects an int64 value or range") from None


def _size(text: str, parse: Any) -> int:
    from pyvm.errors import ConfigError

    try:
        return int(parse()) & _UINT64
    except ConfigError:
        raise QmpError(f"Invalid size {text}") from None


# ---- Migrations


@COMMANDS.command(
    "migrate",
    "-d -b -i -r uri:string",
    parameters="[-d] [-b] [-i] [-r] uri",
    description="migrate to URI (-d: do not wait for completion; -b, -i: with a full or an incremental copy of disks; "
    "-r: resume a paused migration)",
)
def migrate(shell: Shell, d: bool, b: bool, i: bool, r: bool, uri: str) -> str | Coroutine[Any, Any, str]:
    """Start a migration, and wait for its end unless that is not wanted."""
    shell.qmp("migrate", uri=uri, blk=b, inc=i, detach=d, resume=r)
    if d:
        return ""
    if not shell.at_terminal:
        return "terminal does not allow synchronous migration, continuing detached\n"
    return _wait_for_migration(shell)


async def _wait_for_migration(shell: Shell) -> str:
    """Wait for the end of the migration; return why it failed."""
    import asyncio

    while (info := shell.qmp("query-migrate")).get("status") in _UNDER_WAY:
        await asyncio.sleep(_POLL_SECONDS)
    return f"Error: {info['error-desc']}\n" if "error-desc" in info else ""


@COMMANDS.command("migrate_cancel", description="cancel the current VM migration")
def migrate_cancel(shell: Shell) -> None:
    """Give the migration up."""
    shell.qmp("migrate_cancel")


@COMMANDS.command(
    "migrate_continue",
    "state:string",
    parameters="state",
    description="Continue migration from the given paused state",
)
def migrate_continue(shell: Shell, state: str) -> None:
    """Go on with a migration that is paused."""
    from pyvm.monitor.schema.model import EnumType

    kind = shell.schema.type("MigrationStatus")
    assert isinstance(kind, EnumType)
    if state not in [value.name for value in kind.values]:
        raise QmpError(f"invalid parameter value: {state}")
    shell.qmp("migrate-continue", state=state)


@COMMANDS.command(
    "migrate_incoming",
    "uri:string",
    parameters="uri",
    description="Continue an incoming migration from an -incoming defer",
)
def migrate_incoming(shell: Shell, uri: str) -> None:
    """Let a migration come in."""
    shell.qmp("migrate-incoming", uri=uri)


@COMMANDS.command(
    "migrate_recover",
    "uri:string",
    parameters="uri",
    description="Continue a paused incoming postcopy migration",
)
def migrate_recover(shell: Shell, uri: str) -> None:
    """Take a migration up again."""
    shell.qmp("migrate-recover", uri=uri)


@COMMANDS.command("migrate_pause", description="Pause an ongoing migration (postcopy-only)")
def migrate_pause(shell: Shell) -> None:
    """Interrupt the migration."""
    shell.qmp("migrate-pause")


@COMMANDS.command("migrate_start_postcopy", description="Followup to a migration command to switch to postcopy mode")
def migrate_start_postcopy(shell: Shell) -> None:
    """Let the other side run."""
    shell.qmp("migrate-start-postcopy")


@COMMANDS.command(
    "client_migrate_info",
    "protocol:string hostname:string port:int64? tls_port:int64? cert_subject:string?",
    parameters="protocol hostname port tls-port cert-subject",
    description="set migration information for remote display",
)
def client_migrate_info(
    shell: Shell, protocol: str, hostname: str, port: int | None, tls_port: int | None, cert_subject: str | None
) -> None:
    """Tell the clients of a remote display where the machine goes."""
    arguments = {"port": port, "tls_port": tls_port, "cert_subject": cert_subject}
    shell.qmp("client_migrate_info", protocol=protocol, hostname=hostname, **arguments)


@COMMANDS.command(
    "x_colo_lost_heartbeat", description="Tell COLO that heartbeat is lost, a failover or takeover is needed."
)
def x_colo_lost_heartbeat(shell: Shell) -> None:
    """Refuse: no other machine follows this one."""
    shell.qmp("x-colo-lost-heartbeat")


# ---- Exports


@COMMANDS.command(
    "nbd_server_start",
    "-a -w uri:string",
    parameters="nbd_server_start [-a] [-w] host:port|unix:path",
    description="serve block devices on the given host and port (-a: all that there are; -w: writable)",
    preconfig=True,
)
def nbd_server_start(shell: Shell, a: bool, w: bool, uri: str) -> None:
    """Start the NBD server."""
    if w and not a:
        raise QmpError("-w only valid together with -a")
    address: dict[str, Any]
    if uri.startswith("unix:"):
        address = {"type": "unix", "data": {"path": uri.removeprefix("unix:")}}
    else:
        host, colon, port = uri.rpartition(":")
        if not colon:
            raise QmpError(f"error parsing address '{uri}'")
        address = {"type": "inet", "data": {"host": host.strip("[]"), "port": port}}
    shell.request("nbd-server-start", {"addr": address})
    if not a:
        return
    try:
        for drive in shell.qmp("query-block"):
            if "inserted" in drive:
                shell.request("nbd-server-add", {"device": drive["device"], "writable": w})
    except QmpError:
        shell.qmp("nbd-server-stop")
        raise


@COMMANDS.command(
    "nbd_server_add",
    "-w device:block name:string?",
    parameters="nbd_server_add [-w] device [name]",
    description="export a block device via NBD",
    preconfig=True,
)
def nbd_server_add(shell: Shell, w: bool, device: str, name: str | None) -> None:
    """Export a drive."""
    shell.request("nbd-server-add", {"device": device, "name": name, "writable": w})


@COMMANDS.command(
    "nbd_server_stop",
    parameters="nbd_server_stop",
    description="stop serving block devices using the NBD protocol",
    preconfig=True,
)
def nbd_server_stop(shell: Shell) -> None:
    """Stop the NBD server."""
    shell.qmp("nbd-server-stop")


@COMMANDS.command(
    "nbd_server_remove",
    "-f name:string",
    parameters="nbd_server_remove [-f] name",
    description="remove an export previously exposed via NBD",
    preconfig=True,
)
def nbd_server_remove(shell: Shell, f: bool, name: str) -> None:
    """Take an export away."""
    shell.qmp("nbd-server-remove", name=name, mode="hard" if f else "safe")


# ---- Dirty rates


@COMMANDS.command(
    "calc_dirty_rate",
    "-r -b second:int64 sample_pages_per_gb:int64?",
    parameters="[-r] [-b] second [sample_pages_per_GB]",
    description="start a round of guest dirty rate measurement (-r: with a dirty ring; -b: with a dirty bitmap)",
)
def calc_dirty_rate(shell: Shell, r: bool, b: bool, second: int, sample_pages_per_gb: int | None) -> str:
    """Begin to measure."""
    if second <= 0:
        return "Incorrect period length specified!\n"
    if r and b:
        return "Either dirty ring or dirty bitmap can be specified!\n"
    mode = "dirty-ring" if r else "dirty-bitmap" if b else "page-sampling"
    shell.qmp("calc-dirty-rate", calc_time=second, sample_pages=sample_pages_per_gb, mode=mode)
    return (
        f"Starting dirty rate measurement with period {second} seconds\n"
        "[Please use 'info dirty_rate' to check results]\n"
    )


@INFORMATION.command("dirty_rate", description="show dirty rate information")
def dirty_rate(shell: Shell) -> str:
    """Show the result of the last measurement."""
    info = shell.qmp("query-dirty-rate")
    text = f"Status: {info['status']}\nStart Time: {info['start-time']} (ms)\n"
    if info["mode"] == "page-sampling":
        text += f"Sample Pages: {info['sample-pages']} (per GB)\n"
    text += f"Period: {info['calc-time']} (sec)\nMode: {info['mode']}\nDirty rate: "
    return text + (f"{info['dirty-rate']} (MB/s)\n" if "dirty-rate" in info else "(not ready)\n")


@COMMANDS.command(
    "set_vcpu_dirty_limit",
    "dirty_rate:int64 cpu_index:int64?",
    parameters="dirty_rate [cpu_index]",
    description="set dirty page rate limit (cpu_index: of one vCPU only)",
)
def set_vcpu_dirty_limit(shell: Shell, dirty_rate: int, cpu_index: int | None) -> None:
    """Refuse: limits need KVM."""
    shell.qmp("set-vcpu-dirty-limit", dirty_rate=dirty_rate, cpu_index=cpu_index)


@COMMANDS.command(
    "cancel_vcpu_dirty_limit",
    "cpu_index:int64?",
    parameters="[cpu_index]",
    description="cancel dirty page rate limit (cpu_index: of one vCPU only)",
)
def cancel_vcpu_dirty_limit(shell: Shell, cpu_index: int | None) -> str:
    """Take limits away."""
    shell.qmp("cancel-vcpu-dirty-limit", cpu_index=cpu_index)
    return "[Please use 'info vcpu_dirty_limit' to query dirty limit for virtual CPU]\n"


@INFORMATION.command("vcpu_dirty_limit", description="show dirty page limit information of all vCPU")
def vcpu_dirty_limit(shell: Shell) -> str:
    """Show the limits, of which there are none."""
    shell.qmp("query-vcpu-dirty-limit")
    return "Dirty page limit not enabled!\n"
