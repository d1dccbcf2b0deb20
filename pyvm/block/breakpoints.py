"""Breakpoints: requests that stop where the driver *blkdebug* was told to stop them, until they are let go.

A request is carried out by a thread that has others to carry out, too.  One that meets a breakpoint is therefore given
up there, with :class:`Suspended`, and tried again from its start when it is let go: drivers undo what they began, as
they do after an error.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.annotations import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.block.node import Node


class Suspended(Exception):  # noqa: N818 - nothing is wrong
    """A request has met a breakpoint.  No OSError: nobody may take it for a failure of the image."""

    def __init__(self, breakpoints: Breakpoints, tag: str) -> None:
        super().__init__(f"the request is stopped at breakpoint {tag}")
        self._breakpoints = breakpoints
        self._tag = tag
        self._removals = breakpoints.removals(tag)

    def park(self, again: Callable[[], None]) -> None:
        """Keep the request until it is let go: `again` tries it once more.  With the machine lock held."""
        if self._breakpoints.removals(self._tag) != self._removals:
            again()  # somebody let it go before it got here
            return
        self._breakpoints.parked.append((self._tag, again))
        self._breakpoints.tell(f"blkdebug: Suspended request '{self._tag}'\n")


class Breakpoints:
    """Those of one node.  Methods are called with the machine lock held, but for :meth:`meet`."""

    def __init__(self) -> None:
        self._set: list[tuple[str, str]] = []
        """Event and tag."""
        self.parked: list[tuple[str, Callable[[], None]]] = []
        """Requests that wait, by the tag of the breakpoint that they met."""
        self._removals: dict[str, int] = {}
        self._clears = 0
        self.tell: Callable[[str], None] = lambda text: None
        """Takes what a person at the prompt is told."""

    def add(self, event: str, tag: str) -> None:
        """Stop the next request at which `event` happens."""
        self._set.append((event, tag))

    def meet(self, event: str) -> None:
        """Raise Suspended where a request is to stop; the breakpoint is gone then."""
        present = self._set
        for item in present:
            if item[0] == event:
                stop = Suspended(self, item[1])
                present.remove(item)
                raise stop

    def removals(self, tag: str) -> int:
        """Return how often breakpoints of a tag were removed so far."""
        return self._removals.get(tag, 0) + self._clears

    def is_suspended(self, tag: str) -> bool:
        """Return whether a request waits at a breakpoint."""
        return any(it == tag for it, _ in self.parked)

    def resume(self, tag: str) -> bool:
        """Let the first request go that waits at a breakpoint; return False where there is none."""
        for item in self.parked:
            if item[0] == tag:
                self.parked.remove(item)
                self.tell(f"blkdebug: Resuming request '{tag}'\n")
                item[1]()
                return True
        return False

    def remove(self, tag: str) -> bool:
        """Forget breakpoints, and let all go that wait at them; return whether there was anything."""
        self._removals[tag] = self._removals.get(tag, 0) + 1
        before = len(self._set)
        self._set = [item for item in self._set if item[1] != tag]
        found = len(self._set) < before
        while self.resume(tag):
            found = True
        return found

    def clear(self) -> None:
        """Forget all, and let everything go."""
        self._clears += 1
        self._set.clear()
        while self.parked:
            self.parked.pop(0)[1]()


def find_breakpoints(node: Node | None) -> Breakpoints | None:
    """Return the breakpoints of the first node from `node` down that can have any."""
    while node is not None:
        found: Breakpoints | None = getattr(node, "breakpoints", None)
        if found is not None:
            return found
        node = node.file
    return None
