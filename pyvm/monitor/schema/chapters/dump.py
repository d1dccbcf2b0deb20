"""Dumps of guest memory: core files for debuggers and crash analysis, and plain copies."""

TEXT = """
enum DumpGuestMemoryFormat
  elf kdump-zlib kdump-lzo kdump-snappy win-dmp

command dump-guest-memory
  paging: bool
  protocol: str
  detach?: bool
  begin?: int
  length?: int
  format?: DumpGuestMemoryFormat

enum DumpStatus
  none active completed failed

struct DumpQueryResult
  status: DumpStatus
  completed: int
  total: int

command query-dump -> DumpQueryResult

event DUMP_COMPLETED
  result: DumpQueryResult
  error?: str

struct DumpGuestMemoryCapability
  formats: [DumpGuestMemoryFormat]

command query-dump-guest-memory-capability -> DumpGuestMemoryCapability

command memsave
  val: int
  size: int
  filename: str
  cpu-index?: int

command pmemsave
  val: int
  size: int
  filename: str
"""
