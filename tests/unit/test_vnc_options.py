"""`-vnc` on the command line."""

from __future__ import annotations

import pytest

from pyvm.chardev.address import InetAddress, UnixAddress
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.vnc.options import VncOptions


def displays(*words: str) -> list[VncOptions]:
    return parse_arguments(["-nodefaults", *words]).vnc


def one(text: str) -> VncOptions:
    (options,) = displays("-vnc", text)
    return options


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":1", InetAddress("", "5901")),
        ("localhost:0", InetAddress("localhost", "5900")),
        ("[::1]:43", InetAddress("::1", "5943", ipv6=True)),
        (":5,to=9", InetAddress("", "5905", to=5909)),
        (":5,ipv4=on,ipv6=off", InetAddress("", "5905", ipv4=True, ipv6=False)),
        ("unix:/tmp/a:b", UnixAddress("/tmp/a:b")),
        ("none", None),
        ("", None),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert one(text).address == address


def test_parameters() -> None:
    options = one(
        "none,password=on,share=force-shared,connections=3,key-delay-ms=0,lock-key-sync=off,power-control=on,"
        "lossy=on,non-adaptive=on,display=d,head=1"
    )
    assert options == VncOptions(
        id="default",
        password=True,
        share="force-shared",
        connections=3,
        key_delay_ms=0,
        lock_key_sync=False,
        power_control=True,
        display="d",
        head=1,
        origin=options.origin,
    )
    assert one("none,password-secret=s").password
    assert not one("none").password
    assert one("none,websocket=off,sasl=off").address is None


def test_names() -> None:
    words = ("-vnc", "none", "-vnc", "none,id=x", "-display", "vnc=none", "-vnc", "none,id=vnc3", "-vnc", "none")
    assert sorted(options.id for options in displays(*words)) == ["default", "vnc2", "vnc3", "vnc4", "x"]


def test_a_silent_sound_card_is_no_obstacle() -> None:
    words = ("-audiodev", '{"id":"audio1","driver":"none"}', "-vnc", "none,audiodev=audio1")
    assert len(displays(*words)) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("foo", "no vnc port specified"),
        (":x", "can't convert to a number: x"),
        (":-1", "can't convert to a number: -1"),
        (":99999", "port 99999 out of range"),
        (":" + "9" * 5000, f"port {'9' * 5000} out of range"),
        ("unix:", "no path given for the unix socket"),
        (":1,zz=1", "Invalid parameter 'zz'"),
        (":1,share=zz", "unknown vnc share= option"),
        (":1,password=on,password-secret=a", "'password' flag is redundant with 'password-secret'"),
        (":1,audiodev=zz", "Audiodev 'zz' not found"),
        (":1,websocket=on", "websocket: VNC over WebSocket is not supported by pyvm yet"),
        (":1,tls-creds=x", "tls-creds: VNC over TLS is not supported by pyvm yet"),
    ],
)
def test_refusals(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(text)
    assert str(caught.value) == f"-vnc {text}: {problem}"


@pytest.mark.parametrize("parameter", ["sasl=on", "reverse=on", "sasl-authz=x", "tls-authz=x"])
def test_what_is_not_there_is_refused_by_name(parameter: str) -> None:
    with pytest.raises(ConfigError, match=f"{parameter.partition('=')[0]}: .* not supported by pyvm yet"):
        one(f"none,{parameter}")


def test_other_refusals() -> None:
    for words, problem in (
        (("-display", "vnc"), "-display vnc: VNC requires a display argument vnc=<display>"),
        (("-vnc", "none,id=a", "-vnc", "none,id=a"), "-vnc none,id=a: Duplicate ID 'a' for vnc"),
        (("-k", "de", "-vnc", "none"), "-k de: with -vnc only the layout en-us is supported by pyvm yet"),
    ):
        with pytest.raises(ConfigError) as caught:
            displays(*words)
        assert str(caught.value) == problem
    assert len(displays("-k", "en-us", "-vnc", "none")) == 1
    assert displays("-k", "de") == []


def test_clients_find_the_option() -> None:
    from pyvm.commandline.introspect import option_infos

    (info,) = (info for info in option_infos() if info["option"] == "vnc")
    assert {entry["name"]: entry["type"] for entry in info["parameters"]} == {
        **dict.fromkeys("vnc websocket tls-creds share display sasl-authz tls-authz audiodev".split(), "string"),
        **dict.fromkeys("head connections to key-delay-ms".split(), "number"),
        **dict.fromkeys(
            "ipv4 ipv6 password reverse lock-key-sync sasl lossy non-adaptive power-control".split(), "boolean"
        ),
        "password-secret": "string",
    }
