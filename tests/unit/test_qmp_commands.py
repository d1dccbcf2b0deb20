"""What each command does and answers.  Expected replies are QEMU 7.2's, but for what pyvm does not have."""

from __future__ import annotations

import logging

import pytest

from pyvm.chardev.registry import ChardevInfo
from pyvm.monitor.errors import device_not_found
from pyvm.monitor.machine import VcpuInfo
from pyvm.runstate import RunState, ShutdownCause
from tests.unit.monitor_support import NO_UUID, STAMP, Bench, FakeBalloon


def test_running_and_stopping() -> None:
    client = Bench().client()
    resume, stop = (f'{{{STAMP}, "event": "{name}"}}\r\n'.encode() for name in ("RESUME", "STOP"))
    done = b'{"return": {}}\r\n'
    assert client.raw(b'{"execute":"stop"}') == done
    assert client.execute("query-status")["status"] == "prelaunch"
    assert client.raw(b'{"execute":"cont"}') == resume + done
    assert client.raw(b'{"execute":"cont"}') == done
    assert client.execute("query-status") == {"status": "running", "running": True, "singlestep": False}
    assert client.raw(b'{"execute":"stop"}') == stop + done
    assert client.execute("query-status")["status"] == "paused"


def test_cont_in_other_states() -> None:
    bench = Bench()
    client = bench.client()
    states = bench.machine.states
    states.set(RunState.RUNNING)
    states.set(RunState.SUSPENDED)
    assert client.execute("cont") == {}
    assert states.state is RunState.SUSPENDED
    states.set(RunState.FINISH_MIGRATE)
    assert client.error("cont") == "Migration is not finalized yet"
    states.set(RunState.RUNNING)
    states.set(RunState.SHUTDOWN)
    assert client.error("cont") == "Resetting the Virtual Machine is required"


def test_stop_and_cont_while_a_migration_comes_in() -> None:
    bench = Bench()
    client = bench.client()
    bench.machine.states.set(RunState.INMIGRATE)
    client.execute("stop")
    assert bench.machine.autostart is False
    client.execute("cont")
    assert bench.machine.autostart is True
    assert bench.machine.run_state is RunState.INMIGRATE


def test_reset_and_power() -> None:
    bench = Bench()
    client = bench.client()
    assert client.raw(b'{"execute":"system_reset"}').decode() == (
        f'{{{STAMP}, "event": "RESET", "data": {{"guest": false, "reason": "host-qmp-system-reset"}}}}\r\n'
        '{"return": {}}\r\n'
    )
    event, reply = client.ask({"execute": "system_powerdown"})
    assert (event["event"], reply) == ("POWERDOWN", {"return": {}})
    event, reply = client.ask({"execute": "quit", "id": 9})
    assert (event["event"], event["data"]) == ("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    assert reply == {"return": {}, "id": 9}
    assert bench.machine.ended is ShutdownCause.HOST_QMP_QUIT


def test_wakeup() -> None:
    bench = Bench()
    client = bench.client()
    assert client.error("system_wakeup") == "wake-up from suspend is not supported by this guest"
    bench.machine.wakeup_supported = True
    assert client.error("system_wakeup") == "Unable to wake up: guest is not in suspended state"
    bench.machine.states.set(RunState.RUNNING)
    bench.machine.states.set(RunState.SUSPENDED)
    event, reply = client.ask({"execute": "system_wakeup"})
    assert (event["event"], reply) == ("WAKEUP", {"return": {}})


def test_nmi() -> None:
    bench = Bench()
    client = bench.client()
    client.execute("inject-nmi")
    assert bench.machine.nmis == 1
    bench.machine.has_nmi = False
    assert client.error("inject-nmi") == "this feature or command is not currently supported"


def test_balloon() -> None:
    bench = Bench()
    client = bench.client()
    none = "DeviceNotActive: No balloon device has been activated"
    assert client.error("query-balloon") == none
    assert client.error("balloon", {"value": -5}) == none
    balloon = bench.machine.balloon = FakeBalloon()
    assert client.execute("query-balloon") == {"actual": 128 << 20}
    assert client.error("balloon", {"value": 0}) == "Parameter 'target' expects a size"
    assert balloon.target is None
    client.execute("balloon", value=64 << 20)
    assert balloon.target == 64 << 20


def test_queries() -> None:
    bench = Bench()
    client = bench.client()
    assert client.execute("query-name") == {}
    bench.machine.name = "guest"
    assert client.execute("query-name") == {"name": "guest"}
    assert client.execute("query-uuid") == {"UUID": NO_UUID}
    assert client.execute("query-kvm") == {"enabled": False, "present": False}
    assert client.execute("query-target") == {"arch": "x86_64"}
    assert client.execute("query-version")["qemu"] == {"major": 7, "minor": 2, "micro": 22}
    assert client.execute("query-cpus-fast") == []
    bench.machine.cpus = [VcpuInfo(1, "/machine/unattached/device[2]", 42, {"socket-id": 0, "core-id": 1})]
    assert client.execute("query-cpus-fast") == [
        {
            "cpu-index": 1,
            "qom-path": "/machine/unattached/device[2]",
            "thread-id": 42,
            "props": {"socket-id": 0, "core-id": 1},
            "target": "x86_64",
        }
    ]
    bench.machine.devices = [ChardevInfo("compat_monitor0", "unix:/q,server=on", True)]
    assert client.execute("query-chardev") == [
        {"label": "compat_monitor0", "filename": "unix:/q,server=on", "frontend-open": True}
    ]
    names = {entry["name"] for entry in client.execute("query-commands")}
    assert {"query-status", "quit", "qmp_capabilities", "query-events"} <= names
    assert {"name": "SHUTDOWN"} in client.execute("query-events")
    schema = client.execute("query-qmp-schema")
    assert names == {info["name"] for info in schema if info["meta-type"] == "command"}
    assert {"name": "VSERPORT_CHANGE", "meta-type": "event"}.items() <= next(
        info for info in schema if info["name"] == "VSERPORT_CHANGE"
    ).items()


def test_an_unexpected_failure_is_reported_and_the_monitor_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    client = bench.client()
    monkeypatch.setattr(bench.machine, "powerdown", lambda: {}["button"])
    with caplog.at_level(logging.ERROR):
        assert client.error("system_powerdown") == "Internal error: KeyError: 'button'"
    assert "a command failed unexpectedly" in caplog.text
    assert client.execute("query-name") == {}


def test_device_not_found() -> None:
    error = device_not_found("zz")
    assert (error.error_class, error.description) == ("DeviceNotFound", "Device 'zz' not found")
