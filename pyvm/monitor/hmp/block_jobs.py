"""Commands about jobs on disks."""

from __future__ import annotations

from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_BAR = 40
"""Columns of a progress bar."""


# ---- Looking


@INFORMATION.command("block-jobs", description="show progress of ongoing block device operations")
def info_block_jobs(shell: Shell) -> str:
    """Show jobs on disks, a line each."""
    jobs = shell.qmp("query-block-jobs")
    if not jobs:
        return "No active jobs\n"
    text = ""
    for job in jobs:
        what = (
            f"Streaming device {job['device']}"
            if job["type"] == "stream"
            else f"Type {job['type']}, device {job['device']}"
        )
        text += f"{what}: Completed {job['offset']} of {job['len']} bytes, speed limit {job['speed']} bytes/s\n"
    return text


@INFORMATION.command("jobs", description="show progress of all jobs")
def info_jobs(shell: Shell) -> str:
    """Show all jobs with a bar for how far they are."""
    jobs = shell.qmp("query-jobs")
    if not jobs:
        return "No active jobs\n"
    width = max(len(job["id"]) for job in jobs)
    text = ""
    for job in jobs:
        share = job["current-progress"] / job["total-progress"] if job["total-progress"] else 1.0
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        text += f"{job['id']:{width}}  [{bar}] {share:4.0%}  {job['type']}, {job['status']}\n"
        if "error" in job:
            text += f"{'':{width}}  {job['error']}\n"
    return text


# ---- What is done with jobs


@COMMANDS.command(
    "block_job_set_speed",
    "device:block speed:size",
    parameters="device speed",
    description="set maximum speed for a background block operation",
    preconfig=True,
)
def set_speed(shell: Shell, device: str, speed: int) -> None:
    """Limit a job."""
    shell.qmp("block-job-set-speed", device=device, speed=speed)


@COMMANDS.command(
    "block_job_cancel",
    "-f device:block",
    parameters="[-f] device",
    description="stop an active background block operation (-f: at once, instead of when the copy is in order)",
    preconfig=True,
)
def cancel(shell: Shell, f: bool, device: str) -> None:
    """End a job."""
    shell.qmp("block-job-cancel", device=device, force=f)


@COMMANDS.command(
    "block_job_pause",
    "device:block",
    parameters="device",
    description="pause an active background block operation",
    preconfig=True,
)
def pause(shell: Shell, device: str) -> None:
    """Let a job pause."""
    shell.qmp("block-job-pause", device=device)


@COMMANDS.command(
    "block_job_resume",
    "device:block",
    parameters="device",
    description="resume a paused background block operation",
    preconfig=True,
)
def resume(shell: Shell, device: str) -> None:
    """Let a job go on."""
    shell.qmp("block-job-resume", device=device)


@COMMANDS.command(
    "block_job_complete",
    "device:block",
    parameters="device",
    description="let an active background block operation come to its end",
    preconfig=True,
)
def complete(shell: Shell, device: str) -> None:
    """Let a job that is ready come to its end."""
    shell.qmp("block-job-complete", device=device)


# ---- What starts jobs


@COMMANDS.command(
    "block_stream",
    "device:block speed:size? base:string?",
    parameters="device [speed [base]]",
    description="copy data from a backing file into a block device",
    preconfig=True,
)
def block_stream(shell: Shell, device: str, speed: int | None, base: str | None) -> None:
    """Put what layers below have into an image."""
    arguments = {"device": device, "job-id": device, "speed": speed, "base": base}
    shell.request("block-stream", arguments)


@COMMANDS.command(
    "drive_mirror",
    "-n -f device:block target:string format:string?",
    parameters="[-n] [-f] device target [format]",
    description="copy a device to a new image file, with what is written meanwhile (-n: use an image that is there; "
    "-f: the whole disk, so that the copy does not need a backing file)",
)
def drive_mirror(shell: Shell, n: bool, f: bool, device: str, target: str, format: str | None) -> None:  # noqa: A002 - the name that its help has
    """Copy a disk, and keep the copy up to date."""
    arguments = {
        "device": device,
        "job-id": device,
        "target": target,
        "format": format,
        "sync": "full" if f else "top",
        "mode": "existing" if n else "absolute-paths",
    }
    shell.request("drive-mirror", arguments)


@COMMANDS.command(
    "drive_backup",
    "-n -f -c device:block target:string format:string?",
    parameters="[-n] [-f] [-c] device target [format]",
    description="copy a device as it is now to a new image file (-n: use an image that is there; -f: the whole disk, "
    "so that the copy does not need a backing file; -c: compressed)",
)
def drive_backup(shell: Shell, n: bool, f: bool, c: bool, device: str, target: str, format: str | None) -> None:  # noqa: A002
    """Copy a disk as it is now."""
    arguments = {
        "device": device,
        "job-id": device,
        "target": target,
        "format": format,
        "sync": "full" if f else "top",
        "mode": "existing" if n else "absolute-paths",
        "compress": c,
    }
    shell.request("drive-backup", arguments)


@COMMANDS.command(
    "snapshot_blkdev_internal",
    "device:block name:string",
    parameters="device name",
    description="take a snapshot of a device inside its image",
)
def snapshot_internal(shell: Shell, device: str, name: str) -> None:
    """Keep a disk as it is now in its image."""
    shell.request("blockdev-snapshot-internal-sync", {"device": device, "name": name})


@COMMANDS.command(
    "snapshot_delete_blkdev_internal",
    "device:block name:string id:string?",
    parameters="device name [id]",
    description="delete a snapshot inside the image of a device",
)
def snapshot_delete(shell: Shell, device: str, name: str, id: str | None) -> None:  # noqa: A002
    """Forget a snapshot in an image."""
    shell.qmp("blockdev-snapshot-delete-internal-sync", device=device, id=id, name=name)
