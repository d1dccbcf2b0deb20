"""The log: what `-d` and the monitor's `log` ask for, and where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvm.commandline import HelpRequest, parse_arguments
from pyvm.commandline.helptext import answer
from pyvm.errors import ConfigError
from pyvm.monitor.log_items import LogItems, MissingItemError, UnknownItemError, listing, parse, parse_ranges
from pyvm.runstate import ShutdownCause
from tests.system.machine_rig import Machine


def test_items_and_patterns() -> None:
    assert parse("cpu_reset,trace:qmp_*,trace:runstate_set") == LogItems(
        frozenset({"cpu_reset"}), ("qmp_*", "runstate_set")
    )
    for unknown in ("", "zz", "cpu_reset,zz", "trace:", "trace", "none"):
        with pytest.raises(UnknownItemError):
            parse(unknown)
    for missing in ("op", "out_asm", "all", "cpu_reset,mmu"):
        with pytest.raises(MissingItemError, match="not supported by pyvm yet"):
            parse(missing)


def test_the_registers_are_logged_before_a_reset(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Machine("-smp", "2", "-d", "cpu_reset,trace:runstate_set", "-D", str(log)) as machine:
        start = log.read_text()
        with machine.pc.lock:
            machine.pc.cpus.set_registers(1, {"rip": 0x1234})
            machine.pc.reset(ShutdownCause.HOST_QMP_SYSTEM_RESET)
        text = log.read_text().removeprefix(start)
        assert text.count("CPU Reset (CPU ") == 2
        assert "EIP=00001234" in text.partition("CPU Reset (CPU 1)\n")[2]
        assert machine.pc.traces.enabled("runstate_set")


def test_the_monitor_changes_what_is_logged(tmp_path: Path) -> None:
    with Machine("-D", str(tmp_path / "log")) as machine:
        say = lambda line: machine.execute("human-monitor-command", command_line=line)  # noqa: E731
        assert say("log cpu_reset,trace:qmp_exit_*") == ""
        assert machine.pc.traces.items == {"cpu_reset"}
        assert machine.pc.traces.enabled("qmp_exit_query_status")
        assert say("log none") == ""
        assert not machine.pc.traces.items
        assert not machine.pc.traces.active
        assert say("log zz").replace("\r", "") == listing("log", with_none=True)
        assert say("help log") == say("log zz")
        assert "log item 'op' is not supported" in say("log op")
        assert "qmp_enter_quit\r\n" in say("log trace:help")


def test_accesses_to_nothing_are_logged_while_wanted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Machine("-D", str(log), "-d", "guest_errors") as machine:
        listener = machine.pc.cpus.on_nothing
        assert listener is not None
        listener("write", 0xE0000001, 2)
        line = "Invalid write at addr 0xE0000001, size 2, region '(null)', reason: rejected\n"
        assert log.read_text() == line
        machine.execute("human-monitor-command", command_line="log none")
        assert machine.pc.cpus.on_nothing is None


def test_ranges() -> None:
    assert parse_ranges("0x10..0x1f,32+16,0xff-0x10") == [(0x10, 0x1F), (32, 47), (0xF0, 0xFF)]
    assert parse_arguments(["-dfilter", "0+1"]).traces.ranges == [(0, 0)]
    for text in ("", "1", "5..4", "1+0", "0-2", "0x1_0..0x20", "0x10000000000000000..1", "2+0xffffffffffffffff"):
        with pytest.raises(ConfigError, match="bad range"):
            parse_arguments(["-dfilter", text])


def test_single_instructions() -> None:
    with Machine("-singlestep") as machine:
        say = lambda line: machine.execute("human-monitor-command", command_line=line)  # noqa: E731
        assert machine.execute("query-status")["singlestep"]
        assert say("singlestep off") == ""
        assert not machine.execute("query-status")["singlestep"]
        assert say("singlestep x") == "unexpected option x\r\n"
        assert say("singlestep") == ""
        assert "single step mode" in say("info status")


def test_mistakes_and_help() -> None:
    with pytest.raises(ConfigError, match="-d op: log item 'op' is not supported by pyvm yet"):
        parse_arguments(["-d", "op"])
    with pytest.raises(ConfigError, match="-d zz: there is no log item 'zz'\nLog items"):
        parse_arguments(["-d", "zz"])
    for text, topic in (("help", "d"), ("trace:help", "trace")):
        with pytest.raises(HelpRequest) as request:
            parse_arguments(["-d", text])
        assert request.value.topic == topic
        assert "trace" in answer(request.value)


def test_a_log_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="Error opening logfile /none/x: No such file or directory"):
        Machine("-D", "/none/x")
