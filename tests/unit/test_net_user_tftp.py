"""The TFTP server of the back end `user`."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvm.net import packets6 as p6
from tests.unit.net_support import (
    GATEWAY,
    GATEWAY6,
    Guest,
    options,
    user_network,
)


def blocks(guest: Guest) -> list[bytes]:
    found = [data for _, _, _, data in guest.datagrams()]
    guest.take()
    return found


def test_files_are_read_by_tftp(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    (tmp_path / "kernel").write_bytes(content)
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1/kernel\0octet\0", 2000)
        received = b""
        for number in range(1, 4):
            (block,) = blocks(guest)
            assert block[:4] == struct.pack("!HH", 3, number)
            received += block[4:]
            guest.udp(GATEWAY, 69, struct.pack("!HH", 4, number), 2000)
        assert blocks(guest) == []
        assert received == content


def test_tftp_options_are_agreed_on(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"k" * 3000)
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1kernel\0octet\0tsize\x000\0blksize\x009000\0unknown\x001\0", 2000)
        assert blocks(guest) == [b"\0\6tsize\x003000\0blksize\x001428\0"]
        guest.udp(GATEWAY, 69, b"\0\4\0\0", 2000)
        (block,) = blocks(guest)
        assert len(block) == 4 + 1428


@pytest.mark.parametrize("name", [b"../secret", b"/../secret", b"link", b"a/../../secret", b"", b"missing", b"."])
def test_tftp_does_not_leave_its_directory(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with user_network(options(tftp=str(root))) as guest:
        guest.udp(GATEWAY, 69, b"\0\1" + name + b"\0octet\0", 2000)
        assert blocks(guest) == [b"\0\5\0\1file not found\0"]


@pytest.mark.parametrize("everybody", [b"\xff" * 4, b"\x0a\0\2\xff", p6.ALL_NODES])
def test_what_is_sent_to_all_is_not_answered(tmp_path: Path, everybody: bytes) -> None:
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(everybody, 69, b"\0\1file\0octet\0", 2000)
        assert blocks(guest) == []


def test_files_are_read_by_ipv6_as_well(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"small")
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY6, 69, b"\0\1kernel\0octet\0", 2000)
        assert blocks(guest) == [b"\0\3\0\1small"]


def test_nothing_is_written_by_tftp(tmp_path: Path) -> None:
    with user_network(options(tftp=str(tmp_path))) as guest:
        guest.udp(GATEWAY, 69, b"\0\2file\0octet\0", 2000)
        assert blocks(guest) == [b"\0\5\0\2access violation\0"]
        assert list(tmp_path.iterdir()) == []
