"""Filter *blkreplay*: where a run of the machine is recorded, it makes disks part of that.

Runs are not recorded here, so that all there is to do is to show what is below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.node import Child, Node, Role

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings


class BlkreplayNode(FilterNode):
    """A filter in front of `image`."""

    driver: ClassVar[str] = "blkreplay"

    def __init__(self, image: Node, *, name: str = "", read_only: bool | None = None) -> None:
        super().__init__(image, name=name, read_only=read_only)
        self.children = [Child(Role.FILTERED, image, "image")]


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> BlkreplayNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del own, graph
    return BlkreplayNode(children["image"], name=settings.name, read_only=settings.read_only)
