"""Commands about networks: back ends, links, filters of cards, announcements."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record
from pyvm.options import is_identifier

if TYPE_CHECKING:
    from pyvm.machine.network import Network

COMMANDS = CommandTable()


@runtime_checkable
class NetworkOwner(Protocol):
    """A machine with networks."""

    network: Network


def _network(context: Context) -> Network:
    machine = context.machine
    if not isinstance(machine, NetworkOwner):
        raise unsupported()
    return machine.network


def _find_fd(context: Context) -> Callable[[str], int]:
    """Return how back ends find descriptors that the client gave names to."""

    def find(name: str) -> int:
        fd = context.session.named_fds.take(name)
        if fd is None:
            raise ConfigError(f"File descriptor named '{name}' has not been found")
        return fd

    return find


@COMMANDS.command("netdev_add")
def netdev_add(context: Context, arguments: dict[str, Any]) -> None:
    """Make a back end."""
    if not is_identifier(arguments["id"]):
        raise QmpError("Parameter 'id' expects an identifier")
    _network(context).add_netdev(arguments, _find_fd(context))


@COMMANDS.command("netdev_del")
def netdev_del(context: Context, id: str) -> None:  # noqa: A002 - the name that the schema gives it
    """Take a back end away."""
    _network(context).remove_netdev(id)


@COMMANDS.command("set_link")
def set_link(context: Context, name: str, up: bool) -> None:
    """Connect or pull out the cable of a card or a back end."""
    _network(context).set_link(name, up)


@COMMANDS.command("query-rx-filter")
def query_rx_filter(context: Context, name: str | None) -> list[dict[str, Any]]:
    """Return what network cards let through."""
    if not isinstance(context.machine, NetworkOwner):
        if name is not None:
            raise QmpError(f"invalid net client name: {name}")
        return []
    return _network(context).rx_filters(name)


@COMMANDS.command("announce-self")
def announce_self(context: Context, arguments: Record) -> None:
    """Tell the network where the guest's cards are now, in several rounds."""
    from pyvm.net.announce import AnnounceTimes

    times = AnnounceTimes(arguments.initial, arguments.max, arguments.rounds, arguments.step)
    _network(context).announce(times, arguments.interfaces or None, arguments.id or "")
