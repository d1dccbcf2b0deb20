"""A guest agent in this process: it does on this host what the real one does in a guest."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pyvm.agent.commands import COMMANDS

WHENCE = {"set": 0, "cur": 1, "end": 2}


class RefusedError(Exception):
    """The agent's answer is an error."""

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.answer = {"error": {"class": error_class, "desc": desc}}


class AgentDouble:
    """Serves one client after the other at `path`; `answers` has what other commands return."""

    def __init__(self, path: Path, answers: dict[str, Any] | None = None) -> None:
        self.path = path
        self.answers: dict[str, Any] = answers or {}
        self.requests: list[dict[str, Any]] = []
        self.unknown: set[str] = set()
        self.disabled: set[str] = set()
        self.silent: set[str] = set()
        """Commands that are never answered."""
        self.before: Callable[[str], None] = lambda name: None
        """Called before each command is carried out."""
        self.processes: dict[int, tuple[subprocess.Popen[bytes], bool]] = {}
        self.files: dict[int, BinaryIO] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        for end in (self._listener, self._connection):
            if end is not None:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._thread.join()
        self._listener.close()
        for file in self.files.values():
            file.close()
        for process, _ in self.processes.values():
            process.kill()
            process.communicate()

    def hang_up(self) -> None:
        """End the connection."""
        assert self._connection is not None
        self._connection.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        """Forget programs and files, as an agent of a guest that was reset."""
        for process, _ in self.processes.values():
            process.kill()
            process.communicate()
        self.processes.clear()
        for file in self.files.values():
            file.close()
        self.files.clear()

    @property
    def commands(self) -> list[str]:
        return [request["execute"] for request in self.requests]

    # ---- The wire

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connection = connection
            with connection, connection.makefile("rb") as stream:
                try:
                    for line in stream:
                        self._take(connection, line)
                except OSError:
                    pass
            self._connection = None

    def _take(self, connection: socket.socket, line: bytes) -> None:
        request = json.loads(line.rpartition(b"\xff")[2])
        name = request["execute"]
        self.requests.append(request)
        try:
            self.before(name)
            if name in self.unknown or name not in COMMANDS:
                raise RefusedError(f"The command {name} has not been found", "CommandNotFound")
            if name in self.disabled:
                raise RefusedError(f"Command {name} has been disabled: the agent is in frozen state", "CommandNotFound")
            if name in self.silent or not COMMANDS[name].answers:
                return
            arguments = {key.replace("-", "_"): value for key, value in request.get("arguments", {}).items()}
            answer: dict[str, Any] = {"return": self._answer(name, arguments)}
        except RefusedError as refused:
            answer = refused.answer
        prefix = b"\xff" if name == "guest-sync-delimited" else b""
        connection.sendall(prefix + json.dumps(answer).encode() + b"\n")

    def _answer(self, name: str, arguments: dict[str, Any]) -> Any:
        own = getattr(self, "_" + name.removeprefix("guest-").replace("-", "_"), None)
        if own is not None:
            return own(**arguments)
        answer = self.answers.get(name, {})
        if isinstance(answer, RefusedError):
            raise answer
        return answer(**arguments) if callable(answer) else answer

    @staticmethod
    def _sync_delimited(id: int) -> int:  # noqa: A002
        return id

    # ---- Programs

    def _exec(
        self, path: str, arg: list[str] | None = None, env: list[str] | None = None, input_data: str | None = None,
        capture_output: bool = False,
    ) -> dict[str, int]:  # fmt: skip
        variables = None if env is None else dict(item.split("=", 1) for item in env)
        output = subprocess.PIPE if capture_output else subprocess.DEVNULL
        data = None if input_data is None else base64.b64decode(input_data)
        try:
            process = subprocess.Popen(
                [path, *(arg or [])],
                env=variables,
                stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        except OSError as error:
            raise RefusedError(f"Failed to execute child process “{path}” ({error.strerror})") from None
        if data is not None:
            assert process.stdin is not None
            threading.Thread(target=self._feed, args=(process.stdin, data), daemon=True).start()
        self.processes[process.pid] = (process, capture_output)
        return {"pid": process.pid}

    @staticmethod
    def _feed(pipe: Any, data: bytes) -> None:
        try:
            with pipe:
                pipe.write(data)
        except BrokenPipeError:
            pass

    def _exec_status(self, pid: int) -> dict[str, Any]:
        if pid not in self.processes:
            raise RefusedError("Invalid parameter 'pid'")
        process, captures = self.processes[pid]
        if process.poll() is None:
            return {"exited": False}
        del self.processes[pid]
        code = process.returncode
        status: dict[str, Any] = {"exited": True, **({"signal": -code} if code < 0 else {"exitcode": code})}
        if captures:
            assert process.stdout is not None
            assert process.stderr is not None
            for name, pipe in (("out-data", process.stdout), ("err-data", process.stderr)):
                with pipe:
                    if data := pipe.read():
                        status[name] = base64.b64encode(data).decode()
        return status

    # ---- Files

    def _file_open(self, path: str, mode: str = "r") -> int:
        try:
            file = open(path, mode.replace("b", "") + "b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RefusedError(
                f"failed to open file '{path}' (mode: '{mode}'): {os.strerror(error.errno or 0)}"
            ) from None
        handle = max(self.files, default=999) + 1
        self.files[handle] = file  # type: ignore[assignment]
        return handle

    def _file(self, handle: int) -> BinaryIO:
        if handle not in self.files:
            raise RefusedError(f"handle '{handle}' has not been found")
        return self.files[handle]

    def _file_close(self, handle: int) -> dict[str, Any]:
        self._file(handle).close()
        del self.files[handle]
        return {}

    def _file_read(self, handle: int, count: int = 4096) -> dict[str, Any]:
        data = self._file(handle).read(count)
        return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": len(data) < count}

    def _file_write(self, handle: int, buf_b64: str) -> dict[str, Any]:
        return {"count": self._file(handle).write(base64.b64decode(buf_b64)), "eof": False}

    def _file_seek(self, handle: int, offset: int, whence: str = "set") -> dict[str, Any]:
        return {"position": self._file(handle).seek(offset, WHENCE[whence]), "eof": False}
