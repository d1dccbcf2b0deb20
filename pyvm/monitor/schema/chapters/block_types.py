"""Types of the block layer: what options block nodes take, and what there is to tell of images and disks."""

OPTIONS = """
enum BlockdevDriver
  blkdebug blklogwrites blkreplay blkverify bochs cloop compress copy-before-write copy-on-read dmg file snapshot-access
  ftp ftps gluster host_cdrom host_device http https iscsi luks nbd nfs null-aio null-co nvme parallels preallocate qcow
  qcow2 qed quorum raw rbd replication ssh throttle vdi vhdx vmdk vpc vvfat

enum BlockdevDiscardOptions
  ignore unmap

enum BlockdevDetectZeroesOptions
  off on unmap

enum BlockdevAioOptions
  threads
  native
  io_uring if=linux

struct BlockdevCacheOptions
  direct?: bool
  no-flush?: bool

union BlockdevOptions by driver
  driver: BlockdevDriver
  node-name?: str
  discard?: BlockdevDiscardOptions
  cache?: BlockdevCacheOptions
  read-only?: bool
  auto-read-only?: bool
  force-share?: bool
  detect-zeroes?: BlockdevDetectZeroesOptions
  case blkdebug: BlockdevOptionsBlkdebug
  case blklogwrites: BlockdevOptionsBlklogwrites
  case blkverify: BlockdevOptionsBlkverify
  case blkreplay: BlockdevOptionsBlkreplay
  case bochs: BlockdevOptionsGenericFormat
  case cloop: BlockdevOptionsGenericFormat
  case compress: BlockdevOptionsGenericFormat
  case copy-before-write: BlockdevOptionsCbw
  case copy-on-read: BlockdevOptionsCor
  case dmg: BlockdevOptionsGenericFormat
  case file: BlockdevOptionsFile
  case ftp: BlockdevOptionsCurlFtp
  case ftps: BlockdevOptionsCurlFtps
  case gluster: BlockdevOptionsGluster
  case host_cdrom: BlockdevOptionsFile
  case host_device: BlockdevOptionsFile
  case http: BlockdevOptionsCurlHttp
  case https: BlockdevOptionsCurlHttps
  case iscsi: BlockdevOptionsIscsi
  case luks: BlockdevOptionsLUKS
  case nbd: BlockdevOptionsNbd
  case nfs: BlockdevOptionsNfs
  case null-aio: BlockdevOptionsNull
  case null-co: BlockdevOptionsNull
  case nvme: BlockdevOptionsNVMe
  case parallels: BlockdevOptionsGenericFormat
  case preallocate: BlockdevOptionsPreallocate
  case qcow2: BlockdevOptionsQcow2
  case qcow: BlockdevOptionsQcow
  case qed: BlockdevOptionsGenericCOWFormat
  case quorum: BlockdevOptionsQuorum
  case raw: BlockdevOptionsRaw
  case rbd: BlockdevOptionsRbd
  case replication: BlockdevOptionsReplication
  case snapshot-access: BlockdevOptionsGenericFormat
  case ssh: BlockdevOptionsSsh
  case throttle: BlockdevOptionsThrottle
  case vdi: BlockdevOptionsGenericFormat
  case vhdx: BlockdevOptionsGenericFormat
  case vmdk: BlockdevOptionsGenericCOWFormat
  case vpc: BlockdevOptionsGenericFormat
  case vvfat: BlockdevOptionsVVFAT

alternate BlockdevRef
  definition: BlockdevOptions
  reference: str

alternate BlockdevRefOrNull
  definition: BlockdevOptions
  reference: str
  null: null

struct BlockdevOptionsGenericFormat
  file: BlockdevRef

struct BlockdevOptionsGenericCOWFormat : BlockdevOptionsGenericFormat
  backing?: BlockdevRefOrNull

# Host files, and what is no file at all

enum OnOffAuto
  auto on off

struct BlockdevOptionsFile !dynamic-auto-read-only
  filename: str
  pr-manager?: str
  locking?: OnOffAuto
  aio?: BlockdevAioOptions
  aio-max-batch?: int
  drop-cache?: bool if=linux
  x-check-cache-dropped?: bool !unstable

struct BlockdevOptionsNull
  size?: int
  latency-ns?: uint64
  read-zeroes?: bool

struct BlockdevOptionsNVMe
  device: str
  namespace: int

struct BlockdevOptionsVVFAT
  dir: str
  fat-type?: int
  floppy?: bool
  label?: str
  rw?: bool

# Formats

struct BlockdevOptionsRaw : BlockdevOptionsGenericFormat
  offset?: int
  size?: int

struct BlockdevOptionsLUKS : BlockdevOptionsGenericFormat
  key-secret?: str

enum Qcow2OverlapCheckMode
  none constant cached all

struct Qcow2OverlapCheckFlags
  template?: Qcow2OverlapCheckMode
  main-header?: bool
  active-l1?: bool
  active-l2?: bool
  refcount-table?: bool
  refcount-block?: bool
  snapshot-table?: bool
  inactive-l1?: bool
  inactive-l2?: bool
  bitmap-directory?: bool

alternate Qcow2OverlapChecks
  flags: Qcow2OverlapCheckFlags
  mode: Qcow2OverlapCheckMode

struct QCryptoBlockOptionsQCow
  key-secret?: str

struct QCryptoBlockOptionsLUKS
  key-secret?: str

enum BlockdevQcowEncryptionFormat
  aes

union BlockdevQcowEncryption by format
  format: BlockdevQcowEncryptionFormat
  case aes: QCryptoBlockOptionsQCow

struct BlockdevOptionsQcow : BlockdevOptionsGenericCOWFormat
  encrypt?: BlockdevQcowEncryption

enum BlockdevQcow2EncryptionFormat
  aes luks

union BlockdevQcow2Encryption by format
  format: BlockdevQcow2EncryptionFormat
  case aes: QCryptoBlockOptionsQCow
  case luks: QCryptoBlockOptionsLUKS

struct BlockdevOptionsQcow2 : BlockdevOptionsGenericCOWFormat
  lazy-refcounts?: bool
  pass-discard-request?: bool
  pass-discard-snapshot?: bool
  pass-discard-other?: bool
  overlap-check?: Qcow2OverlapChecks
  cache-size?: int
  l2-cache-size?: int
  l2-cache-entry-size?: int
  refcount-cache-size?: int
  cache-clean-interval?: int
  encrypt?: BlockdevQcow2Encryption
  data-file?: BlockdevRef

# Filters, and what is made of several images

enum BlkdebugEvent
  l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_load l2_update l2_update_compressed
  l2_alloc_cow_read l2_alloc_write read_aio read_backing_aio read_compressed write_aio write_compressed vmstate_load
  vmstate_save cow_read cow_write reftable_load reftable_grow reftable_update refblock_load refblock_update
  refblock_update_part refblock_alloc refblock_alloc_hookup refblock_alloc_write refblock_alloc_write_blocks
  refblock_alloc_write_table refblock_alloc_switch_table cluster_alloc cluster_alloc_bytes cluster_free flush_to_os
  flush_to_disk pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero
  pwritev_done empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write cluster_alloc_space none

enum BlkdebugIOType
  read write write-zeroes discard flush block-status

struct BlkdebugInjectErrorOptions
  event: BlkdebugEvent
  state?: int
  iotype?: BlkdebugIOType
  errno?: int
  sector?: int
  once?: bool
  immediately?: bool

struct BlkdebugSetStateOptions
  event: BlkdebugEvent
  state?: int
  new_state: int

enum BlockPermission
  consistent-read write write-unchanged resize

struct BlockdevOptionsBlkdebug
  image: BlockdevRef
  config?: str
  align?: int
  max-transfer?: int32
  opt-write-zero?: int32
  max-write-zero?: int32
  opt-discard?: int32
  max-discard?: int32
  inject-error?: [BlkdebugInjectErrorOptions]
  set-state?: [BlkdebugSetStateOptions]
  take-child-perms?: [BlockPermission]
  unshare-child-perms?: [BlockPermission]

struct BlockdevOptionsBlklogwrites
  file: BlockdevRef
  log: BlockdevRef
  log-sector-size?: uint32
  log-append?: bool
  log-super-update-interval?: uint64

struct BlockdevOptionsBlkverify
  test: BlockdevRef
  raw: BlockdevRef

struct BlockdevOptionsBlkreplay
  image: BlockdevRef

struct BlockDirtyBitmap
  node: str
  name: str

enum OnCbwError
  break-guest-write break-snapshot

struct BlockdevOptionsCbw : BlockdevOptionsGenericFormat
  target: BlockdevRef
  bitmap?: BlockDirtyBitmap
  on-cbw-error?: OnCbwError
  cbw-timeout?: uint32

struct BlockdevOptionsCor : BlockdevOptionsGenericFormat
  bottom?: str

struct BlockdevOptionsPreallocate : BlockdevOptionsGenericFormat
  prealloc-align?: int
  prealloc-size?: int

enum QuorumReadPattern
  quorum fifo

struct BlockdevOptionsQuorum
  blkverify?: bool
  children: [BlockdevRef]
  vote-threshold: int
  rewrite-corrupted?: bool
  read-pattern?: QuorumReadPattern

enum ReplicationMode
  primary secondary

struct BlockdevOptionsReplication : BlockdevOptionsGenericFormat
  mode: ReplicationMode
  top-id?: str

struct BlockdevOptionsThrottle
  throttle-group: str
  file: BlockdevRef

# The network

struct BlockdevOptionsCurlBase
  url: str
  readahead?: int
  timeout?: int
  username?: str
  password-secret?: str
  proxy-username?: str
  proxy-password-secret?: str

struct BlockdevOptionsCurlHttp : BlockdevOptionsCurlBase
  cookie?: str
  cookie-secret?: str

struct BlockdevOptionsCurlHttps : BlockdevOptionsCurlBase
  cookie?: str
  sslverify?: bool
  cookie-secret?: str

struct BlockdevOptionsCurlFtp : BlockdevOptionsCurlBase

struct BlockdevOptionsCurlFtps : BlockdevOptionsCurlBase
  sslverify?: bool

struct BlockdevOptionsGluster
  volume: str
  path: str
  server: [SocketAddress]
  debug?: int
  logfile?: str

enum IscsiTransport
  tcp iser

enum IscsiHeaderDigest
  crc32c none crc32c-none none-crc32c

struct BlockdevOptionsIscsi
  transport: IscsiTransport
  portal: str
  target: str
  lun?: int
  user?: str
  password-secret?: str
  initiator-name?: str
  header-digest?: IscsiHeaderDigest
  timeout?: int

struct BlockdevOptionsNbd
  server: SocketAddress
  export?: str
  tls-creds?: str
  tls-hostname?: str
  x-dirty-bitmap?: str !unstable
  reconnect-delay?: uint32
  open-timeout?: uint32

enum NFSTransport
  inet

struct NFSServer
  type: NFSTransport
  host: str

struct BlockdevOptionsNfs
  server: NFSServer
  path: str
  user?: int
  group?: int
  tcp-syn-count?: int
  readahead-size?: int
  page-cache-size?: int
  debug?: int

enum RbdAuthMode
  cephx none

enum RbdImageEncryptionFormat
  luks luks2

struct RbdEncryptionOptionsLUKSBase
  key-secret: str

struct RbdEncryptionOptionsLUKS : RbdEncryptionOptionsLUKSBase

struct RbdEncryptionOptionsLUKS2 : RbdEncryptionOptionsLUKSBase

union RbdEncryptionOptions by format
  format: RbdImageEncryptionFormat
  case luks: RbdEncryptionOptionsLUKS
  case luks2: RbdEncryptionOptionsLUKS2

struct BlockdevOptionsRbd
  pool: str
  namespace?: str
  image: str
  conf?: str
  snapshot?: str
  encrypt?: RbdEncryptionOptions
  user?: str
  auth-client-required?: [RbdAuthMode]
  key-secret?: str
  server?: [InetSocketAddressBase]

enum SshHostKeyCheckMode
  none hash known_hosts

enum SshHostKeyCheckHashType
  md5 sha1 sha256

struct SshHostKeyHash
  type: SshHostKeyCheckHashType
  hash: str

union SshHostKeyCheck by mode
  mode: SshHostKeyCheckMode
  case hash: SshHostKeyHash

struct BlockdevOptionsSsh
  server: InetSocketAddress
  path: str
  user?: str
  host-key-check?: SshHostKeyCheck
"""

