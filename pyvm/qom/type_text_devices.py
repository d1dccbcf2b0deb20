"""Types of devices and buses, in the notation of :mod:`pyvm.qom.type_text`."""

TEXT = """
device : object +resettable +vmstate-if abstract
  parent_bus : link<bus>
  hotpluggable hotplugged realized : bool

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
  pci-hole-end pci-hole-start : uint32
  pci-hole64-size : size =2147483648
  pci-hole64-end pci-hole64-start : uint64
  short_root_bus : uint32 =0
  x-pci-hole64-fix : bool =true

pci-device : device abstract
  failover_pair_id romfile : str
  addr : int32 =-1 | Slot and optional function number, example: 06.0 or 06
  romsize : uint32 =4294967295
  x-pcie-extcap-init x-pcie-lnksta-dllla : bool =true | on/off
  rombar : uint32 =1
  acpi-index : uint32 =0
  multifunction : bool =false | on/off

base-pci-bridge : pci-device abstract

e1000-base : pci-device abstract
  mac : str | Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56
  netdev : str | ID of a netdev to use as a backend
  autonegotiation extra_mac_registers init-vet migrate_tso_props mitigation : bool =true | on/off
  bootindex : int32

e1000 : e1000-base +conventional-pci-device

e1000-82544gc : e1000-base +conventional-pci-device

e1000-82545em : e1000-base +conventional-pci-device

pci-bridge : base-pci-bridge +hotplug-handler +conventional-pci-device
  chassis_nr : uint8 =0
  msi : OnOffAuto ="auto" | on/off/auto
  shpc : bool =false | on/off
  bus-reserve : uint32 =4294967295
  io-reserve mem-reserve pref32-reserve pref64-reserve : size =18446744073709551615

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
  index iobase irq : uint32 =4294967295
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
  fdtypeA fdtypeB : FdcDriveType ="auto" | kind of drive: 144/288/120/none/auto
  dma : uint32 =2
  irq : uint32 =6
  iobase : uint32 =1008
  bootindexA bootindexB : int32

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
  acpi-pci-hotplug-with-bridge-support acpi-root-pci-hotplug memory-hotplug-support : bool =true
  smb_io_base : uint32 =0
  disable_s3 disable_s4 : uint8 =0
  smm-compat smm-enabled x-not-migrate-acpi-index : bool =false
  s4_val : uint8 =2

apic-common : device abstract
  vapic : bool =true | on/off
  version : uint8 =20

apic : apic-common
  id : uint32

pci-vga : pci-device +acpi-dev-aml-interface +conventional-pci-device abstract

VGA : pci-vga
  refresh_rate xmax xres ymax yres : uint32 =0
  global-vmstate : bool =false
  big-endian-framebuffer : bool
  vgamem_mb : uint32 =16
  edid mmio qemu-extended-regs : bool =true | on/off

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
  any_layout event_idx indirect_desc notify_on_empty queue_reset : bool =true | on/off
  use-disabled-flag use-started : bool =true
  iommu_platform packed : bool =false | on/off
  x-disable-legacy-check : bool =false

virtio-serial-device : virtio-device +hotplug-handler
  max_ports : uint32 =31
  emergency-write : bool =true | on/off

virtio-pci : pci-device ~virtio-device abstract
  migrate-extra x-ats-page-aligned x-pcie-deverr-init x-pcie-flr-init x-pcie-lnkctl-init : bool =true | on/off
  x-pcie-pm-init : bool =true | on/off
  aer ats modern-pio-notify page-per-vq virtio-pci-bus-master-bug-migration x-disable-pcie : bool =false | on/off
  x-ignore-backend-features : bool =false

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
  deflate-on-oom free-page-hint free-page-reporting : bool =false | on/off
  page-poison : bool =true | on/off
  qemu-4-0-config-size : bool =false
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
  netdev : str | ID of a netdev to use as a backend
  csum ctrl_guest_offloads ctrl_mac_addr ctrl_rx ctrl_rx_extra ctrl_vlan ctrl_vq guest_announce : bool =true | on/off
  guest_csum guest_ecn guest_tso4 guest_tso6 guest_ufo : bool =true | on/off
  gso host_ecn host_tso4 host_tso6 host_ufo mrg_rxbuf status : bool =true | on/off
  guest_rsc_ext hash mq rss : bool =false | on/off
  failover : bool =false
  x-mtu-bypass-backend : bool =true
  rsc_interval : uint32 =300000
  x-txtimer : uint32 =150000
  x-txburst : int32 =256
  host_mtu : uint16 =0
  rx_queue_size tx_queue_size : uint16 =256
  duplex tx : str
  speed : int32 =-1
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
  cyls heads lcyls lheads lsecs secs : uint32 =0
  queue-size : uint16 =256
  serial : str
  account-failed account-invalid backend_defaults write-cache : OnOffAuto ="auto" | on/off/auto
  iothread : link<iothread>
  num-queues : uint16 =65535
  min_io_size opt_io_size : size =0
  config-wce discard request-merging write-zeroes : bool =true | on/off
  report-discard-granularity seg-max-adjust x-enable-wce-if-config-wce : bool =true
  drive : str | ID of a drive, or name of a block node
  rerror werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  logical_block_size physical_block_size : size =0 | a power of two from 512 to 2 Mi
  scsi : bool =false | on/off
  max-discard-sectors max-write-zeroes-sectors : uint32 =4194303
  discard_granularity : size =4294967295
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
  hotplug param_change : bool =true | on/off
  cmd_per_lun : uint32 =128
  num_queues : uint32 =4294967295
  virtqueue_size : uint32 =256

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
  account-failed account-invalid backend_defaults write-cache : OnOffAuto ="auto" | on/off/auto
  model serial ver : str
  drive : str | ID of a drive, or name of a block node
  logical_block_size physical_block_size : size =0 | a power of two from 512 to 2 Mi
  share-rw : bool =false
  wwn : uint64 =0
  discard_granularity : size =4294967295
  min_io_size opt_io_size : size =0
  rerror werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  bootindex : int32

ide-hd : ide-device
  cyls heads lcyls lheads lsecs secs : uint32 =0
  rotation_rate : uint16 =0
  bios-chs-trans : BiosAtaTranslation ="auto" | BIOS geometry: auto/none/lba/large/rechs

ide-cd : ide-device

scsi-device : device abstract
  lun scsi-id : uint32 =4294967295
  channel : uint32 =0
  share-rw : bool =false
  account-failed account-invalid backend_defaults write-cache : OnOffAuto ="auto" | on/off/auto
  scsi_version : int32 =5
  device_id product serial vendor ver : str
  min_io_size opt_io_size : size =0
  drive : str | ID of a drive, or name of a block node
  rerror werror : BlockdevOnError ="auto" | what follows an error: report/ignore/enospc/stop/auto
  port_wwn wwn : uint64 =0
  logical_block_size physical_block_size : size =0 | a power of two from 512 to 2 Mi
  max_io_size : uint64 =2147483647
  quirk_mode_page_vendor_specific_apple : bool =false | on/off
  discard_granularity : size =4294967295
  port_index : uint16 =0
  bootindex : int32

scsi-disk-base : scsi-device abstract

scsi-hd : scsi-disk-base
  cyls heads lcyls lheads lsecs secs : uint32 =0
  dpofua removable : bool =false | on/off
  max_unmap_size : uint64 =1073741824
  rotation_rate : uint16 =0

scsi-cd : scsi-disk-base
  quirk_mode_page_apple_vendor quirk_mode_page_truncated quirk_mode_sense_rom_use_dbd : bool =false | on/off

floppy : device
  drive-type : FdcDriveType ="auto" | kind of drive: 144/288/120/none/auto
  min_io_size opt_io_size : size =0
  account-failed account-invalid backend_defaults write-cache : OnOffAuto ="auto" | on/off/auto
  share-rw : bool =false
  logical_block_size physical_block_size : size =0 | a power of two from 512 to 2 Mi
  drive : str | ID of a drive, or name of a block node
  unit : uint32 =4294967295
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
  iobase readback : uint32 =233
  chardev : str | ID of a chardev to use as a backend
"""
