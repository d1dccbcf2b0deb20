"""Where a device goes that no place was named for: `info qtree` of pyvm beside that of QEMU, and the refusals."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine.pc import Pc
from tests.system.machine_rig import Machine

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]

BASE = ("-display", "none", "-S", "-m", "32", "-M", "pc")
BARE = ("-nodefaults", *BASE)
X = "-drive if=none,id=x,file=null-co://,format=raw"
OWN = "-drive file=null-co://,format=raw,if="
BRIDGE = "-device pci-bridge,id=br,chassis_nr=1"
SHOWN = ("ide-", "scsi-", "virt", "floppy", "pci-bridge", "isa-serial")
PLACE = re.compile(r"\s*(unit|nr|scsi-id|lun|channel|addr) = (\S+)")


def _places(tree: str) -> list[tuple[str, ...]]:
    """Return the devices in what `info qtree` says: model, ID, bus and place of each, sorted."""
    found: list[list[str]] = []
    buses: list[tuple[int, str]] = []
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        kind, _, rest = line.strip().partition(": ")
        if kind not in ("bus", "dev"):
            item = PLACE.match(line)
            if item is not None and found and depth == int(found[-1][0]) + 2:
                found[-1].append(f"{item[1]}={item[2]}")
            continue
        buses = [bus for bus in buses if bus[0] < depth]
        if kind == "bus":
            buses.append((depth, rest))
        else:
            model, _, identifier = rest.partition(', id "')
            found.append([str(depth), model, identifier.rstrip('"'), buses[-1][1] if buses else ""])
    return sorted((*words[1:4], *sorted(words[4:])) for words in found if words[1].startswith(SHOWN))


def _qemu(options: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QEMU or "", *options, "-monitor", "stdio"],
        input="info qtree\nquit\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        f"{X} -device ide-hd,drive=x",
        f"{X} -device ide-hd,drive=x -device ide-cd",
        f"{X} -device ide-hd,drive=x,unit=1 -device ide-cd",
        f"{X} {OWN}ide -device ide-hd,drive=x,bus=ide.0",
        f"{X} -device ide-hd,drive=x {OWN}ide,index=2",
        f"{X} {OWN}virtio -device virtio-blk-pci,drive=x",
        f"{X} -device floppy,drive=x {OWN}floppy",
        "-device floppy,unit=1 -device floppy",
        "-device virtio-scsi-pci -device virtio-scsi-pci -device scsi-cd -device scsi-cd",
        "-device virtio-scsi-pci,id=a -device scsi-cd,scsi-id=3 -device scsi-cd -device scsi-cd,scsi-id=3",
        "-device virtio-serial-pci,id=a -device virtio-serial-pci -device virtserialport -device virtconsole",
        f"{BRIDGE} -device virtio-serial-pci,bus=br -device virtio-serial-pci -device virtserialport",
        f"-device virtio-scsi-pci {BRIDGE} -device virtio-scsi-pci,bus=br -device scsi-cd -device virtio-balloon-pci",
    ],
)
def test_devices_go_where_they_go_in_qemu(options: str) -> None:
    words = [*BARE, *options.split()]
    with Machine(*words, base=()) as machine:
        ours = _places(machine.ask("human-monitor-command", {"command-line": "info qtree"})["return"])
    assert ours == _places(_qemu(words).stdout)


@pytest.mark.parametrize("options", ["-device ide-cd", "-cdrom /dev/null -device ide-cd,id=b", "-device floppy"])
def test_devices_beside_those_that_a_machine_has_anyway(options: str) -> None:
    words = [*BASE, "-net", "none", *options.split()]
    with Machine(*words, base=()) as machine:
        ours = _places(machine.ask("human-monitor-command", {"command-line": "info qtree"})["return"])
    assert ours == _places(_qemu(words).stdout)


@pytest.mark.parametrize(
    "options",
    [
        "-device ide-cd -device ide-cd -device ide-cd",
        "-device ide-cd,unit=2",
        "-device ide-cd,bus=ide",
        "-device ide-cd,bus=pci.0",
        "-device virtio-net-pci,bus=main-system-bus",
        "-device scsi-cd",
        "-device floppy -device floppy -device floppy",
        "-device virtio-serial-pci,max_ports=2 -device virtserialport -device virtserialport",
        f"{X} -device floppy,drive=x -device ide-hd,drive=x",
        f"{OWN}ide,id=y -device virtio-blk-pci,drive=y",
        f"{OWN}virtio,id=y -device ide-hd,drive=y",
    ],
)
def test_where_there_is_no_place_qemu_says_so_too(options: str) -> None:
    words = [*BARE, *options.split()]
    with pytest.raises(ConfigError) as refused:
        Pc(parse_arguments(words))
    assert _qemu(words).stderr.strip() == f"{QEMU and QEMU.rpartition('/')[2]}: {refused.value}"
