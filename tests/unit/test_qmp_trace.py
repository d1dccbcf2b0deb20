"""Trace events, the log, and the commands about them.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvm.monitor.dispatcher import Dispatcher
from pyvm.monitor.machine import VcpuInfo
from pyvm.monitor.schema.model import load
from pyvm.monitor.trace import LogFileError, TraceEvents, trace_life
from pyvm.runstate import RunState
from tests.unit.monitor_support import Bench

DISABLED = {"state": "disabled", "vcpu": False}


def bench_with_traces() -> tuple[Bench, TraceEvents]:
    bench = Bench()
    traces = TraceEvents(lambda: load().command_names)
    machine: Any = bench.machine
    machine.traces = traces
    bench.dispatcher = Dispatcher(bench.machine, bench.spawned.append, traces=traces)
    return bench, traces


def test_states() -> None:
    bench, traces = bench_with_traces()
    client = bench.client()
    jobs = ("dismiss", "finalize", "complete", "resume", "pause", "cancel")
    expected = [{"name": f"qmp_job_{action}", **DISABLED} for action in jobs]
    assert client.execute("trace-event-get-state", name="qmp_job_*") == expected
    client.execute("trace-event-set-state", name="qmp_job_c?????", enable=True)
    assert traces.enabled("qmp_job_cancel")
    assert not traces.enabled("qmp_job_complete")
    (state,) = client.execute("trace-event-get-state", name="qmp_job_cancel")
    assert state["state"] == "enabled"
    client.execute("trace-event-set-state", name="*", enable=False)
    assert not traces.active
    assert client.execute("trace-event-get-state", name="zz*") == []


def test_errors() -> None:
    bench, _ = bench_with_traces()
    client = bench.client()
    unknown = 'unknown event "zz"'
    assert client.error("trace-event-get-state", {"name": "zz"}) == unknown
    assert client.error("trace-event-get-state", {"name": "z[z]"}) == 'unknown event "z[z]"'
    for more in ({}, {"ignore-unavailable": True}):
        assert client.error("trace-event-set-state", {"name": "zz", "enable": True, **more}) == unknown
    bench.machine.cpus = [VcpuInfo(0, "/cpu", 1)]
    assert client.error("trace-event-get-state", {"name": "*", "vcpu": 3}) == "invalid vCPU index 3"
    assert client.error("trace-event-get-state", {"name": "*", "vcpu": -1}) == "invalid vCPU index 4294967295"
    assert client.execute("trace-event-get-state", name="*", vcpu=0) == []
    specific = 'event "runstate_set" is not vCPU-specific'
    assert client.error("trace-event-get-state", {"name": "runstate_set", "vcpu": 0}) == specific
    assert Bench().client().error("trace-event-get-state", {"name": "*"}).startswith("this feature")


def test_each_command_is_told(tmp_path: Path) -> None:
    bench, traces = bench_with_traces()
    trace_life(traces, bench.events, bench.machine.states)
    traces.set_file(str(tmp_path / "log"))
    client = bench.client()
    client.execute("trace-event-set-state", name="qmp_*", enable=True)
    client.execute("query-name")
    client.error("system_wakeup")
    client.execute("trace-event-set-state", name="qmp_*", enable=False)
    client.execute("query-name")
    wakeup = "wake-up from suspend is not supported by this guest"
    assert (tmp_path / "log").read_text().splitlines() == [
        "qmp_enter_query_name {}",
        "qmp_exit_query_name {} 1",
        "qmp_enter_system_wakeup {}",
        f"qmp_exit_system_wakeup {wakeup} 0",
        'qmp_enter_trace_event_set_state {"name": "qmp_*", "enable": false}',
    ]


def test_the_machine_and_its_monitors_are_told(tmp_path: Path) -> None:
    bench, traces = bench_with_traces()
    trace_life(traces, bench.events, bench.machine.states)
    traces.set_file(str(tmp_path / "log"))
    client = bench.client()
    for pattern in ("runstate_set", "monitor_*", "qemu_system_*", "handle_*"):
        client.execute("trace-event-set-state", name=pattern, enable=True)
    (tmp_path / "log").write_text("")
    bench.machine.vm_start()
    bench.machine.powerdown()
    client.raw(b'{"execute":"query-kvm","id":7}]')
    error = '{"error": {"class": "GenericError", "desc": "JSON parse error, expecting value"}}'
    text = "\n".join(line.replace(f"{id(client.monitor.session):#x}", "M") for line in _lines(tmp_path / "log"))
    assert text == "\n".join(
        (
            "runstate_set current_run_state 6 (prelaunch) new_state 9 (running)",
            "monitor_protocol_event_emit event=RESUME",
            "qemu_system_powerdown_request",
            "monitor_protocol_event_emit event=POWERDOWN",
            'handle_qmp_command mon M req: {"execute": "query-kvm", "id": 7}',
            "monitor_qmp_cmd_in_band 7",
            'monitor_qmp_respond mon M resp: {"return": {"enabled": false, "present": false}, "id": 7}',
            "monitor_qmp_err_in_band JSON parse error, expecting value",
            f"monitor_qmp_respond mon M resp: {error}",
        )
    )


def _lines(path: Path) -> list[str]:
    return [line.rstrip() for line in path.read_text().replace("\0", "").splitlines()]


def test_the_log_goes_to_stderr_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traces = TraceEvents()
    traces.enable(["runstate_set"], True)
    traces.emit("runstate_set", "x")
    traces.emit("input_event_sync")
    assert capsys.readouterr().err == "runstate_set x\n"
    traces.set_file(f"{tmp_path}/log-%d")
    traces.emit("runstate_set", "y\udc80")
    assert (tmp_path / f"log-{os.getpid()}").read_text() == "runstate_set y\\udc80\n"
    with pytest.raises(LogFileError, match="Bad logfile template: %d%d"):
        traces.set_file("%d%d")
    with pytest.raises(LogFileError, match="Error opening logfile /none/x: No such file or directory"):
        traces.set_file("/none/x")
    traces.close()
    traces.emit("runstate_set", "z")
    assert capsys.readouterr().err == "runstate_set z\n"


def test_states_have_the_numbers_of_the_schema() -> None:
    kind: Any = load().type("RunState")
    assert [value.name for value in kind.values] == [state.value for state in RunState]
