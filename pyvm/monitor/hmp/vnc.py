"""Commands about VNC displays, for people."""

from __future__ import annotations

from typing import Any

from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

INFORMATION = CommandTable()

_HINT = "If you want use passwords please enable password auth using '-vnc ${dpy},password'.\n"


def with_hint(shell: Shell, display: str | None, command: str, **arguments: Any) -> str:
    """Call a QMP command that sets the password of a display; tell what is missing where that cannot be."""
    from pyvm.vnc.protocol import Security

    try:
        shell.qmp(command, **arguments)
    except QmpError as error:
        displays = getattr(shell.machine, "vnc", None)
        server = None if displays is None else displays.find(display)
        if server is None or server.security is not Security.NONE or error.description != "Could not set password":
            raise
        return f"{_HINT}Error: {error.description}\n"
    return ""


def change_password(shell: Shell, target: str, password: str | None) -> str:
    """Carry out `change vnc password`."""
    if target not in ("passwd", "password"):
        return "Expected 'password' after 'vnc'\n"
    if password is None:
        return "terminal does not support password prompting\n"
    return with_hint(shell, None, "change-vnc-password", password=password)


@INFORMATION.command("vnc", description="show the vnc server status")
def vnc(shell: Shell) -> str:
    """Show the displays and who is connected."""
    servers = shell.qmp("query-vnc-servers")
    return "".join(map(_server, servers)) or "None\n"


def _server(info: dict[str, Any]) -> str:
    lines = [f"{info['id']}:"]
    for place in info["server"]:
        lines += [f"  Server: {_place(place)}", f"    Auth: {place['auth']} (Sub: none)"]
    for client in info["clients"]:
        lines += [f"  Client: {_place(client)}", "    x509_dname: none", "    sasl_username: none"]
    if not info["server"]:
        lines.append(f"  Auth: {info['auth']} (Sub: none)")
    if "display" in info:
        lines.append(f"  Display: {info['display']}")
    return "".join(f"{line}\n" for line in lines)


def _place(place: dict[str, Any]) -> str:
    return f"{place['host']}:{place['service']} ({place['family']})"
