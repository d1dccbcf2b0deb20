"""What all tests share."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is: tests run side by side.
settings.register_profile("pyvm", deadline=None)
settings.load_profile("pyvm")


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what lives as long as the tests do, and is much."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Give back what the tests of a file have left, descriptors of memory above all.

    What is still there then, such as modules that only its tests use, is not looked at again.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
