"""Jobs on nodes: what starts them, and what is done with them."""

TEXT = """
enum BlockdevOnError
  report ignore enospc stop auto

enum MirrorSyncMode
  top full none incremental bitmap

enum BitmapSyncMode
  on-success never always

enum MirrorCopyMode
  background write-blocking

struct BlockJobInfo
  type: str
  device: str
  len: int
  offset: int
  busy: bool
  paused: bool
  speed: int
  io-status: BlockDeviceIoStatus
  ready: bool
  status: JobStatus
  auto-finalize: bool
  auto-dismiss: bool
  error?: str

command query-block-jobs -> [BlockJobInfo] preconfig

struct BlockCommit
  job-id?: str
  device: str
  base-node?: str
  base?: str !deprecated
  top-node?: str
  top?: str !deprecated
  backing-file?: str
  speed?: int
  on-error?: BlockdevOnError
  filter-node-name?: str
  auto-finalize?: bool
  auto-dismiss?: bool

command block-commit : BlockCommit preconfig

struct BackupPerf
  use-copy-range?: bool
  max-workers?: int
  max-chunk?: int64

struct BackupCommon
  job-id?: str
  device: str
  sync: MirrorSyncMode
  speed?: int
  bitmap?: str
  bitmap-mode?: BitmapSyncMode
  compress?: bool
  on-source-error?: BlockdevOnError
  on-target-error?: BlockdevOnError
  auto-finalize?: bool
  auto-dismiss?: bool
  filter-node-name?: str
  x-perf?: BackupPerf !unstable

struct DriveBackup : BackupCommon
  target: str
  format?: str
  mode?: NewImageMode

struct BlockdevBackup : BackupCommon
  target: str

command drive-backup : DriveBackup !deprecated preconfig

command blockdev-backup : BlockdevBackup preconfig

struct DriveMirror
  job-id?: str
  device: str
  target: str
  format?: str
  node-name?: str
  replaces?: str
  sync: MirrorSyncMode
  mode?: NewImageMode
  speed?: int
  granularity?: uint32
  buf-size?: int
  on-source-error?: BlockdevOnError
  on-target-error?: BlockdevOnError
  unmap?: bool
  copy-mode?: MirrorCopyMode
  auto-finalize?: bool
  auto-dismiss?: bool

command drive-mirror : DriveMirror preconfig

struct BlockdevMirror
  job-id?: str
  device: str
  target: str
  replaces?: str
  sync: MirrorSyncMode
  speed?: int
  granularity?: uint32
  buf-size?: int
  on-source-error?: BlockdevOnError
  on-target-error?: BlockdevOnError
  filter-node-name?: str
  copy-mode?: MirrorCopyMode
  auto-finalize?: bool
  auto-dismiss?: bool

command blockdev-mirror : BlockdevMirror preconfig

struct BlockStream
  job-id?: str
  device: str
  base?: str
  base-node?: str
  backing-file?: str
  bottom?: str
  speed?: int
  on-error?: BlockdevOnError
  filter-node-name?: str
  auto-finalize?: bool
  auto-dismiss?: bool

command block-stream : BlockStream preconfig

command block-job-set-speed preconfig
  device: str
  speed: int

command block-job-cancel preconfig
  device: str
  force?: bool

command block-job-pause preconfig
  device: str

command block-job-resume preconfig
  device: str

command block-job-complete preconfig
  device: str

command block-job-dismiss preconfig
  id: str

command block-job-finalize preconfig
  id: str

event BLOCK_JOB_COMPLETED
  type: JobType
  device: str
  len: int
  offset: int
  speed: int
  error?: str

event BLOCK_JOB_CANCELLED
  type: JobType
  device: str
  len: int
  offset: int
  speed: int

event BLOCK_JOB_ERROR
  device: str
  operation: IoOperationType
  action: BlockErrorAction

event BLOCK_JOB_READY
  type: JobType
  device: str
  len: int
  offset: int
  speed: int

event BLOCK_JOB_PENDING
  type: JobType
  id: str
"""
