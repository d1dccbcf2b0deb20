"""IDE: the two channels of the PIIX3 with their disks and CD drives."""
