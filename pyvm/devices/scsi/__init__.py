"""SCSI: logical units (disks and CD-ROM drives) and the bus that they are on, whatever carries the commands."""
