"""Block nodes that other processes use: the NBD server and exports of other kinds."""

TEXT = """
struct NbdServerOptions
  addr: SocketAddressLegacy
  tls-creds?: str
  tls-authz?: str
  max-connections?: uint32

command nbd-server-start : NbdServerOptions preconfig

struct BlockExportOptionsNbdBase
  name?: str
  description?: str

struct BlockExportOptionsNbd : BlockExportOptionsNbdBase
  bitmaps?: [BlockDirtyBitmapOrStr]
  allocation-depth?: bool

struct BlockExportOptionsVhostUserBlk
  addr: SocketAddress
  logical-block-size?: size
  num-queues?: uint16

enum FuseExportAllowOther
  off on auto

struct BlockExportOptionsFuse
  mountpoint: str
  growable?: bool
  allow-other?: FuseExportAllowOther

struct BlockExportOptionsVduseBlk
  name: str
  num-queues?: uint16
  queue-size?: uint16
  logical-block-size?: size
  serial?: str

struct NbdServerAddOptions : BlockExportOptionsNbdBase
  device: str
  writable?: bool
  bitmap?: str

command nbd-server-add : NbdServerAddOptions preconfig !deprecated

enum BlockExportRemoveMode
  safe hard

command nbd-server-remove preconfig !deprecated
  name: str
  mode?: BlockExportRemoveMode

command nbd-server-stop preconfig

enum BlockExportType
  nbd vhost-user-blk fuse vduse-blk

union BlockExportOptions by type
  type: BlockExportType
  id: str
  fixed-iothread?: bool
  iothread?: str
  node-name: str
  writable?: bool
  writethrough?: bool
  case nbd: BlockExportOptionsNbd
  case vhost-user-blk: BlockExportOptionsVhostUserBlk
  case fuse: BlockExportOptionsFuse
  case vduse-blk: BlockExportOptionsVduseBlk

command block-export-add : BlockExportOptions preconfig

command block-export-del preconfig
  id: str
  mode?: BlockExportRemoveMode

event BLOCK_EXPORT_DELETED
  id: str

struct BlockExportInfo
  id: str
  type: BlockExportType
  node-name: str
  shutting-down: bool

command query-block-exports -> [BlockExportInfo] preconfig
"""
