"""pytest fixtures that boot machines, and show what the guest said when a test fails.

::

    @pytest.mark.vm("-m", "256", kernel="bzImage", initrd="initrd", append="console=ttyS0")
    def test_release(vm):
        assert vm.run("uname -s").text == "Linux"

The marker's arguments are those of :class:`pyvm.Machine`, and more: the fixture waits until the guest agent answers,
unless ``wait_console="pattern"`` names something on the console to wait for instead, or ``wait_agent=False``.  A guest
boots once for all tests with the same arguments: it is saved when its agent answers, and each test goes on from there,
unless ``fresh=True`` asks for a boot.  What tests write to disks is gone with their machines; only the machine that
boots writes to the images themselves, and with ``snapshot=on`` not even that one.
The ini options ``pyvm_options`` and ``pyvm_timeout`` and the command line option ``--pyvm-options`` hold for all
machines.  The fixture ``vm_factory`` makes any number of machines, with the same arguments; the machines that
``shared_vm_factory`` makes last until the end of the module, for tests that can share one.

When a test fails, its report has the end of each machine's console, its QMP conversation, and the command line that
starts the same machine by hand.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pyvm.api import Machine

_QMP_LINES = 40


class Watched(Protocol):
    """What the report of a failed test tells of a machine."""

    @property
    def command_line(self) -> str:
        """What to type to have the machine."""

    @property
    def console_tail(self) -> str:
        """What the console showed last."""

    @property
    def qmp_log(self) -> list[str]:
        """The last lines of the QMP conversation."""


_MACHINES = pytest.StashKey[list[Watched]]()

MachineFactory = Callable[..., "Machine"]


class SavedMachines:
    """The machines of one run of pytest that were saved when their guests had booted, by what made them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._folders: dict[str, Path] = {}

    def restored(self, recipe: str) -> Machine | None:
        """Return a machine that runs on from where one was saved; None where there is none, or not any more."""
        from pyvm.api import Machine, MachineError
        from pyvm.errors import ConfigError

        folder = self._folders.get(recipe)
        if folder is None:
            return None
        try:
            return Machine.restore(folder).start()
        except (MachineError, ConfigError):  # a backing file or a CD has changed
            del self._folders[recipe]
            return None

    def save(self, recipe: str, machine: Machine) -> None:
        """Save a machine, if it can be."""
        from pyvm.api import MachineError

        folder = self._directory / str(len(self._folders))
        with suppress(MachineError):
            machine.snapshot(folder)
            self._folders[recipe] = folder


def watch(node: pytest.Item | pytest.Collector, machine: Watched) -> None:
    """Let the report of a failed test tell of `machine`, where `node` is the test or what it is part of."""
    node.stash.setdefault(_MACHINES, []).append(machine)


def unwatch(node: pytest.Item | pytest.Collector, machines: Collection[Watched]) -> None:
    """Take back what :func:`watch` did: tests that fail from now on have nothing to do with `machines`."""
    node.stash[_MACHINES] = [machine for machine in node.stash.get(_MACHINES, []) if machine not in machines]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options to pytest."""
    parser.addini("pyvm_options", "options of pyvm for all machines", type="args", default=[])
    parser.addini("pyvm_timeout", "how long a machine may take to boot, in seconds", default="60")
    parser.getgroup("pyvm").addoption(
        "--pyvm-options", default="", metavar="OPTIONS", help="more options of pyvm for all machines, in one word"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "vm(*arguments, wait_agent=True, wait_console=None, fresh=False, **options): the machine of the fixture vm",
    )


@pytest.fixture(scope="session")
def saved_machines(tmp_path_factory: pytest.TempPathFactory) -> SavedMachines:
    """Return what keeps saved machines for the fixtures below."""
    return SavedMachines(tmp_path_factory.mktemp("saved-machines"))


@pytest.fixture
def vm_factory(request: pytest.FixtureRequest, saved_machines: SavedMachines) -> Iterator[MachineFactory]:
    """Return a function that starts a machine; all end with the test."""
    yield from _factory(request, saved_machines)


@pytest.fixture(scope="module")
def shared_vm_factory(request: pytest.FixtureRequest, saved_machines: SavedMachines) -> Iterator[MachineFactory]:
    """Return a function that starts a machine; all end with the module."""
    yield from _factory(request, saved_machines)


def _factory(request: pytest.FixtureRequest, saved: SavedMachines) -> Iterator[MachineFactory]:
    from pyvm.api import Machine

    machines: list[Machine] = []
    common = [*request.config.getini("pyvm_options"), *shlex.split(request.config.getoption("--pyvm-options"))]

    def factory(
        *arguments: str,
        wait_agent: bool | None = None,
        wait_console: str | None = None,
        fresh: bool = True,
        **options: Any,
    ) -> Machine:
        timeout = float(request.config.getini("pyvm_timeout"))
        waits = wait_agent or (wait_agent is None and wait_console is None)
        recipe = "" if fresh or not waits else repr((common, arguments, wait_console, sorted(options.items())))
        machine = saved.restored(recipe) if recipe else None
        restored = machine is not None
        machine = machine or Machine(*common, *arguments, **options)
        machines.append(machine)
        watch(request.node, machine)
        if not restored:
            machine.start()
            if wait_console is not None:
                machine.wait_console(wait_console, timeout)
        if waits:
            machine.wait_agent(timeout)
        if recipe and not restored:
            saved.save(recipe, machine)
        return machine

    yield factory
    for machine in reversed(machines):
        machine.stop()
    unwatch(request.node, machines)


@pytest.fixture
def vm(request: pytest.FixtureRequest, vm_factory: MachineFactory) -> Machine:
    """Return a machine that has booted, as the marker ``vm`` describes it."""
    arguments: list[str] = []
    options: dict[str, Any] = {}
    # The closest marker comes first, and has the last word.
    for marker in reversed(list(request.node.iter_markers("vm"))):
        arguments += marker.args
        options.update(marker.kwargs)
    return vm_factory(*arguments, **{"fresh": False, **options})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the machines of a failed test have to say to its report."""
    report = yield
    if report.failed and call.when in ("setup", "call"):
        machines = [machine for node in item.listchain() for machine in node.stash.get(_MACHINES, [])]
        for number, machine in enumerate(machines, 1):
            title = f"pyvm machine {number}"
            report.sections.append((f"{title}: command line", machine.command_line))
            report.sections.append((f"{title}: console", machine.console_tail or "(nothing)"))
            report.sections.append((f"{title}: QMP", "\n".join(machine.qmp_log[-_QMP_LINES:]) or "(nothing)"))
    return report
