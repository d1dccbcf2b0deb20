"""The back end `user` put together: the network with its services and forwards."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyvm.clock import Clock
from pyvm.errors import ConfigError
from pyvm.mainloop import MainLoop
from pyvm.net.user.config import GuestForward, HostForward, UserConfig, address_text, forward_key, host_forward
from pyvm.net.user.dhcp import DhcpServer
from pyvm.net.user.dhcp6 import Dhcp6Server
from pyvm.net.user.echo import EchoRelay
from pyvm.net.user.host_end import ChardevEnd, HostEnd, SocketEnd
from pyvm.net.user.icmp import IcmpService
from pyvm.net.user.icmp6 import Icmp6Service
from pyvm.net.user.stack import UserNet
from pyvm.net.user.tcp import TcpConnection
from pyvm.net.user.tcp_service import TcpService
from pyvm.net.user.tftp import TftpServer
from pyvm.net.user.translation import Translation
from pyvm.net.user.udp import UdpService

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

_COMMAND = "cmd:"
_PROGRAM_SECONDS = 0.5
FindChardev = Callable[[str, str], "Chardev"]
"""Returns the character device that a text describes, under the given label where it is new; raises ConfigError."""


class UserBackend(UserNet):
    """One back end `user`.  Raises ConfigError where a forward cannot be set up."""

    def __init__(
        self,
        name: str,
        config: UserConfig,
        loop: MainLoop,
        clock: Clock,
        find_chardev: FindChardev,
        translation: Translation | None = None,
    ) -> None:
        super().__init__(name, config, loop, clock)
        translation = translation or Translation(config)
        self._programs: list[subprocess.Popen[bytes]] = []
        self.add_closer(self._reap)  # the last that is done: by then the programs' connections are closed
        self.udp = UdpService(self, translation)
        self.tcp = TcpService(self, translation)
        echo = EchoRelay(self, translation)
        if config.ipv4:
            self.icmp = IcmpService(self, echo)
            self.dhcp = DhcpServer(self, self.udp)
        if config.ipv6:
            self.icmp6 = Icmp6Service(self, echo)
            self.dhcp6 = Dhcp6Server(self, self.udp)
        if config.tftp_root is not None:
            self.tftp = TftpServer(self, self.udp, config.tftp_root)
        try:
            for forward in config.host_forwards:
                self._add(forward)
            for guest_forward in config.guest_forwards:
                self._add_guest_forward(guest_forward, find_chardev)
        except BaseException:
            self.close()
            raise

    # ---- Forwards from the host

    def _add(self, forward: HostForward) -> None:
        (self.udp if forward.udp else self.tcp).add_forward(forward)

    def add_forward(self, text: str) -> None:
        """Add a forward while the machine runs; raises ConfigError."""
        self._add(host_forward(text, self.config))

    def remove_forward(self, text: str) -> bool | None:
        """Remove a forward; return whether it was there, None where `text` is no rule."""
        key = forward_key(text)
        if key is None:
            return None
        udp, address, port = key
        return (self.udp if udp else self.tcp).remove_forward(address, port)

    # ---- Forwards from the guest

    def _add_guest_forward(self, forward: GuestForward, find_chardev: FindChardev) -> None:
        place = (forward.address, forward.port)
        if forward.target.startswith(_COMMAND):
            command = forward.target.removeprefix(_COMMAND)
            self.tcp.openers[place] = lambda connection: self._run(command, connection)
            return
        chardev = find_chardev(forward.target, f"guestfwd.tcp.{forward.port}")
        if chardev.frontend is not None:
            raise ConfigError(f"Could not open guest forwarding device '{forward.target}'")

        def open_chardev(connection: TcpConnection) -> HostEnd | None:
            try:
                return ChardevEnd(self.loop, chardev, connection.host_readable, connection.host_writable)
            except ValueError:
                return None

        self.tcp.openers[place] = open_chardev

    def _run(self, command: str, connection: TcpConnection) -> HostEnd | None:
        """Start a program for one connection; the connection is its input and output."""
        try:
            own, other = socket.socketpair()
        except OSError:
            return None
        self._programs = [program for program in self._programs if program.poll() is None]
        try:
            with other:
                self._programs.append(
                    subprocess.Popen(["/bin/sh", "-c", command], stdin=other.fileno(), stdout=other.fileno())
                )
        except OSError:
            own.close()
            return None
        return SocketEnd(self.loop, own, connection.host_readable, connection.host_writable)

    def _reap(self) -> None:
        """Programs see their connection end, and have a moment to end themselves."""
        for program in self._programs:
            try:
                program.wait(_PROGRAM_SECONDS)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self._programs.clear()

    # ---- For people

    def connections_text(self) -> str:
        """Return what `info usernet` shows of this network."""
        hub = self.hub
        lines = [f"Hub {-1 if hub is None else hub} ({self.name}):"]
        lines.append("  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ")
        for kind, fd, source, target, received, sent in (*self.tcp.rows(), *self.udp.rows()):
            shown = f"  {kind:<18}{fd:3} {source[0]:>15} {source[1]:5} {address_text(target[0]):>15} {target[1]:5}"
            lines.append(f"{shown} {received:5} {sent:5}")
        return "\n".join(lines) + "\n"
