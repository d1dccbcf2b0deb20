"""Where the host's names are resolved: the name servers of ``/etc/resolv.conf``."""

from __future__ import annotations

import os
import socket

_PATH = "/etc/resolv.conf"
_FALLBACK = "127.0.0.1"
_LARGEST = 1 << 16


class HostResolver:
    """The host's first name server, one that IPv4 reaches if there is any; a file that has changed is read again."""

    def __init__(self, path: str = _PATH) -> None:
        self._path = path
        self._stamp = -1
        self._server = _FALLBACK

    @property
    def server(self) -> str:
        """The address of the name server; the host itself where none is named."""
        try:
            stamp = os.stat(self._path).st_mtime_ns
            if stamp != self._stamp:
                self._stamp = stamp
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._server = _first_server(file.read(_LARGEST))
        except OSError:
            self._server = _FALLBACK
        return self._server


def _first_server(text: str) -> str:
    lines = (line.split() for line in text.splitlines())
    servers = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    for family in (socket.AF_INET, socket.AF_INET6):
        for server in servers:
            try:
                socket.inet_pton(family, server)
            except (OSError, ValueError):
                continue
            return server
    return _FALLBACK
