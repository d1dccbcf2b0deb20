"""One conversation about disks, nodes and media with pyvm and with QEMU: all replies and events must agree."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

QEMU = shutil.which("qemu-system-x86_64")
QEMU_IMG = shutil.which("qemu-img")
PYVM = str(Path(sys.executable).parent / "pyvm")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(QEMU is None or QEMU_IMG is None, reason="QEMU is not installed"),
]

ARGUMENTS = (
    "-nodefaults -display none -S -M pc -object throttle-group,id=tg,x-iops-total=100 "
    "-object throttle-group,id=tg2,x-iops-total=100 -device virtio-scsi-pci,id=scsi0 "
    "-drive if=none,id=cd0,media=cdrom,file=cd.iso,format=raw -device ide-cd,drive=cd0,id=ide0 "
    "-drive if=none,id=fd0,file=fd.img,format=raw -device floppy,drive=fd0,id=flop "
    "-drive if=none,id=h0,file=h.raw,format=raw -device ide-hd,drive=h0,id=hd0 "
    "-blockdev driver=file,node-name=f0,filename=top.qcow2 -blockdev driver=qcow2,node-name=q0,file=f0 "
    "-device virtio-blk-pci,drive=q0,id=vb0 -device scsi-cd,id=scd"
).split()
_TIMES = {"actual-size", "wr_highest_offset", "idle_time_ns", *(f"{it}_total_time_ns" for it in ("rd", "wr", "flush"))}
"""What depends on the host, or on how a driver lays its file out."""


def make_images(folder: Path) -> None:
    """Make the images that the command line and the conversations name."""

    def image(image_format: str, name: str, size: str = "64M", backing: str = "") -> None:
        below = ["-F", "qcow2", "-b", backing] if backing else []
        command = [QEMU_IMG or "", "create", "-q", "-f", image_format, *below, name, *([] if backing else [size])]
        subprocess.run(command, check=True, cwd=folder)

    for name, size in (("cd.iso", "1M"), ("fd.img", "1440K"), ("h.raw", "16M"), ("r.raw", "16M"), ("s.raw", "16M")):
        image("raw", name, size)
    image("qcow2", "base.qcow2")
    image("qcow2", "top.qcow2", backing="base.qcow2")
    image("qcow2", "o.qcow2", backing="top.qcow2")
    image("qcow2", "y.qcow2")


class Emulator:
    """One of the two programs, with a monitor that answers one command at a time."""

    def __init__(self, program: str, folder: Path) -> None:
        make_images(folder)
        path = folder / "qmp"
        command = [program, *ARGUMENTS, "-qmp", f"unix:{path},server=on,wait=off"]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                assert self.process.poll() is None, f"{program} has ended"
                assert time.monotonic() < deadline, f"{program} does not listen"
                time.sleep(0.05)
        self.stream = self.socket.makefile("rw", encoding="utf-8")
        self.stream.readline()
        self.ask("qmp_capabilities")

    def ask(self, name: str, **arguments: Any) -> list[Any]:
        """Execute a command; return what came before the reply, and the reply."""
        print(json.dumps({"execute": name, "arguments": arguments}), file=self.stream, flush=True)
        messages = []
        while not messages or "event" in messages[-1]:
            messages.append(json.loads(self.stream.readline()))
        return [normal(message) for message in messages]

    def end(self) -> None:
        """End the program."""
        self.process.terminate()
        self.process.wait(60)
        self.stream.close()
        self.socket.close()


def normal(value: Any) -> Any:
    """Return a message without what is different each time."""
    if isinstance(value, dict):
        if value.get("format") == "file":
            value = {**value, "virtual-size": 0}  # the file of a new image may be longer than it has to be
        return {key: normal(item) for key, item in value.items() if key not in _TIMES and key != "timestamp"}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"disk size: .*", "disk size", re.sub(r"#block\d+", "#block", value))
    return value


def options(driver: str, name: str, **rest: Any) -> dict[str, Any]:
    return {"driver": driver, "node-name": name, **{key.replace("_", "-"): value for key, value in rest.items()}}


def reopen(driver: str, name: str, **rest: Any) -> tuple[str, dict[str, Any]]:
    return "blockdev-reopen", {"options": [options(driver, name, **rest)]}


def human(line: str) -> tuple[str, dict[str, Any]]:
    return "human-monitor-command", {"command-line": line}


QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("query-block", {}),
    ("query-blockstats", {}),
    ("query-blockstats", {"query-nodes": True}),
    ("query-named-block-nodes", {}),
    ("query-named-block-nodes", {"flat": True}),
    ("x-debug-query-block-graph", {}),
]
_CD = {"id": "ide0"}
MEDIA: list[tuple[str, dict[str, Any]]] = [
    ("blockdev-open-tray", {}),
    ("blockdev-open-tray", {"id": "zz"}),
    ("blockdev-open-tray", {"device": "zz"}),
    ("blockdev-open-tray", {"id": "vb0"}),
    ("blockdev-open-tray", {"id": "hd0"}),
    ("blockdev-open-tray", {"id": "flop"}),
    ("blockdev-remove-medium", _CD),
    ("blockdev-open-tray", _CD),
    ("blockdev-open-tray", _CD),
    ("blockdev-remove-medium", _CD),
    ("blockdev-remove-medium", _CD),
    ("blockdev-remove-medium", {"id": "flop"}),
    ("query-block", {}),
    ("blockdev-add", options("null-co", "n")),
    ("blockdev-insert-medium", {**_CD, "node-name": "zz"}),
    ("blockdev-insert-medium", {**_CD, "node-name": "n"}),
    ("blockdev-insert-medium", {**_CD, "node-name": "n"}),
    ("blockdev-insert-medium", {"id": "hd0", "node-name": "q0"}),
    ("blockdev-close-tray", _CD),
    ("blockdev-close-tray", _CD),
    ("blockdev-del", {"node-name": "n"}),
    ("eject", _CD),
    ("eject", {"device": "fd0"}),
    ("eject", {"id": "hd0"}),
    ("blockdev-change-medium", {**_CD, "filename": "cd.iso", "format": "raw", "read-only-mode": "read-only"}),
    ("blockdev-change-medium", {**_CD, "filename": "none"}),
    ("blockdev-change-medium", {"id": "flop", "filename": "fd.img", "format": "raw"}),
    ("blockdev-change-medium", {"id": "scd", "filename": "cd.iso", "format": "raw", "force": True}),
    ("blockdev-change-medium", {"id": "scd", "filename": "cd.iso", "format": "qcow2"}),
    *QUERIES,
    ("block_resize", {"device": "h0", "size": 1 << 20}),
    ("block_resize", {"device": "cd0", "size": 1 << 20}),
    ("block_resize", {"node-name": "n", "size": 1 << 20}),
    human("info block"),
    human("info block -v"),
    human("info block -n"),
    human("info block cd0"),
    human("info block q0"),
    human("info block zz"),
    human("eject cd0"),
    human("eject zz"),
    human("change cd0 cd.iso raw read-only"),
    human("change cd0 cd.iso raw other"),
    human("block_resize h0 2"),
    human("block_resize h0 xx"),
    human("block_set_io_throttle h0 1 2 3 4 5 6"),
    human("block_set_io_throttle hd0 0 0 0 5 0 0"),
    human("info block h0"),
    human("drive_add 0 if=none,id=dd,file=s.raw,format=raw"),
    human("drive_add 0 if=none,id=dd,file=s.raw,format=raw"),
    human("drive_add -n 0 driver=null-co"),
    human("drive_add -n 0 driver=null-co,node-name=hn"),
    human("drive_del dd"),
    human("drive_del hn"),
    human("drive_del zz"),
    human("drive_del h0"),
    human("drive_del cd0"),
    human("info block"),
    human("qemu-io zz length"),
    human("qemu-io -d vb0 length"),
    human('qemu-io q0 "write 0 64k"'),
    *(human(f"help {name}") for name in ("eject", "change", "block_resize", "drive_add", "drive_del", "qemu-io")),
    *(human(f"help info {name}") for name in ("block", "blockstats")),
]

_R = {"file": {"driver": "file", "filename": "r.raw", "node-name": "rf"}}
_S = {"file": {"driver": "file", "filename": "s.raw", "node-name": "sf"}}
_NODES = ("query-named-block-nodes", {"flat": True})
_SYNC = "blockdev-snapshot-sync"
NODES: list[tuple[str, dict[str, Any]]] = [
    ("blockdev-add", options("raw", "r", **_R)),
    ("blockdev-add", options("raw", "s", **_S)),
    ("blockdev-add", options("raw", "s", file="rf")),
    ("blockdev-add", options("copy-on-read", "c", file="r")),
    ("blockdev-add", options("throttle", "t", throttle_group="tg", file={"driver": "null-co", "node-name": "nn"})),
    ("blockdev-add", options("qcow2", "bad", file={"driver": "file", "filename": "fd.img"})),
    ("blockdev-add", options("qcow2", "y", file={"driver": "file", "filename": "y.qcow2"}, backing=None)),
    *QUERIES,
    ("blockdev-del", {"node-name": "c"}),
    reopen("raw", "r", file="rf", read_only=True),
    _NODES,
    reopen("raw", "r", file="rf"),
    _NODES,
    reopen("raw", "r", file="rf", read_only=False, offset=512, size=1024),
    _NODES,
    reopen("raw", "r", file="rf", offset=512, size=1 << 40),
    reopen("raw", "r", file={"driver": "file", "filename": "s.raw", "node-name": "rf"}),
    reopen("raw", "r", file={"driver": "file", "filename": "r.raw"}),
    reopen("raw", "r", file="rf", force_share=True),
    reopen("raw", "r", file="r"),
    reopen("raw", "r", file="zz"),
    reopen("raw", "r", file="rf", detect_zeroes="unmap"),
    reopen("raw", "r", file="rf", discard="unmap", detect_zeroes="unmap"),
    reopen("raw", "r", file="sf"),
    _NODES,
    reopen("file", "sf", filename="s.raw", locking="off"),
    reopen("file", "sf", filename="none"),
    reopen("throttle", "t", file="nn", throttle_group="tg2"),
    reopen("throttle", "t", file="nn", throttle_group="zz"),
    reopen("qcow2", "q0", file="f0"),
    reopen("qcow2", "q0", file="f0", backing=None, read_only=True),
    reopen("qcow2", "y", file="f0", backing=None),
    ("blockdev-reopen", {"options": [options("raw", "r", file="sf"), options("raw", "zz", file="sf")]}),
    ("blockdev-reopen", {"options": [{"driver": "raw", "file": "sf"}]}),
    _NODES,
    (_SYNC, {"device": "zz", "snapshot-file": "n1.qcow2"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "n1.qcow2"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "n1.qcow2", "snapshot-node-name": "q0"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "n1.qcow2", "snapshot-node-name": "s1", "mode": "existing"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "no/n1.qcow2", "snapshot-node-name": "s1"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "n1.qcow2", "snapshot-node-name": "s1"}),
    (_SYNC, {"node-name": "q0", "snapshot-file": "n2.qcow2", "snapshot-node-name": "s2"}),
    *QUERIES,
    (_SYNC, {"device": "h0", "snapshot-file": "n3.qcow2"}),
    ("blockdev-add", options("qcow2", "o", backing=None, file={"driver": "file", "filename": "o.qcow2"})),
    ("blockdev-snapshot", {"node": "zz", "overlay": "o"}),
    ("blockdev-snapshot", {"node": "s1", "overlay": "zz"}),
    ("blockdev-snapshot", {"node": "s1", "overlay": "r"}),
    ("blockdev-snapshot", {"node": "s1", "overlay": "f0"}),
    ("blockdev-snapshot", {"node": "s1", "overlay": "o"}),
    ("blockdev-snapshot", {"node": "s1", "overlay": "o"}),
    ("change-backing-file", {"device": "y", "image-node-name": "y", "backing-file": "x"}),
    ("change-backing-file", {"device": "o", "image-node-name": "zz", "backing-file": "x"}),
    ("change-backing-file", {"device": "y", "image-node-name": "o", "backing-file": "x"}),
    ("change-backing-file", {"device": "o", "image-node-name": "q0", "backing-file": "base.qcow2"}),
    ("change-backing-file", {"device": "o", "image-node-name": "o", "backing-file": "elsewhere"}),
    *QUERIES,
    ("x-blockdev-change", {"parent": "y"}),
    ("x-blockdev-change", {"parent": "y", "child": "file", "node": "r"}),
    ("x-blockdev-change", {"parent": "y", "child": "file"}),
    ("x-blockdev-change", {"parent": "y", "child": "zz"}),
    ("x-blockdev-change", {"parent": "y", "node": "zz"}),
    ("x-blockdev-set-iothread", {"node-name": "o", "iothread": None}),
    ("x-blockdev-set-iothread", {"node-name": "y", "iothread": "zz"}),
    ("block-set-write-threshold", {"node-name": "zz", "write-threshold": 1}),
    ("block-set-write-threshold", {"node-name": "y", "write-threshold": 4096}),
    human('qemu-io y "write 0 64k"'),
    human('qemu-io o "write 0 64k"'),
    ("block-latency-histogram-set", {"id": "hd0", "boundaries": [10, 50]}),
    ("block-latency-histogram-set", {"id": "hd0", "boundaries-write": [50, 10]}),
    ("query-blockstats", {}),
    ("blockdev-del", {"node-name": "q0"}),
    ("blockdev-del", {"node-name": "s1"}),
    ("blockdev-del", {"node-name": "y"}),
    ("blockdev-del", {"node-name": "r"}),
]


@pytest.mark.parametrize("conversation", [QUERIES, MEDIA, NODES], ids=["queries", "media", "nodes"])
def test_a_conversation(conversation: list[tuple[str, dict[str, Any]]], tmp_path: Path) -> None:
    answers = []
    for name, program in (("qemu", QEMU or ""), ("pyvm", PYVM)):
        folder = tmp_path / name
        folder.mkdir()
        emulator = Emulator(program, folder)
        try:
            answers.append([emulator.ask(command, **arguments) for command, arguments in conversation])
        finally:
            emulator.end()
    for request, expected, got in zip(conversation, *answers, strict=True):
        assert (request, got) == (request, expected)
