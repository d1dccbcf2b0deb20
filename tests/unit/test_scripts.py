"""The programs that an installation has: each can be started, and the documentation names no others."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def scripts() -> dict[str, str]:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert isinstance(found, dict)
    return found


def test_each_program_has_something_to_run() -> None:
    for place in scripts().values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), place


def test_programs_that_the_documentation_names_are_installed() -> None:
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/from-qemu-to-pyvm.md"))
    named = set(re.findall(r"\bpyvm-[a-z]+\b(?![./-])", text)) - {"pyvm-demo", "pyvm-disk"}
    assert named == set(scripts()) - {"pyvm"}
