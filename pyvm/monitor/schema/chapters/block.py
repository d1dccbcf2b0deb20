"""Drives as a person sees them: media, trays and limits."""

TEXT = """
struct PRManagerInfo
  id: str
  connected: bool

command query-pr-managers -> [PRManagerInfo] preconfig

command eject
  device?: str !deprecated
  id?: str
  force?: bool

command blockdev-open-tray
  device?: str !deprecated
  id?: str
  force?: bool

command blockdev-close-tray
  device?: str !deprecated
  id?: str

command blockdev-remove-medium
  id: str

command blockdev-insert-medium
  id: str
  node-name: str

enum BlockdevChangeReadOnlyMode
  retain read-only read-write

command blockdev-change-medium
  device?: str !deprecated
  id?: str
  filename: str
  format?: str
  force?: bool
  read-only-mode?: BlockdevChangeReadOnlyMode

command change
  device: str
  target: str
  arg?: str

event DEVICE_TRAY_MOVED
  device: str
  id: str
  tray-open: bool

event PR_MANAGER_STATUS_CHANGED
  id: str
  connected: bool

struct BlockIOThrottle
  device?: str !deprecated
  id?: str
  bps: int
  bps_rd: int
  bps_wr: int
  iops: int
  iops_rd: int
  iops_wr: int
  bps_max?: int
  bps_rd_max?: int
  bps_wr_max?: int
  iops_max?: int
  iops_rd_max?: int
  iops_wr_max?: int
  bps_max_length?: int
  bps_rd_max_length?: int
  bps_wr_max_length?: int
  iops_max_length?: int
  iops_rd_max_length?: int
  iops_wr_max_length?: int
  iops_size?: int
  group?: str

command block_set_io_throttle : BlockIOThrottle preconfig

command block-latency-histogram-set preconfig
  id: str
  boundaries?: [uint64]
  boundaries-read?: [uint64]
  boundaries-write?: [uint64]
  boundaries-flush?: [uint64]
"""
