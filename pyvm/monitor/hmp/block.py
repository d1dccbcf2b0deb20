"""Commands about drives, media and nodes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO

from pyvm.errors import ConfigError
from pyvm.monitor.commands.block_common import backend_of_device, block_errors, find_node, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.hmp.vnc import change_password

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_STATISTICS = (
    "rd_bytes",
    "wr_bytes",
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "wr_total_time_ns",
    "rd_total_time_ns",
    "flush_total_time_ns",
    "rd_merged",
    "wr_merged",
    "idle_time_ns",
)
_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
_LIMITS_SHOWN = tuple(name + suffix for unit in (_LIMITS[:3], _LIMITS[3:]) for suffix in ("", "_max") for name in unit)
_IO_THREAD = ("thread-id", "poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch")
_INTERFACES = {"ide": 1, "scsi": 2, "floppy": 3, "pflash": 4, "mtd": 5, "sd": 6, "virtio": 7, "xen": 8}
"""The numbers of places where a drive cannot be added later."""


# ---- Looking


@INFORMATION.command(
    "block",
    "-n -v device:block?",
    parameters="[-n] [-v] [device]",
    description="show info of one block device or all block devices (-n: show named nodes; -v: show details)",
)
def info_block(shell: Shell, n: bool, v: bool, device: str | None) -> str:
    """Show drives, or nodes: all, or those of a name."""
    text = ""
    if not n:
        for index, info in enumerate(shell.qmp("query-block")):
            if device in (None, info["device"]):
                text += ("\n" if index else "") + _block_text(info, info.get("inserted"), v)
    if n or device is not None:
        for index, inserted in enumerate(shell.qmp("query-named-block-nodes", flat=False)):
            if device in (None, inserted["node-name"]):
                text += ("\n" if index else "") + _block_text(None, inserted, v)
    return text


def _block_text(info: dict[str, Any] | None, inserted: dict[str, Any] | None, verbose: bool) -> str:
    text = _headline(info, inserted)
    if info is not None:
        if "qdev" in info:
            text += f"    Attached to:      {info['qdev']}\n"
        if info.get("io-status", "ok") != "ok":
            text += f"    I/O status:       {info['io-status']}\n"
        if info["removable"]:
            locked, tray = "" if info["locked"] else "not ", "open" if info.get("tray_open") else "closed"
            text += f"    Removable device: {locked}locked, tray {tray}\n"
    if inserted is None:
        return text
    cache = inserted["cache"]
    mode = "writeback" if cache["writeback"] else "writethrough"
    mode += (", direct" if cache["direct"] else "") + (", ignore flushes" if cache["no-flush"] else "")
    text += f"    Cache mode:       {mode}\n"
    if "backing_file" in inserted:
        depth = inserted["backing_file_depth"]
        text += f"    Backing file:     {inserted['backing_file']} (chain depth: {depth})\n"
    if inserted["detect_zeroes"] != "off":
        text += f"    Detect zeroes:    {inserted['detect_zeroes']}\n"
    if any(inserted[name] for name in _LIMITS):
        limits = " ".join(f"{name}={inserted.get(name, 0)}" for name in (*_LIMITS_SHOWN, "iops_size"))
        text += f"    I/O throttling:   {limits} group={inserted.get('group')}\n"
    return text + (_images_text(inserted["image"]) if verbose else "")


def _headline(info: dict[str, Any] | None, inserted: dict[str, Any] | None) -> str:
    node = inserted["node-name"] if inserted is not None else ""
    if info is not None and info["device"]:
        text = info["device"] + (f" ({node})" if node else "")
    else:
        text = node or (info or {}).get("qdev") or "<anonymous>"
    if inserted is None:
        return f"{text}: [not inserted]\n"
    read_only, encrypted = ", read-only" if inserted["ro"] else "", ", encrypted" if inserted["encrypted"] else ""
    return f"{text}: {inserted['file']} ({inserted['drv']}{read_only}{encrypted})\n"


def _images_text(image: dict[str, Any] | None) -> str:
    from pyvm.block.info_text import image_lines

    text = "\nImages:\n"
    while image is not None:
        text += "".join(f"{line}\n" for line in image_lines(image))
        image = image.get("backing-image")
    return text


@INFORMATION.command("blockstats", description="show block device statistics")
def info_blockstats(shell: Shell) -> str:
    """Show what drives did."""
    text = ""
    for info in shell.qmp("query-blockstats", query_nodes=None):
        if "device" in info:
            figures = " ".join(f"{name}={info['stats'].get(name, 0)}" for name in _STATISTICS)
            text += f"{info['device']}: {figures}\n"
    return text


@INFORMATION.command("iothreads", description="show iothreads", preconfig=True)
def info_iothreads(shell: Shell) -> str:
    """Show the I/O threads."""
    text = ""
    for info in shell.qmp("query-iothreads"):
        lines = (f"  {name.replace('thread-id', 'thread_id')}={info[name]}\n" for name in _IO_THREAD)
        text += f"{info['id']}:\n" + "".join(lines)
    return text


# ---- Media


@COMMANDS.command(
    "eject", "-f device:block", parameters="[-f] device", description="eject a removable medium (use -f to force it)"
)
def eject(shell: Shell, f: bool, device: str) -> None:
    """Take a medium out."""
    shell.qmp("eject", device=device, id=None, force=f)


@COMMANDS.command(
    "change",
    "device:block -f target:filename arg:string? mode:string?",
    parameters="device [-f] filename [format [read-only-mode]]",
    description="change a removable medium, optional format, use -f to force the operation",
)
def change(shell: Shell, device: str, f: bool, target: str, arg: str | None, mode: str | None) -> str | None:
    """Put another medium in; for the device `vnc`, change the password."""
    if device == "vnc":
        if mode is not None:
            raise QmpError("Parameter 'read-only-mode' is invalid for VNC")
        return change_password(shell, target, arg)
    if mode not in (None, "retain", "read-only", "read-write"):
        raise QmpError(f"invalid parameter value: {mode}")
    shell.qmp(
        "blockdev-change-medium", device=device, id=None, filename=target, format=arg, force=f, read_only_mode=mode
    )
    return None


# ---- Sizes and limits


@COMMANDS.command(
    "block_resize",
    "device:block size:size",
    parameters="device size",
    description="resize a block image",
    preconfig=True,
)
def block_resize(shell: Shell, device: str, size: int) -> None:
    """Give the medium of a drive another size."""
    shell.qmp("block_resize", device=device, node_name=None, size=size)


@COMMANDS.command(
    "block_set_io_throttle",
    "device:block " + " ".join(f"{name}:int64" for name in _LIMITS),
    parameters="device bps bps_rd bps_wr iops iops_rd iops_wr",
    description="change I/O throttle limits for a block drive",
    preconfig=True,
)
def block_set_io_throttle(shell: Shell, device: str, **limits: int) -> None:
    """Limit what a drive does in a second."""
    from pyvm.monitor.schema.validate import Validator

    name = "device" if device in storage_of(shell.machine).drives else "id"
    arguments = Validator(shell.schema).check("BlockIOThrottle", {name: device, **limits})
    shell.qmp("block_set_io_throttle", arguments=arguments)


# ---- Adding and removing drives


@COMMANDS.command(
    "drive_add",
    "-n address:string options:string",
    parameters="[-n] [[<domain>:]<bus>:]<slot>\n[file=file][,if=type][,bus=n]\n[,unit=m][,media=d][,index=i]\n"
    "[,snapshot=on|off][,cache=on|off]\n[,readonly=on|off][,copy-on-read=on|off]",
    description="add drive to PCI storage controller",
)
def drive_add(shell: Shell, n: bool, address: str, options: str) -> str:
    """Make a drive that a device can be plugged in for; with `-n`, a node."""
    from pyvm.machine.plug.drives import add_drive, add_node

    del address
    storage = storage_of(shell.machine)
    try:
        if n:
            add_node(storage, options)
            return ""
        drive = add_drive(storage, options)
    except ConfigError as error:
        return f"{error}\n"
    if drive.interface != "none":
        return f"Can't hot-add drive to type {_INTERFACES[drive.interface]}\n"
    return "OK\n"


@COMMANDS.command(
    "snapshot_blkdev",
    "-n device:block snapshot_file:string? format:string?",
    parameters="[-n] device [new-image-file] [format]",
    description="initiates a live snapshot of device: new-image-file, of the given format or qcow2, becomes the image "
    "that is written (-n: use an image that is there)",
)
def snapshot_blkdev(shell: Shell, n: bool, device: str, snapshot_file: str | None, format: str | None) -> None:  # noqa: A002 - the name that its help has
    """Make an image, and put it on top of a drive's."""
    if snapshot_file is None:
        raise QmpError("Parameter 'snapshot-file' is missing")
    shell.qmp(
        "blockdev-snapshot-sync",
        device=device,
        node_name=None,
        snapshot_file=snapshot_file,
        snapshot_node_name=None,
        format=format,
        mode="existing" if n else "absolute-paths",
    )


