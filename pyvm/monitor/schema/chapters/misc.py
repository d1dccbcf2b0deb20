"""What belongs to no other chapter."""

TEXT = """
struct NameInfo
  name?: str

command query-name -> NameInfo preconfig

command stop

command cont

command human-monitor-command -> str preconfig
  command-line: str
  cpu-index?: int

event RTC_CHANGE
  offset: int
  qom-path: str
"""
