"""The command itself: what it prints, where, and with which exit status."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyvm import cli
from pyvm.commandline.table import OPTIONS, SECTIONS
from pyvm.config import MachineConfig
from pyvm.daemon import write_pidfile
from pyvm.errors import ConfigError


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what a command line that asks for help prints."""
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("words", [("-foo",), ("-m", "0"), ("-smp", "0"), ("-kernel", "/nonexistent"), ("disk.img",)])
def test_mistakes_get_one_line_and_status_1(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert cli.main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"pyvm: [^\n]+\n", printed.err)


def test_help_has_every_option_in_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, "-h")
    assert text == answer(capsys, "--help")
    for title in SECTIONS.values():
        assert f"\n{title}:\n" in text
    for spec in OPTIONS.values():
        assert re.search(rf"(^| )-{re.escape(spec.name)}( |$)", text, re.MULTILINE), spec.name
    assert max(len(line) for line in text.splitlines()) <= 120


def test_every_present_option_is_explained_and_handled() -> None:
    for spec in OPTIONS.values():
        if spec.handling != "missing":
            assert spec.help, spec.name
        if spec.section:
            assert spec.section in SECTIONS
        if spec.handling == "alias":
            assert spec.target.partition(" ")[0] in OPTIONS


def test_version_names_the_qemu_it_is_like(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"pyvm [\d.]+, compatible with QEMU emulator version 7\.2\.\d+\n", answer(capsys, "-version"))


def test_help_about_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    machines = answer(capsys, "-machine", "help").splitlines()
    assert machines[0] == "Supported machines are:"
    assert machines[1] == "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)"
    assert machines[2] == "pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)"
    assert "  socket\n" in answer(capsys, "-chardev", "help")
    assert "  rng-random\n" in answer(capsys, "-object", "?")
    assert answer(capsys, "-object", "rng-random,help") == "rng-random options:\n  filename=<string>\n"
    assert "tcg" in answer(capsys, "-accel", "help")
    assert "none" in answer(capsys, "-display", "help")
    assert "none" in answer(capsys, "-vga", "help")
    assert "x86 qemu64\n" in answer(capsys, "-cpu", "help")
    assert answer(capsys, "-smp", "2,help").startswith("-smp [cpus=]N")


def test_help_about_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-object", "foo,help"]) == 1
    assert capsys.readouterr().err == "pyvm: -object foo,help: Parameter 'qom-type' does not accept value 'foo'\n"


def test_messages_look_as_msg_says(capsys: pytest.CaptureFixture[str]) -> None:
    config = MachineConfig(name="guest", message_timestamps=True, message_guest_name=True)
    cli.complain("wrong", config)
    printed = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z guest pyvm: wrong\n", printed)


def test_python_dash_m_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pyvm", "-smp", "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 1
    assert run.stderr == "pyvm: -smp 0: Invalid CPU topology: CPU topology parameters must be greater than zero\n"


def test_help_into_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(
        [sys.executable, "-m", "pyvm", "-h"], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")


def test_reading_the_command_line_imports_little() -> None:
    """Start-up time: nothing that only a running machine needs, and nothing that only some command lines need."""
    run = python(
        "import sys; from pyvm import cli; status = cli.main(['-nographic', '-m', '0']);"
        "heavy = {'unicorn', 'numpy', 'asyncio', 'argparse', 'json', 'zstandard', 'ctypes', 'pyvm.machine'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run.stdout == "[]\n"


def test_the_scripting_interface_is_imported_when_used() -> None:
    run = python(
        "import sys, pyvm; before = 'pyvm.api' in sys.modules; pyvm.Machine; print(before, 'pyvm.api' in sys.modules)"
    )
    assert run.stdout == "False True\n"
    run = python("import pyvm; pyvm.nonsense")
    assert run.stderr.endswith("AttributeError: module 'pyvm' has no attribute 'nonsense'\n")


def test_pidfile_holds_the_id_and_ends_with_the_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    run = python(
        f"import os; from pyvm.daemon import write_pidfile; path = {str(path)!r}; write_pidfile(path);"
        "print(os.getpid(), open(path).read())"
    )
    process, written = run.stdout.split()
    assert process == written
    assert not path.exists()


def test_pidfile_of_a_running_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("12345\n")
    with path.open("r+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        run = python(f"from pyvm.daemon import write_pidfile; write_pidfile({str(path)!r})")
        assert f"cannot create PID file: '{path}' is in use by another process" in run.stderr
    assert path.read_text() == "12345\n"


def test_pidfile_in_no_directory() -> None:
    with pytest.raises(ConfigError, match=r"^cannot create PID file: Could not create '/nonexistent/p': No such file"):
        write_pidfile("/nonexistent/p")


DAEMON = """
import os, sys
from pyvm.daemon import detach
parent = os.getpid()
session = os.getsid(0)
ready = detach()
print(os.getpid() != parent, os.getsid(0) != session, flush=True)
{then}
"""


def test_daemon_is_elsewhere_and_the_parent_waits_for_it() -> None:
    run = python(DAEMON.format(then="ready(); print('lost'); os._exit(7)"))
    assert (run.returncode, run.stdout, run.stderr) == (0, "True True\n", "")


def test_daemon_that_fails_says_why_and_fails_the_parent() -> None:
    run = python(DAEMON.format(then="print('no disk', file=sys.stderr, flush=True); os._exit(1)"))
    assert (run.returncode, run.stdout, run.stderr) == (1, "True True\n", "no disk\n")
