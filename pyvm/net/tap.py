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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_MOST_QUEUES = 256
"""What Linux has of an interface."""
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
_WITH_FDS = ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "vhostfd")
_WITH_FD = ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds")


class _Queue:
    """One descriptor of an interface, which hands out the frames of some flows."""

    def __init__(self, net: TapNet, loop: MainLoop, number: int, fd: int) -> None:
        self.fd = fd
        self._net = net
        self._loop = loop
        self._number = number
        self._held: tuple[memoryview, Offload | None] | None = None
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._readable)

    def write(self, parts: Sequence[Frame]) -> bool:
        """Hand a frame to the kernel; what it does not take for good is lost."""
        try:
            os.writev(self.fd, parts)
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self.fd, self._room)
            return False
        except OSError:
            return True  # the interface is down, or the frame makes no sense to the kernel
        return True

    def _room(self) -> None:
        self._loop.remove_writer(self.fd)
        if self._net.peer is not None:
            self._net.peer.resume()

    def _readable(self) -> None:
        header = self._net.header
        for _ in range(_BATCH):
            try:
                data = memoryview(os.read(self.fd, MAX_FRAME + _HEADER.size))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._loop.remove_reader(self.fd)
                break
            offload = None
            if header:
                if data[:2] != _NO_HEADER[:2]:
                    offload = Offload(*_HEADER.unpack_from(data))
                data = data[_HEADER.size :]
            if not self._net.send(data, offload, self._number):
                self._held = (data, offload)
                self._loop.remove_reader(self.fd)
                break
        self._net.send_end()

    def resume(self) -> None:
        """The peer takes frames again."""
        if self._held is not None and self._net.send(*self._held, self._number):
            self._held = None
            if self.fd >= 0:
                self._loop.add_reader(self.fd, self._readable)

    def close(self) -> None:
        """Let the descriptor go."""
        self._loop.remove_reader(self.fd)
        self._loop.remove_writer(self.fd)
        fd, self.fd = self.fd, -1
        os.close(fd)


class TapNet(NetClient):
    """A link to an interface, with a queue for each descriptor.

    With `header` each frame has a virtio header before it.
    """

    def __init__(self, name: str, loop: MainLoop, fds: Sequence[int], *, header: bool, info: str) -> None:
        super().__init__(name, "tap")
        self.info = info
        self.offloads = self.header = header
        self.queues = len(fds)
        self.down_script: tuple[str, str] | None = None
        """What to run with which interface when this goes away."""
        self._queues = [_Queue(self, loop, number, fd) for number, fd in enumerate(fds)]

    def peer_changed(self) -> None:
        """Let the kernel leave to the peer what that takes."""
        if not self.header:
            return
        wanted = self.peer_offloads
        bits = 0
        if wanted.checksum:
            bits = _F_CSUM | (_F_TSO4 if wanted.tso4 else 0) | (_F_TSO6 if wanted.tso6 else 0)
            bits |= _F_TSO_ECN if wanted.ecn and bits != _F_CSUM else 0
        for queue in self._queues:
            with suppress(OSError):  # an old kernel, which then does all by itself
                fcntl.ioctl(queue.fd, _TUNSETOFFLOAD, bits)

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Hand a frame to the kernel."""
        return self.receive_on(0, frame, offload)

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Hand a frame to the kernel by the queue of that number, by which the answers then come."""
        parts = [_HEADER.pack(*offload) if offload else _NO_HEADER, frame] if self.header else [frame]
        return self._queues[queue % self.queues].write(parts)

    def resume(self) -> None:
        """The peer takes frames again."""
        for queue in self._queues:
            queue.resume()

    def close(self) -> None:
        """Let the interface go."""
        queues, self._queues = self._queues, []
        if queues and self.down_script is not None:
            with suppress(ConfigError):  # nobody is there to be told, and the interface goes in any case
                _run(*self.down_script)
        for queue in queues:
            queue.close()


