/*
 * How fast a disk of the guest is, without the guest's page cache and with one request at a time:
 *
 *     diskio read|write DEVICE OFFSET LENGTH PASSES    1 MiB at a time; prints bytes per second of the best pass
 *     diskio random DEVICE LENGTH SECONDS              4 KiB at a time from the first LENGTH bytes; prints reads per second
 *
 * Writes are not followed by a flush: what the host's disk does is not what is compared.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LARGE = 1 << 20, SMALL = 4096 };

static char *buffer;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void check(const char *what, ssize_t moved, size_t wanted)
{
    if (moved == (ssize_t)wanted)
        return;
    fprintf(stderr, "diskio: %s: %s\n", what, moved < 0 ? strerror(errno) : "the disk ends there");
    exit(1);
}

static double sequential(int fd, int writing, uint64_t offset, uint64_t length, int passes)
{
    double best = 0;

    for (int pass = 0; pass < passes; pass++) {
        double rate, start = now();

        for (uint64_t done = 0; done + LARGE <= length; done += LARGE) {
            off_t place = (off_t)(offset + done);

            if (writing)
                check("write", pwrite(fd, buffer, LARGE, place), LARGE);
            else
                check("read", pread(fd, buffer, LARGE, place), LARGE);
        }
        rate = (double)(length / LARGE * LARGE) / (now() - start);
        if (rate > best)
            best = rate;
    }
    return best;
}

static double random_reads(int fd, uint64_t length, double seconds)
{
    uint64_t state = 88172645463325252ull, blocks = length / SMALL;
    double taken, start = now();
    long count = 0;

    do {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        check("read", pread(fd, buffer, SMALL, (off_t)(state % blocks * SMALL)), SMALL);
        count++;
    } while ((taken = now() - start) < seconds);
    return (double)count / taken;
}

int main(int count, char **words)
{
    int is_random = count == 5 && strcmp(words[1], "random") == 0;
    int writing = count == 6 && strcmp(words[1], "write") == 0;
    int fd;

    if (!is_random && !writing && !(count == 6 && strcmp(words[1], "read") == 0))
        return 2;
    fd = open(words[2], (writing ? O_RDWR : O_RDONLY) | O_DIRECT);
    if (fd < 0 || posix_memalign((void **)&buffer, SMALL, LARGE)) {
        perror(words[2]);
        return 1;
    }
    memset(buffer, 0xa5, LARGE);
    if (is_random)
        printf("%.1f\n", random_reads(fd, strtoull(words[3], NULL, 0), atof(words[4])));
    else
        printf("%.1f\n", sequential(fd, writing, strtoull(words[3], NULL, 0), strtoull(words[4], NULL, 0), atoi(words[5])));
    return 0;
}
