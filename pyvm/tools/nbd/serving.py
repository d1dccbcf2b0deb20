"""Serving an image: the program's one export, from opening the image to the last client's leave."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.tools.img.console import warn_plainly
from pyvm.tools.img.errors import ImgError
from pyvm.tools.nbd.cli import complain

if TYPE_CHECKING:
    from pyvm.block.node import Node
    from pyvm.chardev.address import Listener
    from pyvm.tools.nbd.options import NbdSettings

_SD_LISTEN_FDS_START = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(settings: NbdSettings) -> int:
    """Serve until everybody has left, or a signal comes.  Raises BlockError, ImgError and ConfigError."""
    _check_activation(settings)
    ready = None
    if settings.fork:
        from pyvm.daemon import detach

        ready = detach()
    server = _ImageServer(settings)
    try:
        server.start()
        if settings.pid_file is not None:
            _write_pid_file(settings.pid_file)
        if ready is not None:
            ready()
        server.run()
    finally:
        server.close()
        if settings.pid_file is not None:
            _remove_pid_file(settings.pid_file)
    return 0


def _write_pid_file(path: str) -> None:
    from pyvm.daemon import write_pidfile
    from pyvm.errors import ConfigError

    try:
        write_pidfile(path)
    except ConfigError as error:
        raise ImgError(str(error).removeprefix("cannot create PID file: ")) from None


def _remove_pid_file(path: str) -> None:
    """Remove the file where it is this process's."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            mine = file.read() == f"{os.getpid()}\n"
        if mine:
            os.unlink(path)
    except OSError:
        pass  # it was not made, or somebody removed it


