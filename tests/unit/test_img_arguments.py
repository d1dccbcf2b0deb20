"""pyvm-img: the command line, sizes, and runs of zeros."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.sizes import human, read_size
from pyvm.tools.img.arguments import Cache, scan
from pyvm.tools.img.cli import COMMANDS, main
from pyvm.tools.img.console import Progress
from pyvm.tools.img.errors import HelpAsked, ImgError, UsageError
from pyvm.tools.img.sizes import parse_integer, parse_size
from pyvm.tools.img.zeros import find_runs, is_zero

LONG = {"object": "object=", "output": "output=", "force-share": "U", "format": "f"}


def test_options_and_operands_mix() -> None:
    found = scan(["a", "-qf", "raw", "b", "--output=json", "-o", "x=1", "-oy=2", "--", "-q"], "f:ho:qU", LONG)
    assert found.operands == ["a", "b", "-q"]
    assert found.get("f") == "raw"
    assert found.json()
    assert found.creation_options() == "x=1,y=2"
    assert "q" in found
    assert "U" not in found


def test_long_options_are_abbreviated_and_share_a_name_with_short_ones() -> None:
    assert scan(["--form", "qcow2", "--force"], "f:hU", LONG).options == [("f", "qcow2"), ("U", "")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-x"], "unrecognized option '-x'"),
        (["-qx"], "unrecognized option '-qx'"),
        (["--bogus"], "unrecognized option '--bogus'"),
        (["--force-share=1"], "unrecognized option '--force-share=1'"),
        (["--fo"], "unrecognized option '--fo'"),
        (["-f"], "missing argument for option '-f'"),
        (["--object"], "missing argument for option '--object'"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        scan(arguments, "f:hqU", LONG)
    assert str(error.value) == message


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["-f", "-q", "--", "--out", "-", "--format="]))))
@settings(max_examples=200)
def test_no_command_line_breaks_the_scanner(arguments: list[str]) -> None:
    try:
        found = scan(arguments, "f:hqU", LONG)
    except (UsageError, HelpAsked):
        return
    assert len(found.options) + len(found.operands) <= sum(len(it) for it in arguments) + len(arguments)


def test_creation_options_are_a_list_without_holes() -> None:
    for text in ("", ",a=1", "a=1,", "a=1,,,"):
        with pytest.raises(ImgError, match=f"^Invalid option list: {text}$"):
            scan(["-o", text], "o:h").creation_options()
    assert scan(["-o", "a=1,,"], "o:h").creation_options() == "a=1,,"


def test_cache_modes() -> None:
    assert scan([], "t:h").cache("t", "unsafe", "x {}") == Cache(no_flush=True)
    assert scan(["-t", "none"], "t:h").cache("t", "unsafe", "x {}") == Cache(direct=True)
    with pytest.raises(ImgError, match=r"^Invalid cache option: foo$"):
        scan(["-t", "foo"], "t:h").cache("t", "unsafe", "Invalid cache option: {}")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1k", 1024),
        ("1.5G", 3 << 29),
        ("0x10", 16),
        ("0x1E", 30),
        ("5b", 5),
        (" 5", 5),
        ("+5", 5),
        ("1.", 1),
        ("1.0", 1),
        ("2E", 2 << 60),
        ("1.5", None),
        (".5k", None),
        ("-5", None),
        ("1e3", None),
        ("1kk", None),
        ("k", None),
        ("", None),
        ("0x1.8k", None),
    ],
)
def test_sizes_as_typed(text: str, size: int | None) -> None:
    assert read_size(text) == size


def test_wrong_sizes_say_what_is_wanted() -> None:
    with pytest.raises(
        ImgError, match=r"^Invalid image size specified\. You may use k, M, G, T, P or E suffixes for\n"
    ):
        parse_size("image size", "x")
    with pytest.raises(ImgError, match=r"^Invalid bs specified. Must be between 1 and 2147483647.$"):
        parse_size("bs", "3G", 1, (1 << 31) - 1)
    with pytest.raises(ImgError, match=r"^Invalid image size specified. Must be between 0 and 9223372036854775807.$"):
        parse_size("image size", "8E")


@given(st.text(alphabet="0123456789.xkMGeE+- abc", max_size=12))
def test_any_text_is_a_size_or_is_not(text: str) -> None:
    size = read_size(text)
    assert size is None or 0 <= size <= 1 << 64


def test_whole_numbers_in_notations_of_c() -> None:
    assert [parse_integer(text, "no") for text in ("10", "0x10", "010", "0")] == [10, 16, 8, 0]
    for text in ("x", "", "1_0", "-1", "08", "99999999999"):
        with pytest.raises(ImgError, match=r"^no$"):
            parse_integer(text, "no")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (331776, "324 KiB"),
        (1380352, "1.32 MiB"),
        (1023 << 20, "0.999 GiB"),
        (3 << 29, "1.5 GiB"),
        (7 << 60, "7 EiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=12),
    st.sampled_from([4, 8, 16]),
    st.integers(1, 40),
    st.integers(0, 20),
)
@settings(max_examples=300)
def test_runs_of_zeros_are_those_that_are_there(
    pieces: list[tuple[int, bool]], unit: int, least: int, slack: int
) -> None:
    data = bytearray(b"".join(bytes(length) if zero else b"x" * length for length, zero in pieces))
    length = max(len(data) - slack, 0)
    runs = list(find_runs(data, length, unit, least))
    assert [start for start, _, _ in runs] == [0, *(end for _, end, _ in runs)][: len(runs)]
    assert (runs[-1][1] if runs else 0) == length
    for start, end, zero in runs:
        assert not zero or not any(data[start:end])
        assert not zero or end - start >= least or end == length
        assert end == length or end % unit == 0
    for one, other in pairwise(runs):
        assert one[2] != other[2]
    # No long run was missed.
    for start, end, zero in runs:
        if zero:
            continue
        for first in range(-(-start // unit) * unit, end - max(least, unit), unit):
            assert any(data[first : first + -(-least // unit) * unit])
    assert is_zero(data, 0, length) == (not any(data[:length]))


def test_long_runs_of_zeros() -> None:
    data = bytearray(3 << 20)
    assert list(find_runs(data, len(data), 4096, 4096)) == [(0, len(data), True)]
    data[(1 << 20) + 5] = 1
    assert list(find_runs(data, len(data), 4096, 4096)) == [
        (0, 1 << 20, True),
        (1 << 20, (1 << 20) + 4096, False),
        ((1 << 20) + 4096, 3 << 20, True),
    ]


def test_progress_is_what_a_script_reads(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(True)
    for done in range(0, 1001, 5):
        progress.part(done, 1000)
    progress.close()
    progress.close()
    shown = capsys.readouterr().out
    assert shown.startswith("    (0.00/100%)\r    (0.00/100%)\r    (1.50/100%)\r    (3.00/100%)\r")
    assert shown.endswith("    (100.00/100%)\r\n")
    Progress(False).update(50)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Not enough arguments"),
        (["frob"], "Command not found: frob"),
        (["-x"], "unrecognized option '-x'"),
        (["--foo"], "unrecognized option '--foo'"),
        (["-T"], "missing argument for option '-T'"),
        (["create"], "Expecting image file name"),
        (["info", "a", "b"], "Expecting one image file name"),
        (["resize", "x"], "Not enough arguments"),
    ],
)
def test_usage_errors_point_to_the_help(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"pyvm-img: {message}\nTry 'pyvm-img --help' for more information\n"


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], *([command, "-h"] for command in COMMANDS)):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for command in COMMANDS:
            assert f"\n  {command} " in shown
        assert shown.endswith("Supported formats: raw qcow2 luks qcow bochs cloop parallels qed vdi vhdx vmdk vpc\n")


def test_version_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyvm-img version ")
    assert main(["-T", "help"]) == 0
    assert main(["-T", "foo", "info", "/nonexistent"]) == 1
    assert capsys.readouterr().err.startswith("pyvm-img: warning: trace event 'foo' does not exist\n")
