"""An empty ext2 file system in a file, for guests whose disk needs one: neither guest nor host may have mkfs.

Source: "The Second Extended File System", internal layout: revision 1, one block group, blocks of 4 KiB.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

BLOCK = 4096
BLOCKS_PER_GROUP = BLOCK * 8
INODES = 1024
INODE_SIZE = 128
ROOT_INODE = 2
FIRST_INODE = 11
TABLE_BLOCKS = INODES * INODE_SIZE // BLOCK
BLOCK_BITMAP, INODE_BITMAP, INODE_TABLE = 2, 3, 4
ROOT_BLOCK = INODE_TABLE + TABLE_BLOCKS
USED_BLOCKS = ROOT_BLOCK + 1
USED_INODES = FIRST_INODE - 1


def make_ext2(path: Path, size: int) -> None:
    """Create `path` with an empty file system that fills `size` bytes, of at most 128 MiB."""
    blocks = size // BLOCK
    assert USED_BLOCKS < blocks <= BLOCKS_PER_GROUP
    with path.open("wb") as file:
        file.truncate(size)
        for position, data in (
            (1024, _superblock(blocks)),
            (BLOCK, _group(blocks)),
            (BLOCK_BITMAP * BLOCK, _bitmap(USED_BLOCKS, blocks)),
            (INODE_BITMAP * BLOCK, _bitmap(USED_INODES, INODES)),
            (INODE_TABLE * BLOCK + (ROOT_INODE - 1) * INODE_SIZE, _root_inode()),
            (ROOT_BLOCK * BLOCK, _root_directory()),
        ):
            file.seek(position)
            file.write(data)


def _superblock(blocks: int) -> bytes:
    counts = struct.pack("<IIIII", INODES, blocks, 0, blocks - USED_BLOCKS, INODES - USED_INODES)
    # First block, block and fragment size (1024 << 2), blocks, fragments and inodes in a group.
    layout = struct.pack("<IIIIII", 0, 2, 2, BLOCKS_PER_GROUP, BLOCKS_PER_GROUP, INODES)
    now = int(time.time())
    # Mount and write times, mounts so far and allowed, magic number, clean, continue on errors, minor revision.
    state = struct.pack("<IIHhHHHH", 0, now, 0, -1, 0xEF53, 1, 1, 0)
    # Last check, no interval, Linux, revision 1, reserved blocks for root.
    rest = struct.pack("<IIIIHH", now, 0, 0, 1, 0, 0)
    # First inode, inode size, this group, features: none but file types in directories.
    revision = struct.pack("<IHHIII", FIRST_INODE, INODE_SIZE, 0, 0, 2, 0)
    return counts + layout + state + rest + revision + b"pyvm ext2 volume"


def _group(blocks: int) -> bytes:
    free = (blocks - USED_BLOCKS, INODES - USED_INODES)
    return struct.pack("<IIIHHH", BLOCK_BITMAP, INODE_BITMAP, INODE_TABLE, *free, 1)


def _bitmap(used: int, count: int) -> bytes:
    """Return a block of bits: the first `used` are set, and those from `count` on, which stand for nothing."""
    bits = (1 << used) - 1 | (1 << BLOCK * 8) - (1 << count)
    return bits.to_bytes(BLOCK, "little")


def _root_inode() -> bytes:
    now = int(time.time())
    head = struct.pack("<HHIIIIIHHIII", 0o040755, 0, BLOCK, now, now, now, 0, 0, 2, BLOCK // 512, 0, 0)
    return (head + struct.pack("<I", ROOT_BLOCK)).ljust(INODE_SIZE, b"\0")


def _root_directory() -> bytes:
    own = struct.pack("<IHBB4s", ROOT_INODE, 12, 1, 2, b".")
    parent = struct.pack("<IHBB4s", ROOT_INODE, BLOCK - 12, 2, 2, b"..")
    return (own + parent).ljust(BLOCK, b"\0")
