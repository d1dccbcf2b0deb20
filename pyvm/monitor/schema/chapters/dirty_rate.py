"""How fast the guest writes to its memory, and limits of that."""

TEXT = """
enum DirtyRateStatus
  unstarted measuring measured

enum DirtyRateMeasureMode
  page-sampling dirty-ring dirty-bitmap

struct DirtyRateVcpu
  id: int
  dirty-rate: int64

struct DirtyRateInfo
  dirty-rate?: int64
  status: DirtyRateStatus
  start-time: int64
  calc-time: int64
  sample-pages: uint64
  mode: DirtyRateMeasureMode
  vcpu-dirty-rate?: [DirtyRateVcpu]

command calc-dirty-rate
  calc-time: int64
  sample-pages?: int
  mode?: DirtyRateMeasureMode

command query-dirty-rate -> DirtyRateInfo

struct DirtyLimitInfo
  cpu-index: int
  limit-rate: uint64
  current-rate: uint64

command set-vcpu-dirty-limit
  cpu-index?: int
  dirty-rate: uint64

command cancel-vcpu-dirty-limit
  cpu-index?: int

command query-vcpu-dirty-limit -> [DirtyLimitInfo]
"""
