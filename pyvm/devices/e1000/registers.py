"""Registers and descriptors of the 8254x controllers (PCI/PCI-X Family of Gigabit Ethernet Controllers Software
Developer's Manual, chapters 3 and 13).

All registers have 32 bits; those that are not named here read as zero and ignore what is written.
"""

from __future__ import annotations

import struct

# General (13.4.1 to 13.4.8)
CTRL = 0x0000
STATUS = 0x0008  # read-only
EECD = 0x0010
EERD = 0x0014
CTRL_EXT = 0x0018
FLA = 0x001C
MDIC = 0x0020
FCAL, FCAH, FCT = 0x0028, 0x002C, 0x0030
VET = 0x0038

# Interrupts (13.4.17 to 13.4.21)
ICR = 0x00C0  # cleared by reading
ITR = 0x00C4
ICS = 0x00C8  # write-only
IMS = 0x00D0
IMC = 0x00D8  # write-only

# Receiver (13.4.22 to 13.4.32)
RCTL = 0x0100
FCTTV = 0x0170
TXCW, RXCW = 0x0178, 0x0180
TCTL, TIPG, AIFS = 0x0400, 0x0410, 0x0458
LEDCTL = 0x0E00
PBA = 0x1000
FCRTL, FCRTH = 0x2160, 0x2168
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
RDTR, RXDCTL, RADV, RSRPD = 0x2820, 0x2828, 0x282C, 0x2C00

# Transmitter (13.4.33 to 13.4.46)
TXDMAC = 0x3000
TDFH, TDFT, TDFHS, TDFTS, TDFPC = 0x3410, 0x3418, 0x3420, 0x3428, 0x3430
RDFH, RDFT, RDFHS, RDFTS, RDFPC = 0x2410, 0x2418, 0x2420, 0x2428, 0x2430
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
TIDV, TXDCTL, TADV, TSPMT = 0x3820, 0x3828, 0x382C, 0x3830

# Filters (13.5), wake-up and management (13.6)
RXCSUM = 0x5000
MTA, MTA_WORDS = 0x5200, 128
RA, RA_ENTRIES = 0x5400, 16
VFTA, VFTA_WORDS = 0x5600, 128
WUC, WUFC, WUS, MANC, IPAV = 0x5800, 0x5808, 0x5810, 0x5820, 0x5838

# Statistics (13.7): all are cleared by reading
STATISTICS, STATISTICS_WORDS = 0x4000, 64
MPC = 0x4010
PRC64 = 0x405C  # to PRC1522: packets by their length
GPRC, BPRC, MPRC, GPTC = 0x4074, 0x4078, 0x407C, 0x4080
GORCL, GOTCL = 0x4088, 0x4090  # 64 bits each
RNBC, RUC, ROC = 0x40A0, 0x40A4, 0x40AC
TORL, TOTL = 0x40C0, 0x40C8  # 64 bits each
TPR, TPT = 0x40D0, 0x40D4
PTC64 = 0x40D8
MPTC, BPTC, TSCTC = 0x40F0, 0x40F4, 0x40F8
LENGTH_LIMITS = (64, 127, 255, 511, 1023)
"""Longest packet that each counter of lengths counts, but for the last counter."""

# CTRL
CTRL_FD = 1 << 0
CTRL_SLU = 1 << 6
CTRL_SPEED_1000 = 2 << 8
CTRL_SWDPIN0, CTRL_SWDPIN2 = 1 << 18, 1 << 20
CTRL_RST = 1 << 26
CTRL_VME = 1 << 30
CTRL_PHY_RST = 1 << 31
CTRL_RESET_VALUE = CTRL_SWDPIN2 | CTRL_SWDPIN0 | CTRL_SPEED_1000 | CTRL_SLU | CTRL_FD

# STATUS
STATUS_FD = 1 << 0
STATUS_LU = 1 << 1
STATUS_SPEED_1000 = 2 << 6
STATUS_ASDV_1000 = 2 << 8

# EECD: the pins of the EEPROM
EECD_SK = 1 << 0
EECD_CS = 1 << 1
EECD_DI = 1 << 2
EECD_DO = 1 << 3
EECD_FWE_DISABLED = 1 << 4
EECD_REQ = 1 << 6
EECD_GNT = 1 << 7
EECD_PRES = 1 << 8
EECD_PINS = EECD_SK | EECD_CS | EECD_DI

# EERD
EERD_START = 1 << 0
EERD_DONE = 1 << 4

# MDIC
MDIC_DATA = 0xFFFF
MDIC_WRITE, MDIC_READ = 1 << 26, 2 << 26
MDIC_READY = 1 << 28
MDIC_INTERRUPT = 1 << 29
MDIC_ERROR = 1 << 30
PHY_ADDRESS = 1

# ICR, ICS, IMS, IMC
CAUSE_TXDW = 1 << 0
CAUSE_TXQE = 1 << 1
CAUSE_LSC = 1 << 2
CAUSE_RXDMT0 = 1 << 4
CAUSE_RXO = 1 << 6
CAUSE_RXT0 = 1 << 7
CAUSE_MDAC = 1 << 9
CAUSE_TXD_LOW = 1 << 15
CAUSES = 0x0001FFDF
"""All causes that an 82540EM knows."""
ITR_INTERVAL = 0xFFFF
ITR_TICK = 256
"""Nanoseconds."""
DELAY_TICK = 1024
"""Nanoseconds: the unit of RDTR, RADV, TIDV and TADV."""
DELAY_MASK = 0xFFFF
RDTR_FPD = 1 << 31

