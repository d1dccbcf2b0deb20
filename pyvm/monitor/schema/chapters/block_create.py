"""Making and changing images by jobs."""

_CREATE = """
enum PreallocMode
  off metadata falloc full

enum QCryptoBlockFormat
  qcow luks

struct QCryptoBlockCreateOptionsLUKS
  key-secret?: str
  cipher-alg?: QCryptoCipherAlgorithm
  cipher-mode?: QCryptoCipherMode
  ivgen-alg?: QCryptoIVGenAlgorithm
  ivgen-hash-alg?: QCryptoHashAlgorithm
  hash-alg?: QCryptoHashAlgorithm
  iter-time?: int

union QCryptoBlockCreateOptions by format
  format: QCryptoBlockFormat
  case qcow: QCryptoBlockOptionsQCow
  case luks: QCryptoBlockCreateOptionsLUKS

struct BlockdevCreateOptionsFile
  filename: str
  size: size
  preallocation?: PreallocMode
  nocow?: bool
  extent-size-hint?: size

struct BlockdevCreateOptionsGluster
  location: BlockdevOptionsGluster
  size: size
  preallocation?: PreallocMode

struct BlockdevCreateOptionsLUKS : QCryptoBlockCreateOptionsLUKS
  file: BlockdevRef
  size: size
  preallocation?: PreallocMode

struct BlockdevCreateOptionsNfs
  location: BlockdevOptionsNfs
  size: size

struct BlockdevCreateOptionsParallels
  file: BlockdevRef
  size: size
  cluster-size?: size

struct BlockdevCreateOptionsQcow
  file: BlockdevRef
  size: size
  backing-file?: str
  encrypt?: QCryptoBlockCreateOptions

enum BlockdevQcow2Version
  v2 v3

struct BlockdevCreateOptionsQcow2
  file: BlockdevRef
  data-file?: BlockdevRef
  data-file-raw?: bool
  extended-l2?: bool
  size: size
  version?: BlockdevQcow2Version
  backing-file?: str
  backing-fmt?: BlockdevDriver
  encrypt?: QCryptoBlockCreateOptions
  cluster-size?: size
  preallocation?: PreallocMode
  lazy-refcounts?: bool
  refcount-bits?: int
  compression-type?: Qcow2CompressionType

struct BlockdevCreateOptionsQed
  file: BlockdevRef
  size: size
  backing-file?: str
  backing-fmt?: BlockdevDriver
  cluster-size?: size
  table-size?: int

struct RbdEncryptionCreateOptionsLUKSBase
  key-secret: str
  cipher-alg?: QCryptoCipherAlgorithm

union RbdEncryptionCreateOptions by format
  format: RbdImageEncryptionFormat
  case luks: RbdEncryptionCreateOptionsLUKSBase
  case luks2: RbdEncryptionCreateOptionsLUKSBase

struct BlockdevCreateOptionsRbd
  location: BlockdevOptionsRbd
  size: size
  cluster-size?: size
  encrypt?: RbdEncryptionCreateOptions

struct BlockdevCreateOptionsSsh
  location: BlockdevOptionsSsh
  size: size

struct BlockdevCreateOptionsVdi
  file: BlockdevRef
  size: size
  preallocation?: PreallocMode

enum BlockdevVhdxSubformat
  dynamic fixed

struct BlockdevCreateOptionsVhdx
  file: BlockdevRef
  size: size
  log-size?: size
  block-size?: size
  subformat?: BlockdevVhdxSubformat
  block-state-zero?: bool

enum BlockdevVmdkSubformat
  monolithicSparse monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat streamOptimized

enum BlockdevVmdkAdapterType
  ide buslogic lsilogic legacyESX

struct BlockdevCreateOptionsVmdk
  file: BlockdevRef
  size: size
  extents?: [BlockdevRef]
  subformat?: BlockdevVmdkSubformat
  backing-file?: str
  adapter-type?: BlockdevVmdkAdapterType
  hwversion?: str
  toolsversion?: str
  zeroed-grain?: bool

enum BlockdevVpcSubformat
  dynamic fixed

struct BlockdevCreateOptionsVpc
  file: BlockdevRef
  size: size
  subformat?: BlockdevVpcSubformat
  force-size?: bool

union BlockdevCreateOptions by driver
  driver: BlockdevDriver
  case file: BlockdevCreateOptionsFile
  case gluster: BlockdevCreateOptionsGluster
  case luks: BlockdevCreateOptionsLUKS
  case nfs: BlockdevCreateOptionsNfs
  case parallels: BlockdevCreateOptionsParallels
  case qcow: BlockdevCreateOptionsQcow
  case qcow2: BlockdevCreateOptionsQcow2
  case qed: BlockdevCreateOptionsQed
  case rbd: BlockdevCreateOptionsRbd
  case ssh: BlockdevCreateOptionsSsh
  case vdi: BlockdevCreateOptionsVdi
  case vhdx: BlockdevCreateOptionsVhdx
  case vmdk: BlockdevCreateOptionsVmdk
  case vpc: BlockdevCreateOptionsVpc

struct BlockdevCreate
  job-id: str
  options: BlockdevCreateOptions

command blockdev-create : BlockdevCreate plain preconfig
"""

_AMEND = """
enum QCryptoBlockLUKSKeyslotState
  active inactive

struct QCryptoBlockAmendOptionsLUKS
  state: QCryptoBlockLUKSKeyslotState
  new-secret?: str
  old-secret?: str
  keyslot?: int
  iter-time?: int
  secret?: str

union QCryptoBlockAmendOptions by format
  format: QCryptoBlockFormat
  case luks: QCryptoBlockAmendOptionsLUKS

struct BlockdevAmendOptionsLUKS : QCryptoBlockAmendOptionsLUKS

struct BlockdevAmendOptionsQcow2
  encrypt?: QCryptoBlockAmendOptions

union BlockdevAmendOptions by driver
  driver: BlockdevDriver
  case luks: BlockdevAmendOptionsLUKS
  case qcow2: BlockdevAmendOptionsQcow2

struct BlockdevAmend
  job-id: str
  node-name: str
  options: BlockdevAmendOptions
  force?: bool

command x-blockdev-amend : BlockdevAmend !unstable plain preconfig
"""

TEXT = _CREATE + _AMEND
