"""Character devices."""

TEXT = """
struct ChardevInfo
  label: str
  filename: str
  frontend-open: bool

command query-chardev -> [ChardevInfo] preconfig

struct ChardevBackendInfo
  name: str

command query-chardev-backends -> [ChardevBackendInfo]

enum DataFormat
  utf8 base64

command ringbuf-write
  device: str
  data: str
  format?: DataFormat

command ringbuf-read -> str
  device: str
  size: int
  format?: DataFormat

struct ChardevCommon
  logfile?: str
  logappend?: bool

struct ChardevFile : ChardevCommon
  in?: str
  out: str
  append?: bool

struct ChardevHostdev : ChardevCommon
  device: str

struct ChardevSocket : ChardevCommon
  addr: SocketAddressLegacy
  tls-creds?: str
  tls-authz?: str
  server?: bool
  wait?: bool
  nodelay?: bool
  telnet?: bool
  tn3270?: bool
  websocket?: bool
  reconnect?: int

struct ChardevUdp : ChardevCommon
  remote: SocketAddressLegacy
  local?: SocketAddressLegacy

struct ChardevMux : ChardevCommon
  chardev: str

struct ChardevStdio : ChardevCommon
  signal?: bool

struct ChardevSpiceChannel : ChardevCommon
  type: str

struct ChardevSpicePort : ChardevCommon
  fqdn: str

struct ChardevDBus : ChardevCommon
  name: str

struct ChardevVC : ChardevCommon
  width?: int
  height?: int
  cols?: int
  rows?: int

struct ChardevRingbuf : ChardevCommon
  size?: int

struct ChardevQemuVDAgent : ChardevCommon
  mouse?: bool
  clipboard?: bool

enum ChardevBackendKind
  file serial parallel pipe socket udp pty null mux msmouse wctablet braille testdev stdio console spicevmc spiceport
  qemu-vdagent dbus vc ringbuf memory

struct ChardevFileWrapper
  data: ChardevFile

struct ChardevHostdevWrapper
  data: ChardevHostdev

struct ChardevSocketWrapper
  data: ChardevSocket

struct ChardevUdpWrapper
  data: ChardevUdp

struct ChardevCommonWrapper
  data: ChardevCommon

struct ChardevMuxWrapper
  data: ChardevMux

struct ChardevStdioWrapper
  data: ChardevStdio

struct ChardevSpiceChannelWrapper
  data: ChardevSpiceChannel

struct ChardevSpicePortWrapper
  data: ChardevSpicePort

struct ChardevQemuVDAgentWrapper
  data: ChardevQemuVDAgent

struct ChardevDBusWrapper
  data: ChardevDBus

struct ChardevVCWrapper
  data: ChardevVC

struct ChardevRingbufWrapper
  data: ChardevRingbuf

union ChardevBackend by type
  type: ChardevBackendKind
  case file: ChardevFileWrapper
  case serial: ChardevHostdevWrapper
  case parallel: ChardevHostdevWrapper
  case pipe: ChardevHostdevWrapper
  case socket: ChardevSocketWrapper
  case udp: ChardevUdpWrapper
  case pty: ChardevCommonWrapper
  case null: ChardevCommonWrapper
  case mux: ChardevMuxWrapper
  case msmouse: ChardevCommonWrapper
  case wctablet: ChardevCommonWrapper
  case braille: ChardevCommonWrapper
  case testdev: ChardevCommonWrapper
  case stdio: ChardevStdioWrapper
  case console: ChardevCommonWrapper
  case spicevmc: ChardevSpiceChannelWrapper
  case spiceport: ChardevSpicePortWrapper
  case qemu-vdagent: ChardevQemuVDAgentWrapper
  case dbus: ChardevDBusWrapper
  case vc: ChardevVCWrapper
  case ringbuf: ChardevRingbufWrapper
  case memory: ChardevRingbufWrapper

struct ChardevReturn
  pty?: str

command chardev-add -> ChardevReturn
  id: str
  backend: ChardevBackend

command chardev-change -> ChardevReturn
  id: str
  backend: ChardevBackend

command chardev-remove
  id: str

command chardev-send-break
  id: str

event VSERPORT_CHANGE
  id: str
  open: bool
"""
