"""Descriptors that clients pass: names, sets, and the commands about them.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.monitor.descriptors import FdSets, NamedFds
from pyvm.monitor.errors import QmpError
from pyvm.runstate import RunState
from tests.unit.monitor_support import Bench, Client

NONE = "No file descriptor supplied via SCM_RIGHTS"


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Passing:
    """A client that passes descriptors."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.sets = FdSets()
        machine: Any = self.bench.machine
        machine.fdsets = self.sets
        self.client: Client = self.bench.client()
        self.passed: list[int] = []
        self.client.wire.take_fds = self._take  # type: ignore[method-assign]

    def _take(self) -> list[int]:
        taken, self.passed = self.passed, []
        return taken

    def give(self, count: int = 1) -> list[int]:
        self.passed = [os.open(os.devnull, os.O_RDWR) for _ in range(count)]
        return list(self.passed)


@pytest.fixture
def passing() -> Iterator[Passing]:
    made = Passing()
    yield made
    made.client.monitor.named_fds.close()
    made.sets.close()


def test_names(passing: Passing) -> None:
    client = passing.client
    assert client.error("getfd", {"fdname": "a"}) == NONE
    (numbered,) = passing.give()
    assert client.error("getfd", {"fdname": "1a"}) == "Parameter 'fdname' expects a name not starting with a digit"
    assert not is_open(numbered)
    first, second = passing.give(2)
    client.execute("getfd", fdname="a")
    assert (is_open(first), is_open(second)) == (True, False)
    (other,) = passing.give()
    client.execute("getfd", fdname="a")
    assert (is_open(first), is_open(other)) == (False, True)
    client.execute("closefd", fdname="a")
    assert not is_open(other)
    assert client.error("closefd", {"fdname": "a"}) == "File descriptor named 'a' not found"


def test_names_end_with_the_monitor_not_with_the_client(passing: Passing) -> None:
    (fd,) = passing.give()
    passing.client.execute("getfd", fdname="a")
    passing.client.wire.disconnect()
    passing.client.wire.connect()
    assert is_open(fd)
    passing.client.monitor.close()
    assert not is_open(fd)


def test_clients_for_displays(passing: Passing) -> None:
    client = passing.client
    missing = "File descriptor named 'q' has not been found"
    assert client.error("add_client", {"protocol": "vnc", "fdname": "q"}) == missing
    for protocol, problem in (
        ("spice", "DeviceNotActive: SPICE is not in use"),
        ("@dbus-display", "DeviceNotActive: D-Bus display is not in use"),
        ("zz", "protocol 'zz' is invalid"),
    ):
        (fd,) = passing.give()
        client.execute("getfd", fdname="q")
        assert client.error("add_client", {"protocol": protocol, "fdname": "q"}) == problem
        assert not is_open(fd)
    (fd,) = passing.give()
    client.execute("getfd", fdname="q")
    client.execute("add_client", protocol="vnc", fdname="q")
    assert not is_open(fd)
    served: list[tuple[int, bool]] = []
    machine: Any = passing.bench.machine
    machine.add_vnc_client = lambda fd, skip: served.append((fd, skip))
    (fd,) = passing.give()
    client.execute("getfd", fdname="q")
    client.execute("add_client", protocol="vnc", fdname="q", skipauth=True)
    assert served == [(fd, True)]
    os.close(fd)


def test_sets(passing: Passing) -> None:
    client = passing.client
    assert client.error("add-fd", {}) == NONE
    fds = [passing.give()[0]]
    assert client.execute("add-fd") == {"fdset-id": 0, "fd": fds[0]}
    fds += passing.give()
    assert client.execute("add-fd", **{"fdset-id": 5, "opaque": "hello"}) == {"fdset-id": 5, "fd": fds[1]}
    (refused,) = passing.give()
    negative = "Parameter 'fdset-id' expects a non-negative value"
    assert client.error("add-fd", {"fdset-id": -1}) == negative
    assert not is_open(refused)
    fds += passing.give()
    assert client.execute("add-fd", opaque="x") == {"fdset-id": 1, "fd": fds[2]}
    fds += passing.give()[:1]
    client.execute("add-fd", **{"fdset-id": 5})
    expected = [
        {"fdset-id": 5, "fds": [{"fd": fds[1], "opaque": "hello"}, {"fd": fds[3]}]},
        {"fdset-id": 1, "fds": [{"fd": fds[2], "opaque": "x"}]},
        {"fdset-id": 0, "fds": [{"fd": fds[0]}]},
    ]
    assert client.execute("query-fdsets") == expected
    assert client.error("remove-fd", {"fdset-id": 9}) == "File descriptor named 'fdset-id:9' not found"
    assert client.error("remove-fd", {"fdset-id": 5, "fd": 99}) == "File descriptor named 'fdset-id:5, fd:99' not found"
    # While the guest stands still nothing goes.
    client.execute("remove-fd", **{"fdset-id": 5})
    assert client.execute("query-fdsets") == expected
    passing.bench.machine.states.set(RunState.RUNNING)
    client.execute("remove-fd", **{"fdset-id": 5})
    assert client.execute("query-fdsets") == expected[1:]
    assert [is_open(fd) for fd in fds] == [True, False, True, False]


def test_sets_end_with_the_last_client(passing: Passing) -> None:
    passing.bench.machine.states.set(RunState.RUNNING)
    other = passing.bench.client()
    (fd,) = passing.give()
    passing.client.execute("add-fd")
    passing.client.wire.disconnect()
    assert other.execute("query-fdsets") == [{"fdset-id": 0, "fds": [{"fd": fd}]}]
    used = passing.sets.open("/dev/fdset/0", os.O_RDWR)
    other.wire.disconnect()
    assert is_open(fd)
    os.close(used)
    other.wire.connect()
    other.wire.disconnect()
    assert not is_open(fd)
    assert passing.sets.query() == []


def test_opening_from_sets(tmp_path: Path) -> None:
    sets = FdSets()
    (tmp_path / "f").write_bytes(b"hello")
    reading = os.open(tmp_path / "f", os.O_RDONLY)
    sets.add(reading)
    fd = sets.open("/dev/fdset/0", os.O_RDONLY)
    assert fd != reading
    assert os.read(fd, 9) == b"hello"
    assert not os.get_inheritable(fd)
    with pytest.raises(PermissionError):
        sets.open("/dev/fdset/0", os.O_WRONLY)
    with pytest.raises(FileNotFoundError):
        sets.open("/dev/fdset/1", os.O_RDONLY)
    for bad in ("/dev/fdset/", "/dev/fdset/-1", "/dev/fdset/0x0", "/dev/fdset/\u0661"):
        with pytest.raises(OSError, match="Invalid argument"):
            sets.open(bad, os.O_RDONLY)
    plain = sets.open(str(tmp_path / "new"), os.O_WRONLY | os.O_CREAT)
    os.close(plain)
    os.close(fd)
    sets.close()
    assert not is_open(reading)


def test_a_name_is_for_one_use() -> None:
    names = NamedFds()
    fd = os.open(os.devnull, os.O_RDONLY)
    names.put("a", fd)
    assert names.require("a") == fd
    with pytest.raises(QmpError, match="has not been found"):
        names.require("a")
    os.close(fd)


def test_without_sets() -> None:
    client = Bench().client()
    assert client.error("query-fdsets") == "this feature or command is not currently supported"