@COMMANDS.command("drive_del", "id:block", parameters="device", description="remove host block device")
def drive_del(shell: Shell, id: str) -> str:  # noqa: A002 - the name that its help has
    """Close a drive or node, whoever uses the drive."""
    storage = storage_of(shell.machine)
    try:
        if id in storage.graph.nodes:
            shell.qmp("blockdev-del", node_name=id)
        elif id in storage.drives:
            with block_errors():
                storage.take_drive_away(id)
        else:
            return f"Device '{id}' not found\n"
    except QmpError as error:
        return f"{error.description}\n"
    return ""


# ---- Reading and writing


@COMMANDS.command(
    "commit",
    "device:block",
    parameters="device|all",
    description="commit changes to the disk images (if -snapshot is used) or backing files",
)
def commit(shell: Shell, device: str) -> str:
    """Write what a drive's image, or that of all, has into the one below it; show why that cannot be."""
    from pyvm.block.errors import BlockError
    from pyvm.block.jobs.commit_now import commit_now
    from pyvm.block.status import skip_filters

    storage = storage_of(shell.machine)
    if device != "all" and device not in storage.drives:
        return f"Device '{device}' not found\n"
    backends = list(storage.backends()) if device == "all" else [storage.drives[device].backend]
    for backend in backends:
        if backend.node is None and device != "all":
            return f"Device '{device}' has no medium\n"
        image = skip_filters(backend.node)
        if image is None or (device == "all" and image.backing is None):
            continue
        try:
            commit_now(storage, image)
        except (OSError, BlockError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return f"'commit' error for '{device}': {reason}\n"
    return ""


@COMMANDS.command(
    "qemu-io",
    "-d device:block command:string",
    parameters='[-d] [device] "[command]"',
    description="run a qemu-io command on a block device\n"
    "\t\t\t-d: [device] is a device ID rather than a drive ID or node name",
)
def qemu_io(shell: Shell, d: bool, device: str, command: str) -> str:
    """Run a command of qemu-io on a drive or node, with its output where pyvm has its own; show why it cannot run."""
    storage = storage_of(shell.machine)
    if d:
        return _run_io(storage, backend_of_device(shell.machine, device), command)
    if device in storage.drives:
        return _run_io(storage, storage.drives[device].backend, command)
    node = find_node(storage, None, device)
    return _run_io_on_node(storage, node, command)


def _run_io_on_node(storage: Storage, node: Node, line: str) -> str:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.draining import take_leave
    from pyvm.block.errors import BlockError
    from pyvm.block.node import ALL_PERMISSIONS, NO_PERMISSIONS, Access, Permission

    used = Permission.WRITE if _writes(line) else NO_PERMISSIONS
    try:
        user = storage.graph.attach(node, "an unnamed block device", Access(used, ALL_PERMISSIONS))
    except BlockError as error:
        return f"{error}\n"
    backend = BlockBackend(node, storage.context_of(node))
    try:
        return _run_io(storage, backend, line)
    finally:
        take_leave(storage.graph, node)
        backend.remove_medium(notify=False)
        storage.graph.detach(user)


def _writes(line: str) -> bool:
    from pyvm.tools.io.table import make_table

    words = line.split()
    command = make_table(tool=False).get(words[0]) if words else None
    return command is not None and command.writes


def _run_io(storage: Storage, backend: BlockBackend, line: str) -> str:
    from pyvm.tools.io.session import Session
    from pyvm.tools.io.table import execute, make_table

    if backend.node is not None and backend.node.read_only and _writes(line):
        return "Block node is read-only\n"
    table = make_table(tool=False)
    session = Session(lambda text: _put(sys.stdout, text), lambda text: _put(sys.stderr, text), table, backend)
    session.lock = storage.lock
    session.change_options = storage.change_options
    try:
        execute(session, line)
    finally:
        session.drain()
    return ""


def _put(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
