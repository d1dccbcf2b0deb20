"""The kinds of objects that users create, but for memory backends."""

from __future__ import annotations

import ctypes
import fnmatch
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, ClassVar

from pyvm.block.errors import BlockError
from pyvm.block.limit_names import LIMIT_NAMES
from pyvm.block.throttling import MAX_VALUE, Limits
from pyvm.config import ObjectConfig
from pyvm.errors import ConfigError
from pyvm.machine.entropy import BuiltinEntropy, EgdEntropy, FileEntropy
from pyvm.machine.memory_backends import MemoryBackend
from pyvm.machine.storage import Storage
from pyvm.machine.user_objects import ObjectHost, UserObject
from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError
from pyvm.monitor.schema.validate import validator
from pyvm.options import parse_json_object

_INT64_MAX = (1 << 63) - 1
_LOOP_DEFAULTS = {"aio-max-batch": 0, "thread-pool-min": 0, "thread-pool-max": 64}
_IOTHREAD_DEFAULTS = {**_LOOP_DEFAULTS, "poll-max-ns": 32768, "poll-grow": 0, "poll-shrink": 0}
_SYS_KEYCTL, _KEYCTL_READ = 250, 11
_MOST_RULES = 1 << 20


def _storage(host: ObjectHost) -> Storage:
    storage = host.storage()
    if storage is None:
        raise QmpError("there are no disks that this could be for")
    return storage


def _check_range(name: str, value: int) -> None:
    if not 0 <= value <= _INT64_MAX:
        raise QmpError(f"{name} value must be in range [0, {_INT64_MAX}]")


def _check_pool(values: Mapping[str, int]) -> None:
    low, high = values["thread-pool-min"], values["thread-pool-max"]
    if not high or low > high:
        raise QmpError("bad thread-pool-min/thread-pool-max values")


class _EventLoop(UserObject):
    """A loop with a pool of threads; its properties are numbers that can be changed at any time."""

    def __init__(self, kind: str, identifier: str, given: Mapping[str, int], defaults: Mapping[str, int]) -> None:
        super().__init__(kind, identifier)
        for name, value in given.items():
            _check_range(name, value)
        self.values = {**defaults, **given}
        _check_pool(self.values)

    def put(self, name: str, value: Any) -> None:
        """Change a number."""
        _check_range(name, value)
        _check_pool({**self.values, name: value})
        self.values[name] = value


class IoThreadObject(_EventLoop):
    """A thread that serves disks; the storage has it."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier, given, _IOTHREAD_DEFAULTS)
        self._storage = _storage(host)
        if identifier not in self._storage.iothreads:
            self._storage.add_object(ObjectConfig(kind, identifier, given))

    def put(self, name: str, value: Any) -> None:
        """Change a number."""
        super().put(name, value)
        shown = self._storage.iothreads[self.id].properties
        if name in shown:
            shown[name] = value

    def close(self) -> None:
        """The name is gone; disks that the thread serves keep it."""
        self._storage.remove_iothread(self.id)


class MainLoopObject(_EventLoop):
    """What can be said of the main loop; it stays once it has been."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        del host
        super().__init__(kind, identifier, given, _LOOP_DEFAULTS)

    @property
    def in_use(self) -> bool:
        """The main loop goes on."""
        return True


class ThrottleGroupObject(UserObject):
    """Limits that disks share; the storage has them."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        check_limits(given)
        self._groups = _storage(host).graph.throttle_groups
        if self._groups.find(identifier) is None:
            try:
                self._groups.add(identifier, Limits(limits_of(given)))
            except BlockError as error:
                raise QmpError(str(error)) from None
        group = self._groups.find(identifier)
        assert group is not None
        self._group = group

    def get(self, name: str) -> Any:
        """Return a limit, or all of them."""
        limits = self._group.limits
        return limits.report() if name == "limits" else limits.get(name.removeprefix("x-"))

    def put(self, name: str, value: Any) -> None:
        """Put other limits in force."""
        if name != "limits":
            raise QmpError("Property cannot be set after initialization")
        check_limits({"limits": value})
        try:
            self._group.configure(Limits({**self._group.limits.values, **value}))
        except BlockError as error:
            raise QmpError(str(error)) from None

    @property
    def in_use(self) -> bool:
        """Whether a disk is in the group."""
        return self._group.in_use

    def close(self) -> None:
        """The group goes."""
        self._groups.remove(self.id)


def limits_of(given: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits that an object's properties say, one by one or as one structure, without their ``x-``."""
    single = {name.removeprefix("x-"): value for name, value in given.items() if name != "limits"}
    return {**single, **{name: value for name, value in (given.get("limits") or {}).items() if name in LIMIT_NAMES}}


def check_limits(given: Mapping[str, Any]) -> None:
    """Raise QmpError for what cannot be a limit."""
    together = given.get("limits") or {}
    for name, value in limits_of(given).items():
        if value < 0 and name in together:
            raise QmpError(f"bps/iops/max values must be within [0, {MAX_VALUE}]")
        if value < 0:
            raise QmpError("Property values cannot be negative")
        if value > (1 << 32) - 1 and name.endswith("-max-length"):
            raise QmpError(f"Value exceeds the limit of {name}: {(1 << 32) - 1}")


