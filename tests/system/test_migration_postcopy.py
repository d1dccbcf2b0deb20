"""Machines whose memory follows them, connections that break meanwhile, and machines that are saved while they work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm import Machine
from pyvm.errors import ConfigError
from pyvm.migration.components import fields_of
from pyvm.migration.multifd import Receivers
from pyvm.migration.pages import Target
from pyvm.migration.settings import MigrationSettings
from pyvm.migration.stream import Section
from pyvm.migration.transport import Listening, parse_uri
from pyvm.qmp_client import QmpError
from pyvm.state import StateError
from tests.system.machine_rig import Machine as RigMachine
from tests.system.test_migration import DEADLINE, Bench, ended, fill, memory, run_state, status, switch, tune, until
from tests.unit.test_native_pages import allowed

needs_userfaultfd = pytest.mark.skipif(not allowed(), reason="the host has no userfaultfd for this user")
PAGES = range(0x200, 0x400)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def content(salt: int = 0) -> dict[int, bytes]:
    return {page: bytes([page & 0xFF, page >> 8, salt, 1]) * 1024 if page % 5 else bytes(4096) for page in PAGES}


def holds(machine: Machine, pages: dict[int, bytes]) -> bool:
    found = memory(machine)
    return all(found[page * 4096 : (page + 1) * 4096] == data for page, data in pages.items())


def statuses(machine: Machine) -> list[str]:
    return [event["data"]["status"] for event in machine.monitor.events() if event["event"] == "MIGRATION"]


def on_the_way(bench: Bench, *, runs: bool = True, **parameters: Any) -> tuple[Machine, Machine]:
    """Return two machines, of which one has begun to move to the other, slowly.

    While a connection is broken, nobody in this process may wait for a page with the interpreter's lock, as firmware
    that runs might.
    """
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    for machine in (source, target):
        switch(machine, postcopy_ram=True)
    fill(source, content())
    if runs:
        source.qmp("cont")
        target.qmp("cont")
    tune(source, max_bandwidth=20_000, **parameters)
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    until(lambda: status(source) == "active", "the start")
    return source, target


@needs_userfaultfd
def test_memory_follows_the_machine(bench: Bench) -> None:
    source, target = on_the_way(bench)
    fill(source, content(1))  # some of it has gone already
    source.qmp("migrate-start-postcopy")
    figures = ended(source)
    assert figures["status"] == "completed", figures
    until(lambda: status(target) == "completed", "all memory")
    assert (run_state(source), run_state(target)) == ("postmigrate", "running")
    target.qmp("stop")
    assert holds(target, content(1))
    ram = figures["ram"]
    assert ram["remaining"] == ram["downtime-bytes"] == 0
    assert ram["postcopy-bytes"] > 300 * 4096
    assert ram["transferred"] == ram["precopy-bytes"] + ram["postcopy-bytes"]
    assert statuses(source) == ["setup", "active", "postcopy-active", "completed"]
    assert statuses(target)[-3:] == ["active", "postcopy-active", "completed"]


@needs_userfaultfd
def test_a_connection_that_breaks_is_taken_up(bench: Bench) -> None:
    source, target = on_the_way(bench, runs=False, max_postcopy_bandwidth=1000)
    for machine, command in ((source, "migrate-pause"), (target, "migrate-pause")):
        with pytest.raises(QmpError, match="only supported during postcopy-active state"):
            machine.qmp(command)
    with pytest.raises(QmpError, match="Migrate recover can only be run when postcopy is paused"):
        target.qmp("migrate-recover", uri=f"unix:{bench.path('m2')}")
    with pytest.raises(QmpError, match="Cannot resume if there is no paused migration"):
        source.qmp("migrate", uri=f"unix:{bench.path('m2')}", resume=True)
    source.qmp("migrate-start-postcopy")
    until(lambda: run_state(target) == "prelaunch", "the machine")
    with pytest.raises(QmpError, match="Postcopy cannot be cancelled"):
        source.qmp("migrate_cancel")
    with pytest.raises(QmpError, match="There's a migration process in progress"):
        target.qmp("migrate", uri="exec:true")
    for number, machine in enumerate((source, target)):
        machine.qmp("migrate-pause")
        until(lambda: status(source) == status(target) == "postcopy-paused", "the pause")
        assert source.qmp("query-migrate")["ram"]["remaining"] > 0
        with pytest.raises(QmpError, match="Migration is not finalized yet"):
            source.qmp("cont")
        source.qmp("migrate", uri="unix:/none", resume=True)
        uri = f"unix:{bench.path(f'again{number}')}"
        target.qmp("migrate-recover", uri=uri)
        assert status(source) == "postcopy-paused"
        source.qmp("migrate", uri=uri, resume=True)
        until(lambda: status(source) == status(target) == "postcopy-active", "the recovery")
    tune(source, max_postcopy_bandwidth=0)
    assert ended(source)["status"] == "completed"
    until(lambda: status(target) == "completed", "all memory")
    assert holds(target, content())
    paused = ["postcopy-paused", "postcopy-recover", "postcopy-active"]
    assert statuses(source) == ["setup", "active", "postcopy-active", *paused, *paused, "completed"]
    assert [name for name in statuses(target) if name != "setup"][1:] == [
        "postcopy-active",
        *paused,
        *paused,
        "completed",
    ]


@needs_userfaultfd
def test_a_destination_that_cannot_load_the_state_leaves_the_source_as_it_was(bench: Bench) -> None:
    source, target = on_the_way(bench)
    pc = target._running()
    with pc.lock:
        pc.board.components["one more"] = pc.board.components["rtc"]
    source.qmp("migrate-start-postcopy")
    found = ended(source)
    assert found == {
        "status": "failed",
        "error-desc": "the other side failed: the machine was saved without 'one more'",
    }
    assert run_state(source) == "running"
    target.wait(DEADLINE)


def test_both_sides_must_want_it_and_answers_are_needed(bench: Bench) -> None:
    source, _ = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    switch(source, postcopy_ram=True)
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    assert "needs the capability postcopy-ram here as well" in ended(source)["error-desc"]
    source.qmp("migrate", uri=f"file:{bench.path('f')}")
    assert ended(source)["error-desc"] == "Unable to open return-path for postcopy"


def test_a_host_that_does_not_allow_it() -> None:
    settings = MigrationSettings()
    asked: list[str] = []

    def check(name: str) -> None:
        asked.append(name)
        raise ConfigError("not here")

    for name in ("postcopy-ram", "background-snapshot"):
        with pytest.raises(ConfigError, match="not here"):
            settings.enable([(name, True)], check)
    settings.enable([("xbzrle", True), ("postcopy-ram", False)], check)
    assert asked == ["postcopy-ram", "background-snapshot"]
    assert not settings.capabilities["postcopy-ram"]


def test_memory_that_cannot_come_late(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = f"memory-backend-file,id=m,size=16M,share=off,mem-path={tmp_path}/m"
    with RigMachine("-object", backend, "-machine", "memory-backend=m", "-incoming", "defer") as machine:
        states = [{"capability": "postcopy-ram", "state": True}]
        assert machine.error("migrate-set-capabilities", capabilities=states) == "Postcopy is not supported"
    assert "pyvm: memory cannot come late here: " in capfd.readouterr().err


# ---- Saved while it works


@needs_userfaultfd
def test_a_machine_is_saved_as_it_was(bench: Bench) -> None:
    source, path = bench.machine(), bench.path("stream")
    switch(source, background_snapshot=True)
    fill(source, content())
    tune(source, max_bandwidth=20_000)
    source.qmp("cont")
    source.qmp("migrate", uri=f"exec:cat >{path}")
    until(lambda: status(source) == "active", "the start")
    until(lambda: run_state(source) == "running", "the guest")
    fill(source, content(1))
    pc = source._running()
    with pc.lock:
        pc.memory.discard(0x200000, 0x10000)
        assert pc.memory.read(0x201000, 4) != bytes(4)  # who keeps memory needs it
    tune(source, max_bandwidth=1 << 33)
    figures = ended(source)
    assert figures["status"] == "completed", figures
    assert run_state(source) == "running"
    assert not pc.memory.pinned
    assert figures["ram"]["remaining"] == figures["ram"]["dirty-sync-count"] == 0
    assert figures["downtime"] < figures["total-time"]
    target = bench.machine("-incoming", f"file:{path}")
    until(lambda: run_state(target) == "paused", "the machine")
    assert holds(target, content())


@needs_userfaultfd
@pytest.mark.parametrize("uri", ["exec:false", "unix:/none"])
def test_a_snapshot_that_nobody_takes(bench: Bench, uri: str) -> None:
    source = bench.machine()
    switch(source, background_snapshot=True)
    fill(source, {page: os.urandom(4096) for page in PAGES})
    source.qmp("cont")
    source.qmp("migrate", uri=uri)
    assert ended(source)["status"] == "failed"
    assert run_state(source) == "running"
    fill(source, content())
    assert not source._running().memory.pinned


@needs_userfaultfd
def test_a_snapshot_is_given_up(bench: Bench) -> None:
    source = bench.machine()
    switch(source, background_snapshot=True)
    fill(source, content())
    tune(source, max_bandwidth=1000)
    source.qmp("migrate", uri="exec:cat >/dev/null")
    until(lambda: status(source) == "active", "the start")
    source.qmp("migrate_cancel")
    assert ended(source)["status"] == "cancelled"
    assert run_state(source) == "prelaunch"
    fill(source, content(1))


# ---- What a stream has that nobody knows


def test_sections_that_are_not_known_are_refused_unless_they_are_optional() -> None:
    with RigMachine("-incoming", "defer") as machine:
        pc = machine.pc
        known = Section("clock", {"now": 5})
        assert fields_of(pc, [known, Section("news", 1, optional=True)]) == {"clock": {"now": 5}}
        assert fields_of(pc, [known, Section("mine", 1)], frozenset({"mine"})) == {"clock": {"now": 5}}
        with pytest.raises(StateError, match="a section 'news', which is not known here"):
            fields_of(pc, [known, Section("news", 1)])
        with pytest.raises(StateError, match="the machine was saved with 'more'"):
            fields_of(pc, [Section("device/more", {})])
        sections = {section.name: section for section in pc.migrations.sections()}
        with pytest.raises(StateError, match="a section 'news'"):
            pc.migrations.load(pc.migrations.header(), {**sections, "news": Section("news", 1)})


def test_a_receiver_that_fails_in_any_way_ends_the_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bool:
        raise ZeroDivisionError("something unheard of")

    monkeypatch.setattr(Receivers, "_read_one", fail)
    receivers = Receivers([Target(memoryview(bytearray(4096)), zeros=True)], 1)
    receivers._run(None, 0)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        receivers.sync()


def test_nobody_is_accepted_behind_the_end(tmp_path: Path) -> None:
    for uri in (f"unix:{tmp_path}/s", "exec:true"):
        listening = Listening(parse_uri(uri), int)
        listening.abort()
        with pytest.raises(OSError, match="nobody waits for a migration any more"):
            listening.accept()
        listening.close()
