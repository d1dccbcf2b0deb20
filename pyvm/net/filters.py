"""Filters between a back end and its peer that pass frames to programs, take frames from them, or hold frames back.

To programs frames go as in QEMU's socket back ends: each behind its length in four bytes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pyvm.chardev.base import ChardevEvent
from pyvm.clock import Clock
from pyvm.net.client import ETHERNET_HEADER, MAX_FRAME, Frame, NetClient, Offload

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

_LENGTH = 4
_UNSENT_LIMIT = 1 << 20
"""With so many bytes waiting for a program, further frames do not reach it."""
_INPUT_LIMIT = MAX_FRAME + _LENGTH
_HELD_LIMIT = 4096
"""Most frames that are held back; more pass."""
_MICROSECOND = 1000


class NetFilter:
    """A filter of one back end; `sent` and `received` say which of its frames it is about."""

    def __init__(self, kind: str, identifier: str, client: NetClient, *, sent: bool, received: bool) -> None:
        self.kind = kind
        self.id = identifier
        self.description = ""
        self.enabled = True
        self._client = client
        self._sent = sent
        self._received = received

    def concerns(self, *, received: bool) -> bool:
        """Whether the filter is about frames in that direction now."""
        return self.enabled and (self._received if received else self._sent)

    def frame(self, frame: Frame, *, received: bool) -> None:
        """A frame has passed."""

    def takes(self, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Take a frame, which then goes no further; return False to let it pass."""
        del frame, offload, received
        return False

    def close(self) -> None:
        """The filter goes away."""


class FrameOutput:
    """The frames that go to a program."""

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._unsent = bytearray()
        chardev.attach(self)

    @property
    def connected(self) -> bool:
        """Whether there is a program."""
        return self._chardev.connected

    def send(self, frame: Frame) -> None:
        """Send a frame; lost where too much waits."""
        if len(self._unsent) < _UNSENT_LIMIT:
            self._unsent += len(frame).to_bytes(_LENGTH, "big") + bytes(frame)
            self.writable()

    def writable(self) -> None:
        """Send what waits."""
        if self._unsent:
            del self._unsent[: self._chardev.write(bytes(self._unsent))]

    def can_receive(self) -> int:
        """Return how much of what the program says can be taken, to be forgotten."""
        return _INPUT_LIMIT

    def receive(self, data: bytes) -> None:
        """Forget what the program says."""

    def event(self, event: ChardevEvent) -> None:
        """What waited for a program that left is lost."""
        if event is ChardevEvent.CLOSED:
            self._unsent.clear()

    def close(self) -> None:
        """Leave the device to others."""
        self._chardev.detach()


class MirrorFilter(NetFilter):
    """Shows a program all frames."""

    def __init__(self, identifier: str, client: NetClient, chardev: Chardev, *, sent: bool, received: bool) -> None:
        super().__init__("filter-mirror", identifier, client, sent=sent, received=received)
        self._output = FrameOutput(chardev)

    def frame(self, frame: Frame, *, received: bool) -> None:
        """Show a frame."""
        if self.concerns(received=received):
            self._output.send(frame)

    def close(self) -> None:
        """Leave the device to others."""
        self._output.close()


class RedirectorFilter(NetFilter):
    """Gives frames to the program at `output`, and puts in their place those that come from `input`.

    Either of the two may be missing; without a program at `output` frames pass.
    """

    def __init__(
        self,
        identifier: str,
        client: NetClient,
        source: Chardev | None,
        output: Chardev | None,
        *,
        sent: bool,
        received: bool,
    ) -> None:
        super().__init__("filter-redirector", identifier, client, sent=sent, received=received)
        self._source = source
        self._output = FrameOutput(output) if output is not None else None
        self._input = bytearray()
        if source is not None:
            source.attach(self)

    def takes(self, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Give a frame to the program."""
        del offload
        if self._output is None or not self._output.connected or not self.concerns(received=received):
            return False
        self._output.send(frame)
        return True

    def can_receive(self) -> int:
        """Return how much of a frame can be taken."""
        return _INPUT_LIMIT - len(self._input) if self.enabled else 0

    def receive(self, data: bytes) -> None:
        """Put frames in from here on; one that its receiver has no room for is lost."""
        self._input += data
        while len(self._input) >= _LENGTH:
            length = int.from_bytes(self._input[:_LENGTH], "big")
            end = _LENGTH + length
            if not ETHERNET_HEADER <= length <= MAX_FRAME:
                self._input.clear()  # that is no frame: the two sides do not speak the same language
                return
            if len(self._input) < end:
                return
            frame = bytes(self._input[_LENGTH:end])
            del self._input[:end]
            for received in (False, True):
                if self.concerns(received=received):
                    self._client.send_behind(self, frame, None, received=received)

    def event(self, event: ChardevEvent) -> None:
        """A program that left has sent its last frame."""
        if event is ChardevEvent.CLOSED:
            self._input.clear()

    def writable(self) -> None:
        """Nothing is written to the program that frames come from."""

    def close(self) -> None:
        """Leave the devices to others."""
        if self._source is not None:
            self._source.detach()
        if self._output is not None:
            self._output.close()


class BufferFilter(NetFilter):
    """Holds frames back, and lets them go together every `interval` microseconds."""

    def __init__(
        self, identifier: str, client: NetClient, clock: Clock, interval: int, *, sent: bool, received: bool
    ) -> None:
        super().__init__("filter-buffer", identifier, client, sent=sent, received=received)
        self.interval = interval
        self._clock = clock
        self._held: deque[tuple[Frame, Offload | None, bool]] = deque()
        self._timer = clock.timer(self._expired)
        self._arm()

    def _arm(self) -> None:
        self._timer.arm(self._clock.now() + self.interval * _MICROSECOND)

    def takes(self, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Hold a frame back."""
        if not self.concerns(received=received) or len(self._held) >= _HELD_LIMIT:
            return False
        self._held.append((bytes(frame), offload, received))
        return True

    def _expired(self) -> None:
        self._arm()
        self.release()

    def release(self) -> None:
        """Let go what is held, as far as there is room for it."""
        while self._held:
            frame, offload, received = self._held[0]
            if not self._client.send_behind(self, frame, offload, received=received):
                break
            self._held.popleft()
        self._client.end_passed()

    def close(self) -> None:
        """Let all go."""
        self._timer.cancel()
        self.release()
        self._held.clear()
