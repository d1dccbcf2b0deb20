"""The block layer: drives, nodes, and the graph of them."""

from pyvm.monitor.schema.chapters.block_types import INFORMATION, OPTIONS

_COMMANDS = """
enum BlockDeviceIoStatus
  ok failed nospace

struct BlockInfo
  device: str
  qdev?: str
  type: str
  removable: bool
  locked: bool
  inserted?: BlockDeviceInfo
  tray_open?: bool
  io-status?: BlockDeviceIoStatus

command query-block -> [BlockInfo] preconfig

struct BlockDeviceTimedStats
  interval_length: int
  min_rd_latency_ns: int
  max_rd_latency_ns: int
  avg_rd_latency_ns: int
  min_wr_latency_ns: int
  max_wr_latency_ns: int
  avg_wr_latency_ns: int
  min_flush_latency_ns: int
  max_flush_latency_ns: int
  avg_flush_latency_ns: int
  avg_rd_queue_depth: number
  avg_wr_queue_depth: number

struct BlockLatencyHistogramInfo
  boundaries: [uint64]
  bins: [uint64]

struct BlockDeviceStats
  rd_bytes: int
  wr_bytes: int
  unmap_bytes: int
  rd_operations: int
  wr_operations: int
  flush_operations: int
  unmap_operations: int
  rd_total_time_ns: int
  wr_total_time_ns: int
  flush_total_time_ns: int
  unmap_total_time_ns: int
  wr_highest_offset: int
  rd_merged: int
  wr_merged: int
  unmap_merged: int
  idle_time_ns?: int
  failed_rd_operations: int
  failed_wr_operations: int
  failed_flush_operations: int
  failed_unmap_operations: int
  invalid_rd_operations: int
  invalid_wr_operations: int
  invalid_flush_operations: int
  invalid_unmap_operations: int
  account_invalid: bool
  account_failed: bool
  timed_stats: [BlockDeviceTimedStats]
  rd_latency_histogram?: BlockLatencyHistogramInfo
  wr_latency_histogram?: BlockLatencyHistogramInfo
  flush_latency_histogram?: BlockLatencyHistogramInfo

struct BlockStatsSpecificFile
  discard-nb-ok: uint64
  discard-nb-failed: uint64
  discard-bytes-ok: uint64

struct BlockStatsSpecificNvme
  completion-errors: uint64
  aligned-accesses: uint64
  unaligned-accesses: uint64

union BlockStatsSpecific by driver
  driver: BlockdevDriver
  case file: BlockStatsSpecificFile
  case host_device: BlockStatsSpecificFile
  case nvme: BlockStatsSpecificNvme

struct BlockStats
  device?: str
  qdev?: str
  node-name?: str
  stats: BlockDeviceStats
  driver-specific?: BlockStatsSpecific
  parent?: BlockStats
  backing?: BlockStats

command query-blockstats -> [BlockStats] preconfig
  query-nodes?: bool

command block_resize preconfig
  device?: str
  node-name?: str
  size: int

enum NewImageMode
  existing absolute-paths

command blockdev-snapshot-sync preconfig
  device?: str
  node-name?: str
  snapshot-file: str
  snapshot-node-name?: str
  format?: str
  mode?: NewImageMode

command blockdev-snapshot !allow-write-only-overlay preconfig
  node: str
  overlay: str

command change-backing-file preconfig
  device: str
  image-node-name: str
  backing-file: str

command query-named-block-nodes -> [BlockDeviceInfo] preconfig
  flat?: bool

enum XDbgBlockGraphNodeType
  block-backend block-job block-driver

struct XDbgBlockGraphNode
  id: uint64
  type: XDbgBlockGraphNodeType
  name: str

struct XDbgBlockGraphEdge
  parent: uint64
  child: uint64
  name: str
  perm: [BlockPermission]
  shared-perm: [BlockPermission]

struct XDbgBlockGraph
  nodes: [XDbgBlockGraphNode]
  edges: [XDbgBlockGraphEdge]

command x-debug-query-block-graph -> XDbgBlockGraph !unstable preconfig

command blockdev-add : BlockdevOptions plain preconfig

struct BlockdevReopenOptions
  options: [BlockdevOptions]

command blockdev-reopen : BlockdevReopenOptions plain preconfig

command x-blockdev-reopen : BlockdevOptions plain

command blockdev-del preconfig
  node-name: str

command block_passwd
  device?: str
  node-name?: str
  password: str

event BLOCK_IMAGE_CORRUPTED
  device: str
  node-name?: str
  msg: str
  offset?: int
  size?: int
  fatal: bool

enum IoOperationType
  read write

enum BlockErrorAction
  ignore report stop

event BLOCK_IO_ERROR
  device: str
  node-name?: str
  operation: IoOperationType
  action: BlockErrorAction
  nospace?: bool
  reason: str

event BLOCK_WRITE_THRESHOLD
  node-name: str
  amount-exceeded: uint64
  write-threshold: uint64

command block-set-write-threshold preconfig
  node-name: str
  write-threshold: uint64

command x-blockdev-change !unstable preconfig
  parent: str
  child?: str
  node?: str

alternate StrOrNull
  s: str
  n: null

command x-blockdev-set-iothread !unstable preconfig
  node-name: str
  iothread: StrOrNull
  force?: bool

event QUORUM_FAILURE
  reference: str
  sector-num: int
  sectors-count: int

enum QuorumOpType
  read write flush

event QUORUM_REPORT_BAD
  type: QuorumOpType
  error?: str
  node-name: str
  sector-num: int
  sectors-count: int
"""

TEXT = _COMMANDS + OPTIONS + INFORMATION
