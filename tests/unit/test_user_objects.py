"""Objects that users create: who is allowed, TLS credentials, entropy, and names that are taken."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.machine.entropy import BuiltinEntropy, EgdEntropy, FileEntropy
from pyvm.machine.object_kinds import KINDS, AuthorizationObject, TlsCredentialsObject
from pyvm.machine.user_objects import ObjectHost, UserObjects
from pyvm.monitor.errors import QmpError

HOST = ObjectHost()


def make(kind: str, **properties: Any) -> Any:
    given = {name.replace("_", "-"): value for name, value in properties.items()}
    return KINDS[kind](HOST, kind, "o", given)


def test_one_name() -> None:
    one: AuthorizationObject = make("authz-simple", identity="CN=me")
    assert one.is_allowed("CN=me")
    assert not one.is_allowed("CN=other")
    one.put("identity", "CN=other")
    assert one.is_allowed("CN=other")


def test_rules() -> None:
    rules = [
        {"match": "fred", "policy": "allow"},
        {"match": "bob*", "policy": "deny", "format": "glob"},
        {"match": "*", "policy": "allow", "format": "glob"},
    ]
    some: AuthorizationObject = make("authz-list", rules=rules)
    assert [some.is_allowed(name) for name in ("fred", "bobby", "dan", "*")] == [True, False, True, True]
    assert not make("authz-list").is_allowed("anybody")
    assert make("authz-list", policy="allow").is_allowed("anybody")
    assert not make("authz-list", rules=[{"match": "a*", "policy": "allow"}]).is_allowed("ab")


def test_rules_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(json.dumps({"policy": "deny", "rules": [{"match": "me", "policy": "allow"}]}))
    found: AuthorizationObject = make("authz-list-file", filename=str(path))
    fixed: AuthorizationObject = make("authz-list-file", filename=str(path), refresh=False)
    assert (found.is_allowed("me"), found.is_allowed("you")) == (True, False)
    path.write_text(json.dumps({"policy": "allow"}))
    os.utime(path, ns=(1, 1))
    assert found.is_allowed("you")
    assert not fixed.is_allowed("you")
    path.unlink()
    assert found.is_allowed("you")
    with pytest.raises(QmpError, match="No such file or directory"):
        found.put("filename", str(path))
    assert found.get("filename") == str(path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", "JSON parse error"),
        ("[]", "Expecting a JSON object"),
        ('{"policy": "maybe"}', "Parameter 'policy' does not accept value 'maybe'"),
        ('{"foo": 1}', "Parameter 'foo' is unexpected"),
    ],
)
def test_rules_that_are_none(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "rules"
    path.write_text(text)
    with pytest.raises(QmpError, match=error):
        make("authz-list-file", filename=str(path))


# ---- TLS


def test_credentials_without_certificates(tmp_path: Path) -> None:
    plain: TlsCredentialsObject = make("tls-creds-anon", endpoint="server")
    assert (plain.get("verify-peer"), plain.get("loaded"), plain.files) == (True, True, {})
    (tmp_path / "dh-params.pem").write_text("x")
    assert set(make("tls-creds-anon", endpoint="server", dir=str(tmp_path)).files) == {"dh-params.pem"}
    with pytest.raises(QmpError, match=r"Unable to access credentials .*/keys.psk: No such file or directory"):
        make("tls-creds-psk", dir=str(tmp_path))
    (tmp_path / "keys.psk").write_text("me:00")
    assert set(make("tls-creds-psk", endpoint="server", dir=str(tmp_path)).files) == {"dh-params.pem", "keys.psk"}


def test_certificates_are_looked_at(tmp_path: Path) -> None:
    for name in ("ca-cert.pem", "server-cert.pem"):
        with pytest.raises(QmpError, match=f"Unable to access credentials {tmp_path}/{name}: No such file"):
            make("tls-creds-x509", endpoint="server", dir=str(tmp_path))
        (tmp_path / name).write_text("no certificate")
    (tmp_path / "server-key.pem").write_text("no key")
    with pytest.raises(QmpError, match=f"Unable to import certificate {tmp_path}/ca-cert.pem: "):
        make("tls-creds-x509", endpoint="server", dir=str(tmp_path))
    made = make("tls-creds-x509", endpoint="server", dir=str(tmp_path), sanity_check=False)
    assert set(made.files) == {"ca-cert.pem", "server-cert.pem", "server-key.pem"}


# ---- Entropy


def test_random_bytes() -> None:
    assert len(BuiltinEntropy().read(16)) == 16
    source = FileEntropy("/dev/zero")
    source.hold()
    source.release()
    assert source.read(4) == bytes(4)
    source.release()
    with pytest.raises(QmpError, match="Could not open '/none': No such file or directory"):
        FileEntropy("/none")


class Wire(Chardev):
    """A character device that takes so many bytes at a time."""

    def __init__(self, room: int) -> None:
        super().__init__("c")
        self.room = room
        self.sent = bytearray()

    @property
    def filename(self) -> str:
        return "test"

    def _write(self, data: Buffer) -> int:
        taken = bytes(data)[: self.room]
        self.sent += taken
        self.room -= len(taken)
        return len(taken)


def test_an_entropy_daemon() -> None:
    wire = Wire(3)
    source = EgdEntropy(wire)
    told: list[bytes] = []
    source.waiting.append(lambda: told.append(source.read(4)))
    assert source.read(4) == b""
    assert source.can_receive() == 4
    assert source.read(4) == b""  # nothing is asked for twice
    assert bytes(wire.sent) == b"\x02\x04"
    assert source.read(6) == b""
    assert bytes(wire.sent) == b"\x02\x04\x02"
    wire.room = 10
    source.writable()
    assert bytes(wire.sent) == b"\x02\x04\x02\x02"
    source.receive(b"abcdef")
    assert told == [b"abcd"]
    assert source.read(2) == b"ef"
    # A daemon that went away is asked again when it is back.
    source.read(5)
    source.event(ChardevEvent.CLOSED)
    assert source.can_receive() == 0
    wire.sent.clear()
    source.event(ChardevEvent.OPENED)
    assert bytes(wire.sent) == b"\x02\x04"
    source.release()
    assert wire.frontend is None


# ---- The set of them


def test_the_set_of_objects() -> None:
    objects = UserObjects(ObjectHost())
    made = objects.add("can-bus", "bus", {})
    assert list(objects) == [made]
    assert objects.find("bus") is made
    for action, error in (
        (lambda: objects.add("can-bus", "bus", {}), "attempt to add duplicate property 'bus' to object"),
        (lambda: objects.add("can-bus", "9", {}), "Parameter 'id' expects an identifier"),
        (lambda: objects.add("nope", "a", {}), "invalid object type: nope"),
        (lambda: objects.remove("a"), "object 'a' not found"),
        (lambda: objects.add("iothread", "a", {}), "there are no disks that this could be for"),
        (lambda: made.put("type", "x"), "Property 'can-bus.type' is not writable"),
    ):
        with pytest.raises(QmpError, match=error):
            action()
    objects.remove("bus")
    assert list(objects) == []
    objects.add("main-loop", "loop", {"thread-pool-max": 5})
    with pytest.raises(QmpError, match="object 'loop' is in use, can not be deleted"):
        objects.remove("loop")
    objects.close()
    assert list(objects) == []