class SecretObject(UserObject):
    """A password or key, for others to find by the object's ID."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        self.values = {"format": "raw", **given, "loaded": True}
        storage = host.storage()
        self._secrets = host.secrets if storage is None else storage.graph.secrets
        properties = {name: value for name, value in given.items() if name not in ("loaded", "serial")}
        if kind == "secret_keyring":
            properties["data"] = _read_key(given["serial"]).decode("utf-8", "surrogateescape")
        self._secrets.add(identifier, properties)

    def get(self, name: str) -> Any:
        """Return what was given."""
        return self.values.get(name, "")

    def close(self) -> None:
        """The secret is forgotten."""
        self._secrets.remove(self.id)


def _read_key(serial: int) -> bytes:
    """Return a key of the kernel's; raises QmpError."""
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.syscall
    call.restype = ctypes.c_long
    buffer = ctypes.create_string_buffer(1 << 16)
    key = ctypes.c_long(serial)
    length = call(ctypes.c_long(_SYS_KEYCTL), ctypes.c_long(_KEYCTL_READ), key, buffer, ctypes.c_long(len(buffer)))
    if length < 0:
        reason = os.strerror(ctypes.get_errno())
        raise QmpError(f"Unable to read serial key {serial & 0xFFFFFFFF:08x}: {reason}")
    return buffer.raw[: min(length, len(buffer))]


class RngObject(UserObject):
    """A source of random bytes for the guest."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        if "opened" in given:
            raise QmpError(f"Property '{kind}.opened' is not writable")
        self.values = {"opened": True, **({"filename": "/dev/urandom"} if kind == "rng-random" else {}), **given}
        self.entropy: BuiltinEntropy | FileEntropy | EgdEntropy
        if kind == "rng-random":
            self.entropy = FileEntropy(self.values["filename"])
        elif kind == "rng-egd":
            self.entropy = EgdEntropy(_chardev(host, given["chardev"]))
        else:
            self.entropy = BuiltinEntropy()

    def close(self) -> None:
        """The name is gone; a device that draws from the source keeps it."""
        self.entropy.release()


def _chardev(host: ObjectHost, name: str) -> Any:
    found = None if host.chardevs is None else host.chardevs.find(name)
    if found is None:
        raise QmpError(f"Device '{name}' not found", DEVICE_NOT_FOUND)
    port = found.port()
    if port.frontend is not None:
        raise QmpError(f"Device '{name}' is in use")
    return port


class AuthorizationObject(UserObject):
    """Who may do something: one name, rules, or rules in a file."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        del host
        super().__init__(kind, identifier)
        self.values = {"policy": "deny", "rules": [], **given} if kind == "authz-list" else dict(given)

    def is_allowed(self, identity: str) -> bool:
        """Whether the one who is called `identity` may."""
        if self.type == "authz-simple":
            return bool(identity == self.values["identity"])
        return is_allowed(self.values, identity)

    def put(self, name: str, value: Any) -> None:
        """Change whom it is about."""
        self.values[name] = value


def is_allowed(rules: Mapping[str, Any], identity: str) -> bool:
    """Whether the first rule that names `identity` lets it pass, or the policy where none does."""
    for rule in rules.get("rules") or ():
        matches = fnmatch.fnmatchcase if rule.get("format") == "glob" else str.__eq__
        if matches(identity, rule["match"]):
            return bool(rule["policy"] == "allow")
    return bool(rules.get("policy") == "allow")


class CanBusObject(UserObject):
    """A CAN bus; pyvm has no controllers that could be on it."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        del host, given
        super().__init__(kind, identifier)


class _HeldObject(UserObject):
    """Settings for a device or for hardware that no machine of pyvm has: they are kept, and nobody comes for them."""

    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        del host
        super().__init__(kind, identifier)
        for name, value in given.items():
            self.check(name, value)
        self.values = {**self.defaults, **given}

    def check(self, name: str, value: Any) -> None:
        """Raise QmpError for a value that cannot be."""

    def put(self, name: str, value: Any) -> None:
        """Change a setting."""
        self.check(name, value)
        self.values[name] = value


class SevGuestObject(_HeldObject):
    """How a processor of AMD would encrypt the guest's memory."""

    defaults = MappingProxyType(
        {"sev-device": "/dev/sev", "policy": 1, "handle": 0, "cbitpos": 0, "kernel-hashes": False}
    )


class CryptoBackendObject(_HeldObject):
    """What would do the work of a crypto device."""

    defaults = MappingProxyType({"queues": 1})

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(host, kind, identifier, given)
        if kind == "cryptodev-backend-builtin" and self.values["queues"] != 1:
            raise QmpError("Only support one queue in cryptdov-builtin backend")

    def check(self, name: str, value: Any) -> None:
        """Raise QmpError where there are no queues."""
        if name == "queues" and not value:
            raise QmpError(f"Property '{self.type}.queues' doesn't take value '0'")


