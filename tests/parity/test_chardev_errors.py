"""Mistakes in `-chardev`, `-serial` and `-qmp`: pyvm complains in the words of QEMU, where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from pyvm.chardev.base import ChardevError
from pyvm.chardev.options import parse_chardev, split_options
from pyvm.chardev.registry import ChardevSet
from pyvm.chardev.uri import ChardevReference, parse_uri
from pyvm.clock import RunningClock
from pyvm.mainloop import MainLoop

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]


@pytest.fixture
def devices() -> Iterator[ChardevSet]:
    loop = MainLoop(RunningClock())
    made = ChardevSet(loop)
    yield made
    made.close_all()
    loop.close()


def qemu_complaint(*arguments: str) -> str:
    """Return the first line that QEMU prints for what must be a mistake, without what it repeats of the command."""
    command = [QEMU or "", "-machine", "none", "-display", "none", "-nodefaults", "-S", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 1, done
    return done.stderr.splitlines()[0].removeprefix(f"qemu-system-x86_64: {' '.join(arguments[-2:])}: ")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "id=x",
        "foo,id=x",
        "null,id=x,bar=1",
        "null,id=x,mux=maybe",
        "null,id=x,logfile=/nonexist/l",
        "socket,id=x,host=localhost",
        "socket,id=x,path=/a,host=b",
        "socket,id=x,path=/a,fd=3",
        "socket,id=x,fd=99",
        "socket,id=x,fd=abc",
        "socket,id=x,path=/nonexist/a",
        "socket,id=x,path=/nonexist/a,server=on,wait=off",
        "socket,id=x,path=/a,server=maybe",
        "socket,id=x,path=/a,wait=off",
        "socket,id=x,path=/a,server=on,reconnect=1",
        "socket,id=x,path=/a,reconnect=abc",
        "socket,id=x,path=/a,tls-creds=foo",
        "socket,id=x,path=/a,tls-authz=foo",
        "socket,id=x,path=/a,delay=on,nodelay=on",
        "socket,id=x,host=localhost,port=1",
        "socket,id=x,host=localhost,port=foo",
        "socket,id=x,host=no.such.invalid,port=1",
        "socket,id=x,host=192.0.2.1,port=80,server=on,wait=off",
        "socket,id=x,host=localhost,port=1,to=x,server=on",
        "socket,id=x,host=::1,port=1,ipv6=off",
        "file,id=x",
        "file,id=x,path=/nonexist/f",
        "file,id=x,path=",
        "file,id=x,path=/tmp/f,append=foo",
        "pipe,id=x",
        "pipe,id=x,path=/nonexist",
        "ringbuf,id=x,size=1000",
        "ringbuf,id=x,size=foo",
        "memory,id=x,size=3",
        "udp,id=x",
        "udp,id=x,port=x",
        "serial,id=x",
        "serial,id=x,path=/nonexist",
        "mux,id=x",
        "mux,id=x,chardev=foo",
        "stdio,id=x,signal=x",
    ],
)
def test_chardev(devices: ChardevSet, text: str) -> None:
    with pytest.raises(ChardevError) as caught:
        devices.add(parse_chardev(split_options(text)))
    assert str(caught.value) == qemu_complaint("-chardev", text)


@pytest.mark.parametrize(
    "text",
    [
        "foo",
        "mon:foo",
        "mon:chardev:foo",
        "stdio,signal=off",
        "file:/nonexist/x,append=on",
        "pipe:/nonexist",
        "/dev/nonexist",
        "unix:/a,server,nowait,bar=2",
        "tcp:localhost:1",
        "tcp:localhost:1,server=maybe",
        "udp:localhost:x",
    ],
)
def test_short_form(devices: ChardevSet, text: str) -> None:
    def make() -> None:
        options = parse_uri("serial0", text)
        assert not isinstance(options, ChardevReference)
        devices.add(options)

    with pytest.raises(ChardevError) as caught:
        make()
    assert str(caught.value) == qemu_complaint("-serial", text)


def test_the_same_name_twice(devices: ChardevSet) -> None:
    devices.add(parse_chardev(split_options("null,id=x")))
    with pytest.raises(ChardevError) as caught:
        devices.add(parse_chardev(split_options("null,id=x")))
    assert str(caught.value) == qemu_complaint("-chardev", "null,id=x", "-chardev", "null,id=x")
