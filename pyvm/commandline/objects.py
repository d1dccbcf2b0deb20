"""Objects of ``-object``: which there are, and from an option to the record of one.

The schema says what properties each type has, for ``object-add`` and the command line alike.
"""

from __future__ import annotations

from typing import Any

from pyvm.config import ObjectConfig
from pyvm.errors import ConfigError
from pyvm.options import Options, is_identifier

_OPTIONS_TYPE = "ObjectOptions"
OBJECT_TYPES = (
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "can-bus",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "iothread",
    "main-loop",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "secret",
    "secret_keyring",
    "sev-guest",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
)
"""What can be created: the keys of :data:`pyvm.machine.object_kinds.KINDS`."""
_LISTS = ("host-nodes",)
"""What may be given more than once."""


def property_kinds(name: str) -> dict[str, str]:
    """Return the properties of a type and what each of them is; raises ConfigError where there is no such type."""
    from pyvm.monitor.schema.model import ObjectType, load

    options = load().type(_OPTIONS_TYPE)
    assert isinstance(options, ObjectType)
    if name not in OBJECT_TYPES:
        raise ConfigError(f"Parameter 'qom-type' does not accept value '{name}'")
    variant = options.variants.get(name)
    if variant is None:
        return {}
    assert isinstance(variant.type, ObjectType)
    return {member.name: _shown(member.type.name) for member in variant.type.members if not member.features}


def _shown(kind: str) -> str:
    return {"str": "string", "[uint16]": "uint16 list"}.get(kind, kind)


def make_object(options: Options) -> ObjectConfig:
    """Return the record of one ``-object``, its properties checked and of their own types."""
    from pyvm.monitor.errors import QmpError
    from pyvm.monitor.schema.validate import validator

    kind = options.required("qom-type")
    values = options.nested()
    for name in _LISTS:
        if not options.typed and len(options.values(name)) > 1:
            values[name] = options.values(name)
    if not options.typed:
        values = options.checked(lambda: _typed(values))
    try:
        validator().check(_OPTIONS_TYPE, values)
    except QmpError as error:
        message = error.description
        if not options.typed and message.endswith("is unexpected") and "." not in message:
            message = "Invalid parameter " + message.split()[1]
        raise options.error(message) from None
    identifier = str(values.pop("id"))
    del values["qom-type"]
    if not is_identifier(identifier):
        raise options.error(
            "Parameter 'id' expects an identifier (letters, digits, '-', '.', '_', starting with a letter)"
        )
    if kind not in OBJECT_TYPES:
        raise options.error(f"invalid object type: {kind}")
    if kind == "throttle-group":
        values = _limits(values)
    if values.get("size") == 0:
        raise options.error(f"property 'size' of {kind} doesn't take value '0'")
    return ObjectConfig(kind, identifier, values, origin=options.origin)


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    from pyvm.monitor.schema.model import ObjectType, load
    from pyvm.monitor.schema.text_values import typed_members

    options = load().type(_OPTIONS_TYPE)
    assert isinstance(options, ObjectType)
    return typed_members(options, values)


def _limits(values: dict[str, Any]) -> dict[str, Any]:
    """Return limits that are given as one structure under the names of single properties."""
    together = values.pop("limits", None) or {}
    return {**values, **{f"x-{name}": value for name, value in together.items()}}