# RCTL
RCTL_EN = 1 << 1
RCTL_SBP = 1 << 2
RCTL_UPE = 1 << 3
RCTL_MPE = 1 << 4
RCTL_LPE = 1 << 5
RCTL_RDMTS = 8
RCTL_MO = 12
RCTL_BAM = 1 << 15
RCTL_BSIZE = 16
RCTL_VFE = 1 << 18
RCTL_CFIEN = 1 << 19
RCTL_CFI = 1 << 20
RCTL_BSEX = 1 << 25
RCTL_SECRC = 1 << 26
BUFFER_SIZES = (2048, 1024, 512, 256)
MULTICAST_SHIFTS = (4, 3, 2, 0)
"""How far the last two bytes of an address are shifted for the multicast table, by RCTL.MO."""

# TCTL
TCTL_EN = 1 << 1
TCTL_PSP = 1 << 3

# TXDCTL: descriptors that are left when TXD_LOW is told, in eights
TXDCTL_LWTHRESH = 25

# RXCSUM
RXCSUM_IPOFL = 1 << 8
RXCSUM_TUOFL = 1 << 9
RXCSUM_PCSS = 0xFF

RAH_AV = 1 << 31
MANC_RESET_VALUE = 1 << 13
PBA_RESET_VALUE = 0x00100030
VET_RESET_VALUE = 0x8100

RING_ALIGNED = 0xFFFFFFF0
RING_LENGTH = 0x000FFF80
DESCRIPTOR = 16

# Transmit descriptors (3.3): legacy; then DEXT descriptors of type context and data
TX_LEGACY = struct.Struct("<QHBBBBH")
"""Buffer, length, checksum offset, command, status, checksum start, special."""
TX_DATA = struct.Struct("<QIBBH")
"""Buffer; length, type and command; status, options, special."""
TX_CONTEXT = struct.Struct("<BBHBBHIBBH")
"""IP checksum: start, offset, end; TCP or UDP checksum: likewise; payload, type and command; status, header, MSS."""
TX_LENGTH = 0x000FFFFF
TX_TYPE = 20
TX_TYPE_CONTEXT, TX_TYPE_DATA = 0, 1
TX_EOP = 0x01
TX_IC, TX_TSE = 0x04, 0x04
TX_RS = 0x08
TX_DEXT = 0x20
TX_VLE = 0x40
TX_IDE = 0x80
TX_DONE = 0x01
TX_STATUS_OFFSET = 12
CONTEXT_TCP, CONTEXT_IP = 0x01, 0x02
POPTS_IXSM, POPTS_TXSM = 0x01, 0x02

# Receive descriptors (3.2.3)
RX = struct.Struct("<QHHBBH")
"""Buffer, length, checksum, status, errors, special."""
RX_DD, RX_EOP, RX_IXSM, RX_VP, RX_TCPCS, RX_IPCS = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
RX_TCPE, RX_IPE = 0x20, 0x40

PLAIN = {
    **dict.fromkeys((CTRL_EXT, FLA, FCAL, FCAH, FCT, VET, FCTTV, TXCW, RXCW, RCTL, TCTL, TIPG, AIFS), 0xFFFFFFFF),
    **dict.fromkeys((LEDCTL, PBA, FCRTL, FCRTH, RXDCTL, RSRPD, TXDMAC, TXDCTL, TSPMT), 0xFFFFFFFF),
    **dict.fromkeys((RXCSUM, WUC, WUFC, WUS, MANC, IPAV, RDBAH, TDBAH), 0xFFFFFFFF),
    **dict.fromkeys((TDFH, TDFT, TDFHS, TDFTS, TDFPC, RDFH, RDFT, RDFHS, RDFTS, RDFPC), 0x1FFF),
    **dict.fromkeys((RDBAL, TDBAL), RING_ALIGNED),
    **dict.fromkeys((RDLEN, TDLEN), RING_LENGTH),
    **dict.fromkeys((RDH, RDT, TDH, TDT, ITR, RADV, TADV, TIDV, RDTR), 0xFFFF),
    CTRL: 0xFFFFFFFF & ~(CTRL_RST | CTRL_PHY_RST),
}
"""Registers that software reads as it wrote them, and which of their bits can be written."""
RESET_VALUES = {
    CTRL: CTRL_RESET_VALUE,
    MANC: MANC_RESET_VALUE,
    PBA: PBA_RESET_VALUE,
    VET: VET_RESET_VALUE,
    LEDCTL: 0x07068302,
    TXDMAC: 1,
}

OLD_PLACES = {
    **{0x0040 + 4 * n: RA + 4 * n for n in range(2 * RA_ENTRIES)},
    **{0x0200 + 4 * n: MTA + 4 * n for n in range(MTA_WORDS)},
    **{0x0600 + 4 * n: VFTA + 4 * n for n in range(VFTA_WORDS)},
    **dict(zip(range(0x0108, 0x0130, 8), (RDTR, RDBAL, RDLEN, RDH, RDT), strict=True)),
    **dict(zip(range(0x0420, 0x0448, 8), (TDBAL, TDLEN, TDH, TDT, TIDV), strict=True)),
    0x0114: RDBAH,
    0x0160: FCRTH,
    0x0168: FCRTL,
    0x0424: TDBAH,
}
"""Where drivers of the 82542 look for registers (13.3)."""
