"""Commands about nodes and their graph; the handlers are in several modules."""

from __future__ import annotations

from pyvm.monitor.commands import block_control, block_nodes, block_query
from pyvm.monitor.registry import CommandTable

COMMANDS = CommandTable()

for _module in (block_query, block_nodes, block_control):
    COMMANDS.handlers.update(_module.COMMANDS.handlers)
