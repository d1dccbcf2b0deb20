"""The machine: its CPUs, memory and NUMA nodes, reset and power, and memory ballooning."""

_TARGET = """
enum SysEmuTarget
  aarch64 alpha arm avr cris hppa i386 loongarch64 m68k microblaze microblazeel mips mips64 mips64el mipsel nios2 or1k
  ppc ppc64 riscv32 riscv64 rx s390x sh4 sh4eb sparc sparc64 tricore x86_64 xtensa xtensaeb

enum CpuS390State
  uninitialized stopped check-stop operating load

struct CpuInfoS390
  cpu-state: CpuS390State

struct CpuInstanceProperties
  node-id?: int
  socket-id?: int
  die-id?: int
  cluster-id?: int
  core-id?: int
  thread-id?: int

union CpuInfoFast by target
  cpu-index: int
  qom-path: str
  thread-id: int
  props?: CpuInstanceProperties
  target: SysEmuTarget
  case s390x: CpuInfoS390

command query-cpus-fast -> [CpuInfoFast]

struct MachineInfo
  name: str
  alias?: str
  is-default?: bool
  cpu-max: int
  hotpluggable-cpus: bool
  numa-mem-supported: bool
  deprecated: bool
  default-cpu-type?: str
  default-ram-id?: str

command query-machines -> [MachineInfo]

struct CurrentMachineParams
  wakeup-suspend-support: bool

command query-current-machine -> CurrentMachineParams

struct TargetInfo
  arch: SysEmuTarget

command query-target -> TargetInfo

struct UuidInfo
  UUID: str

command query-uuid -> UuidInfo preconfig

struct GuidInfo
  guid: str

command query-vm-generation-id -> GuidInfo
"""

_POWER = """
command system_reset

command system_powerdown

command system_wakeup

command inject-nmi

struct KvmInfo
  enabled: bool
  present: bool

command query-kvm -> KvmInfo
"""

_NUMA = """
enum NumaOptionsType
  node dist cpu hmat-lb hmat-cache

union NumaOptions by type
  type: NumaOptionsType
  case node: NumaNodeOptions
  case dist: NumaDistOptions
  case cpu: NumaCpuOptions
  case hmat-lb: NumaHmatLBOptions
  case hmat-cache: NumaHmatCacheOptions

struct NumaNodeOptions
  nodeid?: uint16
  cpus?: [uint16]
  mem?: size
  memdev?: str
  initiator?: uint16

struct NumaDistOptions
  src: uint16
  dst: uint16
  val: uint8

struct NumaCpuOptions : CpuInstanceProperties

enum HmatLBMemoryHierarchy
  memory first-level second-level third-level

enum HmatLBDataType
  access-latency read-latency write-latency access-bandwidth read-bandwidth write-bandwidth

struct NumaHmatLBOptions
  initiator: uint16
  target: uint16
  hierarchy: HmatLBMemoryHierarchy
  data-type: HmatLBDataType
  latency?: uint64
  bandwidth?: size

enum HmatCacheAssociativity
  none direct complex

enum HmatCacheWritePolicy
  none write-back write-through

struct NumaHmatCacheOptions
  node-id: uint32
  size: size
  level: uint8
  associativity: HmatCacheAssociativity
  policy: HmatCacheWritePolicy
  line: uint16

struct Memdev
  id?: str
  size: size
  merge: bool
  dump: bool
  prealloc: bool
  share: bool
  reserve?: bool
  host-nodes: [uint16]
  policy: HostMemPolicy

command query-memdev -> [Memdev] preconfig

struct HotpluggableCPU
  type: str
  vcpus-count: int
  props: CpuInstanceProperties
  qom-path?: str

command query-hotpluggable-cpus -> [HotpluggableCPU] preconfig

command set-numa-node : NumaOptions plain preconfig
"""

_LIFE = """
command x-exit-preconfig preconfig !unstable

command dumpdtb
  filename: str
"""

_MEMORY = """
command balloon
  value: int

struct BalloonInfo
  actual: int

command query-balloon -> BalloonInfo

event BALLOON_CHANGE
  actual: int

struct MemoryInfo
  base-memory: size
  plugged-memory?: size

command query-memory-size-summary -> MemoryInfo

enum MemoryDeviceInfoKind
  dimm nvdimm virtio-pmem virtio-mem sgx-epc

union MemoryDeviceInfo by type
  type: MemoryDeviceInfoKind
  case dimm: PCDIMMDeviceInfoWrapper
  case nvdimm: PCDIMMDeviceInfoWrapper
  case virtio-pmem: VirtioPMEMDeviceInfoWrapper
  case virtio-mem: VirtioMEMDeviceInfoWrapper
  case sgx-epc: SgxEPCDeviceInfoWrapper

struct PCDIMMDeviceInfoWrapper
  data: PCDIMMDeviceInfo

struct PCDIMMDeviceInfo
  id?: str
  addr: int
  size: int
  slot: int
  node: int
  memdev: str
  hotplugged: bool
  hotpluggable: bool

struct VirtioPMEMDeviceInfoWrapper
  data: VirtioPMEMDeviceInfo

struct VirtioPMEMDeviceInfo
  id?: str
  memaddr: size
  size: size
  memdev: str

struct VirtioMEMDeviceInfoWrapper
  data: VirtioMEMDeviceInfo

struct VirtioMEMDeviceInfo
  id?: str
  memaddr: size
  requested-size: size
  size: size
  max-size: size
  block-size: size
  node: int
  memdev: str

struct SgxEPCDeviceInfoWrapper
  data: SgxEPCDeviceInfo

struct SgxEPCDeviceInfo
  id?: str
  memaddr: size
  size: size
  node: int
  memdev: str

command query-memory-devices -> [MemoryDeviceInfo]

event MEMORY_DEVICE_SIZE_CHANGE
  id?: str
  size: size
  qom-path: str

event MEM_UNPLUG_ERROR !deprecated
  device: str
  msg: str
"""

_OLD = """
# What clients of QEMU 4.2 and before used for CPUs.
enum CpuInfoArch
  x86 sparc ppc mips tricore s390 riscv other

struct CpuInfoX86
  pc: int

union CpuInfo by arch
  CPU: int
  current: bool
  halted: bool
  qom_path: str
  thread_id: int
  props?: CpuInstanceProperties
  arch: CpuInfoArch
  case x86: CpuInfoX86

command query-cpus -> [CpuInfo] !deprecated

command cpu-add !deprecated
  id: int
"""

TEXT = _TARGET + _POWER + _NUMA + _MEMORY + _LIFE + _OLD
