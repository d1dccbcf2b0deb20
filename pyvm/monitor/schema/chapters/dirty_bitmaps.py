"""Dirty bitmaps: what was written since somebody asked."""

TEXT = """
struct BlockDirtyBitmapAdd
  node: str
  name: str
  granularity?: uint32
  persistent?: bool
  disabled?: bool

command block-dirty-bitmap-add : BlockDirtyBitmapAdd preconfig

command block-dirty-bitmap-remove : BlockDirtyBitmap preconfig

command block-dirty-bitmap-clear : BlockDirtyBitmap preconfig

command block-dirty-bitmap-enable : BlockDirtyBitmap preconfig

command block-dirty-bitmap-disable : BlockDirtyBitmap preconfig

alternate BlockDirtyBitmapOrStr
  local: str
  external: BlockDirtyBitmap

struct BlockDirtyBitmapMerge
  node: str
  target: str
  bitmaps: [BlockDirtyBitmapOrStr]

command block-dirty-bitmap-merge : BlockDirtyBitmapMerge preconfig

struct BlockDirtyBitmapSha256
  sha256: str

command x-debug-block-dirty-bitmap-sha256 : BlockDirtyBitmap -> BlockDirtyBitmapSha256 !unstable preconfig
"""
