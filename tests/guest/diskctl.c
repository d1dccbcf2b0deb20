/*
 * What no program of the guest does with a disk:
 *
 *   diskctl tray open|close DEVICE             move the tray of a CD-ROM drive
 *   diskctl fill DEVICE SEED OFFSET LENGTH     write blocks that say where they are, directly; print how many
 *   diskctl verify DEVICE SEED OFFSET LENGTH   read them back; print how many are as they should be
 *   diskctl churn DEVICE SEED LENGTH SECONDS   write and read back blocks in a random order; print how many
 *   diskctl rate read|write|random DEVICE BLOCK COUNT JOBS   print bytes and requests per second
 *
 * An error of the disk is printed as "errno N after COUNT blocks", and the status is 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/cdrom.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 65536 };

static uint64_t *buffer;
static uint64_t done;

static int failed(void) {
    printf("errno %d after %llu blocks\n", errno, (unsigned long long)done);
    return 1;
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* Each word of a block tells the seed, and where it is on the disk. */
static void make(uint64_t seed, uint64_t offset) {
    for (unsigned i = 0; i < BLOCK / 8; i++)
        buffer[i] = (seed << 48) ^ ((offset + i * 8) * 0x9e3779b97f4a7c15ull);
}

static int good(uint64_t seed, uint64_t offset) {
    for (unsigned i = 0; i < BLOCK / 8; i++)
        if (buffer[i] != ((seed << 48) ^ ((offset + i * 8) * 0x9e3779b97f4a7c15ull))) return 0;
    return 1;
}

static int whole(ssize_t count) {
    if (count == BLOCK) return 1;
    if (count >= 0) errno = EIO;
    return 0;
}

static int tray(const char *how, const char *device) {
    int fd = open(device, O_RDONLY | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, strcmp(how, "open") == 0 ? CDROMEJECT : CDROMCLOSETRAY) < 0) return failed();
    return 0;
}

static int fill(int fd, uint64_t seed, uint64_t offset, uint64_t length) {
    for (uint64_t end = offset + length; offset < end; offset += BLOCK, done++) {
        make(seed, offset);
        if (!whole(pwrite(fd, buffer, BLOCK, offset))) return failed();
    }
    if (fsync(fd) < 0) return failed();
    printf("%llu\n", (unsigned long long)done);
    return 0;
}

static int verify(int fd, uint64_t seed, uint64_t offset, uint64_t length) {
    uint64_t right = 0;
    for (uint64_t end = offset + length; offset < end; offset += BLOCK, done++) {
        if (!whole(pread(fd, buffer, BLOCK, offset))) return failed();
        right += good(seed, offset);
    }
    printf("%llu\n", (unsigned long long)right);
    return 0;
}

static int churn(int fd, uint64_t seed, uint64_t length, double seconds) {
    uint64_t state = seed * 0x2545f4914f6cdd1dull + 1;
    for (double end = now() + seconds; now() < end; done++) {
        uint64_t offset = next(&state) % (length / BLOCK) * BLOCK;
        make(seed, offset);
        if (!whole(pwrite(fd, buffer, BLOCK, offset))) return failed();
        if (done % 64 == 63 && fsync(fd) < 0) return failed();
        memset(buffer, 0, BLOCK);
        if (!whole(pread(fd, buffer, BLOCK, offset))) return failed();
        if (!good(seed, offset)) {
            printf("wrong data at %llu\n", (unsigned long long)offset);
            return 1;
        }
    }
    printf("%llu\n", (unsigned long long)done);
    return 0;
}

static int job(const char *kind, const char *device, size_t block, uint64_t count, uint64_t number) {
    uint64_t size, state = number * 0x2545f4914f6cdd1dull + 1;
    char *data;
    int fd = open(device, O_RDWR | O_DIRECT);
    if (fd < 0) fd = open(device, O_RDONLY | O_DIRECT);
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0 || posix_memalign((void **)&data, 4096, block)) return 1;
    memset(data, (int)number + 1, block);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t place = kind[1] == 'a' ? next(&state) : number * count + i;
        off_t offset = place % (size / block) * block;
        ssize_t moved = kind[0] == 'w' ? pwrite(fd, data, block, offset) : pread(fd, data, block, offset);
        if (moved != (ssize_t)block) return 1;
    }
    return 0;
}

static int rate(const char *kind, const char *device, size_t block, uint64_t count, int jobs) {
    double start = now();
    int status, bad = 0;
    for (int i = 0; i < jobs; i++)
        if (fork() == 0) _exit(job(kind, device, block, count, i));
    while (wait(&status) > 0) bad |= status;
    double seconds = now() - start;
    printf("%.0f %.0f\n", jobs * count * block / seconds, jobs * count / seconds);
    return bad != 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "tray") == 0) return tray(argv[2], argv[3]);
    if (argc == 7 && strcmp(argv[1], "rate") == 0)
        return rate(argv[2], argv[3], strtoul(argv[4], NULL, 0), strtoull(argv[5], NULL, 0), atoi(argv[6]));
    if (argc != 6 || posix_memalign((void **)&buffer, 4096, BLOCK)) return 2;
    int fd = open(argv[2], O_RDWR | O_DIRECT);
    if (fd < 0) fd = open(argv[2], O_RDONLY | O_DIRECT);
    if (fd < 0) return failed();
    uint64_t seed = strtoull(argv[3], NULL, 0), first = strtoull(argv[4], NULL, 0);
    if (strcmp(argv[1], "churn") == 0) return churn(fd, seed, first, atof(argv[5]));
    uint64_t length = strtoull(argv[5], NULL, 0);
    if (strcmp(argv[1], "fill") == 0) return fill(fd, seed, first, length);
    return strcmp(argv[1], "verify") == 0 ? verify(fd, seed, first, length) : 2;
}