INFORMATION = """
struct SnapshotInfo
  id: str
  name: str
  vm-state-size: int
  date-sec: int
  date-nsec: int
  vm-clock-sec: int
  vm-clock-nsec: int
  icount?: int

enum QCryptoCipherAlgorithm
  aes-128 aes-192 aes-256 des 3des cast5-128 serpent-128 serpent-192 serpent-256 twofish-128 twofish-192 twofish-256

enum QCryptoCipherMode
  ecb cbc xts ctr

enum QCryptoIVGenAlgorithm
  plain plain64 essiv

enum QCryptoHashAlgorithm
  md5 sha1 sha224 sha256 sha384 sha512 ripemd160

struct QCryptoBlockInfoLUKSSlot
  active: bool
  iters?: int
  stripes?: int
  key-offset: int

struct QCryptoBlockInfoLUKS
  cipher-alg: QCryptoCipherAlgorithm
  cipher-mode: QCryptoCipherMode
  ivgen-alg: QCryptoIVGenAlgorithm
  ivgen-hash-alg?: QCryptoHashAlgorithm
  hash-alg: QCryptoHashAlgorithm
  payload-offset: int
  master-key-iters: int
  uuid: str
  slots: [QCryptoBlockInfoLUKSSlot]

union ImageInfoSpecificQCow2Encryption by format
  format: BlockdevQcow2EncryptionFormat
  case luks: QCryptoBlockInfoLUKS

enum Qcow2BitmapInfoFlags
  in-use auto

struct Qcow2BitmapInfo
  name: str
  granularity: uint32
  flags: [Qcow2BitmapInfoFlags]

enum Qcow2CompressionType
  zlib
  zstd

struct ImageInfoSpecificQCow2
  compat: str
  data-file?: str
  data-file-raw?: bool
  extended-l2?: bool
  lazy-refcounts?: bool
  corrupt?: bool
  refcount-bits: int
  encrypt?: ImageInfoSpecificQCow2Encryption
  bitmaps?: [Qcow2BitmapInfo]
  compression-type: Qcow2CompressionType

struct ImageInfoSpecificVmdk
  create-type: str
  cid: int
  parent-cid: int
  extents: [ImageInfo]

struct ImageInfoSpecificRbd
  encryption-format?: RbdImageEncryptionFormat

enum ImageInfoSpecificKind
  qcow2 vmdk luks rbd

struct ImageInfoSpecificQCow2Wrapper
  data: ImageInfoSpecificQCow2

struct ImageInfoSpecificVmdkWrapper
  data: ImageInfoSpecificVmdk

struct ImageInfoSpecificLUKSWrapper
  data: QCryptoBlockInfoLUKS

struct ImageInfoSpecificRbdWrapper
  data: ImageInfoSpecificRbd

union ImageInfoSpecific by type
  type: ImageInfoSpecificKind
  case qcow2: ImageInfoSpecificQCow2Wrapper
  case vmdk: ImageInfoSpecificVmdkWrapper
  case luks: ImageInfoSpecificLUKSWrapper
  case rbd: ImageInfoSpecificRbdWrapper

struct ImageInfo
  filename: str
  format: str
  dirty-flag?: bool
  actual-size?: int
  virtual-size: int
  cluster-size?: int
  encrypted?: bool
  compressed?: bool
  backing-filename?: str
  full-backing-filename?: str
  backing-filename-format?: str
  snapshots?: [SnapshotInfo]
  backing-image?: ImageInfo
  format-specific?: ImageInfoSpecific

struct BlockdevCacheInfo
  writeback: bool
  direct: bool
  no-flush: bool

struct BlockDirtyInfo
  name?: str
  count: int
  granularity: uint32
  recording: bool
  busy: bool
  persistent: bool
  inconsistent?: bool

struct BlockDeviceInfo
  file: str
  node-name?: str
  ro: bool
  drv: str
  backing_file?: str
  backing_file_depth: int
  encrypted: bool
  detect_zeroes: BlockdevDetectZeroesOptions
  bps: int
  bps_rd: int
  bps_wr: int
  iops: int
  iops_rd: int
  iops_wr: int
  image: ImageInfo
  bps_max?: int
  bps_rd_max?: int
  bps_wr_max?: int
  iops_max?: int
  iops_rd_max?: int
  iops_wr_max?: int
  bps_max_length?: int
  bps_rd_max_length?: int
  bps_wr_max_length?: int
  iops_max_length?: int
  iops_rd_max_length?: int
  iops_wr_max_length?: int
  iops_size?: int
  group?: str
  cache: BlockdevCacheInfo
  write_threshold: int
  dirty-bitmaps?: [BlockDirtyInfo]
"""
