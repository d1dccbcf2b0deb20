"""Commands that make and change images by jobs."""

from __future__ import annotations

from typing import Any

from pyvm.block.jobs.create import CREATABLE, AmendJob, CreateJob
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()

_MISSING = ("gluster", "nfs", "rbd", "ssh")
"""Drivers with which QEMU makes images, and pyvm does not."""


@COMMANDS.command("blockdev-create")
def blockdev_create(context: Context, arguments: dict[str, Any]) -> None:
    """Make an image in a file, or in a node."""
    options = arguments["options"]
    driver = options["driver"]
    if driver in _MISSING:
        raise QmpError(f"Driver '{driver}' is not supported by pyvm yet")
    if driver not in CREATABLE:
        raise QmpError("Driver does not support blockdev-create")
    with block_errors():
        CreateJob(storage_of(context.machine).jobs, arguments["job-id"], options).start()


@COMMANDS.command("x-blockdev-amend")
def blockdev_amend(context: Context, arguments: dict[str, Any]) -> None:
    """Change the creation options of an image."""
    storage = storage_of(context.machine)
    options, name = arguments["options"], arguments["node-name"]
    node = storage.graph.nodes.get(name)
    if node is None:
        raise QmpError(f"Cannot find device='' nor node-name='{name}'")
    if node.driver != options["driver"]:
        raise QmpError("x-blockdev-amend doesn't support changing the block driver")
    if not hasattr(node, "amend"):
        raise QmpError("Driver does not support x-blockdev-amend")
    with block_errors():
        AmendJob(storage.jobs, arguments["job-id"], node, options, force=bool(arguments.get("force"))).start()
