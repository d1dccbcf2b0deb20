"""Registers and commands of ATA drives.

ATA/ATAPI-6 (T13/1410D), sections 7 (registers) and 8 (commands); the commands added since are from ACS-2
(T13/2015-D).  The command block is eight ports at 0x1f0 or 0x170, the control block one port at 0x3f6 or 0x376.
"""

from __future__ import annotations

from typing import Final

# Command block, offsets in ports
DATA: Final = 0  # 16 or 32 bits
ERROR: Final = 1  # read
FEATURES: Final = 1  # write
COUNT: Final = 2  # sector count; interrupt reason of packet commands
LBA_LOW: Final = 3  # sector number
LBA_MID: Final = 4  # cylinder low; byte count low
LBA_HIGH: Final = 5  # cylinder high; byte count high
DEVICE: Final = 6
STATUS: Final = 7  # read: also acknowledges the interrupt
COMMAND: Final = 7  # write
COMMAND_PORTS: Final = 8

# Control block: read alternate status, write device control
CONTROL_NIEN: Final = 1 << 1
CONTROL_SRST: Final = 1 << 2
CONTROL_HOB: Final = 1 << 7

# STATUS
BSY: Final = 1 << 7
DRDY: Final = 1 << 6
DF: Final = 1 << 5
DSC: Final = 1 << 4
DRQ: Final = 1 << 3
ERR: Final = 1 << 0
READY: Final = DRDY | DSC
FAILED: Final = DRDY | ERR
BUSY: Final = BSY | DRDY | DSC

# ERROR
ICRC: Final = 1 << 7
UNC: Final = 1 << 6
IDNF: Final = 1 << 4
ABRT: Final = 1 << 2
DIAGNOSTIC_PASSED: Final = 0x01

# DEVICE
DEVICE_ONES: Final = 0xA0
DEVICE_LBA: Final = 1 << 6
DEVICE_1: Final = 1 << 4
DEVICE_HEAD: Final = 0x0F

# Signatures: count, LBA low, mid, high (section 9.12)
SIGNATURE_DISK: Final = (1, 1, 0x00, 0x00)
SIGNATURE_PACKET: Final = (1, 1, 0x14, 0xEB)
SIGNATURE_NONE: Final = (1, 1, 0xFF, 0xFF)

# Interrupt reason
REASON_COMMAND: Final = 1 << 0  # C/D
REASON_IN: Final = 1 << 1  # I/O: to the host

# Commands
NOP: Final = 0x00
DATA_SET_MANAGEMENT: Final = 0x06
DEVICE_RESET: Final = 0x08
RECALIBRATE: Final = 0x10
READ_SECTORS: Final = 0x20
READ_SECTORS_NORETRY: Final = 0x21
READ_SECTORS_EXT: Final = 0x24
READ_DMA_EXT: Final = 0x25
READ_NATIVE_MAX_EXT: Final = 0x27
READ_MULTIPLE_EXT: Final = 0x29
WRITE_SECTORS: Final = 0x30
WRITE_SECTORS_NORETRY: Final = 0x31
WRITE_SECTORS_EXT: Final = 0x34
WRITE_DMA_EXT: Final = 0x35
WRITE_MULTIPLE_EXT: Final = 0x39
WRITE_VERIFY: Final = 0x3C
WRITE_DMA_FUA_EXT: Final = 0x3D
VERIFY: Final = 0x40
VERIFY_NORETRY: Final = 0x41
VERIFY_EXT: Final = 0x42
SEEK: Final = 0x70
DIAGNOSTIC: Final = 0x90
INITIALIZE_PARAMETERS: Final = 0x91
STANDBY_IMMEDIATE_OLD: Final = 0x94
IDLE_IMMEDIATE_OLD: Final = 0x95
STANDBY_OLD: Final = 0x96
IDLE_OLD: Final = 0x97
CHECK_POWER_OLD: Final = 0x98
SLEEP_OLD: Final = 0x99
PACKET: Final = 0xA0
IDENTIFY_PACKET: Final = 0xA1
SMART: Final = 0xB0
READ_MULTIPLE: Final = 0xC4
WRITE_MULTIPLE: Final = 0xC5
SET_MULTIPLE: Final = 0xC6
READ_DMA: Final = 0xC8
READ_DMA_NORETRY: Final = 0xC9
WRITE_DMA: Final = 0xCA
WRITE_DMA_NORETRY: Final = 0xCB
WRITE_MULTIPLE_FUA_EXT: Final = 0xCE
STANDBY_IMMEDIATE: Final = 0xE0
IDLE_IMMEDIATE: Final = 0xE1
STANDBY: Final = 0xE2
IDLE: Final = 0xE3
CHECK_POWER: Final = 0xE5
SLEEP: Final = 0xE6
FLUSH: Final = 0xE7
FLUSH_EXT: Final = 0xEA
IDENTIFY: Final = 0xEC
SET_FEATURES: Final = 0xEF
SECURITY_FREEZE: Final = 0xF5
READ_NATIVE_MAX: Final = 0xF8

# Subcommands of SET FEATURES (section 8.46)
FEATURE_WRITE_CACHE_ON: Final = 0x02
FEATURE_TRANSFER_MODE: Final = 0x03
FEATURE_WRITE_CACHE_OFF: Final = 0x82
FEATURES_WITHOUT_EFFECT: Final = frozenset(
    {
        0x05,  # advanced power management on
        0x85,  # and off
        0x42,  # acoustic management on
        0xC2,  # and off
        0x55,  # look-ahead off
        0xAA,  # and on
        0x66,  # keep settings over software reset
        0xCC,  # and forget them
        0x67,
        0x96,
        0x69,
        0x9A,
    }
)
"""Accepted because drivers and BIOSes use them and expect no error."""

# Data set management (ACS-2, section 7.10)
DSM_TRIM: Final = 1 << 0

SECTOR: Final = 512
MAX_MULTIPLE: Final = 16
IDENTIFY_SIZE: Final = 512
PACKET_SIZE: Final = 12
