"""What I/O limits are called, everywhere: on the command line, in objects, and in QMP."""

from __future__ import annotations

BUCKETS = tuple(f"{unit}-{what}" for unit in ("bps", "iops") for what in ("total", "read", "write"))
"""The limits themselves: bytes or requests in a second."""
LIMIT_NAMES = (*(name + suffix for name in BUCKETS for suffix in ("", "-max", "-max-length")), "iops-size")
"""Everything that can be said of limits: ``bps-total``, ``iops-read-max``, ``iops-size`` and the like."""
