"""The pytest plugin, in pytest runs of its own with real machines that have no guest."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> list[str]:
    """Return what makes the inner pytest load the plugin: nothing where its entry point is installed."""
    return [] if request.config.pluginmanager.has_plugin("pyvm") else ["-p", "pyvm.pytest_plugin"]


def test_failure_shows_console_qmp_and_command_line(pytester: pytest.Pytester, plugin: list[str]) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm("-S", m=16, wait_agent=False)
        def test_it(vm):
            assert vm.qmp("query-status")["status"] == "running"
        """
    )
    result = pytester.runpytest_inprocess(*plugin)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*pyvm machine 1: command line*",
            "pyvm -S -m 16 -nographic",
            "*pyvm machine 1: console*",
            "(nothing)",
            "*pyvm machine 1: QMP*",
            '*-> {"execute": "query-status"*',
            '*<- {"return": {"status": "prelaunch"*',
        ]
    )


def test_markers_ini_and_options_add_up(pytester: pytest.Pytester, plugin: list[str]) -> None:
    pytester.makeini("[pytest]\npyvm_options = -S -m 16\npyvm_timeout = 0.1\n")
    pytester.makepyfile(
        """
        import pytest
        from pyvm.api import MachineError

        pytestmark = pytest.mark.vm(name="module", wait_agent=False)

        @pytest.mark.vm("-no-reboot", name="test")
        def test_closest_marker_wins(vm):
            assert vm.arguments == ["-S", "-m", "16", "-no-shutdown", "-no-reboot", "-name", "test"]

        def test_factory_makes_many(vm_factory):
            first, second = vm_factory(wait_agent=False), vm_factory("-nodefaults", wait_agent=False)
            assert first.qmp("query-status") == second.qmp("query-status")

        def test_factory_waits_for_the_agent_by_default(vm_factory):
            with pytest.raises(MachineError, match="waited for the guest agent"):
                vm_factory()

        def test_factory_waits_for_the_console(vm_factory):
            with pytest.raises(MachineError, match="has not shown 'login' within 0.1 s"):
                vm_factory(wait_console="login")
        """
    )
    pytester.runpytest_inprocess(*plugin, "--strict-markers", "--pyvm-options=-no-shutdown").assert_outcomes(passed=4)


def test_a_machine_that_does_not_boot_is_shown_too(pytester: pytest.Pytester, plugin: list[str]) -> None:
    pytester.makeini("[pytest]\npyvm_timeout = 0.05\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vm("-S", m=16, wait_console="login:")
        def test_it(vm):
            pass
        """
    )
    result = pytester.runpytest_inprocess(*plugin)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*MachineError: the console has not shown 'login:' within 0.05 s*"])
    result.stdout.fnmatch_lines(["*pyvm machine 1: command line*", "pyvm -S -m 16 -nographic"])
