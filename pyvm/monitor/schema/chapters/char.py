"""Character devices."""

TEXT = """
struct ChardevInfo
  label: str
  filename: str
  frontend-open: bool

command query-chardev -> [ChardevInfo] preconfig

event VSERPORT_CHANGE
  id: str
  open: bool
"""
