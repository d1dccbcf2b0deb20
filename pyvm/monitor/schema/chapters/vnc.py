"""VNC displays and their viewers."""

TEXT = """
struct VncBasicInfo
  host: str
  service: str
  family: NetworkAddressFamily
  websocket: bool

struct VncServerInfo : VncBasicInfo
  auth?: str

struct VncClientInfo : VncBasicInfo
  x509_dname?: str
  sasl_username?: str

struct VncInfo
  enabled: bool
  host?: str
  family?: NetworkAddressFamily
  service?: str
  auth?: str
  clients?: [VncClientInfo]

enum VncPrimaryAuth
  none vnc ra2 ra2ne tight ultra tls vencrypt sasl

enum VncVencryptSubAuth
  plain tls-none x509-none tls-vnc x509-vnc tls-plain x509-plain tls-sasl x509-sasl

struct VncServerInfo2 : VncBasicInfo
  auth: VncPrimaryAuth
  vencrypt?: VncVencryptSubAuth

struct VncInfo2
  id: str
  server: [VncServerInfo2]
  clients: [VncClientInfo]
  auth: VncPrimaryAuth
  vencrypt?: VncVencryptSubAuth
  display?: str

command query-vnc -> VncInfo

command query-vnc-servers -> [VncInfo2]

command change-vnc-password
  password: str

event VNC_CONNECTED
  server: VncServerInfo
  client: VncBasicInfo

event VNC_INITIALIZED
  server: VncServerInfo
  client: VncClientInfo

event VNC_DISCONNECTED
  server: VncServerInfo
  client: VncClientInfo
"""
