"""Commands about jobs on nodes; those that start them are in :mod:`.block_job_start`."""

from __future__ import annotations

from typing import Any

from pyvm.block.jobs.block_job import BlockJob
from pyvm.monitor.commands import block_job_start
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()
COMMANDS.handlers.update(block_job_start.COMMANDS.handlers)


def _find(context: Context, identifier: str) -> BlockJob:
    job = storage_of(context.machine).jobs.find(identifier)
    if not isinstance(job, BlockJob):
        raise QmpError(f"Block job '{identifier}' not found", DEVICE_NOT_ACTIVE)
    return job


@COMMANDS.command("query-block-jobs")
def query_block_jobs(context: Context) -> list[dict[str, Any]]:
    """Return all jobs on nodes, the newest first."""
    jobs = storage_of(context.machine).jobs
    return [job.describe_block_job() for job in jobs if isinstance(job, BlockJob)]


@COMMANDS.command("block-job-set-speed")
def set_speed(context: Context, device: str, speed: int) -> None:
    """Limit a job to so many bytes a second, 0: not at all."""
    with block_errors():
        _find(context, device).set_speed(speed)


@COMMANDS.command("block-job-cancel")
def cancel(context: Context, device: str, force: bool | None) -> None:
    """End a job; a mirror that is up to date ends in good order unless this is forced."""
    with block_errors():
        _find(context, device).cancel_by_device(bool(force))


@COMMANDS.command("block-job-pause")
def pause(context: Context, device: str) -> None:
    """Let a job pause."""
    with block_errors():
        _find(context, device).pause()


@COMMANDS.command("block-job-resume")
def resume(context: Context, device: str) -> None:
    """Let a job go on."""
    with block_errors():
        _find(context, device).resume()


@COMMANDS.command("block-job-complete")
def complete(context: Context, device: str) -> None:
    """Let a job that is ready come to its end."""
    with block_errors():
        _find(context, device).complete_by_user()


@COMMANDS.command("block-job-finalize")
def finalize(context: Context, id: str) -> None:  # noqa: A002 - the name in the schema
    """Let what a job and those of its transaction did take effect."""
    with block_errors():
        _find(context, id).finalize()


@COMMANDS.command("block-job-dismiss")
def dismiss(context: Context, id: str) -> None:  # noqa: A002
    """Forget a job that is over."""
    with block_errors():
        _find(context, id).dismiss()
