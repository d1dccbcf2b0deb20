"""Machines that move: over every transport, with every way of packing, and with everything that can go wrong."""

from __future__ import annotations

import copy
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyvm import Machine
from pyvm.errors import ConfigError
from pyvm.migration.stream import Section
from pyvm.qmp_client import QmpDisconnected, QmpError
from pyvm.state import StateError
from tests.system.machine_rig import Machine as RigMachine

DEADLINE = 90.0
RAM = 16
BASE = ("-nodefaults", "-display", "none", "-S", "-vga", "std", "-device", "virtio-serial-pci")


class Bench:
    """Makes machines, which end with the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._machines: list[Machine] = []

    def machine(self, *arguments: str, ram: int = RAM, events: bool = True) -> Machine:
        made = Machine(*BASE, *arguments, agent=False, m=ram).start()
        self._machines.append(made)
        if events:
            switch(made, events=True)
        return made

    def take(self, path: str) -> None:
        """Have a machine take what is in a file, which ends it."""
        waiting = self.machine("-incoming", "defer", events=False)
        with suppress(QmpDisconnected):
            waiting.qmp("migrate-incoming", uri=f"file:{path}")
        waiting.wait(DEADLINE)

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def close(self) -> None:
        for machine in self._machines:
            machine.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def switch(machine: Machine, **capabilities: bool) -> None:
    states = [{"capability": name.replace("_", "-"), "state": state} for name, state in capabilities.items()]
    machine.qmp("migrate-set-capabilities", capabilities=states)


def tune(machine: Machine, **parameters: Any) -> None:
    machine.qmp("migrate-set-parameters", **{name.replace("_", "-"): value for name, value in parameters.items()})


def until(condition: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + DEADLINE
    while not (answer := condition()):
        assert time.monotonic() < end, f"{what} has not come"
        time.sleep(0.01)
    return answer


def status(machine: Machine) -> str:
    found: str = machine.qmp("query-migrate").get("status", "none")
    return found


def ended(machine: Machine) -> dict[str, Any]:
    """Wait for the end of a migration; return its figures."""
    until(lambda: status(machine) in ("completed", "failed", "cancelled"), "the end")
    return dict(machine.qmp("query-migrate"))


def run_state(machine: Machine) -> str:
    return str(machine.qmp("query-status")["status"])


def fill(machine: Machine, pages: dict[int, bytes]) -> None:
    """Put something into pages of RAM."""
    pc = machine._running()
    with pc.lock:
        for page, content in pages.items():
            pc.memory.write(page * 4096, content)


def memory(machine: Machine) -> bytes:
    pc = machine._running()
    with pc.lock:
        return bytes(pc.memory.mapping[:]) + bytes(pc.displays()[0].vram.view)


def somewhat_full(machine: Machine) -> None:
    fill(machine, {page: os.urandom(4096) if page % 3 else b"\x11" * 4096 for page in range(0x200, 0x500)})
    pc = machine._running()
    with pc.lock:
        pc.displays()[0].vram.view[5000:5010] = b"0123456789"


def moved(source: Machine, target: Machine, uri: str) -> dict[str, Any]:
    source.qmp("migrate", uri=uri)
    figures = ended(source)
    assert figures["status"] == "completed", figures
    until(lambda: run_state(target) != "inmigrate", "the machine")
    assert memory(target) == memory(source)
    assert run_state(source) == "postmigrate"
    return figures


WAYS: dict[str, tuple[dict[str, bool], dict[str, Any]]] = {
    "plain": ({}, {}),
    "deltas": ({"xbzrle": True}, {}),
    "compressed": ({"compress": True}, {"compress-threads": 2}),
    "several connections": ({"multifd": True}, {"multifd-channels": 3}),
    "several with zlib": ({"multifd": True}, {"multifd-compression": "zlib"}),
    "several with zstd": ({"multifd": True}, {"multifd-compression": "zstd"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_machine_moves_over_a_unix_socket(bench: Bench, way: str) -> None:
    capabilities, parameters = WAYS[way]
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    assert run_state(target) == "inmigrate"
    assert target.qmp("query-migrate") == {"socket-address": [{"type": "unix", "path": bench.path("m")}]}
    for machine in (source, target):
        switch(machine, **capabilities)
        tune(machine, **parameters)
    somewhat_full(source)
    figures = moved(source, target, f"unix:{bench.path('m')}")
    assert figures["ram"]["normal"] >= 0x300
    assert figures["ram"]["remaining"] == 0
    assert (figures["ram"]["multifd-bytes"] > 0) is ("multifd" in capabilities)
    assert run_state(target) == "prelaunch"
    assert status(target) == "completed"
    assert not os.path.exists(bench.path("m"))


def test_events_tell_what_happens_on_both_sides(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", "defer")
    target.qmp("migrate-incoming", uri=f"unix:{bench.path('m')}")
    moved(source, target, f"unix:{bench.path('m')}")
    names = [(event["event"], event["data"]) for event in source.monitor.events()]
    assert [data for name, data in names if name.startswith("MIGRATION")] == [
        {"status": "setup"},
        {"pass": 1},
        {"status": "active"},
        {"pass": 2},
        {"status": "completed"},
    ]
    heard = [event["data"]["status"] for event in target.monitor.events() if event["event"] == "MIGRATION"]
    assert heard == ["setup", "active", "completed"]


def test_tcp_with_a_port_that_the_host_chose(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", "tcp:127.0.0.1:0")
    (address,) = target.qmp("query-migrate")["socket-address"]
    somewhat_full(source)
    moved(source, target, f"tcp:127.0.0.1:{address['port']}")


def test_a_file_keeps_a_machine_and_more_than_one_can_come_from_it(bench: Bench) -> None:
    source, path = bench.machine(), bench.path("stream")
    somewhat_full(source)
    source.qmp("migrate", uri=f"file:{path}")
    assert ended(source)["status"] == "completed"
    for uri in (f"file:{path}", f"exec:cat {path}"):
        target = bench.machine("-incoming", uri)
        until(lambda target=target: run_state(target) == "prelaunch", "the machine")
        assert memory(target) == memory(source)


def test_commands_read_a_stream(bench: Bench) -> None:
    source = bench.machine()
    source.qmp("migrate", uri=f"exec:gzip -1 >{bench.path('z')}")
    assert ended(source)["status"] == "completed"
    target = bench.machine("-incoming", f"exec:zcat {bench.path('z')}")
    until(lambda: run_state(target) == "prelaunch", "the machine")


def test_descriptors_by_their_numbers(bench: Bench) -> None:
    ours, theirs = socket.socketpair()
    target = bench.machine("-incoming", f"fd:{theirs.detach()}")
    source = bench.machine()
    somewhat_full(source)
    moved(source, target, f"fd:{ours.detach()}")


def test_the_guest_runs_on_where_it_ran(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    source.qmp("cont")
    target.qmp("cont")  # it is to run as soon as it can
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    assert ended(source)["status"] == "completed"
    until(lambda: run_state(target) == "running", "the guest")
    assert run_state(source) == "postmigrate"


# ---- Waiting, and giving up


def test_the_switch_over_waits_where_that_is_wanted(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    switch(source, pause_before_switchover=True)
    source.qmp("cont")
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    until(lambda: status(source) == "pre-switchover", "the pause")
    assert run_state(source) == "finish-migrate"
    with pytest.raises(QmpError, match="Migration not in expected state: pre-switchover"):
        source.qmp("migrate-continue", state="device")
    source.qmp("migrate-continue", state="pre-switchover")
    assert ended(source)["status"] == "completed"
    until(lambda: run_state(target) == "paused", "the machine")


def slow_migration(bench: Bench) -> tuple[Machine, Machine]:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    somewhat_full(source)
    tune(source, max_bandwidth=20_000)
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    until(lambda: status(source) == "active", "the start")
    return source, target


def test_a_migration_is_given_up(bench: Bench) -> None:
    source, target = slow_migration(bench)
    with pytest.raises(QmpError, match="There's a migration process in progress"):
        source.qmp("migrate", uri="exec:true")
    with pytest.raises(QmpError, match="There's a migration process in progress"):
        switch(source, xbzrle=True)
    source.qmp("migrate_cancel")
    assert ended(source) == {"status": "cancelled"}
    target.wait(DEADLINE)
    assert run_state(source) == "prelaunch"
    # Another one begins at once, and nothing is left of the first.
    again = bench.machine("-incoming", f"unix:{bench.path('m2')}")
    tune(source, max_bandwidth=1 << 33)
    moved(source, again, f"unix:{bench.path('m2')}")


def test_the_bandwidth_can_be_raised_on_the_way(bench: Bench) -> None:
    source, _ = slow_migration(bench)
    tune(source, max_bandwidth=1 << 33)
    assert ended(source)["status"] == "completed"


def test_yank_tears_a_migration_down(bench: Bench) -> None:
    source, target = slow_migration(bench)
    assert {"type": "migration"} in source.qmp("query-yank")
    source.qmp("yank", instances=[{"type": "migration"}])
    assert ended(source)["status"] == "failed"
    target.wait(DEADLINE)
    assert {"type": "migration"} not in source.qmp("query-yank")


def test_a_machine_that_ends_takes_its_migration_along(bench: Bench) -> None:
    source, target = slow_migration(bench)
    source.stop()
    target.wait(DEADLINE)


# ---- What goes wrong leaves the source as it was


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("unix:{}/none", "Failed to connect to '{}/none': No such file or directory"),
        ("file:{}/none/x", "Failed to open '{}/none/x': No such file or directory"),
        ("file:/dev/full", "Unable to write to file: No space left on device"),
        ("exec:false", "Unable to write to command: Broken pipe"),
        ("exec:head -c 5000 >/dev/null", "Unable to write to command: Broken pipe"),
        ("exec:cat >/dev/null; exit 3", "Unable to write to command: it ended with status 3"),
    ],
)
def test_nobody_takes_it(bench: Bench, uri: str, error: str) -> None:
    source = bench.machine()
    source.qmp("cont")
    fill(source, dict.fromkeys(range(512, 640), b'"' * 4096))
    source.qmp("migrate", uri=uri.format(bench.directory))
    assert ended(source) == {"status": "failed", "error-desc": error.format(bench.directory, bench.directory)}
    assert run_state(source) == "running"


@pytest.mark.parametrize("uri", ["zz:1", "", "tcp"])
def test_a_protocol_that_is_none(bench: Bench, uri: str) -> None:
    source = bench.machine()
    with pytest.raises(QmpError, match="Parameter 'uri' expects a valid migration protocol"):
        source.qmp("migrate", uri=uri)
    assert source.qmp("query-migrate") == {"status": "failed"}


def test_a_descriptor_that_nobody_passed(bench: Bench) -> None:
    source = bench.machine()
    with pytest.raises(QmpError, match="File descriptor named 'zz' has not been found"):
        source.qmp("migrate", uri="fd:zz")
    assert source.qmp("query-migrate")["error-desc"] == "File descriptor named 'zz' has not been found"


def test_several_connections_need_a_socket(bench: Bench) -> None:
    source = bench.machine()
    switch(source, multifd=True)
    source.qmp("migrate", uri=f"file:{bench.path('x')}")
    assert ended(source)["error-desc"] == "multifd is not supported by current protocol"


@pytest.mark.parametrize(
    ("arguments", "ram", "error"),
    [
        ((), 2 * RAM, "the block of RAM 'pc.ram' has 0x2000000 bytes here, not 0x1000000"),
        (("-smp", "2"), RAM, "the source has cpus 1, not 2"),
        (("-device", "virtio-rng-pci"), RAM, "the machine was saved without 'virtio-rng-pci"),
    ],
)
def test_a_machine_of_another_make_takes_nothing(
    bench: Bench, arguments: tuple[str, ...], ram: int, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}", *arguments, ram=ram)
    source.qmp("cont")
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    assert ended(source)["error-desc"].startswith(f"the other side failed: {error}")
    assert run_state(source) == "running"
    target.wait(DEADLINE)
    assert f"pyvm: load of migration failed: {error}" in capfd.readouterr().err


def test_another_uuid_is_refused_where_that_is_wanted(bench: Bench) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}", "-uuid", uuid)
    switch(target, validate_uuid=True)
    source.qmp("migrate", uri=f"unix:{bench.path('m')}")
    assert uuid in ended(source)["error-desc"]


@pytest.mark.parametrize("data", [b"", b"x" * 64, b"pyvmstrm\1\0\0\0" + b"\xff" * 64])
def test_what_comes_in_is_no_machine(bench: Bench, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    target = bench.machine("-incoming", f"unix:{bench.path('m')}")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(bench.path("m"))
        peer.sendall(data)
    target.wait(DEADLINE)
    assert "pyvm: load of migration failed: " in capfd.readouterr().err


def test_damage_on_the_way_is_seen(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    source, path = bench.machine(), bench.path("stream")
    somewhat_full(source)
    source.qmp("migrate", uri=f"file:{path}")
    assert ended(source)["status"] == "completed"
    good = Path(path).read_bytes()
    for place in (len(good) // 2, len(good) - 2000):
        Path(path).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        bench.take(path)
        assert "damaged: its checksum is wrong" in capfd.readouterr().err
    Path(path).write_bytes(good[:-1])
    bench.take(path)
    assert "the stream is cut off" in capfd.readouterr().err


def test_a_peer_that_never_answers_and_dies(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """It has taken everything, but nobody heard that it is the machine: the source still is, and nothing else."""
    source, path = bench.machine(), bench.path("m")
    source.qmp("cont")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        source.qmp("migrate", uri=f"unix:{path}")
        peer, _ = listening.accept()
        peer.settimeout(DEADLINE)
        taken = b""
        while b"DONE" not in taken[-100:]:
            taken += peer.recv(1 << 20)
        assert run_state(source) == "finish-migrate"
        peer.close()
    assert ended(source)["error-desc"] == "the other side has ended before it was the machine"
    assert run_state(source) == "running"
    Path(bench.path("taken")).write_bytes(taken)
    bench.take(bench.path("taken"))
    assert "the source wants an answer" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["block", "x-colo", "x-ignore-shared"])
def test_what_is_not_there_is_refused_by_name(bench: Bench, name: str) -> None:
    source = bench.machine()
    switch(source, **{name: True})
    with pytest.raises(QmpError, match="is not supported by pyvm"):
        source.qmp("migrate", uri="exec:true")


def test_a_machine_that_waits_or_has_moved_does_not_move(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    with pytest.raises(QmpError, match="Guest is waiting for an incoming migration"):
        target.qmp("migrate", uri="exec:true")
    with pytest.raises(QmpError, match="already been started"):
        target.qmp("migrate-incoming", uri="unix:x")
    moved(source, target, f"unix:{bench.path('m')}")
    with pytest.raises(QmpError, match="Can't migrate the vm that was paused due to previous migration"):
        source.qmp("migrate", uri="exec:true")


def test_the_human_monitor_shows_it(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", "tcp:127.0.0.1:0")
    shown = target.qmp("human-monitor-command", command_line="info migrate")
    assert "socket address: [\r\n\ttcp:127.0.0.1:" in shown
    port = target.qmp("query-migrate")["socket-address"][0]["port"]
    source.qmp("human-monitor-command", command_line=f"migrate -d tcp:127.0.0.1:{port}")
    ended(source)
    lines = source.qmp("human-monitor-command", command_line="info migrate").split("\r\n")
    assert "Migration status: completed" in lines
    assert "dirty sync count: 2" in lines
    source.qmp("human-monitor-command", command_line="cont")
    source.qmp("human-monitor-command", command_line="migrate -d unix:/none")
    assert ended(source)["status"] == "failed"
    shown = source.qmp("human-monitor-command", command_line="info migrate")
    assert "Migration status: failed (Failed to connect to '/none': No such file or directory)" in shown


def test_threads_end_with_their_migrations(bench: Bench) -> None:
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    for machine in (source, target):
        switch(machine, multifd=True)
    moved(source, target, f"unix:{bench.path('m')}")

    def left() -> list[str]:
        names = ("live_migration", "migration-incoming", "multifd", "compress")
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]

    until(lambda: not left(), "the end of all threads")


def forward(source: socket.socket, target: socket.socket, before: Callable[[], None]) -> None:
    """Hand on what comes, until nothing does; `before` is called before each piece."""
    while piece := source.recv(1 << 16):
        before()
        target.sendall(piece)
    target.shutdown(socket.SHUT_WR)


def test_a_guest_that_writes_too_much_is_held_up(bench: Bench) -> None:
    """A device writes whenever something was sent; when it stops, the migration comes to its end.

    What is written is more than lies in the host on its way: each pass waits for some of it to be taken.
    """
    source, target = bench.machine(), bench.machine("-incoming", f"unix:{bench.path('m')}")
    switch(source, auto_converge=True)
    tune(source, max_bandwidth=16 << 20, downtime_limit=1)
    done = threading.Event()
    places = itertools.cycle(range(0x300, 0x700, 0x100))

    def write() -> None:
        if not done.is_set():
            fill(source, {next(places): os.urandom(1 << 20)})

    def relay() -> None:
        outgoing, _ = listener.accept()
        with outgoing, socket.socket(socket.AF_UNIX) as incoming:
            incoming.connect(bench.path("m"))
            answers = threading.Thread(target=forward, args=(incoming, outgoing, lambda: None))
            answers.start()
            forward(outgoing, incoming, write)
            answers.join()

    def throttled() -> dict[str, Any] | None:
        figures: dict[str, Any] = source.qmp("query-migrate")
        assert figures["status"] in ("setup", "active"), figures
        return figures if figures.get("cpu-throttle-percentage", 0) >= 30 else None

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(bench.path("relay"))
        listener.listen()
        listener.settimeout(DEADLINE)
        between = threading.Thread(target=relay)
        between.start()
        try:
            for _ in range(4):
                write()
            source.qmp("cont")
            source.qmp("migrate", uri=f"unix:{bench.path('relay')}")
            figures = until(throttled, "the throttle")
            assert figures["ram"]["dirty-pages-rate"] > 0
            assert figures["ram"]["dirty-sync-count"] > 3
            assert figures["expected-downtime"] > 1
        finally:
            done.set()
        tune(source, max_bandwidth=1 << 33, downtime_limit=1000)
        assert "cpu-throttle-percentage" not in ended(source)
        between.join()
    until(lambda: run_state(target) == "paused", "the machine")
    assert memory(target) == memory(source)


def test_memory_that_can_be_plugged_in_moves_as_well(bench: Bench) -> None:
    words = ("-m", f"{RAM},slots=2,maxmem=1G", "-object", "memory-backend-ram,id=m0,size=128M")
    words += ("-device", "pc-dimm,memdev=m0,id=d0")
    machines = [Machine(*BASE, *words, *more, agent=False).start() for more in ((), ("-incoming", "defer"))]
    source, target = machines
    try:
        target.qmp("migrate-incoming", uri=f"unix:{bench.path('m')}")
        pc = source._running()
        block = pc.memory.blocks[-1]
        with pc.lock:
            pc.memory.write(block.gpa + 0x5000, b"plugged in")
        source.qmp("migrate", uri=f"unix:{bench.path('m')}")
        assert ended(source)["status"] == "completed"
        until(lambda: run_state(target) == "prelaunch", "the machine")
        assert target._running().memory.read(block.gpa + 0x5000, 10) == b"plugged in"
    finally:
        for machine in machines:
            machine.stop()


def test_states_that_make_no_sense_are_refused() -> None:
    """Whatever a peer puts into a section with a right checksum: the machine takes it, or says what is wrong."""
    random = Random(5)
    refused = 0
    with RigMachine("-device", "virtio-serial-pci", "-incoming", "defer") as machine:
        migrations = machine.pc.migrations
        header = migrations.header()
        good = {section.name: section for section in migrations.sections()}
        for _ in range(300):
            sections = copy.deepcopy(good)
            _spoil(random, sections[random.choice(sorted(sections))])
            try:
                migrations.load(header, sections)
            except (StateError, ConfigError):
                refused += 1
        migrations.load(header, good)
    assert refused > 100


def _spoil(random: Random, section: Section) -> None:
    """Put something else in the place of any value of a section."""
    places: list[tuple[Any, Any]] = [(vars(section), "fields")]
    waiting = [section.fields]
    while waiting:
        value = waiting.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [(value, key) for key in keys]
        waiting += [value[key] for key in keys]
    holder, key = random.choice(places)
    junk: list[Any] = [None, -1, 1 << 70, 0, 255, True, "", "x", b"", b"\xff" * 9, [], {}, [0] * 300, {"x": 1}]
    holder[key] = random.choice(junk)
