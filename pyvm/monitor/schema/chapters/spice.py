"""SPICE, a remote display that pyvm does not have."""

TEXT = """
enum NetworkAddressFamily
  ipv4 ipv6 unix vsock unknown

struct SpiceBasicInfo
  host: str
  port: str
  family: NetworkAddressFamily

struct SpiceServerInfo : SpiceBasicInfo
  auth?: str

struct SpiceChannel : SpiceBasicInfo
  connection-id: int
  channel-type: int
  channel-id: int
  tls: bool

enum SpiceQueryMouseMode
  client server unknown

struct SpiceInfo
  enabled: bool
  migrated: bool
  host?: str
  port?: int
  tls-port?: int
  auth?: str
  compiled-version?: str
  mouse-mode: SpiceQueryMouseMode
  channels?: [SpiceChannel]

command query-spice -> SpiceInfo

event SPICE_CONNECTED
  server: SpiceBasicInfo
  client: SpiceBasicInfo

event SPICE_INITIALIZED
  server: SpiceServerInfo
  client: SpiceChannel

event SPICE_DISCONNECTED
  server: SpiceBasicInfo
  client: SpiceBasicInfo

event SPICE_MIGRATE_COMPLETED
"""
