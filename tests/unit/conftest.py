"""Fixtures of the tests that boot nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes a file and returns its path."""

    def make(name: str, text: str = "content") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make
