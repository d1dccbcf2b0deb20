"""All VNC displays of a machine, as the machine and its monitors see them."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from pyvm.chardev.address import InetAddress
from pyvm.chardev.base import ChardevError
from pyvm.errors import ConfigError
from pyvm.pace import Pace
from pyvm.runstate import RunState, ShutdownCause
from pyvm.vnc.refresh import Refresher
from pyvm.vnc.screen import Screen
from pyvm.vnc.server import VncHost, VncServer

if TYPE_CHECKING:
    from pyvm.devices.display.vga import Vga
    from pyvm.machine.pc import Pc
    from pyvm.vnc.connection import Connection
    from pyvm.vnc.options import VncOptions


class VncDisplays:
    """The displays, in the order in which they were asked for."""

    def __init__(self, pc: Pc) -> None:
        self.servers: list[VncServer] = []
        self._pc = pc
        self._host = VncHost(
            pc.mainloop,
            pc.input,
            Pace(lambda: pc.run_state is RunState.RUNNING),
            emit=pc.events.emit,
            title=f"QEMU ({pc.name})" if pc.name else "QEMU",
            power_off=pc.powerdown,
            reset=lambda: pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET),
        )
        self._screens: dict[str | None, tuple[Screen, Refresher]] = {}
        if pc.config.board.type != "none":
            pc.board.keyboard.on_leds = self._lights_changed

    def open(self, options: VncOptions) -> None:
        """Make a display.  Raises ConfigError."""
        try:
            self._open(options)
        except (ChardevError, ConfigError) as error:
            raise ConfigError(f"{options.origin}: {error}" if options.origin else str(error)) from None

    def _open(self, options: VncOptions) -> None:
        if options.display is not None:
            self._check_device(options.display, options.head)
        server = VncServer(self._host, options, *self._screen(options.display))
        if options.password_secret is not None:
            server.secret = self._pc.storage.graph.secrets.find_text(options.password_secret)
        if options.address is not None:
            server.listen([options.address])
        self.servers.append(server)
        if isinstance(options.address, InetAddress) and options.address.to is not None:
            place = server.places[0]
            print(f"VNC server running on {place['host']}:{place['service']}", file=sys.stderr)

    def _check_device(self, name: str, head: int) -> None:
        found = self._pc.find_device(name)
        if found is None:
            raise ConfigError(f"Device '{name}' not found")
        if head or found not in self._pc.displays():
            raise ConfigError(f"Device {name} (head {head}) is not bound to a QemuConsole")

    def _screen(self, device: str | None) -> tuple[Screen, Refresher]:
        """Return the screen of a device, or of the primary one, and who looks at it for all its viewers."""
        if device not in self._screens:
            screen = Screen(lambda: self._adapter(device))
            refresher = Refresher(self._pc.mainloop, screen, self._pc.input, lambda: self._viewers(screen))
            self._screens[device] = screen, refresher
        return self._screens[device]

    def _adapter(self, device: str | None) -> Vga | None:
        displays = self._pc.displays()
        if device is not None:
            found = self._pc.find_device(device)
            return next((display for display in displays if display is found), None)
        return displays[0] if displays else None

    def _viewers(self, screen: Screen) -> list[Connection]:
        return [viewer for server in self.servers if server.screen is screen for viewer in server.connections]

    def _lights_changed(self, leds: int) -> None:
        """The guest has set the lights of its keyboard; in whichever thread it runs."""
        self._host.locks.lights(leds)
        self._pc.mainloop.call_soon(self._tell_lights)

    def _tell_lights(self) -> None:
        for server in self.servers:
            for viewer in list(server.connections):
                viewer.session.lights_changed()
                viewer.pump()

    def close(self) -> None:
        """End everything."""
        for _, refresher in self._screens.values():
            refresher.close()
        for server in self.servers:
            server.close()

    # ---- What monitors ask for

    def find(self, name: str | None) -> VncServer | None:
        """Return the display of that ID, or the first."""
        return next((server for server in self.servers if name in (None, server.options.id)), None)

    def set_password(self, name: str | None, password: str) -> bool:
        """Set a display's password; return whether there is a display that asks for one."""
        server = self.find(name)
        if server is None or not server.options.password:
            return False
        server.secret = password.encode("utf-8", "surrogateescape")
        return True

    def expire_password(self, name: str | None, when: int) -> bool:
        """Let a display's password end at `when`, in seconds since the epoch; return whether there is the display."""
        server = self.find(name)
        if server is not None:
            server.expires = when
        return server is not None

    def add_client(self, fd: int, *, trusted: bool) -> None:
        """Serve the viewer on a descriptor, which becomes the display's; closed where that cannot be."""
        server = self.find(None)
        try:
            wire = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return
        if server is None or wire.type != socket.SOCK_STREAM:
            wire.close()
        else:
            server.add(wire, trusted=trusted)
