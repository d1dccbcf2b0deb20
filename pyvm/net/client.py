"""Network clients: the two ends of every link, a network card and a back end, say.

A client sends frames to its peer.  A peer that has no room refuses a frame: then the sender keeps it, and hears by
:meth:`NetClient.resume` when it may try again.  Frames that meet a link which is down, or no peer, are lost without
notice, as on a cable.

A frame may be larger than the wire's and without checksum: an :class:`Offload` says what is left to do, in the terms of
the virtio header (virtio 1.2, section 5.1.6).  Only a client that says so gets such frames.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

Frame = bytes | bytearray | memoryview
"""An Ethernet frame without its check sequence."""

ETHERNET_HEADER = 14
ETHERNET_MTU = 1500
MAX_FRAME = 65535 + ETHERNET_HEADER + 4
"""Largest frame there is: an IP packet of full length, with a VLAN tag; in bytes."""

# Flags of an offload
NEEDS_CSUM = 1
"""The checksum at `csum_start` + `csum_offset` is that of the pseudo header only."""
DATA_VALID = 2
"""Checksums were verified."""

# What a large frame consists of
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_ECN = 0x80


class Offload(NamedTuple):
    """What is left to do for a frame; offsets from the start of the frame, sizes in bytes."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header: int = 0
    """Length of all headers, which each segment gets."""
    gso_size: int = 0
    """Largest payload of a segment."""
    csum_start: int = 0
    csum_offset: int = 0


class Offloads(NamedTuple):
    """What a client is able to take."""

    checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    ecn: bool = False
    ufo: bool = False


NO_OFFLOADS = Offloads()


class FrameFilter(Protocol):
    """Somebody who sees the frames of a client go by, or takes them."""

    kind: str
    id: str

    @property
    def description(self) -> str:
        """The properties, as `info network` shows them."""

    def frame(self, frame: Frame, *, received: bool) -> None:
        """A frame was sent by the client, or `received` by it."""

    def takes(self, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Take a frame that the client sends or is to receive; return False to let it pass."""


class NetClient:
    """One end of a link.

    `kind` is the type as the user knows it (``nic``, ``user``), `model` what clients without a name are called after.
    """

    offloads: bool = False
    """Whether :meth:`receive` takes frames with an :class:`Offload`."""
    queues: int = 1
    """How many queues there are at this end; the frames of a flow keep to one."""

    def __init__(self, name: str, kind: str, model: str = "") -> None:
        self.name = name
        self.kind = kind
        self.model = model or kind
        self.info = ""
        """What `info network` shows behind the type."""
        self.queue_index = 0
        self.is_netdev = True
        """Whether it can be named as a back end; not so for cards, and for back ends of the legacy option."""
        self.peer: NetClient | None = None
        self.link_down = False
        self.filters: list[FrameFilter] = []
        self.peer_offloads = NO_OFFLOADS
        """What the peer is able to take."""

    # What subclasses override

    def receive(self, frame: Frame, offload: Offload | None) -> bool:
        """Take a frame from the peer; return False where there is no room, and call `peer.resume` later."""
        raise NotImplementedError

    def receive_on(self, queue: int, frame: Frame, offload: Offload | None) -> bool:
        """Do the same for a frame on one of several queues."""
        del queue
        return self.receive(frame, offload)

    def batch_end(self) -> None:
        """The peer has no more frames for now."""

    def resume(self) -> None:
        """The peer has room again after it refused a frame."""

    def link_changed(self) -> None:
        """Follow a change of `link_down`, here or at the peer."""

    def peer_changed(self) -> None:
        """Follow a change of `peer` or `peer_offloads`."""

    def announce(self) -> None:
        """Tell the network where this client is now, if it is a network card."""

    def close(self) -> None:
        """Give back what the host lent."""

    # For subclasses and owners

    def send(self, frame: Frame, offload: Offload | None = None, queue: int = 0) -> bool:
        """Send a frame to the peer; return False where it has no room, and the sender is to keep the frame."""
        peer = self.peer
        if peer is None or self.link_down or peer.link_down:
            return True
        if self.filters or peer.filters:
            return self._filter(peer, frame, offload, queue, None)
        return peer.receive_on(queue, frame, offload) if queue else peer.receive(frame, offload)

    def _filter(
        self, peer: NetClient, frame: Frame, offload: Offload | None, queue: int, behind: FrameFilter | None
    ) -> bool:
        """Send a frame through all filters, or those `behind` one of them."""
        way = [(item, False) for item in self.filters] + [(item, True) for item in reversed(peer.filters)]
        if behind is not None:
            way = way[1 + next((at for at, (item, _) in enumerate(way) if item is behind), -1) :]
        for at, (item, received) in enumerate(way):
            if item.takes(frame, offload, received=received):
                way = way[:at]
                break
        else:
            if not peer.receive_on(queue, frame, offload):
                return False
        for watcher, received in way:
            watcher.frame(frame, received=received)
        return True

    def send_behind(self, behind: FrameFilter, frame: Frame, offload: Offload | None, *, received: bool) -> bool:
        """Let a frame go on behind a filter of this client: to it where it is `received`, to its peer otherwise.

        Returns False where there is no room for it now.
        """
        peer = self.peer
        if peer is None or self.link_down or peer.link_down:
            return True
        if received:
            return peer._filter(self, frame, offload, 0, behind)
        return self._filter(peer, frame, offload, 0, behind)

    def end_passed(self) -> None:
        """Say to both sides that no more frames follow for now."""
        self.send_end()
        if self.peer is not None:
            self.peer.send_end()

    def send_end(self) -> None:
        """Say that no more frames follow for now."""
        if self.peer is not None:
            self.peer.batch_end()

    def connect(self, peer: NetClient) -> None:
        """Become the peer of another client."""
        self.peer, peer.peer = peer, self
        self.peer_changed()
        peer.peer_changed()

    def disconnect(self) -> None:
        """Have no peer any more."""
        peer, self.peer = self.peer, None
        self.peer_offloads = NO_OFFLOADS
        if peer is not None:
            peer.peer = None
            peer.peer_offloads = NO_OFFLOADS
            peer.peer_changed()
        self.peer_changed()

    def tell_offloads(self, offloads: Offloads) -> None:
        """Let the peer know what this client is able to take."""
        if self.peer is not None and self.peer.peer_offloads != offloads:
            self.peer.peer_offloads = offloads
            self.peer.peer_changed()

    @property
    def hub(self) -> int | None:
        """The number of the hub that the client is on, None where it is on none."""
        return None if self.peer is None else self.peer.hub_of_port

    @property
    def hub_of_port(self) -> int | None:
        """The number of the hub that the client is a port of, None where it is not."""
        return None
