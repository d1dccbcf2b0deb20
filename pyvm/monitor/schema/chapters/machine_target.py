"""CPU models of the machine's target."""

TEXT = """
struct CpuModelInfo
  name: str
  props?: any

enum CpuModelExpansionType
  static full

struct CpuModelExpansionInfo
  model: CpuModelInfo

command query-cpu-model-expansion -> CpuModelExpansionInfo
  type: CpuModelExpansionType
  model: CpuModelInfo

struct CpuDefinitionInfo
  name: str
  migration-safe?: bool
  static: bool
  unavailable-features?: [str]
  typename: str
  alias-of?: str
  deprecated: bool

command query-cpu-definitions -> [CpuDefinitionInfo]
"""
