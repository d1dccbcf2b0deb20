"""Objects that stand between a network back end and its peer: `filter-dump`, `filter-mirror` and the like."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.machine.user_objects import ObjectHost, UserObject
from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError
from pyvm.net.client import FrameFilter, NetClient
from pyvm.net.dump import DEFAULT_LENGTH, FrameDump

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev

_SWITCH = ("on", "off")
_POSITIONS = ("head", "tail")
_INSERTS = ("behind", "before")
_SHOWN_OF_ALL = ("position", "status", "insert", "netdev", "queue")
_SHOWN = {
    "filter-buffer": ("interval",),
    "filter-dump": ("file", "maxlen"),
    "filter-mirror": ("vnet_hdr_support", "outdev"),
    "filter-redirector": ("vnet_hdr_support", "indev", "outdev"),
}
"""Properties in the order in which `info network` shows them, before those that all have."""


class Filter(FrameFilter, Protocol):
    """A filter that an object stands for."""

    enabled: bool
    description: str

    def close(self) -> None:
        """Give back what the host lent."""


class NetFilterObject(UserObject):
    """What all filters have in common; subclasses make theirs."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        self.values = {"queue": "all", "status": "on", "position": "tail", "insert": "behind", **given}
        values = self.values
        if values["status"] not in _SWITCH:
            raise QmpError("Invalid value for netfilter status, should be 'on' or 'off'")
        if values["position"] not in _POSITIONS:
            raise QmpError("Invalid value for position, should be 'head' or 'tail'")
        if values["insert"] not in _INSERTS:
            raise QmpError("Invalid value for insert, should be 'behind' or 'before'")
        client = host.netdev(values["netdev"])
        if client is None or client.kind == "hubport":
            raise QmpError("Parameter 'netdev' expects a network backend id")
        self._client = client
        directions = {"sent": values["queue"] in ("all", "tx"), "received": values["queue"] in ("all", "rx")}
        self._filter = self._make(host, client, directions)
        self._describe()
        place = 0 if values["position"] == "head" else len(client.filters)
        client.filters.insert(place, self._filter)

    def _make(self, host: ObjectHost, client: NetClient, directions: dict[str, bool]) -> Filter:
        raise NotImplementedError

    def _describe(self) -> None:
        self._filter.enabled = self.values["status"] == "on"
        shown = {True: "true", False: "false"}
        names = (*_SHOWN[self.type], *_SHOWN_OF_ALL)
        texts = ((name, self.values.get(name, "")) for name in names)
        self._filter.description = "".join(
            f",{name}={shown[value] if isinstance(value, bool) else value}" for name, value in texts
        )

    def put(self, name: str, value: Any) -> None:
        """Switch the filter on or off."""
        if name != "status":
            super().put(name, value)
        if value not in _SWITCH:
            raise QmpError("Invalid value for netfilter status, should be 'on' or 'off'")
        self.values["status"] = value
        self._describe()

    def close(self) -> None:
        """Take the filter out."""
        self._filter.close()
        if self._filter in self._client.filters:
            self._client.filters.remove(self._filter)

    def _device(self, host: ObjectHost, name: str, prefix: str = "") -> Chardev:
        """Return the free port of a character device."""
        identifier = self.values[name]
        found = None if host.chardevs is None else host.chardevs.find(identifier)
        if found is None:
            raise QmpError(f"{prefix}Device '{identifier}' not found", DEVICE_NOT_FOUND)
        port = found.port()
        if port.frontend is not None:
            raise QmpError(f"Device '{identifier}' is in use")
        return port

    def _refuse_headers(self) -> None:
        if self.values.setdefault("vnet_hdr_support", False):
            raise QmpError("vnet_hdr_support is not supported by pyvm yet")


class FilterDumpObject(NetFilterObject):
    """A file of what a back end sends and receives."""

    def _make(self, host: ObjectHost, client: NetClient, directions: dict[str, bool]) -> Filter:
        del host, client
        self.values.setdefault("maxlen", DEFAULT_LENGTH)
        values = self.values
        try:
            return FrameDump(self.id, values["file"], time.time_ns, length=values["maxlen"], **directions)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise QmpError(f"net dump: can't open {values['file']}: {reason}") from None


class FilterMirrorObject(NetFilterObject):
    """A program that sees all frames."""

    def _make(self, host: ObjectHost, client: NetClient, directions: dict[str, bool]) -> Filter:
        from pyvm.net.filters import MirrorFilter

        self._refuse_headers()
        return MirrorFilter(self.id, client, self._device(host, "outdev"), **directions)


class FilterRedirectorObject(NetFilterObject):
    """Programs that take frames, and send others."""

    def _make(self, host: ObjectHost, client: NetClient, directions: dict[str, bool]) -> Filter:
        from pyvm.net.filters import RedirectorFilter

        self._refuse_headers()
        source, output = (self.values.get(name) for name in ("indev", "outdev"))
        if not source and not output:
            raise QmpError("filter redirector needs 'indev' or 'outdev' at least one property set")
        if source == output:
            raise QmpError("'indev' and 'outdev' could not be same for filter redirector")
        first = self._device(host, "indev", "IN ") if source else None
        second = self._device(host, "outdev", "OUT ") if output else None
        return RedirectorFilter(self.id, client, first, second, **directions)


class FilterBufferObject(NetFilterObject):
    """A place where frames wait for some time."""

    def _make(self, host: ObjectHost, client: NetClient, directions: dict[str, bool]) -> Filter:
        from pyvm.net.filters import BufferFilter

        if not self.values["interval"]:
            raise QmpError("Property 'filter-buffer.interval' requires a positive value")
        if host.clock is None:
            raise QmpError("there is no machine that this could be for")
        return BufferFilter(self.id, client, host.clock, self.values["interval"], **directions)


FILTERS = {
    "filter-buffer": FilterBufferObject,
    "filter-dump": FilterDumpObject,
    "filter-mirror": FilterMirrorObject,
    "filter-redirector": FilterRedirectorObject,
}
"""The kinds of filters."""
