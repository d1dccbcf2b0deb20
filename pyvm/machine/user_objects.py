"""Objects that users create with `-object` and `object-add`: what all of them have in common, and the set of them.

What kinds there are is in :mod:`pyvm.machine.object_kinds` and :mod:`pyvm.machine.memory_backends`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError
from pyvm.options import is_identifier
from pyvm.records import field, record
from pyvm.secrets import Secrets

if TYPE_CHECKING:
    from pyvm.chardev.registry import ChardevSet
    from pyvm.clock import Clock
    from pyvm.machine.storage import Storage
    from pyvm.net.client import NetClient


@record
class ObjectHost:
    """What objects use of the program that they are part of."""

    secrets: Secrets = field(default_factory=Secrets)
    chardevs: ChardevSet | None = None
    storage: Callable[[], Storage | None] = lambda: None
    """Returns the disks, where there are any."""
    default_threads: int = 1
    """How many threads prepare memory where nothing else is said."""
    netdev: Callable[[str], NetClient | None] = lambda identifier: None
    """Returns a network back end by its ID."""
    clock: Clock | None = None
    """The guest's time, where there is a machine."""
    find: Callable[[str], UserObject | None] = lambda identifier: None
    """Returns another object by its ID."""


class UserObject:
    """One object; `values` holds its properties by name."""

    def __init__(self, kind: str, identifier: str) -> None:
        self.type = kind
        self.id = identifier
        self.values: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return the value of a property of the type; text that was not given is empty."""
        return self.values.get(name, "")

    def put(self, name: str, value: Any) -> None:
        """Set a property; raises QmpError where it cannot be changed."""
        raise QmpError(f"Property '{self.type}.{name}' is not writable")

    @property
    def in_use(self) -> bool:
        """Whether the object has to stay."""
        return False

    def close(self) -> None:
        """The object goes away."""


class UserObjects:
    """All objects that users created, by ID, in the order in which they came."""

    def __init__(self, host: ObjectHost) -> None:
        self.host = host
        host.find = self.find
        self._objects: dict[str, UserObject] = {}

    def add(self, kind: str, identifier: str, properties: dict[str, Any]) -> UserObject:
        """Create an object; raises QmpError.  The properties were checked against the schema."""
        from pyvm.machine.object_kinds import KINDS

        if not is_identifier(identifier):
            raise QmpError("Parameter 'id' expects an identifier")
        create = KINDS.get(kind)
        if create is None:
            raise QmpError(f"invalid object type: {kind}")
        if identifier in self._objects:
            raise QmpError(f"attempt to add duplicate property '{identifier}' to object (type 'container')")
        try:
            made = self._objects[identifier] = create(self.host, kind, identifier, properties)
        except ConfigError as error:
            raise QmpError(str(error)) from None
        return made

    def adopt(self, item: UserObject) -> None:
        """Take in an object that the machine made."""
        self._objects[item.id] = item

    def remove(self, identifier: str) -> None:
        """Delete an object; raises QmpError where there is none, or something needs it."""
        found = self._objects.get(identifier)
        if found is None:
            raise QmpError(f"object '{identifier}' not found")
        if found.in_use:
            raise QmpError(f"object '{identifier}' is in use, can not be deleted")
        del self._objects[identifier]
        found.close()

    def find(self, identifier: str) -> UserObject | None:
        """Return an object by its ID."""
        return self._objects.get(identifier)

    def __iter__(self) -> Iterator[UserObject]:
        return iter(self._objects.values())

    def close(self) -> None:
        """Let all go, the newest first."""
        while self._objects:
            self._objects.popitem()[1].close()
