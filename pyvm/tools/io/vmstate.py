"""Which node of an image keeps the state of a VM."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pyvm.block.node import Node
from pyvm.block.status import skip_filters

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node


def holder(node: Node) -> Qcow2Node:
    """Return the image that keeps the state of a VM.  Raises OSError (ENOTSUP) where the format cannot."""
    found = find_qcow2(node)
    if found is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    return found


def find_qcow2(node: Node) -> Qcow2Node | None:
    """Return the qcow2 image that `node` is, below its filters."""
    image = skip_filters(node)
    if image is None or image.driver != "qcow2":
        return None
    from pyvm.block.drivers.qcow2.driver import Qcow2Node

    return image if isinstance(image, Qcow2Node) else None
