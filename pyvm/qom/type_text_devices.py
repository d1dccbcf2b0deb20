"""Types of devices and buses, in the notation of :mod:`pyvm.qom.type_text`."""

TEXT = """
device : object +resettable +vmstate-if abstract
  parent_bus : link<bus>
  realized hotplugged hotpluggable : bool

sys-bus-device : device abstract

fw_cfg : sys-bus-device abstract
  acpi-mr-restore : bool =true

fw_cfg_io : fw_cfg
  x-file-slots : uint16 =32
  dma_enabled : bool =true

pci-host-bridge : sys-bus-device abstract
  bypass-iommu : bool =false
  x-config-reg-migration-enabled : bool =true

i440FX-pcihost : pci-host-bridge
  pci-hole-end : uint32
  pci-hole64-size : size =2147483648
  pci-hole64-start : uint64
  short_root_bus : uint32 =0
  pci-hole64-end : uint64
  x-pci-hole64-fix : bool =true
  pci-hole-start : uint32

pci-device : device abstract
  failover_pair_id romfile : str
  addr : int32 =-1 | Slot and optional function number, example: 06.0 or 06
  romsize : uint32 =4294967295
  x-pcie-lnksta-dllla : bool =true | on/off
  rombar : uint32 =1
  x-pcie-extcap-init : bool =true | on/off
  acpi-index : uint32 =0
  multifunction : bool =false | on/off

base-pci-bridge : pci-device abstract

e1000-base : pci-device abstract
  init-vet mitigation : bool =true | on/off
  netdev : str | ID of a netdev to use as a backend
  autonegotiation extra_mac_registers migrate_tso_props : bool =true | on/off
  mac : str | Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56
  bootindex : int32

e1000 : e1000-base +conventional-pci-device

e1000-82544gc : e1000-base +conventional-pci-device

e1000-82545em : e1000-base +conventional-pci-device

pci-bridge : base-pci-bridge +hotplug-handler +conventional-pci-device
  chassis_nr : uint8 =0
  bus-reserve : uint32 =4294967295
  mem-reserve pref64-reserve io-reserve : size =18446744073709551615
  msi : OnOffAuto ="auto" | on/off/auto
  pref32-reserve : size =18446744073709551615
  shpc : bool =false | on/off

i440FX : pci-device +conventional-pci-device

ioapic-common : sys-bus-device +intctrl abstract

ioapic : ioapic-common
  version : uint8 =32

pci-piix3 : pci-device +acpi-dev-aml-interface +conventional-pci-device abstract

PIIX3 : pci-piix3

isa-device : device abstract

i8257 : isa-device +isa-dma
  base dshift : int32 =0
  pageh-base : int32 =1152
  page-base : int32 =128

pic-common : isa-device +intctrl abstract
  master : bool =false | on/off
  elcr_mask : uint8 =255
  elcr_addr iobase : uint32 =4294967295

isa-i8259 : pic-common

hpet : sys-bus-device
  msi : bool =false | on/off
  timers : uint8 =3
  hpet-offset-saved : bool =true
  hpet-intcap : uint32 =0

mc146818rtc : isa-device +acpi-dev-aml-interface
  lost_tick_policy : LostTickPolicy ="discard"
  irq : uint8 =8
  iobase : uint16 =112
  base_year : int32 =1980

pit-common : isa-device abstract

isa-pit : pit-common
  iobase : uint32 =4294967295

isa-serial : isa-device +acpi-dev-aml-interface
  irq index iobase : uint32 =4294967295
  wakeup : bool =false
  chardev : str | ID of a chardev to use as a backend
  baudbase : uint32 =115200
  serial : child<serial>

serial : device
  wakeup : bool =false
  chardev : str | ID of a chardev to use as a backend
  baudbase : uint32 =115200

isa-fdc : isa-device +acpi-dev-aml-interface
  fallback : FdcDriveType ="288" | kind of drive: 144/288/120/none/auto
  fdtypeB : FdcDriveType ="auto" | kind of drive: 144/288/120/none/auto
  dma : uint32 =2
  irq : uint32 =6
  fdtypeA : FdcDriveType ="auto" | kind of drive: 144/288/120/none/auto
  iobase : uint32 =1008
  bootindexB bootindexA : int32

i8042 : isa-device +acpi-dev-aml-interface
  kbd-irq : uint8 =1
  mouse-irq : uint8 =12
  extended-state : bool =true
  kbd-throttle : bool =false
  ps2kbd : child<ps2-kbd>
  ps2mouse : child<ps2-mouse>

ps2-device : sys-bus-device abstract

ps2-kbd : ps2-device

ps2-mouse : ps2-device

port92 : isa-device

pci-ide : pci-device +conventional-pci-device abstract

piix3-ide : pci-ide

PIIX4_PM : pci-device +acpi-device-interface +hotplug-handler +conventional-pci-device
  acpi-pci-hotplug-with-bridge-support : bool =true
  smb_io_base : uint32 =0
  disable_s3 : uint8 =0
  acpi-root-pci-hotplug : bool =true
  smm-enabled : bool =false
  disable_s4 : uint8 =0
  memory-hotplug-support : bool =true
  smm-compat x-not-migrate-acpi-index : bool =false
  s4_val : uint8 =2

apic-common : device abstract
  vapic : bool =true | on/off
  version : uint8 =20

apic : apic-common
  id : uint32
  legacy-instance-id : bool

pci-vga : pci-device +acpi-dev-aml-interface +conventional-pci-device abstract

VGA : pci-vga
  refresh_rate : uint32 =0
  global-vmstate : bool =false
  big-endian-framebuffer : bool
  vgamem_mb : uint32 =16
  qemu-extended-regs mmio : bool =true | on/off
  ymax yres xmax : uint32 =0
  edid : bool =true | on/off
  xres : uint32 =0

bus : object +resettable abstract
  realized : bool
  hotplug-handler : link<hotplug-handler>

PCI : bus

ISA : bus

IDE : bus

System : bus

floppy-bus : bus

SCSI : bus +hotplug-handler

virtio-bus : bus abstract

virtio-pci-bus : virtio-bus

virtio-serial-bus : bus

i2c-bus : bus

virtio-device : device abstract
  queue_reset : bool =true | on/off
  use-disabled-flag : bool =true
  packed iommu_platform : bool =false | on/off
  event_idx : bool =true | on/off
  x-disable-legacy-check : bool =false
  notify_on_empty any_layout : bool =true | on/off
  use-started : bool =true
  indirect_desc : bool =true | on/off

virtio-serial-device : virtio-device +hotplug-handler
  max_ports : uint32 =31
  emergency-write : bool =true | on/off

virtio-pci : pci-device ~virtio-device abstract
  migrate-extra : bool =true | on/off
  ats : bool =false | on/off
  x-ignore-backend-features : bool =false
  x-pcie-pm-init : bool =true | on/off
  aer : bool =false | on/off
  x-pcie-flr-init x-pcie-lnkctl-init x-ats-page-aligned : bool =true | on/off
  page-per-vq : bool =false | on/off
  x-pcie-deverr-init : bool =true | on/off
  virtio-pci-bus-master-bug-migration modern-pio-notify x-disable-pcie : bool =false | on/off

virtio-serial-pci-base : virtio-pci ~virtio-serial-device abstract
  vectors : uint32 =2
  class : uint32 =0
  ioeventfd : bool =true | on/off
  virtio-backend : child<virtio-serial-device>

virtio-serial-pci : virtio-serial-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-serial-pci-transitional : virtio-serial-pci-base +conventional-pci-device

virtio-serial-pci-non-transitional : virtio-serial-pci-base +pci-express-device +conventional-pci-device

virtio-balloon-device : virtio-device
  iothread : link<iothread>
  deflate-on-oom free-page-hint : bool =false | on/off
  page-poison : bool =true | on/off
  qemu-4-0-config-size : bool =false
  free-page-reporting : bool =false | on/off
  guest-stats-polling-interval : int
  guest-stats : guest statistics

virtio-balloon-pci-base : virtio-pci ~virtio-balloon-device abstract
  virtio-backend : child<virtio-balloon-device>

virtio-balloon-pci : virtio-balloon-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-balloon-pci-transitional : virtio-balloon-pci-base +conventional-pci-device

virtio-balloon-pci-non-transitional : virtio-balloon-pci-base +pci-express-device +conventional-pci-device

virtio-net-device : virtio-device
  mac : str | Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56
  gso : bool =true | on/off
  x-txtimer : uint32 =150000
  mq : bool =false | on/off
  mrg_rxbuf : bool =true | on/off
  x-txburst : int32 =256
  host_mtu : uint16 =0
  tx : str
  rss : bool =false | on/off
  status : bool =true | on/off
  failover : bool =false
  ctrl_mac_addr : bool =true | on/off
  tx_queue_size : uint16 =256
  guest_tso4 : bool =true | on/off
  hash : bool =false | on/off
  host_tso6 ctrl_guest_offloads guest_ufo ctrl_vq guest_ecn host_ufo host_ecn : bool =true | on/off
  guest_rsc_ext : bool =false | on/off
  duplex : str
  rsc_interval : uint32 =300000
  guest_announce : bool =true | on/off
  netdev : str | ID of a netdev to use as a backend
  host_tso4 : bool =true | on/off
  x-mtu-bypass-backend : bool =true
  ctrl_rx_extra guest_csum : bool =true | on/off
  rx_queue_size : uint16 =256
  ctrl_vlan guest_tso6 : bool =true | on/off
  speed : int32 =-1
  csum ctrl_rx : bool =true | on/off
  bootindex : int32

virtio-net-pci-base : virtio-pci ~virtio-net-device abstract
  vectors : uint32 =4294967295
  ioeventfd : bool =true | on/off
  virtio-backend : child<virtio-net-device>

virtio-net-pci : virtio-net-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-net-pci-transitional : virtio-net-pci-base +conventional-pci-device

virtio-net-pci-non-transitional : virtio-net-pci-base +pci-express-device +conventional-pci-device

virtio-rng-device : virtio-device
  rng : link<rng-backend>
  period : uint32 =65536
  max-bytes : uint64 =9223372036854775807

virtio-rng-pci-base : virtio-pci ~virtio-rng-device abstract
  vectors : uint32 =4294967295
  ioeventfd : bool =true | on/off
  virtio-backend : child<virtio-rng-device>

virtio-rng-pci : virtio-rng-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-rng-pci-transitional : virtio-rng-pci-base +conventional-pci-device

virtio-rng-pci-non-transitional : virtio-rng-pci-base +pci-express-device +conventional-pci-device

virtio-vsock-device : virtio-device
  guest-cid : uint64 =0
  uds : str

virtio-vsock-pci-base : virtio-pci ~virtio-vsock-device abstract
  vectors : uint32 =4294967295
  ioeventfd : bool =true | on/off
  virtio-backend : child<virtio-vsock-device>

virtio-vsock-pci : virtio-vsock-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="on" | on/off/auto
  disable-modern : bool =false

virtio-vsock-pci-non-transitional : virtio-vsock-pci-base +pci-express-device +conventional-pci-device

virtio-blk-device : virtio-device
  share-rw : bool =false
  lcyls : uint32 =0
  queue-size : uint16 =256
  lsecs : uint32 =0
  serial : str
  account-invalid : OnOffAuto ="auto" | on/off/auto
  iothread : link<iothread>
  lheads : uint32 =0
  num-queues : uint16 =65535
  cyls secs heads : uint32 =0
  min_io_size : size =0
  config-wce : bool =true | on/off
  seg-max-adjust : bool =true
  drive : str | ID of a drive, or name of a block node
  werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  report-discard-granularity : bool =true
  rerror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  write-cache : OnOffAuto ="auto" | on/off/auto
  physical_block_size : size =0 | a power of two from 512 to 2 Mi
  scsi : bool =false | on/off
  opt_io_size : size =0
  logical_block_size : size =0 | a power of two from 512 to 2 Mi
  max-discard-sectors : uint32 =4194303
  discard : bool =true | on/off
  discard_granularity : size =4294967295
  request-merging write-zeroes : bool =true | on/off
  max-write-zeroes-sectors : uint32 =4194303
  account-failed : OnOffAuto ="auto" | on/off/auto
  x-enable-wce-if-config-wce : bool =true
  backend_defaults : OnOffAuto ="auto" | on/off/auto
  bootindex : int32

virtio-blk-pci-base : virtio-pci ~virtio-blk-device abstract
  vectors : uint32 =4294967295
  ioeventfd : bool =true | on/off
  class : uint32 =0
  virtio-backend : child<virtio-blk-device>

virtio-blk-pci : virtio-blk-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-blk-pci-transitional : virtio-blk-pci-base +conventional-pci-device

virtio-blk-pci-non-transitional : virtio-blk-pci-base +pci-express-device +conventional-pci-device

virtio-scsi-common : virtio-device abstract

virtio-scsi-device : virtio-scsi-common +hotplug-handler
  seg_max_adjust : bool =true
  max_sectors : uint32 =65535
  iothread : link<iothread>
  param_change : bool =true | on/off
  cmd_per_lun : uint32 =128
  num_queues : uint32 =4294967295
  virtqueue_size : uint32 =256
  hotplug : bool =true | on/off

virtio-scsi-pci-base : virtio-pci ~virtio-scsi-device abstract
  vectors : uint32 =4294967295
  ioeventfd : bool =true | on/off
  virtio-backend : child<virtio-scsi-device>

virtio-scsi-pci : virtio-scsi-pci-base +pci-express-device +conventional-pci-device
  disable-legacy : OnOffAuto ="auto" | on/off/auto
  disable-modern : bool =false

virtio-scsi-pci-transitional : virtio-scsi-pci-base +conventional-pci-device

virtio-scsi-pci-non-transitional : virtio-scsi-pci-base +pci-express-device +conventional-pci-device

ide-device : device abstract
  unit : uint32 =4294967295
  account-invalid : OnOffAuto ="auto" | on/off/auto
  model : str
  drive : str | ID of a drive, or name of a block node
  serial : str
  logical_block_size : size =0 | a power of two from 512 to 2 Mi
  ver : str
  share-rw : bool =false
  write-cache : OnOffAuto ="auto" | on/off/auto
  wwn : uint64 =0
  discard_granularity : size =4294967295
  backend_defaults : OnOffAuto ="auto" | on/off/auto
  opt_io_size : size =0
  rerror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  min_io_size : size =0
  account-failed : OnOffAuto ="auto" | on/off/auto
  physical_block_size : size =0 | a power of two from 512 to 2 Mi
  werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  bootindex : int32

ide-hd : ide-device
  lsecs lheads : uint32 =0
  rotation_rate : uint16 =0
  heads cyls lcyls : uint32 =0
  bios-chs-trans : BiosAtaTranslation ="auto" | BIOS geometry: auto/none/lba/large/rechs
  secs : uint32 =0

ide-cd : ide-device

scsi-device : device abstract
  scsi-id lun : uint32 =4294967295
  channel : uint32 =0
  account-invalid : OnOffAuto ="auto" | on/off/auto
  device_id : str
  max_io_size : uint64 =2147483647
  drive : str | ID of a drive, or name of a block node
  serial : str
  logical_block_size : size =0 | a power of two from 512 to 2 Mi
  ver : str
  share-rw : bool =false
  write-cache : OnOffAuto ="auto" | on/off/auto
  scsi_version : int32 =5
  wwn : uint64 =0
  discard_granularity : size =4294967295
  backend_defaults : OnOffAuto ="auto" | on/off/auto
  vendor : str
  quirk_mode_page_vendor_specific_apple : bool =false | on/off
  product : str
  opt_io_size : size =0
  rerror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  min_io_size : size =0
  account-failed : OnOffAuto ="auto" | on/off/auto
  physical_block_size : size =0 | a power of two from 512 to 2 Mi
  port_wwn : uint64 =0
  port_index : uint16 =0
  werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  bootindex : int32

scsi-disk-base : scsi-device abstract

scsi-hd : scsi-disk-base
  lheads lcyls lsecs secs : uint32 =0
  removable : bool =false | on/off
  max_unmap_size : uint64 =1073741824
  cyls : uint32 =0
  rotation_rate : uint16 =0
  heads : uint32 =0
  dpofua : bool =false | on/off

scsi-cd : scsi-disk-base
  quirk_mode_sense_rom_use_dbd quirk_mode_page_truncated quirk_mode_page_apple_vendor : bool =false | on/off

floppy : device
  drive-type : FdcDriveType ="auto" | kind of drive: 144/288/120/none/auto
  min_io_size : size =0
  backend_defaults account-invalid : OnOffAuto ="auto" | on/off/auto
  share-rw : bool =false
  account-failed : OnOffAuto ="auto" | on/off/auto
  logical_block_size : size =0 | a power of two from 512 to 2 Mi
  write-cache : OnOffAuto ="auto" | on/off/auto
  opt_io_size : size =0
  drive : str | ID of a drive, or name of a block node
  unit : uint32 =4294967295
  physical_block_size : size =0 | a power of two from 512 to 2 Mi
  discard_granularity : size =4294967295

virtio-serial-port : device abstract
  nr : uint32 =4294967295
  name : str
  chardev : str | ID of a chardev to use as a backend

virtserialport : virtio-serial-port

virtconsole : virtserialport

pc-dimm : device +memory-device
  memdev : link<memory-backend>
  node : uint32 =0
  addr : uint64 =0
  slot : int32 =-1
  size : uint64

isa-debug-exit : isa-device
  iosize : uint32 =2
  iobase : uint32 =1281

isa-debugcon : isa-device
  readback : uint32 =233
  chardev : str | ID of a chardev to use as a backend
  iobase : uint32 =233
"""
