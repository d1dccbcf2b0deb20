"""Commands about networks."""

from __future__ import annotations

from typing import Any

from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()
INFORMATION = CommandTable()


@COMMANDS.command(
    "netdev_add",
    "netdev:string?",
    parameters="[user|tap|socket|stream|dgram|vde|bridge|hubport|netmap|vhost-user],id=str[,prop=value][,...]",
    description="add host network device",
)
def netdev_add(shell: Shell, netdev: str | None) -> str:
    """Make a back end of what `-netdev` takes."""
    from pyvm.commandline.network import parse_netdev

    if netdev is None:
        raise QmpError("Parameter 'id' is missing")
    network = shell.machine_part("network")
    try:
        options = parse_netdev(netdev)
        if network.clients.find_netdev(options["id"]) is not None:
            return f"Duplicate ID '{options['id']}' for netdev\nTry \"help netdev_add\" for more information\n"
    except ConfigError as error:
        raise QmpError(str(error)) from None
    shell.qmp("netdev_add", arguments=options)
    return ""


@COMMANDS.command("netdev_del", "id:string", parameters="id", description="remove host network device")
def netdev_del(shell: Shell, id: str) -> None:  # noqa: A002 - the name that its help has
    """Take a back end away."""
    shell.qmp("netdev_del", id=id)


@COMMANDS.command(
    "set_link",
    "name:string up:switch",
    parameters="name on|off",
    description="change the link status of a network adapter",
)
def set_link(shell: Shell, name: str, up: bool) -> None:
    """Connect or pull out a cable."""
    shell.qmp("set_link", name=name, up=up)


@COMMANDS.command(
    "announce_self",
    "interfaces:string? id:string?",
    parameters="[interfaces] [id]",
    description="Trigger GARP/RARP announcements",
)
def announce_self(shell: Shell, interfaces: str | None, id: str | None) -> None:  # noqa: A002
    """Tell the network where the guest's cards are now."""
    from pyvm.net.announce import AnnounceTimes

    names = interfaces.split(",") if interfaces else None
    shell.machine_part("network").announce(AnnounceTimes(), names, id or "")


def _user_network(shell: Shell, first: str, second: str | None) -> tuple[Any, str]:
    """Return the network that is meant, and the rule."""
    network = shell.machine_part("network")
    return (network.user_network(None), first) if second is None else (network.user_network(first), second)


@COMMANDS.command(
    "hostfwd_add",
    "first:string second:string?",
    parameters="[netdev_id] [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport",
    description="redirect TCP or UDP connections from host to guest (requires -net user)",
)
def hostfwd_add(shell: Shell, first: str, second: str | None) -> str:
    """Forward a port of the host to the guest."""
    try:
        network, rule = _user_network(shell, first, second)
        network.add_forward(rule)
    except (QmpError, ConfigError) as error:
        return f"{error}\n"
    return ""


@COMMANDS.command(
    "hostfwd_remove",
    "first:string second:string?",
    parameters="[netdev_id] [tcp|udp]:[hostaddr]:hostport",
    description="remove host-to-guest TCP or UDP redirection",
)
def hostfwd_remove(shell: Shell, first: str, second: str | None) -> str:
    """End a forward."""
    try:
        network, rule = _user_network(shell, first, second)
    except QmpError as error:
        return f"{error}\n"
    removed = network.remove_forward(rule)
    if removed is None:
        return "invalid format\n"
    return f"host forwarding rule for {rule} {'removed' if removed else 'not found'}\n"


@INFORMATION.command("network", description="show the network state")
def network_state(shell: Shell) -> str:
    """Show all back ends and cards."""
    return str(shell.machine_part("network").clients.text())


@INFORMATION.command("usernet", description="show user network stack connection states")
def usernet(shell: Shell) -> str:
    """Show the connections of all back ends `user`."""
    return "".join(network.connections_text() for network in shell.machine_part("network").user_networks())
