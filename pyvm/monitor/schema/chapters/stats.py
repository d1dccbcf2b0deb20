"""Statistics of providers such as KVM."""

TEXT = """
enum StatsType
  cumulative instant peak linear-histogram log2-histogram

enum StatsUnit
  bytes seconds cycles boolean

enum StatsProvider
  kvm

enum StatsTarget
  vm vcpu

struct StatsRequest
  provider: StatsProvider
  names?: [str]

struct StatsVCPUFilter
  vcpus?: [str]

union StatsFilter by target
  target: StatsTarget
  providers?: [StatsRequest]
  case vcpu: StatsVCPUFilter

alternate StatsValue
  scalar: uint64
  boolean: bool
  list: [uint64]

struct Stats
  name: str
  value: StatsValue

struct StatsResult
  provider: StatsProvider
  qom-path?: str
  stats: [Stats]

command query-stats : StatsFilter -> [StatsResult]

struct StatsSchemaValue
  name: str
  type: StatsType
  unit?: StatsUnit
  base?: int8
  exponent: int16
  bucket-size?: uint32

struct StatsSchema
  provider: StatsProvider
  target: StatsTarget
  stats: [StatsSchemaValue]

command query-stats-schemas -> [StatsSchema]
  provider?: StatsProvider
"""
