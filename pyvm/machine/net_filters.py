"""Objects that stand between a network back end and its peer: `filter-dump`."""

from __future__ import annotations

import time
from typing import Any

from pyvm.machine.user_objects import ObjectHost, UserObject
from pyvm.monitor.errors import QmpError
from pyvm.net.dump import DEFAULT_LENGTH, FrameDump

_SWITCH = ("on", "off")
_POSITIONS = ("head", "tail")
_INSERTS = ("behind", "before")
_SHOWN = ("file", "maxlen", "position", "status", "insert", "netdev", "queue")
"""Properties in the order in which `info network` shows them."""


class FilterDumpObject(UserObject):
    """A file of what a back end sends and receives."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        defaults = {"maxlen": DEFAULT_LENGTH, "queue": "all", "status": "on", "position": "tail", "insert": "behind"}
        self.values = {**defaults, **given}
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
        try:
            self._dump = FrameDump(
                identifier,
                values["file"],
                time.time_ns,
                length=values["maxlen"],
                sent=values["queue"] in ("all", "tx"),
                received=values["queue"] in ("all", "rx"),
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise QmpError(f"net dump: can't open {values['file']}: {reason}") from None
        self._client = client
        self._describe()
        place = 0 if values["position"] == "head" else len(client.filters)
        client.filters.insert(place, self._dump)

    def _describe(self) -> None:
        self._dump.enabled = self.values["status"] == "on"
        self._dump.description = "".join(f",{name}={self.values[name]}" for name in _SHOWN)

    def put(self, name: str, value: Any) -> None:
        """Switch the filter on or off."""
        if name != "status":
            super().put(name, value)
        if value not in _SWITCH:
            raise QmpError("Invalid value for netfilter status, should be 'on' or 'off'")
        self.values["status"] = value
        self._describe()

    def close(self) -> None:
        """Take the filter out, and close its file."""
        if self._dump in self._client.filters:
            self._client.filters.remove(self._dump)
        self._dump.close()
