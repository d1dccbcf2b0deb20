"""Networks: back ends, links, and what network cards let through."""

TEXT = """
command set_link
  name: str
  up: bool

struct NetLegacyNicOptions
  netdev?: str
  macaddr?: str
  model?: str
  addr?: str
  vectors?: uint32

struct NetdevUserOptions
  hostname?: str
  restrict?: bool
  ipv4?: bool
  ipv6?: bool
  ip?: str
  net?: str
  host?: str
  tftp?: str
  bootfile?: str
  dhcpstart?: str
  dns?: str
  dnssearch?: [String]
  domainname?: str
  ipv6-prefix?: str
  ipv6-prefixlen?: int
  ipv6-host?: str
  ipv6-dns?: str
  smb?: str
  smbserver?: str
  hostfwd?: [String]
  guestfwd?: [String]
  tftp-server-name?: str

struct NetdevTapOptions
  ifname?: str
  fd?: str
  fds?: str
  script?: str
  downscript?: str
  br?: str
  helper?: str
  sndbuf?: size
  vnet_hdr?: bool
  vhost?: bool
  vhostfd?: str
  vhostfds?: str
  vhostforce?: bool
  queues?: uint32
  poll-us?: uint32

struct NetdevL2TPv3Options
  src: str
  dst: str
  srcport?: str
  dstport?: str
  ipv6?: bool
  udp?: bool
  cookie64?: bool
  counter?: bool
  pincounter?: bool
  txcookie?: uint64
  rxcookie?: uint64
  txsession: uint32
  rxsession?: uint32
  offset?: uint32

struct NetdevSocketOptions
  fd?: str
  listen?: str
  connect?: str
  mcast?: str
  localaddr?: str
  udp?: str

struct NetdevVdeOptions
  sock?: str
  port?: uint16
  group?: str
  mode?: uint16

struct NetdevBridgeOptions
  br?: str
  helper?: str

struct NetdevHubPortOptions
  hubid: int32
  netdev?: str

struct NetdevNetmapOptions
  ifname: str
  devname?: str

struct NetdevVhostUserOptions
  chardev: str
  vhostforce?: bool
  queues?: int

struct NetdevVhostVDPAOptions
  vhostdev?: str
  vhostfd?: str
  queues?: int
  x-svq?: bool !unstable

struct NetdevStreamOptions
  addr: SocketAddress
  server?: bool

struct NetdevDgramOptions
  local?: SocketAddress
  remote?: SocketAddress

enum NetClientDriver
  none nic user tap l2tpv3 socket stream dgram vde bridge hubport netmap vhost-user vhost-vdpa

union Netdev by type
  id: str
  type: NetClientDriver
  case nic: NetLegacyNicOptions
  case user: NetdevUserOptions
  case tap: NetdevTapOptions
  case l2tpv3: NetdevL2TPv3Options
  case socket: NetdevSocketOptions
  case stream: NetdevStreamOptions
  case dgram: NetdevDgramOptions
  case vde: NetdevVdeOptions
  case bridge: NetdevBridgeOptions
  case hubport: NetdevHubPortOptions
  case netmap: NetdevNetmapOptions
  case vhost-user: NetdevVhostUserOptions
  case vhost-vdpa: NetdevVhostVDPAOptions

command netdev_add : Netdev plain preconfig

command netdev_del preconfig
  id: str

enum RxState
  normal none all

struct RxFilterInfo
  name: str
  promiscuous: bool
  multicast: RxState
  unicast: RxState
  vlan: RxState
  broadcast-allowed: bool
  multicast-overflow: bool
  unicast-overflow: bool
  main-mac: str
  vlan-table: [int]
  unicast-table: [str]
  multicast-table: [str]

command query-rx-filter -> [RxFilterInfo]
  name?: str

event NIC_RX_FILTER_CHANGED
  name?: str
  path: str

struct AnnounceParameters
  initial: int
  max: int
  rounds: int
  step: int
  interfaces?: [str]
  id?: str

command announce-self : AnnounceParameters

event FAILOVER_NEGOTIATED
  device-id: str

event NETDEV_STREAM_CONNECTED
  netdev-id: str
  addr: SocketAddress

event NETDEV_STREAM_DISCONNECTED
  netdev-id: str
"""
