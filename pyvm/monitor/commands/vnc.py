"""Commands about VNC displays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.vnc.displays import VncDisplays

COMMANDS = CommandTable()


@runtime_checkable
class VncDisplayOwner(Protocol):
    """A machine that can be shown by VNC."""

    vnc: VncDisplays | None
    """Its displays; None where none was asked for."""


def vnc_of(context: Context) -> VncDisplays | None:
    """Return the VNC displays of the machine, None where there are none."""
    machine = context.machine
    return machine.vnc if isinstance(machine, VncDisplayOwner) else None


@COMMANDS.command("query-vnc")
def query_vnc(context: Context) -> dict[str, Any]:
    """Return what the first display is."""
    displays = vnc_of(context)
    server = None if displays is None else displays.find(None)
    if server is None or not server.places:
        return {"enabled": False}
    place = server.places[0]
    return {
        "enabled": True,
        "host": place["host"],
        "service": place["service"],
        "family": place["family"],
        "auth": server.security.name.lower(),
        "clients": [dict(client) for client in server.clients],
    }


@COMMANDS.command("query-vnc-servers")
def query_vnc_servers(context: Context) -> list[dict[str, Any]]:
    """Return all displays, the latest first."""
    displays = vnc_of(context)
    found = []
    for server in reversed(displays.servers if displays is not None else []):
        security = server.security.name.lower()
        info: dict[str, Any] = {
            "id": server.options.id,
            "server": [{**place, "auth": security} for place in reversed(server.places)],
            "clients": [dict(client) for client in server.clients],
            "auth": security,
        }
        if server.options.display is not None:
            info["display"] = server.options.display
        found.append(info)
    return found


@COMMANDS.command("change-vnc-password")
def change_vnc_password(context: Context, password: str) -> None:
    """Set the password of the first display."""
    displays = vnc_of(context)
    if displays is None or not displays.set_password(None, password):
        raise QmpError("Could not set password")
