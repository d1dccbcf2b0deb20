"""The object model: the tree of objects, their properties and types, and objects that users create."""

_COMMANDS = """
struct ObjectPropertyInfo
  name: str
  type: str
  description?: str
  default-value?: any

command qom-list -> [ObjectPropertyInfo] preconfig
  path: str

command qom-get -> any preconfig
  path: str
  property: str

command qom-set preconfig
  path: str
  property: str
  value: any

struct ObjectTypeInfo
  name: str
  abstract?: bool
  parent?: str

command qom-list-types -> [ObjectTypeInfo] preconfig
  implements?: str
  abstract?: bool

command qom-list-properties -> [ObjectPropertyInfo] preconfig
  typename: str

command object-add : ObjectOptions plain preconfig

command object-del preconfig
  id: str

enum ObjectType
  authz-list authz-listfile authz-pam authz-simple can-bus
  can-host-socketcan if=linux
  colo-compare cryptodev-backend cryptodev-backend-builtin
  cryptodev-backend-lkcf
  cryptodev-vhost-user
  dbus-vmstate filter-buffer filter-dump filter-mirror filter-redirector filter-replay filter-rewriter input-barrier
  input-linux if=linux
  iothread main-loop
  memory-backend-epc if=linux
  memory-backend-file
  memory-backend-memfd if=linux
  memory-backend-ram pef-guest
  pr-manager-helper if=linux
  qtest rng-builtin rng-egd
  rng-random
  secret
  secret_keyring if=linux
  sev-guest thread-context s390-pv-guest throttle-group tls-creds-anon tls-creds-psk tls-creds-x509 tls-cipher-suites
  x-remote-object !unstable
  x-vfio-user-server !unstable

union ObjectOptions by qom-type
  qom-type: ObjectType
  id: str
  case authz-list: AuthZListProperties
  case authz-listfile: AuthZListFileProperties
  case authz-pam: AuthZPAMProperties
  case authz-simple: AuthZSimpleProperties
  case can-host-socketcan: CanHostSocketcanProperties if=linux
  case colo-compare: ColoCompareProperties
  case cryptodev-backend: CryptodevBackendProperties
  case cryptodev-backend-builtin: CryptodevBackendProperties
  case cryptodev-backend-lkcf: CryptodevBackendProperties
  case cryptodev-vhost-user: CryptodevVhostUserProperties
  case dbus-vmstate: DBusVMStateProperties
  case filter-buffer: FilterBufferProperties
  case filter-dump: FilterDumpProperties
  case filter-mirror: FilterMirrorProperties
  case filter-redirector: FilterRedirectorProperties
  case filter-replay: NetfilterProperties
  case filter-rewriter: FilterRewriterProperties
  case input-barrier: InputBarrierProperties
  case input-linux: InputLinuxProperties if=linux
  case iothread: IothreadProperties
  case main-loop: MainLoopProperties
  case memory-backend-epc: MemoryBackendEpcProperties if=linux
  case memory-backend-file: MemoryBackendFileProperties
  case memory-backend-memfd: MemoryBackendMemfdProperties if=linux
  case memory-backend-ram: MemoryBackendProperties
  case pr-manager-helper: PrManagerHelperProperties if=linux
  case qtest: QtestProperties
  case rng-builtin: RngProperties
  case rng-egd: RngEgdProperties
  case rng-random: RngRandomProperties
  case secret: SecretProperties
  case secret_keyring: SecretKeyringProperties if=linux
  case sev-guest: SevGuestProperties
  case thread-context: ThreadContextProperties
  case throttle-group: ThrottleGroupProperties
  case tls-creds-anon: TlsCredsAnonProperties
  case tls-creds-psk: TlsCredsPskProperties
  case tls-creds-x509: TlsCredsX509Properties
  case tls-cipher-suites: TlsCredsProperties
  case x-remote-object: RemoteObjectProperties
  case x-vfio-user-server: VfioUserServerProperties
"""

_AUTHORIZATION = """
enum QAuthZListPolicy
  deny allow

enum QAuthZListFormat
  exact glob

struct QAuthZListRule
  match: str
  policy: QAuthZListPolicy
  format?: QAuthZListFormat

struct AuthZListProperties
  policy?: QAuthZListPolicy
  rules?: [QAuthZListRule]

struct AuthZListFileProperties
  filename: str
  refresh?: bool

struct AuthZPAMProperties
  service: str

struct AuthZSimpleProperties
  identity: str
"""

