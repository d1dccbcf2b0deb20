"""Command lines for the tests of the configuration."""

from __future__ import annotations

import pytest

from pyvm.commandline import parse_arguments
from pyvm.config import MachineConfig
from pyvm.errors import ConfigError

MIB = 1 << 20


def config(*words: str, terminal: bool = False) -> MachineConfig:
    return parse_arguments(words, terminal=terminal)


def refused(*words: str) -> str:
    """Return the one line that the command line is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse_arguments(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)
