"""Commands that shorten chains of images: block-commit and block-stream."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvm.block.filename import name_of
from pyvm.block.info import full_name
from pyvm.block.jobs.commit import CommitJob, CommitOptions
from pyvm.block.jobs.mirror import ActiveCommitJob, MirrorOptions
from pyvm.block.jobs.stream import StreamJob, StreamOptions
from pyvm.block.jobs.surgery import backing_child, chain, overlay_of
from pyvm.block.node import Node, Permission
from pyvm.block.status import skip_filters
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.commands.job_common import job_options, lookup, lookup_root
from pyvm.monitor.errors import QmpError, device_not_found
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()


def _named(storage: Storage, name: str) -> Node:
    node = storage.graph.nodes.get(name)
    if node is None:
        raise QmpError(f"Cannot find device='' nor node-name='{name}'")
    return node


def _find_image(top: Node, name: str) -> Node | None:
    """Return the image below `top` that has a file name, as it is or as it is written in the header above."""
    above: Node | None = skip_filters(top)
    while above is not None:
        below = skip_filters(above.backing)
        if below is None:
            return None
        written = getattr(getattr(above, "header", None), "backing_file", None)
        names = {name_of(below), below.filename}
        if written is not None and above.named_backing in (None, name_of(below)):
            names |= {written, full_name(above, written)}
        if name in names or _real(name) in {_real(it) for it in names}:
            return below
        above = below
    return None


def _real(name: str) -> str:
    return os.path.realpath(name.removeprefix("file:"))


# ---- Commit


@COMMANDS.command("block-commit")
def block_commit(context: Context, arguments: Any) -> None:
    """Write what layers have into one below, which takes their place."""
    storage = storage_of(context.machine)
    wanted = arguments
    root = _find_root(storage, wanted.device)
    with block_errors():
        storage.graph.check_unblocked(root)
        top = _find_top(storage, root, wanted)
        base = _find_base(storage, top, wanted)
        nodes = chain(top)
        for node in nodes[: nodes.index(base) + 1]:
            storage.graph.check_unblocked(node)
        if top is base:
            raise QmpError("cannot commit an image into itself")
        writers = storage.graph.accesses()[top].used & Permission.WRITE
        is_root = skip_filters(top) is skip_filters(root)
        if writers or is_root:
            if wanted.backing_file is not None:
                why = "'top' is the active layer" if is_root else "'top' has a writer on it"
                raise QmpError(f"'backing-file' specified, but {why}")
            _commit_active(storage, wanted, root, top, base)
            return
        overlay = overlay_of(root, top)
        if overlay is not None:
            storage.graph.check_unblocked(overlay)
        options = CommitOptions(base, top, wanted.on_error or "report", wanted.backing_file)
        common = job_options(storage, wanted, root, filter_name=wanted.filter_node_name)
        CommitJob(storage.jobs, common, root, options).start()


def _find_root(storage: Storage, name: str) -> Node:
    if name not in storage.drives and name not in storage.graph.nodes:
        raise device_not_found(name)
    return lookup_root(storage, name)


def _find_top(storage: Storage, root: Node, wanted: Any) -> Node:
    if wanted.top_node is not None and wanted.top is not None:
        raise QmpError("'top-node' and 'top' are mutually exclusive")
    if wanted.top_node is not None:
        top = _named(storage, wanted.top_node)
        if top not in chain(root):
            raise QmpError(f"'{wanted.top_node}' is not in this backing file chain")
        return top
    if wanted.top is None or wanted.top in (name_of(root), root.filename):
        return root
    found = _find_image(root, wanted.top)
    if found is None:
        raise QmpError(f"Top image file {wanted.top} not found")
    return found


def _find_base(storage: Storage, top: Node, wanted: Any) -> Node:
    if wanted.base_node is not None and wanted.base is not None:
        raise QmpError("'base-node' and 'base' are mutually exclusive")
    if wanted.base_node is not None:
        base = _named(storage, wanted.base_node)
        if base not in chain(top):
            raise QmpError(f"'{wanted.base_node}' is not in this backing file chain")
        return base
    if wanted.base is not None:
        found = _find_image(top, wanted.base)
        if found is None:
            raise QmpError(f"Can't find '{wanted.base}' in the backing chain")
        return found
    nodes = [node for node in chain(top) if not node.is_filter]
    if len(nodes) < 2:
        raise QmpError("There is no backimg image")
    return nodes[-1]


def _commit_active(storage: Storage, wanted: Any, root: Node, top: Node, base: Node) -> None:
    was_read_only = base.read_only
    if was_read_only:
        storage.set_read_only(base, False)
    options = MirrorOptions(
        "full",
        base=base,
        on_source_error=wanted.on_error or "report",
        on_target_error=wanted.on_error or "report",
        read_only_before=was_read_only,
    )
    common = job_options(storage, wanted, root, filter_name=wanted.filter_node_name)
    try:
        job = ActiveCommitJob(storage.jobs, common, top, base, options)
    except Exception:
        if was_read_only:
            storage.set_read_only(base, True)
        raise
    job.start()


# ---- Stream


@COMMANDS.command("block-stream")
def block_stream(context: Context, arguments: Any) -> None:
    """Put what layers below an image have into the image."""
    storage = storage_of(context.machine)
    wanted = arguments
    for first, second in (("base", "base_node"), ("base", "bottom"), ("bottom", "base_node")):
        if getattr(wanted, first) is not None and getattr(wanted, second) is not None:
            names = f"'{first}' and '{second.replace('_', '-')}'"
            raise QmpError(f"{names} cannot be specified at the same time")
    top = lookup(storage, wanted.device)
    with block_errors():
        base = _stream_base(storage, top, wanted)
        for node in chain(top):
            if node is base:
                break
            storage.graph.check_unblocked(node)
        if base is None and wanted.backing_file is not None:
            raise QmpError("backing file specified, but streaming the entire chain")
        options = StreamOptions(base, wanted.on_error or "report", wanted.backing_file)
        common = job_options(storage, wanted, top, filter_name=wanted.filter_node_name)
        StreamJob(storage.jobs, common, top, options).start()


def _stream_base(storage: Storage, top: Node, wanted: Any) -> Node | None:
    if wanted.base is not None:
        found = _find_image(top, wanted.base)
        if found is None:
            raise QmpError(f"Can't find '{wanted.base}' in the backing chain")
        return found
    if wanted.base_node is not None:
        base = _named(storage, wanted.base_node)
        if base is top or base not in chain(top):
            raise QmpError(f"Node '{wanted.base_node}' is not a backing image of '{wanted.device}'")
        return base
    if wanted.bottom is None:
        return None
    bottom = _named(storage, wanted.bottom)
    if bottom.is_filter:
        raise QmpError(f"Node '{wanted.bottom}' is a filter, use a non-filter node as 'bottom'")
    if bottom not in chain(top):
        raise QmpError(f"Node '{wanted.bottom}' is not in a chain starting from '{wanted.device}'")
    return backing_child(bottom)
