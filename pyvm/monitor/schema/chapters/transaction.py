"""Several changes of disks that are made together, or not at all."""

TEXT = """
enum ActionCompletionMode
  individual grouped

struct Abort

struct BlockdevSnapshotSync
  device?: str
  node-name?: str
  snapshot-file: str
  snapshot-node-name?: str
  format?: str
  mode?: NewImageMode

struct BlockdevSnapshot
  node: str
  overlay: str

struct BlockdevSnapshotInternal
  device: str
  name: str

enum TransactionActionKind
  abort
  block-dirty-bitmap-add
  block-dirty-bitmap-remove
  block-dirty-bitmap-clear
  block-dirty-bitmap-enable
  block-dirty-bitmap-disable
  block-dirty-bitmap-merge
  blockdev-backup
  blockdev-snapshot
  blockdev-snapshot-internal-sync
  blockdev-snapshot-sync
  drive-backup !deprecated

struct AbortWrapper
  data: Abort

struct BlockDirtyBitmapAddWrapper
  data: BlockDirtyBitmapAdd

struct BlockDirtyBitmapWrapper
  data: BlockDirtyBitmap

struct BlockDirtyBitmapMergeWrapper
  data: BlockDirtyBitmapMerge

struct BlockdevBackupWrapper
  data: BlockdevBackup

struct BlockdevSnapshotWrapper
  data: BlockdevSnapshot

struct BlockdevSnapshotInternalWrapper
  data: BlockdevSnapshotInternal

struct BlockdevSnapshotSyncWrapper
  data: BlockdevSnapshotSync

struct DriveBackupWrapper
  data: DriveBackup

union TransactionAction by type
  type: TransactionActionKind
  case abort: AbortWrapper
  case block-dirty-bitmap-add: BlockDirtyBitmapAddWrapper
  case block-dirty-bitmap-remove: BlockDirtyBitmapWrapper
  case block-dirty-bitmap-clear: BlockDirtyBitmapWrapper
  case block-dirty-bitmap-enable: BlockDirtyBitmapWrapper
  case block-dirty-bitmap-disable: BlockDirtyBitmapWrapper
  case block-dirty-bitmap-merge: BlockDirtyBitmapMergeWrapper
  case blockdev-backup: BlockdevBackupWrapper
  case blockdev-snapshot: BlockdevSnapshotWrapper
  case blockdev-snapshot-internal-sync: BlockdevSnapshotInternalWrapper
  case blockdev-snapshot-sync: BlockdevSnapshotSyncWrapper
  case drive-backup: DriveBackupWrapper

struct TransactionProperties
  completion-mode?: ActionCompletionMode

command transaction
  actions: [TransactionAction]
  properties?: TransactionProperties

command blockdev-snapshot-internal-sync : BlockdevSnapshotInternal preconfig

command blockdev-snapshot-delete-internal-sync -> SnapshotInfo preconfig
  device: str
  id?: str
  name?: str
"""
