"""Run state of the machine, and what happens to it."""

TEXT = """
enum RunState
  debug inmigrate internal-error io-error paused postmigrate prelaunch finish-migrate restore-vm running save-vm
  shutdown suspended watchdog guest-panicked colo

enum ShutdownCause
  none host-error host-qmp-quit host-qmp-system-reset host-signal host-ui guest-shutdown guest-reset guest-panic
  subsystem-reset snapshot-load

struct StatusInfo
  running: bool
  singlestep: bool
  status: RunState

command query-status -> StatusInfo preconfig

event SHUTDOWN
  guest: bool
  reason: ShutdownCause

event POWERDOWN

event RESET
  guest: bool
  reason: ShutdownCause

event STOP

event RESUME

event SUSPEND

event SUSPEND_DISK

event WAKEUP

enum WatchdogAction
  reset shutdown poweroff pause debug none inject-nmi

event WATCHDOG
  action: WatchdogAction

enum RebootAction
  reset shutdown

enum ShutdownAction
  poweroff pause

enum PanicAction
  pause shutdown exit-failure none

command watchdog-set-action
  action: WatchdogAction

command set-action preconfig
  reboot?: RebootAction
  shutdown?: ShutdownAction
  panic?: PanicAction
  watchdog?: WatchdogAction

enum GuestPanicAction
  pause poweroff run

enum GuestPanicInformationType
  hyper-v s390

union GuestPanicInformation by type
  type: GuestPanicInformationType
  case hyper-v: GuestPanicInformationHyperV
  case s390: GuestPanicInformationS390

struct GuestPanicInformationHyperV
  arg1: uint64
  arg2: uint64
  arg3: uint64
  arg4: uint64
  arg5: uint64

enum S390CrashReason
  unknown disabled-wait extint-loop pgmint-loop opint-loop

struct GuestPanicInformationS390
  core: uint32
  psw-mask: uint64
  psw-addr: uint64
  reason: S390CrashReason

event GUEST_PANICKED
  action: GuestPanicAction
  info?: GuestPanicInformation

event GUEST_CRASHLOADED
  action: GuestPanicAction
  info?: GuestPanicInformation

enum MemoryFailureRecipient
  hypervisor guest

enum MemoryFailureAction
  ignore inject fatal reset

struct MemoryFailureFlags
  action-required: bool
  recursive: bool

event MEMORY_FAILURE
  recipient: MemoryFailureRecipient
  action: MemoryFailureAction
  flags: MemoryFailureFlags
"""