class _ImageServer:
    """A machine without anything but the image."""

    def __init__(self, settings: NbdSettings) -> None:
        from pyvm.clock import RunningClock
        from pyvm.config import MachineConfig
        from pyvm.machine.storage import Storage, StorageEvents
        from pyvm.machine.user_objects import ObjectHost, UserObjects
        from pyvm.mainloop import MainLoop

        self._settings = settings
        clock = RunningClock()
        self._loop = MainLoop(clock)
        self._lock = self._loop.lock
        events = StorageEvents(lambda name, data: None, lambda: None, self._loop.call_soon, self._loop.call_later)
        self._objects = UserObjects(ObjectHost(storage=lambda: self._storage))
        self._storage = Storage(
            MachineConfig(), self._lock, clock, events, warn=warn_plainly, find_object=self._objects.find
        )
        self._nodes: list[Node] = []
        self._closed = False

    def start(self) -> None:
        """Open the image, and let clients in."""
        from pyvm.block.export.exports import ExportOptions
        from pyvm.block.export.nbd import NbdExport, NbdOptions
        from pyvm.block.export.starting import ServerOptions, start_server
        from pyvm.monitor.errors import QmpError

        settings = self._settings
        with self._lock:
            for item in settings.objects:
                try:
                    self._objects.add(item.type, item.id, dict(item.properties))
                except QmpError as error:
                    raise ImgError(error.description) from None
            node = self._open()
            options = ServerOptions(settings.shared, settings.tls_creds, settings.tls_authz)
            try:
                server = start_server(
                    self._storage.exports, self._listen, options, self._objects.find, self._client_gone
                )
            except BlockError as error:
                if settings.tls_creds is not None and "TLS credentials" in str(error):
                    raise ImgError(f"Failed to get TLS creds: {error}") from None
                raise
            self._server = server
            export = ExportOptions("pyvm-nbd", node.name, not node.read_only, writethrough=not settings.cache.writeback)
            nbd = NbdOptions(settings.name, settings.description, settings.bitmaps, settings.allocation_depth)
            self._storage.exports.add(NbdExport(self._storage.exports, export, nbd))

    # ---- The image

    def _open(self) -> Node:
        from pyvm.block.options import unflatten

        settings = self._settings
        tree: dict[str, Any] = {}
        name: str | None = settings.file
        if settings.image_opts:
            from pyvm.options import Group, parse

            tree = unflatten(dict(parse(Group("file", "file"), settings.file).pairs))
            name = None
        elif settings.format is not None:
            tree["driver"] = settings.format
        tree.setdefault("read-only", settings.read_only or settings.snapshot)
        tree.setdefault("discard", "unmap" if settings.discard else "ignore")
        tree.setdefault("detect-zeroes", settings.detect_zeroes)
        cache = tree.setdefault("cache", {})
        cache.setdefault("direct", settings.cache.direct)
        cache.setdefault("no-flush", settings.cache.no_flush)
        try:
            node = self._keep(self._open_tree(name, tree))
        except BlockError as error:
            raise ImgError(f"Failed to blk_new_open '{settings.file}': {error}") from None
        if settings.snapshot:
            from pyvm.machine.drive_nodes import add_overlay

            graph = self._storage.graph
            node = self._keep(add_overlay(graph, node.hold(), discard=settings.discard, warn=warn_plainly))
        if settings.offset:
            part: dict[str, Any] = {"driver": "raw", "offset": settings.offset, "file": node.name}
            part["read-only"] = node.read_only
            node = self._keep(self._open_tree(None, part))
        if settings.load_snapshot is not None:
            node = self._keep(self._open_snapshot(node, settings.load_snapshot))
        return node

    def _open_tree(self, name: str | None, tree: dict[str, Any]) -> Node:
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect

        opener = Opener(self._storage.graph, Dialect.DRIVE, warn=warn_plainly)
        node = opener.open(name, tree, aio=self._settings.aio)
        self._storage.watch(node)
        return node

    def _open_snapshot(self, node: Node, parameter: str) -> Node:
        from pyvm.tools.img.convert import open_snapshot

        shown = open_snapshot(node, parameter)
        shown.name = self._storage.graph.make_name()
        self._storage.graph.add(shown)
        return shown

    def _keep(self, node: Node) -> Node:
        self._nodes.append(node)
        return node

    # ---- Clients

    def _listen(self) -> Listener:
        from pyvm.block.export.starting import open_listener
        from pyvm.chardev.address import InetAddress, Listener, UnixAddress
        from pyvm.tools.nbd.options import DEFAULT_PORT

        settings = self._settings
        if _is_activated():
            return Listener([socket.socket(fileno=_SD_LISTEN_FDS_START)])
        if settings.socket is not None:
            return open_listener(UnixAddress(settings.socket))
        return open_listener(InetAddress(settings.bind or "0.0.0.0", settings.port or DEFAULT_PORT))

    def _client_gone(self, served: bool) -> None:
        left = self._server.client_count
        if self._settings.verbose:
            complain(f"a client has left, {left} are connected")
        if served and not left and not self._settings.persistent and not self._closed:
            self._loop.stop()

    # ---- Life

    def run(self) -> None:
        """Serve until it is enough."""
        for number in _SIGNALS:
            self._loop.loop.add_signal_handler(number, self._loop.loop.stop)
        self._loop.run()

    def close(self) -> None:
        """Send all clients away, and close the image."""
        with self._lock:
            if self._storage.exports.server is not None:
                self._storage.exports.stop_server()
            with self._storage.quiet():
                while self._nodes:
                    node = self._nodes.pop()
                    if not node.read_only:
                        _flush(node)
                    node.release()
            self._storage.close()
            self._closed = True
        self._loop.close()


def _flush(node: Node) -> None:
    try:
        node.flush()
    except (OSError, BlockError) as error:
        complain(f"could not flush: {getattr(error, 'strerror', None) or error}")


# ---- Socket activation


def _is_activated() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"


def _check_activation(settings: NbdSettings) -> None:
    """Raise ImgError where a socket was handed over, and options want another one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return
    if os.environ.get("LISTEN_FDS") not in (None, "", "0", "1"):
        raise ImgError("pyvm-nbd does not support socket activation with LISTEN_FDS > 1")
    if not _is_activated():
        return
    if settings.socket is not None:
        raise ImgError("Unix socket can't be set when using socket activation")
    if settings.bind is not None:
        raise ImgError("The interface can't be set when using socket activation")
    if settings.port is not None:
        raise ImgError("TCP port number can't be set when using socket activation")
    if settings.fork:
        # The process that is served from would be another one than the sockets were handed to.
        os.environ["LISTEN_PID"] = "0"
        raise ImgError("--fork is not supported with socket activation")
