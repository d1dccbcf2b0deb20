"""The order in which QEMU walks and writes the members of an object: that of its hash table.

It goes by the bucket of each key, the key that came last first where they share one.  It shows wherever members are
listed, and there are clients and test suites that compare text.
"""

from __future__ import annotations

from collections.abc import Iterable

_BUCKETS = 512


def _bucket(key: str) -> int:
    name = key.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")
    value = 0x238F13AF * len(name)
    for index, byte in enumerate(name):
        value += byte << index * 5 % 24
    return (1103515243 * value + 12345) % _BUCKETS


def wire_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of an object in the order in which QEMU walks and writes them."""
    latest_first = list(keys)
    latest_first.reverse()
    return sorted(latest_first, key=_bucket)
