"""Commit without a job, as the monitor's ``commit`` does it: what an image has goes into the one below it, all at once.

The disks stand still meanwhile.  The image stays on top, and is empty then.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyvm.block.errors import BlockError
from pyvm.block.jobs import surgery
from pyvm.block.jobs.commit import CommitTop
from pyvm.block.layers import copy_down
from pyvm.block.node import ALL_PERMISSIONS, Access, Node, Permission

if TYPE_CHECKING:
    from pyvm.machine.storage import Storage


def commit_now(storage: Storage, image: Node) -> None:
    """Write down what `image` has, and make it empty.  Raises OSError, or BlockError; nothing is lost then.

    The number of the error is EBUSY where a job or the like wants one of the two to stay as it is, ENOTSUP where
    nothing is below or the image cannot be emptied, EACCES where the one below cannot be opened to write to it.
    """
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    base = image.backing
    if base is None or not isinstance(image, Qcow2Node):
        raise OSError(errno.ENOTSUP, "Operation not supported")
    if storage.graph.is_blocked(image) or storage.graph.is_blocked(base):
        raise OSError(errno.EBUSY, "Device or resource busy")
    with _writable(storage, base), _behind_filter(storage, image, base):
        storage.drain()
        with storage.quiet():
            if base.size < image.size:
                base.truncate(image.size)
            copy_down((image,), base)
            # What is thrown away must be safe elsewhere before.
            base.flush()
            image.make_empty()
            image.flush()


@contextmanager
def _writable(storage: Storage, base: Node) -> Iterator[None]:
    """Open `base` to write to it meanwhile."""
    was_read_only = base.read_only
    if was_read_only:
        try:
            storage.set_read_only(base, False)
        except BlockError:
            raise OSError(errno.EACCES, "Permission denied") from None
    try:
        yield
    finally:
        if was_read_only:
            storage.set_read_only(base, True)


@contextmanager
def _behind_filter(storage: Storage, top: Node, base: Node) -> Iterator[None]:
    """Have a filter between the two, so that `top` does not mind what happens below, and somebody who may write."""
    between = CommitTop(base.hold())
    between.name, between.implicit = storage.graph.make_name(), True
    storage.graph.add(between)
    surgery.set_backing(storage, top, between)
    try:
        used = Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE
        user = storage.graph.attach(base, "commit", Access(used, ALL_PERMISSIONS))
        try:
            yield
        finally:
            storage.graph.detach(user)
    finally:
        surgery.set_backing(storage, top, base)
        storage.release(between)
