"""The back end `tap`: a network interface of the host (Linux tun/tap), opened here or inherited.

With the interface's virtio header, checksums and segmentation are left to the host's kernel, or to whoever gets the
frames in the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.mainloop import MainLoop
from pyvm.net.client import MAX_FRAME, Frame, NetClient, Offload
from pyvm.net.socket_options import take_fd

if TYPE_CHECKING:
    from pyvm.net.make import NetHost

_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNGETIFF, _TUNGETFEATURES = 0x400454CA, 0x800454D2, 0x800454CF
_TUNSETOFFLOAD, _TUNSETSNDBUF, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D4, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_INTERFACE = struct.Struct("16sH22x")
_F_CSUM, _F_TSO4, _F_TSO6, _F_TSO_ECN = 1, 2, 4, 8
_INT = struct.Struct("i")

_HEADER = struct.Struct("<BBHHHH")
_NO_HEADER = bytes(_HEADER.size)
_BATCH = 64
_NAME_LIMIT = 15

_DEFAULT_SCRIPT = "/etc/qemu-ifup"
_DEFAULT_DOWNSCRIPT = "/etc/qemu-ifdown"
_NO_SCRIPT = ("no", "")
_WITH_FD = ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds")


class TapNet(NetClient):
    """A link to an interface; with `header` each frame has a virtio header before it."""

    def __init__(self, name: str, loop: MainLoop, fd: int, *, header: bool, info: str) -> None:
        super().__init__(name, "tap")
        self.info = info
        self.offloads = header
        self.down_script: tuple[str, str] | None = None
        """What to run with which interface when this goes away."""
        self._loop = loop
        self._fd = fd
        self._header = header
        self._held: tuple[memoryview, Offload | None] | None = None
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    def peer_changed(self) -> None:
        """Let the kernel leave to the peer what that takes."""
        if not self._header or self._fd < 0:
            return
        wanted = self.peer_offloads
        bits = 0
        if wanted.checksum:
            bits = _F_CSUM | (_F_TSO4 if wanted.tso4 else 0) | (_F_TSO6 if wanted.tso6 else 0)
            bits |= _F_TSO_ECN if wanted.ecn and bits != _F_CSUM else 0
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, bits)
        except OSError:
            pass  # an old kernel, which then does all by itself

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Hand a frame to the kernel; what it does not take for good is lost."""
        parts = [_HEADER.pack(*offload) if offload else _NO_HEADER, frame] if self._header else [frame]
        try:
            os.writev(self._fd, parts)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._fd, self._room)
            return False
        except OSError:
            return True  # the interface is down, or the frame makes no sense to the kernel
        return True

    def _room(self) -> None:
        self._loop.remove_writer(self._fd)
        if self.peer is not None:
            self.peer.resume()

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                data = memoryview(os.read(self._fd, MAX_FRAME + _HEADER.size))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._loop.remove_reader(self._fd)
                break
            offload = None
            if self._header:
                if data[:2] != _NO_HEADER[:2]:
                    offload = Offload(*_HEADER.unpack_from(data))
                data = data[_HEADER.size :]
            if not self.send(data, offload):
                self._held = (data, offload)
                self._loop.remove_reader(self._fd)
                break
        self.send_end()

    def resume(self) -> None:
        """The peer takes frames again."""
        if self._held is not None and self.send(*self._held):
            self._held = None
            if self._fd >= 0:
                self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Let the interface go."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        fd, self._fd = self._fd, -1
        if self.down_script is not None:
            try:
                _run(*self.down_script)
            except ConfigError:
                pass  # nobody is there to be told, and the interface goes in any case
        os.close(fd)


def make_tap(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    """Return a back end `tap`; raises ConfigError."""
    for unsupported in ("vhost", "vhostfd", "vhostfds", "vhostforce", "helper", "br", "fds"):
        if options.get(unsupported):
            raise ConfigError(f"{unsupported} is not supported by pyvm yet")
    if options.get("queues", 1) > 1:
        raise ConfigError("queues is not supported by pyvm yet (only 1)")
    if options.get("fd") is not None:
        return _inherited(host, name, options)
    return _opened(host, name, options)


def _inherited(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    if any(options.get(other) is not None for other in _WITH_FD):
        raise ConfigError(
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="
        )
    fd = take_fd(host, options["fd"])
    try:
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "Bad file descriptor"
        raise ConfigError(f"{name}: Can't use file descriptor {fd}: {reason}") from None
    try:
        _, flags = _INTERFACE.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_INTERFACE.size)))
    except OSError:
        raise ConfigError(f"Unable to query TUNGETIFF on FD {fd}: Inappropriate ioctl for device") from None
    header = bool(flags & _IFF_VNET_HDR)
    if header:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(_HEADER.size))
    return TapNet(name, host.loop, fd, header=header, info=f"fd={fd}")


def _opened(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    wanted = options.get("ifname") or ""
    if len(os.fsencode(wanted)) > _NAME_LIMIT:
        raise ConfigError(f"interface name '{wanted}' is longer than {_NAME_LIMIT} characters")
    fd, interface, header = _open_interface(wanted, options.get("vnet_hdr", True))
    script = options.get("script", _DEFAULT_SCRIPT)
    down = options.get("downscript", _DEFAULT_DOWNSCRIPT)
    try:
        if options.get("sndbuf"):
            fcntl.ioctl(fd, _TUNSETSNDBUF, _INT.pack(min(options["sndbuf"], 0x7FFFFFFF)))
        if script not in _NO_SCRIPT:
            _run(script, interface)
    except (OSError, ConfigError) as error:
        os.close(fd)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"TUNSETSNDBUF ioctl failed: {error.strerror}") from None
    info = f"ifname={interface},script={script},downscript={down}"
    client = TapNet(name, host.loop, fd, header=header, info=info)
    if down not in _NO_SCRIPT:
        client.down_script = (down, interface)
    return client


def _open_interface(wanted: str, header: bool) -> tuple[int, str, bool]:
    """Return descriptor and name of a new interface, and whether its frames have headers."""
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"could not open {_DEVICE}: {error.strerror}") from None
    try:
        (features,) = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))
        header = header and bool(features & _IFF_VNET_HDR)
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if header else 0)
        made = fcntl.ioctl(fd, _TUNSETIFF, _INTERFACE.pack(os.fsencode(wanted or "tap%d"), flags))
        if header:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(_HEADER.size))
    except OSError as error:
        os.close(fd)
        reason = os.strerror(error.errno or errno.EIO)
        raise ConfigError(f"could not configure {_DEVICE} ({wanted or 'tap%d'}): {reason}") from None
    return fd, os.fsdecode(_INTERFACE.unpack(made)[0].rstrip(b"\0")), header


def _run(script: str, interface: str) -> None:
    """Run a script of the host's with the name of the interface."""
    try:
        status = subprocess.run([script, interface], check=False).returncode
    except OSError:
        status = 1  # as a child says that cannot run it
    if status:
        raise ConfigError(f"network script {script} failed with status {status << 8}")
