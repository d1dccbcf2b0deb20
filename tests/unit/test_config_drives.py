"""`-drive` and its relatives, `-blockdev` and throttle groups: from the command line to records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvm.options import escape
from tests.unit.config_support import config, refused


def test_drives(file: Callable[[str], str]) -> None:
    path = file("disk")
    first, second = config(
        "-drive", f"file={path},format=raw,if=virtio,readonly=on,cache=none,discard=unmap",
        "-drive", f"file={path},if=none,id=d,cache.direct=off,cache=directsync,werror=stop",
    ).drives  # fmt: skip
    assert (first.id, first.interface, first.format, first.readonly) == ("virtio0", "virtio", "raw", True)
    assert (first.writeback, first.direct, first.no_flush, first.discard) == (True, True, False, True)
    assert (second.id, second.interface, second.format) == ("d", "none", None)
    assert (second.writeback, second.direct, second.werror) == (False, False, "stop")
    assert "Duplicate ID 'd' for drive" in refused(*["-drive", f"file={path},if=none,id=d"] * 2)


def test_where_drives_are(file: Callable[[str], str]) -> None:
    """The names are QEMU's; without ``if=`` a drive is virtio here."""
    path = file("disk,1")
    found = config("-hdb", path, "-drive", f"file={escape(path)}", "-cdrom", path, "-fdb", path, path)
    places = [(it.id, it.interface, it.bus, it.unit, it.media, it.readonly) for it in found.drives]
    assert places == [
        ("ide0-hd1", "ide", 0, 1, "disk", False),
        ("virtio0", "virtio", 0, 0, "disk", False),
        ("ide1-cd0", "ide", 1, 0, "cdrom", True),
        ("floppy1", "floppy", 0, 1, "disk", False),
        ("ide0-hd0", "ide", 0, 0, "disk", False),
    ]
    assert all(it.file == path for it in found.drives)
    assert [it.id for it in found.default_drives] == ["floppy0"]
    found = config("-drive", "if=ide,media=cdrom", "-drive", "if=ide,media=cdrom,id=x", "-drive", "if=none,index=3")
    assert [(it.id, it.bus, it.unit) for it in found.drives] == [("ide0-cd0", 0, 0), ("x", 0, 1), ("none3", 0, 3)]
    for arguments, names in (
        ([], ["ide1-cd0", "floppy0"]),
        (["-nodefaults"], []),
        (["-machine", "none"], []),
        (["-device", "scsi-hd"], ["floppy0"]),
        (["-device", "isa-fdc"], ["ide1-cd0"]),
        (["-hdc", path], ["floppy0"]),
    ):
        assert [it.id for it in config(*arguments).default_drives] == names


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("if=none,index=0", "drive with bus=0, unit=0 (index=0) exists"),
        ("if=none,unit=0", "drive with bus=0, unit=0 (index=-1) exists"),
        ("if=ide,media=cdrom,bus=0,unit=7", "unit 7 too big (max is 1)"),
        ("if=ide,media=cdrom,index=1,unit=1", "index cannot be used with bus and unit"),
        ("if=ide,media=cdrom,index=4", "machine type does not support if=ide,bus=2,unit=0"),
        ("if=floppy,index=2", "machine type does not support if=floppy,bus=0,unit=2"),
        ("if=scsi,media=cdrom", "machine type does not support if=scsi,bus=0,unit=0"),
        ("if=pflash", "if=pflash is not supported by pyvm yet"),
        ("if=ide", "Device needs media, but drive is empty"),
        ("if=none,media=x", "'x' invalid media"),
        ("if=none,aio=x", "invalid aio option"),
        ("if=none,discard=x", "Invalid discard option"),
        ("if=none,detect-zeroes=x", "invalid parameter value: x"),
        ("if=none,werror=x", "'x' invalid write error action"),
        ("if=none,rerror=enospc", "'enospc' invalid read error action"),
        ("if=floppy,werror=stop", "werror is not supported by this bus type"),
        (
            "if=none,bps=1,throttling.bps-total=1",
            "'throttling.bps-total' and its alias 'bps' can't be used at the same",
        ),
        ("if=none,iops_rd_max=1", "bps_max/iops_max require corresponding bps/iops values"),
        ("if=none,read-only=on,readonly=on", "'read-only' and its alias 'readonly' can't be used at the same time"),
        ("if=none,stats-intervals.0=0", "Invalid interval length: 0"),
        ("if=none,format=raw,driver=raw", "Cannot specify both 'driver' and 'format'"),
        ("if=none,file=/x,file.filename=/x", "Can't specify 'file' and 'filename' options at the same time"),
    ],
)
def test_drives_that_cannot_be(parameters: str, message: str) -> None:
    """The texts are those of QEMU 7.2."""
    given = refused("-drive", "if=none,id=first", "-drive", parameters)
    assert given.startswith(f"-drive {parameters}: {message}")


def test_what_is_said_of_a_drive(file: Callable[[str], str]) -> None:
    path = file("disk")
    drive = config(
        "-drive", f"file={path},iops=10,bps_wr_max=50,bps_wr=5,group=g,snapshot=on,copy-on-read=on,aio=io_uring,"
        "stats-intervals.0=5,stats-account-failed=off,node-name=n,file.locking=off,detect-zeroes=unmap",
    ).drives[0]  # fmt: skip
    assert drive.limits == {"iops-total": 10, "bps-write": 5, "bps-write-max": 50}
    assert (drive.throttle_group, drive.snapshot, drive.copy_on_read, drive.aio) == ("g", True, True, "io_uring")
    assert (drive.stats_intervals, drive.account_failed, drive.account_invalid) == ([5], False, True)
    assert drive.options == {"node-name": "n", "file.locking": "off"}
    assert drive.detect_zeroes == "on"
    assert config("-snapshot", "-drive", f"file={path}").drives[0].snapshot
    assert not config("-snapshot", "-drive", f"file={path},snapshot=off").drives[0].snapshot


def test_block_nodes() -> None:
    found = config("-blockdev", "null-co,node-name=a,cache.direct=on", "-blockdev", '{"driver":"x","size":5}').blockdevs
    assert [(it.options, it.typed) for it in found] == [
        ({"driver": "null-co", "node-name": "a", "cache": {"direct": "on"}}, False),
        ({"driver": "x", "size": 5}, True),
    ]


def test_throttle_groups(file: Callable[[str], str]) -> None:
    found = config(
        "-object", "throttle-group,id=a,x-iops-total=5",
        "-object", '{"qom-type":"throttle-group","id":"b","limits":{"bps-read":7}}',
        "-object", "iothread,id=c,poll-max-ns=1",
    ).objects  # fmt: skip
    assert [it.properties for it in found] == [{"x-iops-total": 5}, {"x-bps-read": 7}, {"poll-max-ns": 1}]
    text = '{"qom-type":"throttle-group","id":"b","limits":{"foo":7}}'
    assert refused("-object", text).endswith("Parameter 'limits.foo' is unexpected")