_BACK_ENDS = """
struct CanHostSocketcanProperties
  if: str
  canbus: str

struct ColoCompareProperties
  primary_in: str
  secondary_in: str
  outdev: str
  iothread: str
  notify_dev?: str
  compare_timeout?: uint64
  expired_scan_cycle?: uint32
  max_queue_size?: uint32
  vnet_hdr_support?: bool

struct CryptodevBackendProperties
  queues?: uint32

struct CryptodevVhostUserProperties : CryptodevBackendProperties
  chardev: str

struct DBusVMStateProperties
  addr: str
  id-list?: str

enum NetFilterDirection
  all rx tx

enum NetfilterInsert
  before behind

struct NetfilterProperties
  netdev: str
  queue?: NetFilterDirection
  status?: str
  position?: str
  insert?: NetfilterInsert

struct FilterBufferProperties : NetfilterProperties
  interval: uint32

struct FilterDumpProperties : NetfilterProperties
  file: str
  maxlen?: uint32

struct FilterMirrorProperties : NetfilterProperties
  outdev: str
  vnet_hdr_support?: bool

struct FilterRedirectorProperties : NetfilterProperties
  indev?: str
  outdev?: str
  vnet_hdr_support?: bool

struct FilterRewriterProperties : NetfilterProperties
  vnet_hdr_support?: bool

struct InputBarrierProperties
  name: str
  server?: str
  port?: str
  x-origin?: str
  y-origin?: str
  width?: str
  height?: str

enum GrabToggleKeys
  ctrl-ctrl alt-alt shift-shift meta-meta scrolllock ctrl-scrolllock

struct InputLinuxProperties
  evdev: str
  grab_all?: bool
  repeat?: bool
  grab-toggle?: GrabToggleKeys

struct MainLoopProperties
  aio-max-batch?: int
  thread-pool-min?: int
  thread-pool-max?: int

struct IothreadProperties : MainLoopProperties
  poll-max-ns?: int
  poll-grow?: int
  poll-shrink?: int

struct PrManagerHelperProperties
  path: str

struct QtestProperties
  chardev: str
  log?: str

struct RngProperties
  opened?: bool !deprecated

struct RngEgdProperties : RngProperties
  chardev: str

struct RngRandomProperties : RngProperties
  filename?: str

struct SevGuestProperties
  sev-device?: str
  dh-cert-file?: str
  session-file?: str
  policy?: uint32
  handle?: uint32
  cbitpos?: uint32
  reduced-phys-bits: uint32
  kernel-hashes?: bool

struct ThreadContextProperties
  cpu-affinity?: [uint16]
  node-affinity?: [uint16]

struct RemoteObjectProperties
  fd: str
  devid: str

# A socket address of the kinds that a remote device can listen on.
struct VfioUserServerProperties
  socket: SocketAddress
  device: str
"""

_MEMORY = """
enum HostMemPolicy
  default preferred bind interleave

struct MemoryBackendProperties
  dump?: bool
  host-nodes?: [uint16]
  merge?: bool
  policy?: HostMemPolicy
  prealloc?: bool
  prealloc-threads?: uint32
  prealloc-context?: str
  share?: bool
  reserve?: bool
  size: size
  x-use-canonical-path-for-ramblock-id?: bool

struct MemoryBackendEpcProperties : MemoryBackendProperties

struct MemoryBackendFileProperties : MemoryBackendProperties
  align?: size
  discard-data?: bool
  mem-path: str
  pmem?: bool
  readonly?: bool

struct MemoryBackendMemfdProperties : MemoryBackendProperties
  hugetlb?: bool
  hugetlbsize?: size
  seal?: bool
"""

_SECRETS = """
enum QCryptoSecretFormat
  raw base64

struct SecretProperties
  loaded?: bool !deprecated
  format?: QCryptoSecretFormat
  keyid?: str
  iv?: str
  data?: str
  file?: str

struct SecretKeyringProperties
  loaded?: bool !deprecated
  format?: QCryptoSecretFormat
  keyid?: str
  iv?: str
  serial: int32

enum QCryptoTLSCredsEndpoint
  client server

struct TlsCredsProperties
  verify-peer?: bool
  dir?: str
  endpoint?: QCryptoTLSCredsEndpoint
  priority?: str

struct TlsCredsAnonProperties : TlsCredsProperties
  loaded?: bool !deprecated

struct TlsCredsPskProperties : TlsCredsProperties
  loaded?: bool !deprecated
  username?: str

struct TlsCredsX509Properties : TlsCredsProperties
  loaded?: bool !deprecated
  sanity-check?: bool
  passwordid?: str
"""

_THROTTLING = """
struct ThrottleGroupProperties
  limits?: ThrottleLimits
  x-iops-total?: int !unstable
  x-iops-total-max?: int !unstable
  x-iops-total-max-length?: int !unstable
  x-iops-read?: int !unstable
  x-iops-read-max?: int !unstable
  x-iops-read-max-length?: int !unstable
  x-iops-write?: int !unstable
  x-iops-write-max?: int !unstable
  x-iops-write-max-length?: int !unstable
  x-bps-total?: int !unstable
  x-bps-total-max?: int !unstable
  x-bps-total-max-length?: int !unstable
  x-bps-read?: int !unstable
  x-bps-read-max?: int !unstable
  x-bps-read-max-length?: int !unstable
  x-bps-write?: int !unstable
  x-bps-write-max?: int !unstable
  x-bps-write-max-length?: int !unstable
  x-iops-size?: int !unstable

struct ThrottleLimits
  iops-total?: int
  iops-total-max?: int
  iops-total-max-length?: int
  iops-read?: int
  iops-read-max?: int
  iops-read-max-length?: int
  iops-write?: int
  iops-write-max?: int
  iops-write-max-length?: int
  bps-total?: int
  bps-total-max?: int
  bps-total-max-length?: int
  bps-read?: int
  bps-read-max?: int
  bps-read-max-length?: int
  bps-write?: int
  bps-write-max?: int
  bps-write-max-length?: int
  iops-size?: int
"""

TEXT = _COMMANDS + _AUTHORIZATION + _BACK_ENDS + _MEMORY + _SECRETS + _THROTTLING
