"""Serial ports, monitors and the terminal: from the command line to records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvm.chardev.address import UnixAddress
from pyvm.chardev.options import SocketOptions, StdioOptions
from tests.unit.config_support import config, refused


def test_a_kernel_an_agent_and_two_monitors(file: Callable[[str], str]) -> None:
    found = config(
        "-m", "512", "-smp", "2", "-kernel", file("k"), "-initrd", file("i"), "-append", "console=ttyS0", "-nographic",
        "-device", "virtio-serial-pci", "-chardev", "socket,path=/tmp/ga.sock,server=on,wait=off,id=ga0",
        "-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0",
        "-qmp", "unix:/tmp/q.sock,server=on,wait=off",
    )  # fmt: skip
    assert [chardev.id for chardev in found.chardevs] == ["ga0", "compat_monitor0", "serial0"]
    qmp = found.chardev("compat_monitor0").options
    assert isinstance(qmp, SocketOptions)
    assert (qmp.address, qmp.server, qmp.wait, qmp.connect_if_live) == (UnixAddress("/tmp/q.sock"), True, False, False)
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("compat_monitor0", "control")]
    assert found.serials == ["serial0"]


@pytest.mark.parametrize(
    ("text", "implicit"),
    [("unix:/q", True), ("unix:/q,server=on,wait=off", False), ("unix:/q,server=off", False), ("tcp:h:1", False)],
)
def test_a_qmp_socket_without_a_side_listens_unless_somebody_does(text: str, implicit: bool) -> None:
    for option in ("-qmp", "-qmp-pretty"):
        options = config(option, text).chardevs[0].options
        assert isinstance(options, SocketOptions)
        assert options.connect_if_live is implicit
    options = config("-monitor", text).chardevs[0].options
    assert isinstance(options, SocketOptions)
    assert not options.connect_if_live


def test_nographic_shares_the_terminal() -> None:
    found = config("-nographic")
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert (stdio.mux, stdio.signal) == (True, False)
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("serial0", "readline")]


def test_nographic_leaves_out_what_was_given() -> None:
    found = config("-nographic", "-qmp", "tcp:h:1,server=on")
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert not stdio.mux
    found = config("-nographic", "-serial", "none")
    assert found.serials == [None]
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("compat_monitor0", "readline")]
    found = config("-nographic", "-serial", "none", "-monitor", "none", "-qmp", "stdio")
    assert [type(chardev.options) for chardev in found.chardevs] == [StdioOptions]
    assert config("-nographic", "-nodefaults").chardevs == []


def test_without_a_display_option_the_console_is_on_the_terminal() -> None:
    found = config(terminal=True)
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert stdio.mux
    assert not stdio.signal
    assert [monitor.chardev for monitor in found.monitors] == ["serial0"]
    for words in (("-display", "none"), ("-qmp", "stdio"), ("-nodefaults",), ("-serial", "null"), ("-daemonize",)):
        found = config(*words, terminal=True)
        assert not any(
            isinstance(chardev.options, StdioOptions) and chardev.id == "serial0" for chardev in found.chardevs
        )


def test_serial_ports_are_numbered_and_four() -> None:
    found = config("-serial", "none", "-serial", "mon:pty", "-serial", "chardev:c", "-chardev", "null,id=c")
    assert found.serials == [None, "serial1", "c"]
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("serial1", "readline")]
    assert refused(*["-serial", "null"] * 5) == "-serial null: the machine has only 4 serial ports"


def test_a_shared_back_end_has_a_multiplexer() -> None:
    found = config("-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c", "-mon", "chardev=c,mode=control,pretty=on")
    assert found.serials == ["c"]
    assert (found.monitors[0].mode, found.monitors[0].pretty) == ("control", True)
