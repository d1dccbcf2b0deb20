"""What belongs to no other chapter."""

TEXT = """
struct NameInfo
  name?: str

command query-name -> NameInfo preconfig

command stop

command cont

event RTC_CHANGE
  offset: int
  qom-path: str
"""
