"""Changes of remote displays while they are in use."""

TEXT = """
enum DisplayReloadType
  vnc

struct DisplayReloadOptionsVNC
  tls-certs?: bool

union DisplayReloadOptions by type
  type: DisplayReloadType
  case vnc: DisplayReloadOptionsVNC

command display-reload : DisplayReloadOptions

enum DisplayUpdateType
  vnc

struct DisplayUpdateOptionsVNC
  addresses?: [SocketAddress]

union DisplayUpdateOptions by type
  type: DisplayUpdateType
  case vnc: DisplayUpdateOptionsVNC

command display-update : DisplayUpdateOptions
"""
