/* blkctl discard|zero DEVICE OFFSET LENGTH: what no program of the guest does for a disk. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    unsigned long request = strcmp(argv[1], "zero") == 0 ? BLKZEROOUT : BLKDISCARD;
    uint64_t range[2] = {strtoull(argv[3], NULL, 0), strtoull(argv[4], NULL, 0)};
    int fd = open(argv[2], O_RDWR);
    if (fd < 0 || ioctl(fd, request, range) < 0) {
        perror(argv[2]);
        return 1;
    }
    return 0;
}
