"""What a start does not load: modules that a plain use has no need of cost everybody the time to import them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvm.block.create import create_image
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.open import open_image
from pyvm.commandline import parse_arguments
from pyvm.machine import Pc
from tests.unit.firmware_images import BzImage, save

LOADED = "import sys; print(*sorted(sys.modules), sep=',', file=sys.stderr)"

MACHINE = f"""
from pyvm.commandline import parse_arguments
from pyvm.machine import Pc
Pc(parse_arguments(["-S", "-qmp", "unix:monitor.sock,server=on,wait=off"])).close()
{LOADED}
"""
RESTORED = f"""
import sys
from pyvm.commandline import parse_arguments
from pyvm.machine import Pc
pc = Pc(parse_arguments(sys.argv[1:]))
{LOADED}
pc.close()
"""
VERSION = f"""
from pyvm.cli import main
main(["--version"])
{LOADED}
"""
IMAGES = f"""
import sys
from pyvm.tools.img.cli import main
status = main(sys.argv[1:])
{LOADED}
sys.exit(status)
"""

SLOW = {"bz2", "decimal", "lzma", "numpy", "random", "shutil", "tempfile", "unittest", "zipfile", "zstandard"}
"""Of the standard library and beside it: nothing that begins needs these."""
NOT_FOR_A_MACHINE = SLOW | {
    *("ast", "asyncio", "concurrent.futures", "contextvars", "dataclasses", "inspect", "logging", "ssl", "subprocess"),
    "importlib.resources",
    "pyvm.agent",
    "pyvm.api",
    "pyvm.block.create",
    "pyvm.block.drivers.file",
    "pyvm.block.drivers.qcow2",
    "pyvm.block.luks",
    "pyvm.chardev.pty",
    "pyvm.chardev.udp",
    "pyvm.commandline.helptext",
    "pyvm.commandline.introspect",
    "pyvm.cpu.paging",
    "pyvm.devices.virtio.blk",
    "pyvm.devices.virtio.pci",
    "pyvm.devices.virtio.scsi",
    "pyvm.firmware.bios.font",
    "pyvm.firmware.bzimage",
    "pyvm.machine.dirty_rate",
    "pyvm.machine.dump.dumper",
    "pyvm.machine.qom.tree",
    "pyvm.monitor.hmp",
    "pyvm.monitor.schema.chapters",
    "pyvm.monitor.schema.validate",
    "pyvm.qom.tree",
    "pyvm.qom.type_text",
    "pyvm.tools",
    "pyvm.vnc",
}
NOT_FOR_A_RESTORED_MACHINE = NOT_FOR_A_MACHINE - {"pyvm.block.create"} | {
    *("pathlib", "traceback", "uuid"),
    *("pyvm.devices.ide.atapi", "pyvm.devices.ide.disk", "pyvm.devices.scsi.target"),
    *("pyvm.firmware.acpi", "pyvm.firmware.mptable", "pyvm.firmware.pci_setup", "pyvm.firmware.smbios"),
    *("pyvm.monitor.dispatcher", "pyvm.monitor.qmp", "pyvm.monitor.schema"),
}
NOT_FOR_THE_VERSION = SLOW | {"asyncio", "ctypes", "inspect", "json", "pyvm.machine", "socket"}
NOT_FOR_IMAGES = SLOW | {
    *("asyncio", "ctypes", "dataclasses", "inspect", "json", "socket", "subprocess"),
    *("pyvm.commandline", "pyvm.machine", "pyvm.monitor"),
}


def loaded(program: str, *arguments: str, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.strip().split(","))


def test_a_plain_machine_loads_only_what_it_has(tmp_path: Path) -> None:
    modules = loaded(MACHINE, cwd=tmp_path)
    assert "pyvm.machine.pc" in modules
    assert sorted(modules & NOT_FOR_A_MACHINE) == []


def test_a_restored_machine_does_not_make_what_its_guest_has(tmp_path: Path) -> None:
    options = ("-S", "-nodefaults", "-m", "16", "-kernel", save(tmp_path, "kernel", BzImage().build()))
    made = Pc(parse_arguments(options))
    made.save_snapshot(str(tmp_path / "saved"), [])
    made.close()
    modules = loaded(RESTORED, *options, "-incoming", "file:saved", cwd=tmp_path)
    assert "pyvm.machine.saved.arrival" in modules
    assert sorted(modules & NOT_FOR_A_RESTORED_MACHINE) == []


def test_the_version_needs_no_machine(tmp_path: Path) -> None:
    modules = loaded(VERSION, cwd=tmp_path)
    assert "pyvm.cli" in modules
    assert sorted(modules & NOT_FOR_THE_VERSION) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "a.qcow2"),
        ("convert", "-O", "raw", "a.qcow2", "b.raw"),
        ("snapshot", "-c", "two", "a.qcow2"),
    ],
)
def test_tools_for_images_load_only_the_block_layer(arguments: tuple[str, ...], tmp_path: Path) -> None:
    create_image(str(tmp_path / "a.qcow2"), "qcow2", 1 << 20)
    modules = loaded(IMAGES, *arguments, cwd=tmp_path)
    assert "pyvm.block.drivers.qcow2.driver" in modules
    assert sorted(modules & NOT_FOR_IMAGES) == []


def test_a_snapshot_of_a_small_image_goes_without_numpy(tmp_path: Path) -> None:
    create_image(str(tmp_path / "a.qcow2"), "qcow2", 1 << 20)
    image = open_image(str(tmp_path / "a.qcow2"))
    image.write(0, b"x")
    assert isinstance(image, Qcow2Node)
    image.create_snapshot("one")
    image.release()
    modules = loaded(IMAGES, "snapshot", "-d", "one", "a.qcow2", cwd=tmp_path)
    assert "pyvm.block.drivers.qcow2.sharing" in modules
    assert sorted(modules & SLOW) == []
