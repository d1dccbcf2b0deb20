"""Networks beside QEMU, where that is installed: complaints about options, and what its monitor shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from pyvm.errors import ConfigError
from tests.system.machine_rig import Machine

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]

_COMMON = ("-nodefaults", "-display", "none", "-S", "-m", "16")


def ours(*arguments: str) -> str:
    """Return pyvm's complaint about what must be a mistake."""
    with pytest.raises(ConfigError) as caught, Machine(*arguments):
        pass
    return str(caught.value)


def theirs(*arguments: str) -> str:
    """Return QEMU's."""
    command = [QEMU or "", *_COMMON, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 1, done
    return done.stderr.splitlines()[-1].removeprefix("qemu-system-x86_64: ")


@pytest.mark.parametrize(
    "words",
    [
        "-netdev user",
        "-netdev zz,id=a",
        "-netdev user,id=a,foo=1",
        "-netdev user,id=a,net=zz",
        "-netdev user,id=a,net=10.0.2.0/33",
        "-netdev user,id=a,host=1.2.3.4",
        "-netdev user,id=a,dhcpstart=1.2.3.4",
        "-netdev user,id=a,restrict=zz",
        "-netdev user,id=a,ipv4=off,ipv6=off",
        "-netdev user,id=a,ipv6-prefix=zz",
        "-netdev user,id=a,ipv6-prefixlen=127",
        "-netdev user,id=a,ipv6-host=1::2",
        "-netdev user,id=a,ipv6-dns=zz",
        "-netdev user,id=a,ipv6-net=zz/64",
        "-netdev user,id=a,ipv4=on,ipv6-host=fec0::9",
        "-netdev user,id=a,ipv6=on,net=10.0.0.0/8",
        "-netdev user,id=a,hostfwd=tcp:[::1]:99-:22",
        "-netdev user,id=a,hostfwd=zz",
        "-netdev user,id=a,hostfwd=sctp::1-:2",
        "-netdev user,id=a,hostfwd=tcp:a",
        "-netdev user,id=a,hostfwd=tcp:a:1-:2",
        "-netdev user,id=a,hostfwd=tcp::1",
        "-netdev user,id=a,hostfwd=tcp::99999-:22",
        "-netdev user,id=a,hostfwd=tcp::1-22",
        "-netdev user,id=a,hostfwd=tcp::1-x:22",
        "-netdev user,id=a,hostfwd=tcp::22-:",
        "-netdev user,id=a,guestfwd=zz",
        "-netdev user,id=a,guestfwd=tcp:10.0.2.100:99999-zz",
        "-netdev user,id=a,guestfwd=tcp:1.2.3.4:99-null",
        "-netdev user,id=a -netdev user,id=a",
        "-netdev hubport,id=a",
        "-netdev hubport,id=a,hubid=0,netdev=zz",
        "-netdev socket,id=a",
        "-netdev socket,id=a,listen=:1,connect=:2",
        "-netdev socket,id=a,mcast=127.0.0.1:1",
        "-netdev socket,id=a,udp=127.0.0.1:1",
        "-netdev socket,id=a,listen=zz",
        "-netdev socket,id=a,listen=192.0.2.1:1",
        "-netdev socket,id=a,fd=0",
        "-netdev stream,id=a",
        "-netdev dgram,id=a",
        "-netdev dgram,id=a,local.type=inet,local.host=127.0.0.1,local.port=1",
        "-netdev tap,id=a,fd=0,ifname=zz",
        "-netdev tap,id=a,fds=0:1,ifname=zz",
        "-netdev tap,id=a,fds=zz",
        "-netdev nic,id=a",
        "-netdev none,id=a",
        "-net zz",
        "-nic zz",
        "-nic user,model=zz",
        "-nic user,model=virtio,mac=zz",
        "-net nic,model=virtio,macaddr=zz",
        "-device virtio-net-pci,netdev=zz",
        "-device virtio-net-pci,mac=52:54",
        "-device e1000,netdev=zz",
        "-device e1000,mac=52:54",
        "-device e1000-82545em,mac=52:54",
        "-device pci-bridge,id=b",
    ],
)
def test_mistakes_are_called_the_same(words: str) -> None:
    arguments = words.split(" ")
    assert ours(*arguments) == theirs(*arguments)


@pytest.mark.parametrize(
    "options",
    [
        ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,id=nic0"),
        ("-nic", "user,model=virtio-net-pci,id=x", "-nic", "user,model=virtio,id=y,mac=52:54:00:00:00:01"),
        ("-net", "nic,model=virtio", "-net", "user,id=u"),
        ("-nic", "user,id=x", "-net", "nic", "-net", "user,id=u"),
        ("-netdev", "user,id=n0,ipv6-net=fd00::/64", "-device", "e1000-82545em,netdev=n0,id=c", "-device", "e1000"),
        ("-netdev", "hubport,id=h0,hubid=3", "-netdev", "socket,id=s,listen=127.0.0.1:0"),
        ("-netdev", "user,id=n1,net=192.168.7.0/24,restrict=on", "-device", "virtio-net-pci"),
    ],
)
def test_networks_look_the_same(options: tuple[str, ...]) -> None:
    lines = [
        {"execute": "qmp_capabilities"},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info network"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info usernet"}},
        {"execute": "query-rx-filter"},
        {"execute": "quit"},
    ]
    done = subprocess.run(
        [QEMU or "", *_COMMON, "-qmp", "stdio", *options],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    replies = [message["return"] for line in done.stdout.splitlines() if "return" in (message := json.loads(line))]
    with Machine(*options) as machine:
        found = [
            machine.execute("human-monitor-command", command_line=f"info {what}") for what in ("network", "usernet")
        ]
        assert found[0] == replies[1]
        assert re.sub(r"HOST_FORWARD.*", "", found[1]) == re.sub(r"HOST_FORWARD.*", "", replies[2])
        assert machine.execute("query-rx-filter") == replies[3]
