"""The machine: its CPUs, reset and power, and memory ballooning."""

TEXT = """
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

struct TargetInfo
  arch: SysEmuTarget

command query-target -> TargetInfo

struct UuidInfo
  UUID: str

command query-uuid -> UuidInfo preconfig

command system_reset

command system_powerdown

command system_wakeup

command inject-nmi

struct KvmInfo
  enabled: bool
  present: bool

command query-kvm -> KvmInfo

command balloon
  value: int

struct BalloonInfo
  actual: int

command query-balloon -> BalloonInfo

event BALLOON_CHANGE
  actual: int
"""
