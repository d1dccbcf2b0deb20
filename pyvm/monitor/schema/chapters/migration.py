"""Migration of the machine to another process, and snapshots of the whole machine."""

TEXT = """
struct MigrationStats
  transferred: int
  remaining: int
  total: int
  duplicate: int
  skipped: int
  normal: int
  normal-bytes: int
  dirty-pages-rate: int
  mbps: number
  dirty-sync-count: int
  postcopy-requests: int
  page-size: int
  multifd-bytes: uint64
  pages-per-second: uint64
  precopy-bytes: uint64
  downtime-bytes: uint64
  postcopy-bytes: uint64
  dirty-sync-missed-zero-copy: uint64

struct XBZRLECacheStats
  cache-size: size
  bytes: int
  pages: int
  cache-miss: int
  cache-miss-rate: number
  encoding-rate: number
  overflow: int

struct CompressionStats
  pages: int
  busy: int
  busy-rate: number
  compressed-size: int
  compression-rate: number

enum MigrationStatus
  none setup cancelling cancelled active postcopy-active postcopy-paused postcopy-recover completed failed colo
  pre-switchover device wait-unplug

struct VfioStats
  transferred: int

struct MigrationInfo
  status?: MigrationStatus
  ram?: MigrationStats
  disk?: MigrationStats
  vfio?: VfioStats
  xbzrle-cache?: XBZRLECacheStats
  total-time?: int
  expected-downtime?: int
  downtime?: int
  setup-time?: int
  cpu-throttle-percentage?: int
  error-desc?: str
  blocked-reasons?: [str]
  postcopy-blocktime?: uint32
  postcopy-vcpu-blocktime?: [uint32]
  compression?: CompressionStats
  socket-address?: [SocketAddress]

command query-migrate -> MigrationInfo

enum MigrationCapability
  xbzrle rdma-pin-all auto-converge zero-blocks compress events postcopy-ram
  x-colo !unstable
  release-ram block return-path pause-before-switchover multifd dirty-bitmaps postcopy-blocktime late-block-activate
  x-ignore-shared !unstable
  validate-uuid background-snapshot zero-copy-send postcopy-preempt

struct MigrationCapabilityStatus
  capability: MigrationCapability
  state: bool

command migrate-set-capabilities
  capabilities: [MigrationCapabilityStatus]

command query-migrate-capabilities -> [MigrationCapabilityStatus]

enum MultiFDCompression
  none zlib zstd

struct BitmapMigrationBitmapAliasTransform
  persistent?: bool

struct BitmapMigrationBitmapAlias
  name: str
  alias: str
  transform?: BitmapMigrationBitmapAliasTransform

struct BitmapMigrationNodeAlias
  node-name: str
  alias: str
  bitmaps: [BitmapMigrationBitmapAlias]

struct MigrateSetParameters
  announce-initial?: size
  announce-max?: size
  announce-rounds?: size
  announce-step?: size
  compress-level?: uint8
  compress-threads?: uint8
  compress-wait-thread?: bool
  decompress-threads?: uint8
  throttle-trigger-threshold?: uint8
  cpu-throttle-initial?: uint8
  cpu-throttle-increment?: uint8
  cpu-throttle-tailslow?: bool
  tls-creds?: StrOrNull
  tls-hostname?: StrOrNull
  tls-authz?: StrOrNull
  max-bandwidth?: size
  downtime-limit?: uint64
  x-checkpoint-delay?: uint32 !unstable
  block-incremental?: bool
  multifd-channels?: uint8
  xbzrle-cache-size?: size
  max-postcopy-bandwidth?: size
  max-cpu-throttle?: uint8
  multifd-compression?: MultiFDCompression
  multifd-zlib-level?: uint8
  multifd-zstd-level?: uint8
  block-bitmap-mapping?: [BitmapMigrationNodeAlias]

command migrate-set-parameters : MigrateSetParameters plain

struct MigrationParameters
  announce-initial?: size
  announce-max?: size
  announce-rounds?: size
  announce-step?: size
  compress-level?: uint8
  compress-threads?: uint8
  compress-wait-thread?: bool
  decompress-threads?: uint8
  throttle-trigger-threshold?: uint8
  cpu-throttle-initial?: uint8
  cpu-throttle-increment?: uint8
  cpu-throttle-tailslow?: bool
  tls-creds?: str
  tls-hostname?: str
  tls-authz?: str
  max-bandwidth?: size
  downtime-limit?: uint64
  x-checkpoint-delay?: uint32 !unstable
  block-incremental?: bool
  multifd-channels?: uint8
  xbzrle-cache-size?: size
  max-postcopy-bandwidth?: size
  max-cpu-throttle?: uint8
  multifd-compression?: MultiFDCompression
  multifd-zlib-level?: uint8
  multifd-zstd-level?: uint8
  block-bitmap-mapping?: [BitmapMigrationNodeAlias]

command query-migrate-parameters -> MigrationParameters

command client_migrate_info
  protocol: str
  hostname: str
  port?: int
  tls-port?: int
  cert-subject?: str

command migrate-start-postcopy

event MIGRATION
  status: MigrationStatus

event MIGRATION_PASS
  pass: int

enum COLOMode
  none primary secondary

enum COLOExitReason
  none request error processing

event COLO_EXIT
  mode: COLOMode
  reason: COLOExitReason

command x-colo-lost-heartbeat !unstable

command migrate_cancel

command migrate-continue
  state: MigrationStatus

command migrate
  uri: str
  blk?: bool
  inc?: bool
  detach?: bool
  resume?: bool

command migrate-incoming
  uri: str

command xen-save-devices-state
  filename: str
  live?: bool

command xen-load-devices-state
  filename: str

struct COLOStatus
  mode: COLOMode
  last-mode: COLOMode
  reason: COLOExitReason

command query-colo-status -> COLOStatus

command migrate-recover oob
  uri: str

command migrate-pause oob

event UNPLUG_PRIMARY
  device-id: str

command snapshot-save
  job-id: str
  tag: str
  vmstate: str
  devices: [str]

command snapshot-load
  job-id: str
  tag: str
  vmstate: str
  devices: [str]

command snapshot-delete
  job-id: str
  tag: str
  devices: [str]

# What QEMU had until 6.0.

command migrate_set_downtime !deprecated
  value: number

command migrate_set_speed !deprecated
  value: int

command migrate-set-cache-size !deprecated
  value: int

command query-migrate-cache-size -> size !deprecated

event RDMA_GID_STATUS_CHANGED
  netdev: str
  gid-status: bool
  subnet-prefix: uint64
  interface-id: uint64
"""
