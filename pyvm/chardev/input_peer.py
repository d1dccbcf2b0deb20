"""What pointing devices at the far end of a guest's line have in common: a queue, and a place in the input router."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pyvm.chardev.base import Chardev
from pyvm.input import InputEvent, InputKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvm.input import InputRouter
    from pyvm.mainloop import MainLoop


class InputPeer(Chardev):
    """An input handler as :mod:`pyvm.input` says, and what it has to say waits in `_queue` until the guest takes it."""

    name: str
    kinds: frozenset[InputKind]

    def __init__(self, label: str, loop: MainLoop, router: InputRouter | None) -> None:
        """`router` tells what the person does."""
        super().__init__(label)
        self._loop = loop
        self._router = router
        self._unregister: Callable[[], None] | None = None if router is None else router.register(self)
        self._queue = bytearray()
        self._scheduled = False

    @abstractmethod
    def input(self, event: InputEvent) -> None:
        """Take what the person did."""

    @abstractmethod
    def sync(self) -> None:
        """Tell the guest what was collected."""

    def accept_input(self) -> None:
        """Deliver what waits, soon."""
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        while self._queue and self.frontend is not None and (room := self.frontend.can_receive()):
            data = bytes(self._queue[:room])
            del self._queue[:room]
            self.frontend.receive(data)

    def close(self) -> None:
        """Leave the person's input to others."""
        if self._unregister is not None:
            self._unregister()
            self._unregister = None
        super().close()
