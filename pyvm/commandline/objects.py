"""Objects of ``-object``: their types, and the properties of each, as data."""

from __future__ import annotations

from pyvm.block.limit_names import LIMIT_NAMES
from pyvm.config import ObjectConfig
from pyvm.options import Kind, Options, Value, parse_boolean, parse_identifier, parse_number, parse_size

_MEMORY: dict[str, Kind] = {"size": "size", "share": "boolean", "merge": "boolean", "dump": "boolean"}
OBJECT_TYPES: dict[str, dict[str, Kind]] = {
    "memory-backend-memfd": _MEMORY,
    "memory-backend-ram": _MEMORY,
    "rng-builtin": {},
    "rng-random": {"filename": "string"},
    "iothread": dict.fromkeys(
        ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min", "thread-pool-max"), "number"
    ),
    "throttle-group": {**dict.fromkeys((f"x-{name}" for name in LIMIT_NAMES), "number")},
}
_REQUIRED = {"memory-backend-ram": "size", "memory-backend-memfd": "size"}
# Properties that are there in one setting only, which is also what they mean when they are not given.
_MISSING: dict[str, dict[str, tuple[str, ...]]] = {
    "memory-backend-ram": {
        "prealloc": ("off",), "reserve": ("on",), "host-nodes": (), "policy": ("default",), "prealloc-threads": (),
        "prealloc-context": (), "x-use-canonical-path-for-ramblock-id": ("on", "off"),
    },
}  # fmt: skip
_MISSING["memory-backend-memfd"] = {**_MISSING["memory-backend-ram"], "hugetlb": ("off",), "hugetlbsize": ()}
_MISSING["memory-backend-memfd"]["seal"] = ("on", "off")
_TYPES_MISSING = """
    authz-list authz-list-file authz-pam authz-simple can-bus can-host-socketcan colo-compare cryptodev-backend
    cryptodev-backend-builtin cryptodev-vhost-user dbus-vmstate filter-buffer filter-dump filter-mirror
    filter-redirector filter-replay filter-rewriter input-barrier input-linux main-loop memory-backend-file
    pr-manager-helper qtest rng-egd secret secret_keyring sev-guest thread-context tls-cipher-suites
    tls-creds-anon tls-creds-psk tls-creds-x509 x-remote-object
"""
_JSON_TYPES: dict[Kind, tuple[type, str]] = {
    "string": (str, "string"),
    "boolean": (bool, "boolean"),
    "number": (int, "integer"),
    "size": (int, "integer"),
}


def make_object(options: Options) -> ObjectConfig:
    """Return the record of one ``-object``, its properties checked and of their own types."""
    kind = options.required("qom-type")
    types = OBJECT_TYPES.get(kind)
    if types is None:
        if kind in _TYPES_MISSING.split():
            raise options.error(f"object type '{kind}' is not supported by pyvm yet")
        raise options.error(f"Parameter 'qom-type' does not accept value '{kind}'")
    identifier = options.required("id")
    options.checked(lambda: parse_identifier("id", identifier))
    record = ObjectConfig(kind, identifier, origin=options.origin)
    properties = options.nested()
    if kind == "throttle-group":
        properties.update(_limits(properties.pop("limits", None), options))
    for name, value in properties.items():
        if name not in ("qom-type", "id"):
            _add(record, types, name, value, options)
    required = _REQUIRED.get(kind)
    if required is not None and required not in record.properties:
        raise options.error(f"Parameter '{required}' is missing")
    if record.properties.get("size") == 0:
        raise options.error(f"property 'size' of {kind} doesn't take value '0'")
    return record


def _limits(limits: Value, options: Options) -> dict[str, Value]:
    """Return the limits that are given as one structure, under the names of single properties."""
    if limits is None:
        return {}
    if not isinstance(limits, dict):
        raise options.error("Invalid parameter type for 'limits', expected: object")
    for name in limits:
        if name not in LIMIT_NAMES:
            raise options.error(f"Parameter 'limits.{name}' is unexpected")
    return {f"x-{name}": value for name, value in limits.items()}


def _add(record: ObjectConfig, types: dict[str, Kind], name: str, value: Value, options: Options) -> None:
    missing = _MISSING.get(record.type, {})
    if name in missing:
        text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if text not in missing[name]:
            raise options.error(f"'{name}' is not supported by pyvm yet")
    elif name in types:
        record.properties[name] = _typed(types[name], name, value, options)
    else:
        raise options.error(f"Invalid parameter '{name}'")


def _typed(kind: Kind, name: str, value: Value, options: Options) -> str | int | bool:
    expected, word = _JSON_TYPES[kind]
    if isinstance(value, str) and not options.typed:
        if kind == "boolean":
            return bool(options.checked(lambda: parse_boolean(name, value)))
        if kind == "string":
            return value
        parse = parse_size if kind == "size" else parse_number
        return int(options.checked(lambda: parse(name, value)))
    if not isinstance(value, (str, int)) or isinstance(value, bool) != (expected is bool):
        raise options.error(f"Invalid parameter type for '{name}', expected: {word}")
    if not isinstance(value, expected) or (isinstance(value, int) and value < 0):
        raise options.error(f"Invalid parameter type for '{name}', expected: {word}")
    return value
