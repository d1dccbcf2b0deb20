"""What the README says to people who write tests."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from images.build import Image

pytest_plugins = ["pytester"]

README = Path(__file__).parents[2] / "README.md"


def test_the_lines_for_a_tester_are_true(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, demo: Image
) -> None:
    match = re.search(r"\n\n((?: {4}.*\n|\n)*? {4}@pytest\.mark\.vm.*\n(?: {4}.*\n)+)", README.read_text())
    assert match is not None
    text = (
        textwrap.dedent(match[1])
        .replace('"vmlinuz"', repr(str(demo.kernel)))
        .replace('"initrd"', repr(str(demo.initrd)))
    )
    pytester.makepyfile(text + "\n\n" + text.partition("\n\n")[2].replace("test_guest_kernel", "test_again"))
    pytester.makeini("[pytest]\npyvm_timeout = 120\n")
    plugin = [] if request.config.pluginmanager.has_plugin("pyvm") else ["-p", "pyvm.pytest_plugin"]
    result = pytester.runpytest_inprocess(*plugin)
    result.assert_outcomes(passed=2)
    assert (pytester.path / "screen.png").read_bytes().startswith(b"\x89PNG")
