"""A guest agent that answers from a script, for tests of its client."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

from pyvm.agent import AgentClient

Handler = Callable[[dict[str, Any]], Any]


class Peer:
    """The guest's side: a thread that answers requests from a script, and synchronises as qemu-ga does."""

    def __init__(self, connection: socket.socket, handlers: dict[str, Handler]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.handlers = handlers
        self._connection = connection
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may go before it has all answers
            buffer = b""
            while data := self._connection.recv(65536):
                buffer += data
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        if b"\xff" in line:
            self.send(b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray"}}\n')
        request = json.loads(line.rpartition(b"\xff")[2])
        self.requests.append(request)
        name, arguments = request["execute"], request.get("arguments", {})
        if name == "guest-sync-delimited":
            self.send(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
            return
        handler = self.handlers.get(name)
        if handler is None:
            error = {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}
            self.send(json.dumps({"error": error}).encode() + b"\n")
            return
        answer = handler(arguments)
        if isinstance(answer, bytes):
            self.send(answer)
        elif answer is not None:
            self.send(json.dumps({"return": answer}).encode() + b"\n")


class Pairs:
    """Makes clients and their peers from handlers by command, and ends them all."""

    def __init__(self) -> None:
        self._made: list[tuple[AgentClient, Peer]] = []

    def __call__(self, handlers: dict[str, Handler] | None = None, timeout: float = 60.0) -> tuple[AgentClient, Peer]:
        ours, theirs = socket.socketpair()
        self._made.append((AgentClient(ours, timeout), Peer(theirs, handlers or {})))
        return self._made[-1]

    def close(self) -> None:
        for client, peer in self._made:
            client.close()
            peer.close()
