"""No commands: this chapter of the schema has types only."""

from __future__ import annotations

from pyvm.monitor.registry import CommandTable

COMMANDS = CommandTable()
