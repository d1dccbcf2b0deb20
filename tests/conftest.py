"""What all tests share."""

from __future__ import annotations

import gc

from hypothesis import settings

# How long an example takes says how busy the machine is: tests run side by side.
settings.register_profile("pyvm", deadline=None)
settings.load_profile("pyvm")


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what lives as long as the tests do, and is much."""
    gc.collect()
    gc.freeze()
