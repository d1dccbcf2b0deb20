"""What all tests share."""

from __future__ import annotations

import gc
import signal

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, or to think of one, says how busy the machine is: tests run side by side.
settings.register_profile("pyvm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pyvm")


def pytest_configure() -> None:
    """Let the programs that tests start have the signals that a background job, or nohup, was told to ignore.

    A program inherits what is ignored, and a shell cannot trap it.  What is caught here is as good as ignored here,
    and begins as usual there.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


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
