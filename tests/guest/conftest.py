"""Real guests.  One that is only asked, and not changed, is shared by the tests of a module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from images.build import Image, build
from pyvm import Machine
from pyvm.pytest_plugin import unwatch, watch
from tests.guest.support import Process

LONGEST = 900
"""Seconds that a test may take where the host has much else to do: more than a few boots, each of which may be slow."""

GuestFactory = Callable[..., Machine]
ProcessFactory = Callable[..., Process]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST))


@pytest.fixture(scope="session")
def demo() -> Image:
    """The demo guest: Debian's cloud kernel, busybox and qemu-ga."""
    return build("demo", quiet=True)


@pytest.fixture(scope="session")
def generic() -> Image:
    """The same with Debian's kernel for real hardware."""
    return build("generic", quiet=True)


def _booted(factory: GuestFactory, image: Image, *arguments: str, append: str = "", **options: Any) -> Machine:
    options = {"m": 512, "kernel": image.kernel, "initrd": image.initrd, **options}
    words = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    wait = options.get("agent", True)
    return factory(*arguments, wait_agent=wait, append=f"{image.append} {append}".strip(), **words)


@pytest.fixture
def boot(vm_factory: GuestFactory, demo: Image) -> GuestFactory:
    """Boot a demo guest up to its agent; it ends with the test."""
    return lambda *arguments, image=demo, **options: _booted(vm_factory, image, *arguments, **options)


@pytest.fixture
def guest(vm_factory: GuestFactory, demo: Image) -> GuestFactory:
    """Return a demo guest whose agent answers; it has booted now or before, and ends with the test."""
    return lambda **options: _booted(vm_factory, demo, fresh=False, **options)


@pytest.fixture(scope="module")
def boot_shared(shared_vm_factory: GuestFactory, demo: Image) -> GuestFactory:
    """Boot a demo guest up to its agent; it ends with the module."""
    return lambda *arguments, image=demo, **options: _booted(shared_vm_factory, image, *arguments, **options)


@pytest.fixture
def pyvm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProcessFactory]:
    """Start pyvm as a process; it is gone after the test."""
    processes: list[Process] = []
    numbers = itertools.count()

    def start(*arguments: str, **options: Any) -> Process:
        directory = tmp_path / f"vm{next(numbers)}"
        directory.mkdir()
        process = Process(directory, *arguments, **options)
        processes.append(process)
        watch(request.node, process)
        return process

    yield start
    for process in processes:
        process.close()
    unwatch(request.node, processes)
