"""How much of the host's a guest may take."""

from __future__ import annotations

import resource

_MANY = 1 << 20


def descriptor_limit() -> int:
    """Return how many descriptors this process may have: most of them are not for the guest's connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MANY if soft == resource.RLIM_INFINITY else soft
