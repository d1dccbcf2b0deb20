"""Commands that start jobs on nodes; the handlers are in several modules."""

from __future__ import annotations

from pyvm.monitor.commands import job_backup, job_chain, job_mirror
from pyvm.monitor.registry import CommandTable

COMMANDS = CommandTable()

for _module in (job_mirror, job_backup, job_chain):
    COMMANDS.handlers.update(_module.COMMANDS.handlers)
