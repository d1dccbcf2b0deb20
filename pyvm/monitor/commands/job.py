"""Commands about jobs of all kinds."""

from __future__ import annotations

from typing import Any

from pyvm.block.jobs.job import Job
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


def _find(context: Context, identifier: str) -> Job:
    job = storage_of(context.machine).jobs.find(identifier)
    if job is None:
        raise QmpError("Job not found")
    return job


@COMMANDS.command("query-jobs")
def query_jobs(context: Context) -> list[dict[str, Any]]:
    """Return all jobs, the newest first."""
    return [job.describe() for job in storage_of(context.machine).jobs]


@COMMANDS.command("job-pause")
def job_pause(context: Context, id: str) -> None:  # noqa: A002 - the name in the schema
    """Let a job pause."""
    with block_errors():
        _find(context, id).pause()


@COMMANDS.command("job-resume")
def job_resume(context: Context, id: str) -> None:  # noqa: A002
    """Let a job go on."""
    with block_errors():
        _find(context, id).resume()


@COMMANDS.command("job-cancel")
def job_cancel(context: Context, id: str) -> None:  # noqa: A002
    """End a job at once."""
    with block_errors():
        _find(context, id).cancel_by_user(True)


@COMMANDS.command("job-complete")
def job_complete(context: Context, id: str) -> None:  # noqa: A002
    """Let a job that is ready come to its end."""
    with block_errors():
        _find(context, id).complete_by_user()


@COMMANDS.command("job-finalize")
def job_finalize(context: Context, id: str) -> None:  # noqa: A002
    """Let what a job and those of its transaction did take effect."""
    with block_errors():
        _find(context, id).finalize()


@COMMANDS.command("job-dismiss")
def job_dismiss(context: Context, id: str) -> None:  # noqa: A002
    """Forget a job that is over."""
    with block_errors():
        _find(context, id).dismiss()
