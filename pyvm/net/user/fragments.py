"""Fragments of packets put together again (RFC 791, 3.2; RFC 8200, 4.5), within limits: they come from the guest."""

from __future__ import annotations

from pyvm.clock import NANOSECONDS, Clock

Key = tuple[bytes, bytes, int, int]
"""Source, destination, identification and protocol: what the fragments of one packet have in common."""

_PACKETS_LIMIT = 16
_FRAGMENTS_LIMIT = 64
_LIFETIME = 30 * NANOSECONDS
LARGEST = 65535
"""Most bytes of a packet's payload by IPv6; by IPv4 the header counts, too."""


class _Parts:
    """What has come of one packet: payloads by their offset in bytes."""

    def __init__(self, deadline: int) -> None:
        self.deadline = deadline
        self.parts: dict[int, bytes] = {}
        self.length: int | None = None
        """Length of the whole, once the last fragment has come."""

    def whole(self) -> bytes | None:
        """Return the payload where all has come without overlaps, else None."""
        if self.length is None or sum(map(len, self.parts.values())) < self.length:
            return None
        data = b""
        for offset in sorted(self.parts):
            if offset != len(data):
                return None
            data += self.parts[offset]
        return data if len(data) == self.length else None


class Reassembler:
    """Collects fragments until a packet is whole, or too old."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._packets: dict[Key, _Parts] = {}

    def add(self, key: Key, offset: int, *, more: bool, payload: memoryview, limit: int = LARGEST) -> bytes | None:
        """Take one fragment, at `offset` bytes; return the payload of the packet that it makes whole.

        Packets with a payload of more than `limit` bytes are dropped.
        """
        now = self._clock.now()
        self._packets = {name: found for name, found in self._packets.items() if found.deadline > now}
        if offset + len(payload) > limit or not payload or (more and len(payload) % 8):
            self._packets.pop(key, None)
            return None
        if key not in self._packets and len(self._packets) >= _PACKETS_LIMIT:
            del self._packets[next(iter(self._packets))]
        parts = self._packets.setdefault(key, _Parts(now + _LIFETIME))
        parts.parts[offset] = bytes(payload)
        if not more:
            parts.length = offset + len(payload)
        whole = parts.whole()
        if whole is not None or len(parts.parts) > _FRAGMENTS_LIMIT:
            del self._packets[key]
        return whole
