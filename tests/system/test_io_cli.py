"""The program ``pyvm-io``: options, lines from the command line and from standard input, exit status."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvm import __version__
from pyvm.tools.io.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the program in a folder with an image ``a.raw``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.raw").write_bytes(bytes(1 << 20))

    def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        typing = io.TextIOWrapper(io.BytesIO(typed.encode()))
        monkeypatch.setattr(sys, "stdin", typing)
        status = main(arguments)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


IMAGE = ("-f", "raw", "a.raw")


def test_commands_of_the_command_line(run: Run) -> None:
    assert run(*IMAGE, "-c", "length", "--cmd=length", "--cm", "length") == (0, "1 MiB\n" * 3, "")
    status, out, err = run(*IMAGE, "-c", "foo", "-c", "length")
    assert (status, out, err) == (1, "1 MiB\n", 'command "foo" not found\n')
    assert run(*IMAGE, "-c", "quit", "-c", "length") == (0, "", "")


def test_commands_from_standard_input(run: Run) -> None:
    assert run(*IMAGE, typed="length\nlength") == (0, "qemu-io> 1 MiB\nqemu-io> 1 MiB\nqemu-io> ", "")
    assert run(*IMAGE, typed="quit\nlength\n") == (0, "qemu-io> ", "")
    assert run(typed="length\n") == (1, "qemu-io> qemu-io> ", "no file open, try 'help open'\n")


def test_what_is_written_stays(run: Run, tmp_path: Path) -> None:
    status, out, _ = run(*IMAGE, "-c", "write -P 0x41 512 512", "-c", "aio_write -P 0x42 1k 512")
    assert status == 0
    assert out.count("wrote 512/512 bytes at offset") == 2
    data = (tmp_path / "a.raw").read_bytes()
    assert data[512:1536] == b"A" * 512 + b"B" * 512
    assert len(data) == 1 << 20


def test_temporary_changes(run: Run, tmp_path: Path) -> None:
    status, _, err = run("-s", *IMAGE, "-c", "write 0 64k", "-c", "read -q -P 0xcd 0 64k", "-c", "reopen -r")
    assert status == 1
    assert "cannot be reopened" in err
    assert not any((tmp_path / "a.raw").read_bytes())


def test_reopening(run: Run) -> None:
    lines = (
        "reopen -r",
        "write 0 512",
        "reopen -w",
        "write -q 0 512",
        "reopen -o file.locking=off",
        "reopen -o driver=qcow2",
    )
    status, out, err = run(*IMAGE, *(word for line in lines for word in ("-c", line)), "-c", "length")
    assert (status, out) == (1, "1 MiB\n")
    assert err.splitlines() == [
        "pyvm-io: Block node is read-only",
        "pyvm-io: Cannot change the option 'locking'",
        "pyvm-io: Cannot change the option 'driver'",
    ]


def test_reopening_that_fails_leaves_the_image_open(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.raw").chmod(0o400)
    status, out, err = run("-r", *IMAGE, "-c", "reopen -o cache.direct=maybe", "-c", "length")
    assert (status, out) == (1, "1 MiB\n")
    assert err == "pyvm-io: Parameter 'cache.direct' expects 'on' or 'off'\n"


def test_secrets(run: Run) -> None:
    assert run("--object", "secret,id=s,data=x", *IMAGE, "-c", "length") == (0, "1 MiB\n", "")
    status, _, err = run("--object", "foo,id=s", *IMAGE, "-c", "length")
    assert status == 1
    assert "foo" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("none",), "can't open device none: Could not open 'none': No such file or directory"),
        (("-f", "foo", "a.raw"), "can't open device a.raw: Unknown driver 'foo'"),
        (("-t", "foo", "a.raw"), "Invalid cache option: foo"),
        (("-d", "foo", "a.raw"), "Invalid discard option: foo"),
        (("-i", "foo", "a.raw"), "Invalid aio option: foo"),
        (("--image-opts", "-f", "raw", "file.filename=a.raw"), "--image-opts and -f are mutually exclusive"),
        (
            ("--image-opts", "driver=raw,file.filename=none"),
            "can't open: Could not open 'none': No such file or directory",
        ),
        (("-C", "-r", *IMAGE), "can't open device a.raw: Can't use copy-on-read on read-only device"),
        (("-U", *IMAGE), "can't open device a.raw: force-share=on can only be used with read-only images"),
    ],
)
def test_what_cannot_be_opened(run: Run, arguments: tuple[str, ...], text: str) -> None:
    assert run(*arguments, "-c", "length") == (1, "", f"pyvm-io: {text}\n")


@pytest.mark.parametrize("arguments", [("-x",), ("--foo",), ("a", "b"), ("-c",)])
def test_wrong_command_lines(run: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert status == 1
    assert out.startswith("usage: pyvm-io ")
    assert err.startswith("pyvm-io: ")


def test_help_and_version(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for option in "-c -f -r -s -n -C -m -k -i -t -d -T -U -h -V".split():
        assert f"  {option}, --" in out
    assert run("-V") == (0, f"pyvm-io version {__version__}\n", "")
    status, out, _ = run("-c", "help")
    assert status == 0
    assert out.endswith("Use 'help commandname' for extended help.\n")


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyvm.tools.io.cli", *(word for _ in range(2000) for word in ("-c", "help"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1
