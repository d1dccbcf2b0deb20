"""The exports of a machine: their life from `block-export-add` to the event that they are gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.draining import take_leave
from pyvm.block.errors import BlockError
from pyvm.block.export.backend import ExportBackend
from pyvm.options import is_identifier
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.export.server import NbdServer
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage, StorageEvents


@record(frozen=True)
class ExportOptions:
    """What exports of all kinds are told."""

    id: str
    node_name: str
    writable: bool = False
    writethrough: bool = False
    iothread: str | None = None
    fixed_iothread: bool = False
    """Whether the export cannot do without its I/O thread."""


class Client:
    """Somebody who uses an export."""

    def disconnect(self) -> None:
        """End the connection soon; called with the machine lock held."""


class Export:
    """One export.  Methods are called with the machine lock held.

    Made by a kind's constructor, which raises BlockError with nothing left behind.
    """

    kind: ClassVar[str] = ""
    """Its type for clients of the monitor."""

    def __init__(self, exports: Exports, options: ExportOptions) -> None:
        self.exports = exports
        self.id = options.id
        self.shutting_down = False
        self.writable = options.writable
        self.clients: list[Client] = []
        self.backend = self._make_backend(options)

    def _make_backend(self, options: ExportOptions) -> ExportBackend:
        storage = self.exports.storage
        node = find_exportable(storage, options)
        context = storage.context_of(node)
        if options.iothread is not None:
            wanted = storage.iothreads[options.iothread].context
            try:
                storage.move_tree(node, wanted)
                context = wanted
            except BlockError:
                if options.fixed_iothread:
                    raise
        backend = ExportBackend(
            node, context, storage.graph, writable=options.writable, write_cache=not options.writethrough
        )
        backend.movable = not options.fixed_iothread
        return backend

    def _drop(self, backend: ExportBackend) -> None:
        backend.drain()
        storage = self.exports.storage
        if backend.node is not None:
            take_leave(storage.graph, backend.node)
        with storage.quiet():
            backend.let_go()

    @property
    def node(self) -> Node | None:
        """The node that is exported; None once it is no more."""
        return self.backend.node

    def describe(self) -> dict[str, Any]:
        """Return the BlockExportInfo."""
        name = self.node.name if self.node is not None else ""
        return {"node-name": name, "shutting-down": self.shutting_down, "type": self.kind, "id": self.id}

    # ---- Clients

    def add_client(self, client: Client) -> bool:
        """Let somebody use the export; return False where it is about to go."""
        if self.shutting_down:
            return False
        self.clients.append(client)
        return True

    def remove_client(self, client: Client) -> None:
        """A client has gone, and nothing of it is in flight."""
        if client in self.clients:
            self.clients.remove(client)
            if self.shutting_down and not self.clients:
                self._end()

    # ---- The end

    def shut_down(self, wait: bool = False) -> None:
        """Send all clients away; the export is gone when the last of them is, with `wait` on return."""
        if not self.shutting_down:
            self.shutting_down = True
            self.hide()
            for client in self.clients:
                client.disconnect()
            if not self.clients:
                self._end()
        if wait and self.node is not None:
            self.clients.clear()
            self._end()

    def _end(self) -> None:
        if self.node is not None:
            self._drop(self.backend)
            self.clean()
            self.exports.ended(self)

    def hide(self) -> None:
        """Let no new client find the export."""

    def clean(self) -> None:
        """Give back what the kind has of its own."""


def find_exportable(storage: Storage, options: ExportOptions) -> Node:
    """Return the node that is to be exported.  Raises BlockError."""
    node = storage.graph.nodes.get(options.node_name)
    if node is None:
        raise BlockError(f"Cannot find device='' nor node-name='{options.node_name}'")
    if node.read_only and options.writable:
        raise BlockError("Cannot export read-only node as writable")
    if options.iothread is not None and options.iothread not in storage.iothreads:
        raise BlockError(f'iothread "{options.iothread}" not found')
    if storage.graph.inactive:
        from pyvm.block.activation import take_node

        take_node(storage, node)
    return node


class Exports:
    """All exports of a machine, the newest first, and its NBD server.  Called with the machine lock held."""

    def __init__(self, storage: Storage, events: StorageEvents) -> None:
        self.storage = storage
        self._events = events
        self._exports: list[Export] = []
        self.server: NbdServer | None = None

    def __iter__(self) -> Iterator[Export]:
        return iter(tuple(self._exports))

    def find(self, identifier: str) -> Export | None:
        """Return an export by its ID."""
        return next((it for it in self._exports if it.id == identifier), None)

    def check_identifier(self, identifier: str) -> None:
        """Raise BlockError unless a new export can be called so."""
        if not is_identifier(identifier):
            raise BlockError("Invalid block export id")
        if self.find(identifier) is not None:
            raise BlockError(f"Block export id '{identifier}' is already in use")

    def add(self, export: Export) -> None:
        """Take in a new export."""
        self._exports.insert(0, export)

    def remove(self, identifier: str, *, hard: bool = False) -> None:
        """Let an export go, with `hard` even if somebody uses it.  Raises BlockError."""
        export = self.find(identifier)
        if export is None:
            raise BlockError(f"Export '{identifier}' is not found")
        if export.shutting_down:
            raise BlockError(f"Export '{identifier}' is already shutting down")
        if export.clients and not hard:
            raise BlockError(f"export '{identifier}' still in use\nUse mode='hard' to force client disconnect")
        export.shut_down()
        if export.node is not None:
            # Clients were sent away.  Whoever asks for the export next must not find it.
            self._events.call_soon(export.shut_down, True)

    def ended(self, export: Export) -> None:
        """An export is gone."""
        self._exports.remove(export)
        self._events.emit("BLOCK_EXPORT_DELETED", {"id": export.id})

    def end_all(self, kind: str | None = None) -> None:
        """Let all exports go, or all of a kind, the oldest first, and wait for it."""
        for export in self._exports[::-1]:
            if kind in (None, export.kind):
                export.shut_down(wait=True)

    def stop_server(self) -> None:
        """Stop the NBD server, which ends all of its exports.  Raises BlockError where there is none."""
        server = self.server
        if server is None:
            raise BlockError("NBD server not running")
        server.stop_listening()
        self.end_all("nbd")
        server.close()
        self.server = None

    def close(self) -> None:
        """The machine ends.  The file of a socket stays, as QEMU leaves it."""
        if self.server is not None:
            self.server.keep_file()
            self.stop_server()
        self.end_all()
