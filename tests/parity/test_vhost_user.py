"""A guest of QEMU's boots from a disk that pyvm has: vhost-user-blk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pyvm.block.export.exports import ExportOptions
from pyvm.block.export.starting import open_listener
from pyvm.block.export.vhost_user_blk import VhostUserBlkExport
from pyvm.chardev.address import UnixAddress
from tests.unit.nbd_server_rig import Serving

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]
BOOT_SECTOR = bytes.fromhex(
    "31c0 8ed8 8ec0"  # xor ax, ax; mov ds, ax; mov es, ax
    "b80102 b90200 b600 bb007e cd13"  # read sector 2 to 7e00
    "be007e"  # mov si, 7e00
    "ac e6e9 84c0 75f9"  # each byte up to a zero: to port e9
    "b80103 b90300 bb007e cd13"  # write what was read to sector 3
    "b000 e6f4 f4"  # end QEMU
)
GREETING = b"Hello, vhost-user\0"


def test_a_guest_reads_and_writes(tmp_path: Path) -> None:
    image = bytearray(1 << 20)
    image[: len(BOOT_SECTOR)] = BOOT_SECTOR
    image[510:512] = b"\x55\xaa"
    image[512 : 512 + len(GREETING)] = GREETING
    serving = Serving(tmp_path)
    serving.disk("disk", tmp_path, bytes(image))
    with serving.lock:
        address = UnixAddress(str(tmp_path / "s"))
        export = VhostUserBlkExport(
            serving.exports, ExportOptions("v", "disk", True), lambda: open_listener(address), num_queues=2
        )
        serving.exports.add(export)
    command = (
        "qemu-system-x86_64 -machine pc,memory-backend=m -m 32 -nodefaults -display none "
        "-object memory-backend-memfd,id=m,size=32M,share=on -chardev socket,id=c,path=s "
        "-device vhost-user-blk-pci,chardev=c,bootindex=0,num-queues=2 "
        "-debugcon file:said -device isa-debug-exit,iobase=0xf4"
    )
    done = subprocess.run(command.split(), cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 1  # what isa-debug-exit makes of 0
    assert (tmp_path / "said").read_bytes().endswith(GREETING)
    assert (tmp_path / "disk.raw").read_bytes()[1024:].startswith(GREETING)
    serving.close()
