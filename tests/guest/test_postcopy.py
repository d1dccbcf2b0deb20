"""A guest whose memory follows it, and that is saved, while it works and checks what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvm import Machine
from tests.guest.conftest import GuestFactory
from tests.guest.support import SOON, complaints, until
from tests.guest.test_snapshot import LOAD, rounds, uptime
from tests.unit.test_native_pages import allowed

pytestmark = pytest.mark.skipif(not allowed(), reason="the host has no userfaultfd for this user")


def successor(vm: Machine, uri: str) -> Machine:
    """Return a machine like `vm` that a stream becomes, and that runs then."""
    words, given = [], iter(vm.arguments)
    for word in given:
        if word == "-incoming":
            next(given)
        elif word != "-S":
            words.append(word)
    return Machine(*words, "-incoming", uri).start()


def at_work(guest: GuestFactory) -> Machine:
    vm = guest(smp=2)
    vm.write_file("/tmp/load.sh", LOAD.encode())
    vm.run("sh /tmp/load.sh > /dev/null 2>&1 &")
    return vm


def switch(machine: Machine, **capabilities: bool) -> None:
    states = [{"capability": name.replace("_", "-"), "state": state} for name, state in capabilities.items()]
    machine.qmp("migrate-set-capabilities", capabilities=states)


def check(vm: Machine, done: int) -> None:
    """The guest works on, and has found nothing wrong."""
    vm.wait_agent(SOON)
    until(lambda: rounds(vm) > done, "the guest works on")
    assert vm.run("cat /tmp/wrong", check=False).text == ""
    assert complaints(vm.run("dmesg").text) == []


def test_memory_follows_a_guest_at_work(guest: GuestFactory, tmp_path: Path) -> None:
    """And then it is saved, which a guest can be whose memory is its machine's own."""
    vm, uri = at_work(guest), f"unix:{tmp_path}/m"
    before, done = uptime(vm), rounds(vm)
    with successor(vm, uri) as target:
        follow(vm, target, uri)
        vm.stop()
        check(target, done)
        assert before <= uptime(target) < before + 2 * SOON
        save(target, tmp_path / "stream")


def follow(vm: Machine, target: Machine, uri: str) -> None:
    for machine in (vm, target):
        switch(machine, postcopy_ram=True)
    vm.qmp("migrate-set-parameters", max_bandwidth=2 << 20)
    vm.qmp("migrate", uri=uri)
    until(lambda: figures(vm)["normal"] > 500, "some pages, many of which are written again")
    vm.qmp("migrate-start-postcopy")
    until(lambda: target.qmp("query-migrate").get("status") == "completed", "all memory")
    assert figures(vm)["postcopy-requests"] > 0
    assert figures(vm)["postcopy-bytes"] > figures(vm)["precopy-bytes"]


def figures(vm: Machine) -> dict[str, int]:
    found: dict[str, int] = vm.qmp("query-migrate").get("ram", {"normal": 0})
    return found


def save(vm: Machine, path: Path) -> None:
    switch(vm, postcopy_ram=False, background_snapshot=True)
    done = rounds(vm)
    vm.qmp("migrate", uri=f"file:{path}")
    until(lambda: vm.qmp("query-migrate")["status"] in ("completed", "failed"), "the snapshot")
    found = vm.qmp("query-migrate")
    assert found["status"] == "completed", found
    assert found["downtime"] < found["total-time"]
    check(vm, done)
    now = uptime(vm)
    vm.stop()
    with successor(vm, f"file:{path}") as again:
        until(lambda: again.qmp("query-status")["status"] == "running", "the machine")
        check(again, done)
        assert uptime(again) < now + SOON
