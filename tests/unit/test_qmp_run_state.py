"""What follows certain events, and commands about what the machine lacks.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.monitor_support import Bench


def test_actions() -> None:
    bench = Bench()
    client = bench.client()
    assert client.error("set-action", {}) == "this feature or command is not currently supported"
    actions: list[dict[str, str]] = []
    machine: Any = bench.machine
    machine.set_actions = lambda **given: actions.append(given)
    client.execute("set-action", reboot="shutdown", panic="exit-failure", watchdog="inject-nmi")
    client.execute("set-action")
    client.execute("watchdog-set-action", action="debug")
    assert actions == [
        {"reboot": "shutdown", "panic": "exit-failure", "watchdog": "inject-nmi"},
        {},
        {"watchdog": "debug"},
    ]
    assert client.error("set-action", {"reboot": "x"}) == "Parameter 'reboot' does not accept value 'x'"
    assert client.error("watchdog-set-action", {"action": 5}) == "Invalid parameter type for 'action', expected: string"


def test_no_guest_runs_while_its_memory_is_dumped() -> None:
    bench = Bench()
    machine: Any = bench.machine
    machine.dump_in_progress = True
    assert bench.client().error("cont") == "There is a dump in process, please wait."
    machine.dump_in_progress = False
    assert bench.client().ask({"execute": "cont"})[-1] == {"return": {}}


def test_clock_interrupts_are_not_kept() -> None:
    assert Bench().client().execute("rtc-reset-reinjection") == {}


def test_nothing_is_recorded_or_replayed() -> None:
    client = Bench().client()
    assert client.execute("query-replay") == {"mode": "none", "icount": 0}
    assert client.error("replay-break", {"icount": 5}) == "setting the breakpoint is allowed only in play mode"
    assert client.error("replay-delete-break") == "replay breakpoints are allowed only in play mode"
    assert client.error("replay-seek", {"icount": 5}) == "replay must be enabled to seek"


@pytest.mark.parametrize(
    "command",
    ["query-rocker", "query-rocker-ports", "query-rocker-of-dpa-flows", "query-rocker-of-dpa-groups"],
)
def test_there_is_no_rocker(command: str) -> None:
    assert Bench().client().error(command, {"name": "sw1"}) == "rocker sw1 not found"


def test_there_is_no_tpm() -> None:
    client = Bench().client()
    for command in ("query-tpm", "query-tpm-models", "query-tpm-types"):
        assert client.execute(command) == []


def test_nothing_is_replicated_for_xen() -> None:
    client = Bench().client()
    client.execute("xen-set-global-dirty-log", enable=True)
    client.execute("xen-set-replication", enable=True, primary=False)
    client.execute("xen-set-replication", enable=False, primary=True, failover=True)
    refused = "Parameter 'failover' is only for stopping replication"
    assert client.error("xen-set-replication", {"enable": True, "primary": True, "failover": True}) == refused
    assert client.execute("query-xen-replication-status") == {"error": False}
    client.execute("xen-colo-do-checkpoint")


def test_before_the_machine_exists() -> None:
    bench = Bench()
    bench.machine.initialized = False
    client = bench.client()
    later = "The command '{}' is permitted only after machine initialization has completed"
    for command in ("stop", "query-replay", "human-monitor-command", "query-mice", "query-dump"):
        assert client.error(command) == later.format(command)
    assert client.execute("query-chardev") == []