_TLS_FILES = {
    # Name, and whether it has to be there.
    "tls-creds-anon": {"server": (("dh-params.pem", False),), "client": ()},
    "tls-creds-psk": {
        "server": (("dh-params.pem", False), ("keys.psk", True)),
        "client": (("keys.psk", True),),
    },
    "tls-creds-x509": {
        "server": (("ca-cert.pem", True), ("ca-crl.pem", False), ("server-cert.pem", True), ("server-key.pem", True),
                   ("dh-params.pem", False)),
        "client": (("ca-cert.pem", True), ("client-cert.pem", False), ("client-key.pem", False)),
    },
}  # fmt: skip


class TlsCredentialsObject(UserObject):
    """Certificates or keys for TLS: where they are, and which side they are for."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(kind, identifier)
        defaults = {"endpoint": "client", "verify-peer": True, "sanity-check": True}
        if kind != "tls-creds-x509":
            del defaults["sanity-check"]
        self.values = {**defaults, **given, "loaded": True}
        self.files: dict[str, str] = {}
        """Paths of the files that are there, by their plain names."""
        directory = self.values.get("dir")
        if directory is None:
            if kind != "tls-creds-anon":
                raise QmpError("Missing 'dir' property value")
            return
        for name, required in _TLS_FILES[kind][self.values["endpoint"]]:
            self._find(directory, name, required)
        if kind == "tls-creds-x509" and self.values["sanity-check"]:
            self._check_certificates(host)

    def _find(self, directory: str, name: str, required: bool) -> None:
        path = f"{directory}/{name}"
        try:
            os.stat(path)
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            if required or not missing:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise QmpError(f"Unable to access credentials {path}: {reason}") from None
            return
        self.files[name] = path

    def _check_certificates(self, host: ObjectHost) -> None:
        """Raise QmpError for files that are no certificates, or a certificate without its key."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        side = self.values["endpoint"]
        certificate = self.files.get(f"{side}-cert.pem")
        storage, name = host.storage(), self.values.get("passwordid")
        secrets = host.secrets if storage is None else storage.graph.secrets
        password = secrets.find(name) if name else b""
        try:
            path = self.files["ca-cert.pem"]
            context.load_verify_locations(path)
            if certificate is not None:
                path = certificate
                context.load_cert_chain(certificate, self.files.get(f"{side}-key.pem"), password=lambda: password)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise QmpError(f"Unable to import certificate {path}: {reason}") from None


class AuthorizationFile(AuthorizationObject):
    """Rules in a file, as JSON; with `refresh` they are read again when the file changes."""

    def __init__(self, host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> None:
        super().__init__(host, kind, identifier, {"refresh": True, **given})
        self._stamp = -1
        self._rules: dict[str, Any] = {}
        self._read()

    def is_allowed(self, identity: str) -> bool:
        """Whether the one who is called `identity` may."""
        if self.values["refresh"]:
            with suppress(QmpError):  # what was read last holds while the file is away or wrong
                self._read()
        return is_allowed(self._rules, identity)

    def put(self, name: str, value: Any) -> None:
        """Change the file, or whether changes of it count."""
        before = self.values[name]
        self.values[name] = value
        if name == "filename":
            self._stamp = -1
            try:
                self._read()
            except QmpError:
                self.values[name] = before
                raise

    def _read(self) -> None:
        path = self.values["filename"]
        try:
            stamp = os.stat(path).st_mtime_ns
            if stamp == self._stamp:
                return
            with open(path, "rb") as file:
                text = file.read(_MOST_RULES).decode()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise QmpError(f"Unable to read '{path}': {reason}") from None
        try:
            rules = parse_json_object(text)
        except ConfigError as error:
            raise QmpError(str(error)) from None
        validator().check("AuthZListProperties", rules)
        self._rules, self._stamp = rules, stamp


def _filter(host: ObjectHost, kind: str, identifier: str, given: dict[str, Any]) -> UserObject:
    from pyvm.machine.net_filters import FILTERS

    return FILTERS[kind](host, kind, identifier, given)


Creator = Callable[[ObjectHost, str, str, dict[str, Any]], UserObject]
KINDS: dict[str, Creator] = {
    "authz-list": AuthorizationObject,
    "authz-list-file": AuthorizationFile,
    "authz-simple": AuthorizationObject,
    "can-bus": CanBusObject,
    "cryptodev-backend": CryptoBackendObject,
    "cryptodev-backend-builtin": CryptoBackendObject,
    **dict.fromkeys(("filter-buffer", "filter-dump", "filter-mirror", "filter-redirector"), _filter),
    "iothread": IoThreadObject,
    "main-loop": MainLoopObject,
    "memory-backend-file": MemoryBackend,
    "memory-backend-memfd": MemoryBackend,
    "memory-backend-ram": MemoryBackend,
    "rng-builtin": RngObject,
    "rng-egd": RngObject,
    "rng-random": RngObject,
    "secret": SecretObject,
    "secret_keyring": SecretObject,
    "sev-guest": SevGuestObject,
    "throttle-group": ThrottleGroupObject,
    **dict.fromkeys(("tls-creds-anon", "tls-creds-psk", "tls-creds-x509"), TlsCredentialsObject),
}
"""What `object-add` can create, by the name of the type."""
