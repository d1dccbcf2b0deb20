"""Types of objects that are no devices: what users create, machines, character devices.

A type is a line with its name, its parent, ``+`` the interfaces that it implements, ``~`` a type whose objects it holds
and whose properties it shows, and whether it is abstract.  Below it stand its properties: names, kind, default, and
what they are about.
"""

TEXT = """
object abstract
  type : string

event-loop-base : object +user-creatable abstract
  thread-pool-min aio-max-batch thread-pool-max : int

iothread : event-loop-base
  poll-max-ns poll-grow poll-shrink : int

secret_common : object +user-creatable abstract
  iv keyid : string
  loaded : bool
  format : QCryptoSecretFormat

secret : secret_common
  file data : string

secret_keyring : secret_common
  serial : int32_t

memory-backend : object +user-creatable abstract
  share : bool | shared with other processes
  size : int | size in bytes
  dump : bool | part of a core dump of the emulator
  prealloc-threads : int | threads that take the memory
  x-use-canonical-path-for-ramblock-id : bool
  policy : HostMemPolicy | how host nodes are used
  prealloc-context : link<thread-context> | context of these threads
  prealloc : bool | take the memory from the host at once
  reserve : bool | swap space or huge pages are set aside
  host-nodes : int | host nodes that the policy is about
  merge : bool | equal pages may be merged by the host

memory-backend-ram : memory-backend

memory-backend-file : memory-backend
  readonly : bool
  align : int
  pmem : bool
  mem-path : string
  discard-data : bool

memory-backend-memfd : memory-backend
  hugetlb : bool | back it with huge pages
  seal : bool | fix its size by seals
  hugetlbsize : int | size of these huge pages

rng-backend : object +user-creatable abstract
  opened : bool

rng-builtin : rng-backend

rng-random : rng-backend
  filename : string

rng-egd : rng-backend
  chardev : string

throttle-group : object +user-creatable
  x-bps-write-max-length x-iops-total-max-length x-iops-size : int
  limits : ThrottleLimits
  x-bps-total x-iops-read-max-length x-bps-write x-iops-write-max-length x-bps-read-max x-iops-read-max : int
  x-bps-total-max x-bps-read-max-length x-iops-read x-bps-read x-bps-write-max x-iops-total-max x-iops-total : int
  x-iops-write x-bps-total-max-length x-iops-write-max : int

authz : object abstract

authz-list : authz +user-creatable
  policy : QAuthZListPolicy
  rules : QAuthZListRule

authz-list-file : authz +user-creatable
  filename : string
  refresh : bool

authz-simple : authz +user-creatable
  identity : string

can-bus : object +user-creatable

cryptodev-backend : object +user-creatable
  queues : uint32

cryptodev-backend-builtin : cryptodev-backend

confidential-guest-support : object abstract

sev-guest : confidential-guest-support +user-creatable
  sev-device : string | the host's device for it
  dh-cert-file : string | certificate of the guest's owner, in base64
  session-file : string | parameters of the session, in base64
  policy handle cbitpos reduced-phys-bits : uint32
  kernel-hashes : bool | the firmware is given hashes of the kernel

netfilter : object +user-creatable abstract
  queue : NetFilterDirection
  netdev insert status position : string

filter-buffer : netfilter
  interval : uint32

filter-dump : netfilter
  maxlen : uint32
  file : string

filter-mirror : netfilter
  outdev : string
  vnet_hdr_support : bool

filter-redirector : netfilter
  indev outdev : string
  vnet_hdr_support : bool

main-loop : event-loop-base

tls-creds : object abstract
  endpoint : QCryptoTLSCredsEndpoint
  dir : string
  verify-peer : bool
  priority : string
  loaded : bool

tls-creds-anon : tls-creds +user-creatable

tls-creds-psk : tls-creds +user-creatable
  username : string

tls-creds-x509 : tls-creds +user-creatable
  sanity-check : bool
  passwordid : string

chardev : object abstract

chardev-null : chardev

chardev-socket : chardev
  connected : bool
  addr : SocketAddress

chardev-fd : chardev abstract

chardev-stdio : chardev-fd

chardev-pty : chardev

chardev-file : chardev-fd

chardev-ringbuf : chardev

chardev-mux : chardev

chardev-udp : chardev

chardev-serial : chardev-fd

chardev-pipe : chardev-fd

container : object

qemu-console : object
  device : link<device>
  head : uint32

accel : object

tcg-accel : accel
  thread : string
  tb-size : int | size of the translation cache in MiB
  split-wx : bool | translated code is never writable where it runs

machine : object abstract
  kernel : string | kernel to boot
  dt-compatible : string | what the device tree root is compatible with
  boot : BootConfiguration | boot configuration
  memory : MemorySizeConfiguration | sizes of memory
  initrd : string | initial RAM disk of the kernel
  confidential-guest-support : link<confidential-guest-support> | object that protects the guest from the host
  graphics : bool | whether there is a display
  usb : bool | whether there is USB
  firmware : string | file with the firmware
  memory-encryption : string | memory encryption object
  smp : SMPConfiguration | CPU topology
  dump-guest-core : bool | guest memory is part of core dumps
  phandle-start : int | first free phandle of the device tree
  dumpdtb : string | write the device tree to this file and end
  memory-backend : link<memory-backend> | ID of the memory backend that is the RAM
  dtb : string | device tree for the kernel
  mem-merge : bool | the host may merge equal pages of the guest
  append : string | command line of the kernel
  suppress-vmdesc : bool | leave descriptions out of migration streams
  peripheral-anon peripheral : child<container>

x86-machine : machine +nmi abstract
  smm : OnOffAuto | system management mode
  acpi : OnOffAuto | whether there is ACPI
  pit : OnOffAuto | timer 8254
  pic : OnOffAuto | interrupt controllers 8259
  x-oem-table-id : string | OEM table ID of ACPI tables, 8 characters
  bus-lock-ratelimit : uint64_t | bus locks a second that a guest may take
  sgx-epc : SgxEPC | enclave page cache sections
  x-oem-id : string | OEM ID of ACPI tables, 6 characters

generic-pc-machine : x86-machine +hotplug-handler abstract
  max-fw-size : size | most bytes of firmware
  default-bus-bypass-iommu : bool
  device-memory-region-size : int
  sata : bool | whether there is Serial ATA
  vmport : OnOffAuto | VMware's I/O port
  i8042 : bool
  hpet : bool | whether there is an HPET
  smbios-entry-point-type : str | kind of SMBIOS entry point: 32, 64
  max-ram-below-4g : size | most RAM below 4 GiB
  smbus : bool | whether there is an SMBus

pc-i440fx-machine : generic-pc-machine
  pflash0 pflash1 : str | ID of a drive, or name of a block node
  hmat : bool | whether ACPI has an HMAT
  cxl : bool | whether there is CXL
  pcspk-audiodev : str | ID of an audiodev
  nvdimm : bool | whether there can be NVDIMMs
  cxl-fmw : CXLFixedMemoryWindow | windows of CXL memory
  nvdimm-persistence : string | what flushes NVDIMMs at power failure: cpu, mem-ctrl

none-machine : machine
"""