def make_tap(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    """Return a back end `tap`; raises ConfigError."""
    for unsupported in ("vhost", "vhostfd", "vhostfds", "vhostforce", "helper", "br"):
        if options.get(unsupported):
            raise ConfigError(f"{unsupported} is not supported by pyvm yet")
    if options.get("fd") is not None:
        return _inherited(host, name, options)
    if options.get("fds") is not None:
        return _inherited_queues(host, name, options)
    return _opened(host, name, options)


def _inherited(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    if any(options.get(other) is not None for other in _WITH_FD):
        raise ConfigError(
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="
        )
    fds: list[int] = []
    with _closed_on_failure(fds):
        fd = take_fd(host, options["fd"])
        fds.append(fd)
        header = _check_fd(name, fd)
    return TapNet(name, host.loop, fds, header=header, info=f"fd={fd}")


def _inherited_queues(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    if any(options.get(other) is not None for other in _WITH_FDS):
        raise ConfigError(
            "ifname=, script=, downscript=, vnet_hdr=, helper=, queues=, and vhostfd= are invalid with fds="
        )
    fds: list[int] = []
    with _closed_on_failure(fds):
        for text in options["fds"].split(":"):
            fds.append(take_fd(host, text))
        if len(fds) > _MOST_QUEUES:
            raise ConfigError(f"fds= has more than {_MOST_QUEUES} descriptors")
        headers = [_check_fd(name, fd) for fd in fds]
        if len(set(headers)) > 1:
            raise ConfigError("vnet_hdr not consistent across given tap fds")
    return TapNet(name, host.loop, fds, header=headers[0], info=f"fd={fds[0]}")


@contextmanager
def _closed_on_failure(fds: Sequence[int]) -> Iterator[None]:
    """Close descriptors that were handed over where nothing comes of it."""
    try:
        yield
    except Exception:
        for fd in fds:
            with suppress(OSError, OverflowError):
                os.close(fd)
        raise


def _check_fd(name: str, fd: int) -> bool:
    """Make a descriptor ready; return whether its frames have headers.  Raises ConfigError."""
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
        try:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(_HEADER.size))
        except OSError as error:
            raise ConfigError(f"{name}: Can't use file descriptor {fd}: {error.strerror}") from None
    return header


def _opened(host: NetHost, name: str, options: Mapping[str, Any]) -> NetClient:
    wanted = options.get("ifname") or ""
    if len(os.fsencode(wanted)) > _NAME_LIMIT:
        raise ConfigError(f"interface name '{wanted}' is longer than {_NAME_LIMIT} characters")
    count = options.get("queues", 1)
    if not 1 <= count <= _MOST_QUEUES:
        raise ConfigError(f"queues must be between 1 and {_MOST_QUEUES}")
    fds, interface, header = _open_queues(wanted, options.get("vnet_hdr", True), count)
    script = options.get("script", _DEFAULT_SCRIPT)
    down = options.get("downscript", _DEFAULT_DOWNSCRIPT)
    try:
        if options.get("sndbuf"):
            for fd in fds:
                fcntl.ioctl(fd, _TUNSETSNDBUF, _INT.pack(min(options["sndbuf"], 0x7FFFFFFF)))
        if script not in _NO_SCRIPT:
            _run(script, interface)
    except (OSError, ConfigError) as error:
        _close(fds)
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"TUNSETSNDBUF ioctl failed: {error.strerror}") from None
    info = f"ifname={interface},script={script},downscript={down}"
    client = TapNet(name, host.loop, fds, header=header, info=info)
    if down not in _NO_SCRIPT:
        client.down_script = (down, interface)
    return client


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _open_queues(wanted: str, header: bool, count: int) -> tuple[list[int], str, bool]:
    """Return the descriptors of an interface's queues, its name, and whether its frames have headers."""
    fds: list[int] = []
    try:
        for _ in range(count):
            fd, wanted, header = _open_interface(wanted, header, several=count > 1)
            fds.append(fd)
    except ConfigError:
        _close(fds)
        raise
    return fds, wanted, header


def _open_interface(wanted: str, header: bool, *, several: bool) -> tuple[int, str, bool]:
    """Return descriptor and name of a new interface, or one more descriptor; and whether its frames have headers."""
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"could not open {_DEVICE}: {error.strerror}") from None
    try:
        (features,) = struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))
        header = header and bool(features & _IFF_VNET_HDR)
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if header else 0) | (_IFF_MULTI_QUEUE if several else 0)
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
