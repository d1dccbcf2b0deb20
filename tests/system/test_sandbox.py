"""What ``-sandbox`` takes from a process: each call is made in a child that has put the filter on."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from pyvm.commandline import parse_arguments
from pyvm.sandbox import SandboxConfig, enter

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="filters are made for x86-64 hosts")

LIBVIRT = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
USTAT = 136
CLONE3 = 435
DONE, FAILED, KILLED = "done", "failed", "killed"


def sandbox(text: str) -> SandboxConfig:
    found = parse_arguments(["-sandbox", text]).sandbox
    assert found is not None
    return found


def outcome(config: SandboxConfig, call: Callable[[], object]) -> str:
    """Return what became of a child that entered the sandbox and then made a call."""
    child = os.fork()
    if not child:
        try:
            enter(config)
            call()
        except OSError:
            os._exit(2)
        except BaseException:  # noqa: BLE001 - a child of the test must not go on
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGSYS
        return KILLED
    return {0: DONE, 2: FAILED}[os.WEXITSTATUS(status)]


def fork() -> None:
    if not os.fork():
        os._exit(0)
    os.wait()


def thread() -> None:
    ran = threading.Event()
    started = threading.Thread(target=ran.set)
    started.start()
    started.join()
    assert ran.is_set()


def same_group() -> None:
    os.setregid(os.getgid(), os.getegid())


def same_processors() -> None:
    os.sched_setaffinity(0, os.sched_getaffinity(0))


def same_scheduler() -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def step_back() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def program() -> None:
    os.execv("/bin/true", ["true"])


def obsolete() -> None:
    ctypes.CDLL(None).syscall(USTAT, 0, 0)


CALLS = (fork, program, same_group, os.setsid, same_processors, same_scheduler, step_back, obsolete, thread)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("on", {obsolete: KILLED}),
        ("on,obsolete=allow", {}),
        ("on,obsolete=allow,spawn=deny", {fork: KILLED, program: KILLED}),
        ("on,obsolete=allow,elevateprivileges=deny", {same_group: KILLED, os.setsid: KILLED}),
        ("on,obsolete=allow,elevateprivileges=children", {}),
        ("on,obsolete=allow,resourcecontrol=deny", {same_processors: KILLED, same_scheduler: FAILED}),
        (
            LIBVIRT,
            {
                fork: KILLED,
                program: KILLED,
                same_group: KILLED,
                os.setsid: KILLED,
                same_processors: KILLED,
                same_scheduler: FAILED,
                obsolete: KILLED,
            },
        ),
    ],
)
def test_each_group(text: str, refused: dict[Callable[[], object], str]) -> None:
    config = sandbox(text)
    assert {call: outcome(config, call) for call in CALLS} == {call: refused.get(call, DONE) for call in CALLS}


def test_the_c_library_is_told_to_use_the_older_call() -> None:
    def clone3() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(CLONE3, 0, 0) == -1:
            raise OSError(ctypes.get_errno(), "")

    assert outcome(sandbox("on,spawn=deny"), clone3) == FAILED


@pytest.mark.parametrize("text", ["off", "off,spawn=deny"])
def test_there_is_none_unless_it_is_asked_for(text: str) -> None:
    assert parse_arguments(["-sandbox", text]).sandbox is None


def test_a_machine_runs_in_it() -> None:
    conversation = '{"execute": "qmp_capabilities"}\n{"execute": "query-status"}\n{"execute": "quit"}\n'
    words = ["-display", "none", "-sandbox", LIBVIRT, "-qmp", "stdio", "-serial", "null"]
    done = subprocess.run(
        [sys.executable, "-m", "pyvm", *words],
        input=conversation,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"running": true' in done.stdout
