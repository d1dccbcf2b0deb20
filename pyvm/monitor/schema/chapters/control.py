"""The monitor itself: capabilities, version, what it knows, and its end."""

TEXT = """
enum QMPCapability
  oob

command qmp_capabilities preconfig
  enable?: [QMPCapability]

struct VersionTriple
  major: int
  minor: int
  micro: int

struct VersionInfo
  qemu: VersionTriple
  package: str

command query-version -> VersionInfo preconfig

struct CommandInfo
  name: str

command query-commands -> [CommandInfo] preconfig

struct EventInfo
  name: str

# Newer clients find events in query-qmp-schema.
command query-events -> [EventInfo] preconfig !deprecated

command quit preconfig
"""
