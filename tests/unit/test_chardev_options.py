"""From option text to records: `-chardev` and the short forms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.address import FdAddress, InetAddress, UnixAddress, resolve
from pyvm.chardev.base import ChardevError
from pyvm.chardev.options import (
    BACKENDS,
    PARAMETERS,
    ChardevOptions,
    FileOptions,
    MuxOptions,
    NullOptions,
    PipeOptions,
    PtyOptions,
    RingbufOptions,
    SerialOptions,
    SocketOptions,
    StdioOptions,
    UdpOptions,
    VcOptions,
    parse_chardev,
    parse_number,
    parse_size,
    split_options,
)
from pyvm.chardev.uri import ChardevReference, parse_uri


def parse(text: str, **extra: Any) -> ChardevOptions:
    return parse_chardev(split_options(text), **extra)


def error(text: str) -> str:
    with pytest.raises(ChardevError) as caught:
        parse(text)
    return str(caught.value)


def uri(text: str, **extra: Any) -> ChardevOptions | ChardevReference:
    return parse_uri("serial0", text, **extra)


def uri_error(text: str, **extra: Any) -> str:
    with pytest.raises(ChardevError) as caught:
        uri(text, **extra)
    return str(caught.value)


# Splitting.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("socket,id=a", {"backend": "socket", "id": "a"}),
        ("socket,path=a,,b,server", {"backend": "socket", "path": "a,b", "server": "on"}),
        ("socket,server=on,nowait,nodelay", {"backend": "socket", "server": "on", "wait": "off", "delay": "off"}),
        ("backend=null,id=x", {"backend": "null", "id": "x"}),
        ("file,path=a=b,id=", {"backend": "file", "path": "a=b", "id": ""}),
        ("null,,x", {"backend": "null,x"}),
        ("null,", {"backend": "null"}),
        ("a,b=1,b=2", {"backend": "a", "b": "2"}),
    ],
)
def test_split(text: str, expected: dict[str, str]) -> None:
    assert split_options(text) == expected


@settings(max_examples=50)
@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=8), st.text(max_size=20), max_size=5))
def test_split_inverts_quoting(values: dict[str, str]) -> None:
    text = "first," + ",".join(f"{name}={value.replace(',', ',,')}" for name, value in values.items())
    assert split_options(text, "0") == {"0": "first"} | values


# -chardev.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null,id=x", NullOptions(id="x")),
        ("vc,id=x,cols=80,rows=24", VcOptions(id="x")),
        ("pty,id=x,mux=on", PtyOptions(id="x", mux=True)),
        ("stdio,id=x", StdioOptions(id="x")),
        ("stdio,id=x,signal=off,logfile=/l,logappend=on", StdioOptions(
            id="x", signal=False, logfile="/l", logappend=True)),
        ("file,id=x,path=/f", FileOptions(id="x", path="/f")),
        ("file,id=x,path=/f,append=on,input-path=/i", FileOptions(id="x", path="/f", append=True, input_path="/i")),
        ("pipe,id=x,path=/p", PipeOptions(id="x", path="/p")),
        ("serial,id=x,path=/dev/ttyS0", SerialOptions(id="x", path="/dev/ttyS0")),
        ("tty,id=x,path=/dev/ttyS0", SerialOptions(id="x", path="/dev/ttyS0")),
        ("ringbuf,id=x", RingbufOptions(id="x", size=65536)),
        ("memory,id=x,size=1M", RingbufOptions(id="x", size=1 << 20, kind="memory")),
        ("mux,id=x,chardev=y", MuxOptions(id="x", chardev="y")),
        ("udp,id=x,port=5", UdpOptions(id="x", port="5")),
        ("udp,id=x,host=h,port=5,localaddr=l,localport=6,ipv6=on", UdpOptions(
            id="x", host="h", port="5", local_host="l", local_port="6", ipv6=True)),
        ("socket,id=x,path=/s", SocketOptions(id="x", address=UnixAddress("/s"))),
        ("socket,id=x,path=/s,server=on", SocketOptions(id="x", address=UnixAddress("/s"), server=True, wait=True)),
        ("socket,id=x,path=/s,server,nowait", SocketOptions(id="x", address=UnixAddress("/s"), server=True)),
        ("socket,id=x,path=s,abstract=on,tight=off,reconnect=3", SocketOptions(
            id="x", address=UnixAddress("s", abstract=True, tight=False), reconnect=3)),
        ("socket,id=x,host=h,port=p,ipv4=off,nodelay=on,telnet=on", SocketOptions(
            id="x", address=InetAddress("h", "p", ipv4=False), nodelay=True, telnet=True)),
        ("socket,id=x,host=,port=0,to=9,server=on,wait=off,nodelay", SocketOptions(
            id="x", address=InetAddress("", "0", to=9), server=True, nodelay=True)),
        ("socket,id=x,host=h,port=1,keep-alive=on", SocketOptions(
            id="x", address=InetAddress("h", "1", keep_alive=True))),
        ("socket,id=x,fd=7", SocketOptions(id="x", address=FdAddress("7"))),
    ],
)  # fmt: skip
def test_records(text: str, expected: ChardevOptions) -> None:
    assert parse(text) == expected


def test_implicit_server_is_for_unix_sockets_without_a_role() -> None:
    listens = SocketOptions(id="x", address=UnixAddress("/s"), server=True, connect_if_live=True)
    assert parse("socket,id=x,path=/s", implicit_server=True) == listens
    assert parse("socket,id=x,path=/s,wait=off", implicit_server=True) == listens
    connects = SocketOptions(id="x", address=UnixAddress("/s"))
    assert parse("socket,id=x,path=/s,server=off", implicit_server=True) == connects
    waits = SocketOptions(id="x", address=UnixAddress("/s"), server=True, wait=True)
    assert parse("socket,id=x,path=/s,server=on", implicit_server=True) == waits
    inet = SocketOptions(id="x", address=InetAddress("h", "1"))
    assert parse("socket,id=x,host=h,port=1", implicit_server=True) == inet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "chardev: no id specified"),
        ("null,id=1x",
         "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', starting with a letter"),
        ("id=x", 'chardev: "x" missing backend'),
        ("foo,id=x", "'foo' is not a valid char driver name"),
        ("null,id=x,bar=1", "Invalid parameter 'bar'"),
        ("socket,id=x", "chardev: socket: no 'path', 'host' or 'fd' given"),
        ("socket,id=x,host=h", "chardev: socket: no port given"),
        ("socket,id=x,path=a,host=b", "None or one of 'path', 'fd' or 'host' option required."),
        ("socket,id=x,path=a,fd=3", "None or one of 'path', 'fd' or 'host' option required."),
        ("socket,id=x,path=a,server=maybe", "Parameter 'server' expects 'on' or 'off'"),
        ("socket,id=x,path=a,reconnect=abc", "Parameter 'reconnect' expects a number"),
        ("socket,id=x,path=a,reconnect=-1", "Parameter 'reconnect' expects a number"),
        ("socket,id=x,path=a,wait=off", "'wait' option is incompatible with socket in client connect mode"),
        ("socket,id=x,path=a,server=on,reconnect=1",
         "'reconnect' option is incompatible with socket in server listen mode"),
        ("socket,id=x,fd=3,reconnect=1", "'reconnect' option is incompatible with 'fd'"),
        ("socket,id=x,path=a,delay=on,nodelay=on", "'delay' and 'nodelay' are mutually exclusive"),
        ("socket,id=x,path=a,tls-creds=t", "No TLS credentials with id 't'"),
        ("socket,id=x,path=a,tls-authz=t", "'tls_authz' option requires 'tls_creds' option"),
        ("socket,id=x,path=a,server=off,websocket=on", "Websocket client is not implemented"),
        ("socket,id=x,path=a,tn3270=on", "chardev: socket: tn3270 is not supported"),
        ("file,id=x", "chardev: file: no filename given"),
        ("pipe,id=x", "chardev: pipe: no device path given"),
        ("serial,id=x", "chardev: serial/tty: no device path given"),
        ("udp,id=x", "chardev: udp: remote port not specified"),
        ("udp,id=x,port=", "chardev: udp: remote port not specified"),
        ("mux,id=x", "chardev: mux: no chardev given"),
        ("ringbuf,id=x,size=foo", "Parameter 'size' expects a non-negative number below 2^64"),
        ("ringbuf,id=x,size=16E", "Parameter 'size' expects a non-negative number below 2^64"),
    ],
)  # fmt: skip
def test_mistakes(text: str, message: str) -> None:
    assert error(text) == message


def test_numbers_and_sizes() -> None:
    assert [parse_number("n", text) for text in ("0", "10", "0x10", "010")] == [0, 10, 16, 8]
    for text in ("", "-1", "1.5", "09", "x", "1_0", "0x", str(1 << 64), "1" * 5000):
        with pytest.raises(ChardevError):
            parse_number("n", text)
    assert [parse_size("s", text) for text in ("7", "2k", "1.5K", "1b", "0x20", "3G")] == [
        7,
        2048,
        1536,
        1,
        32,
        3 << 30,
    ]
    for text in ("", "-1", "k", "1kk", "1 k", ".5", "9" * 4000):
        with pytest.raises(ChardevError):
            parse_size("s", text)


def test_both_families_off() -> None:
    import socket

    with pytest.raises(ChardevError, match=r"^Cannot disable IPv4 and IPv6 at same time$"):
        resolve(InetAddress("localhost", "1", ipv4=False, ipv6=False), socket.SOCK_STREAM)
    assert InetAddress("h", "1", ipv4=True, ipv6=True).family() == socket.AF_UNSPEC
    assert InetAddress("h", "1", ipv4=False).family() == socket.AF_INET6
    assert InetAddress("h", "1", ipv6=False).family() == socket.AF_INET
    for port in ("foo", "65536", "99999999999999999999", "\0"):
        with pytest.raises(ChardevError, match=r"^address resolution failed"):
            resolve(InetAddress("localhost", port), socket.SOCK_STREAM)


_VALUES = st.one_of(st.sampled_from(["on", "off", "1", "0x", "10k", "", "a", "[::1]"]), st.text(max_size=10))


@settings(max_examples=300)
@given(
    st.sampled_from([*BACKENDS, "tty", "x", ""]),
    st.dictionaries(st.sampled_from([*PARAMETERS, "id", "zz"]), _VALUES, max_size=6),
    st.booleans(),
)
def test_any_options_give_a_record_or_one_line(backend: str, values: dict[str, str], implicit: bool) -> None:
    try:
        made = parse_chardev({"backend": backend, "id": "x"} | values, implicit_server=implicit)
    except ChardevError as failure:
        complaint = str(failure)
    else:
        assert made.id == values.get("id", "x")
        return
    assert complaint
    assert "\n" not in complaint or any("\n" in value for value in values.values())


# Short forms.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", "null"),
        ("pty", "pty"),
        ("stdio", "stdio"),
        ("mon:stdio", "stdio,mux=on,signal=off"),
        ("mon:pty", "pty,mux=on"),
        ("vc", "vc"),
        ("vc:80Cx24C", "vc"),
        ("vc:800x600,x", "vc"),
        ("file:/tmp/a,b", "file,path=/tmp/a,,b"),
        ("pipe:/tmp/p", "pipe,path=/tmp/p"),
        ("/dev/ttyUSB0", "serial,path=/dev/ttyUSB0"),
        ("unix:/tmp/s", "socket,path=/tmp/s"),
        ("unix:/tmp/s,server,nowait", "socket,path=/tmp/s,server=on,wait=off"),
        ("unix:/tmp/a,,b,server=on", "socket,path=/tmp/a,,b,server=on"),
        ("mon:unix:/tmp/s,server=on,wait=off", "socket,path=/tmp/s,server=on,wait=off,mux=on"),
        ("tcp:host:12", "socket,host=host,port=12"),
        ("tcp::12,server=on,wait=off,nodelay", "socket,host=,port=12,server=on,wait=off,nodelay=on"),
        ("tcp:[::1]:12,server", "socket,host=::1,port=12,server=on"),
        ("telnet:localhost:12,server,nowait", "socket,host=localhost,port=12,server=on,wait=off,telnet=on"),
        ("udp:h:1", "udp,host=h,port=1"),
        ("udp::1@l:2", "udp,host=,port=1,localaddr=l,localport=2"),
        ("udp:[::1]:1@[::]:2", "udp,host=::1,port=1,localaddr=::,localport=2"),
    ],
)
def test_short_forms(text: str, expected: str) -> None:
    assert uri(text) == parse(expected + ",id=serial0")


def test_reference() -> None:
    assert uri("chardev:foo") == ChardevReference("foo")


@pytest.mark.parametrize(
    "text", ["foo", "", "mon:", "stdio,signal=off", "pty,x", "null,x", "vc:foo", "fdset:", "mon:chardev:x", "mon:foo"]
)
def test_what_is_no_short_form(text: str) -> None:
    assert uri_error(text) == f"'{text.removeprefix('mon:')}' is not a valid char driver"


def test_mistakes_in_short_forms() -> None:
    assert uri_error("tcp:") == "chardev: socket: no port given"
    assert uri_error("tcp:localhost") == "chardev: socket: no port given"
    assert uri_error("udp:h") == "chardev: udp: remote port not specified"
    assert uri_error("udp:h:1@") == "chardev: udp: remote port not specified"
    assert uri_error("unix:/s,bar=2") == "Invalid parameter 'bar'"
    assert uri_error("unix:/s,id=evil") == "Invalid parameter 'id'"
    assert uri_error("tcp:h:1,server=maybe") == "Parameter 'server' expects 'on' or 'off'"
    assert uri_error("mon:stdio", allow_mux=False) == "'mon:stdio' is not a valid char driver"
    assert uri_error("websocket:h:1") == "Websocket client is not implemented"


def test_implicit_server_in_short_forms() -> None:
    assert uri("unix:/q", implicit_server=True) == SocketOptions(
        id="serial0", address=UnixAddress("/q"), server=True, connect_if_live=True
    )
    assert uri("unix:/q,server=off", implicit_server=True) == SocketOptions(id="serial0", address=UnixAddress("/q"))


@settings(max_examples=400)
@given(
    st.sampled_from(["", "mon:", "tcp:", "udp:", "unix:", "telnet:", "file:", "vc", "/dev/", "chardev:", "pipe:"]),
    st.one_of(st.text(max_size=30), st.text(":,=@[]xC01ab", max_size=20)),
)
def test_any_text_gives_a_record_or_one_error(prefix: str, rest: str) -> None:
    try:
        made = uri(prefix + rest)
    except ChardevError:
        return
    assert isinstance(made, ChardevReference) or made.id == "serial0"
