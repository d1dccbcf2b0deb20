/* userfaultfd(2): the calls to the kernel, without retries being anybody else's business.
 *
 * Accesses that the kernel makes for a system call must be served like those of the program: a disk is read straight
 * into guest RAM.  The kernel gives such a descriptor only to who has CAP_SYS_PTRACE or may open /dev/userfaultfd,
 * unless the host allows it to everybody (vm.unprivileged_userfaultfd).  One for the program's own accesses alone
 * (UFFD_USER_MODE_ONLY) would be of no use: those system calls would fail.
 */
#define _GNU_SOURCE
#include "userfault.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

static int open_any(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0 || errno != EPERM) return fd;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        errno = EPERM;
        return -1;
    }
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int error = errno;
    close(device);
    errno = error;
    return fd;
}

/* Open one that has all these features; -1 and errno where the host has none. */
int userfault_open(uint64_t features) {
    int fd = open_any();
    if (fd < 0) return -1;
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    if (!ioctl(fd, UFFDIO_API, &api) && (api.features & features) == features) return fd;
    close(fd);
    errno = EOPNOTSUPP;
    return -1;
}

/* Hear of faults in a range of memory; false, and errno, where that is of a kind for which this cannot be. */
bool userfault_watch(int fd, void *start, uint64_t length, uint64_t mode) {
    struct uffdio_register call = {.range = {.start = (uintptr_t)start, .len = length}, .mode = mode};
    if (ioctl(fd, UFFDIO_REGISTER, &call)) return false;
    // Pages of zeros cannot be had where all pages are huge, and a page alone could not be placed there.
    uint64_t needed = UINT64_C(1) << (mode == UFFDIO_REGISTER_MODE_WP ? _UFFDIO_WRITEPROTECT : _UFFDIO_ZEROPAGE);
    if (mode == UFFDIO_REGISTER_MODE_MISSING) needed |= UINT64_C(1) << _UFFDIO_COPY;
    if ((call.ioctls & needed) == needed) return true;
    userfault_leave(fd, start, length);
    errno = EOPNOTSUPP;
    return false;
}

/* Hear of no more faults there; whoever waits goes on, with zeros where there is nothing. */
void userfault_leave(int fd, void *start, uint64_t length) {
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length};
    ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/* Place pages where there are none, and wake who waits for them.  False, and errno. */
bool userfault_copy(int fd, char *target, const char *source, uint64_t length) {
    for (uint64_t done = 0; done < length;) {
        struct uffdio_copy call = {
            .dst = (uintptr_t)target + done, .src = (uintptr_t)source + done, .len = length - done};
        if (!ioctl(fd, UFFDIO_COPY, &call)) return true;
        if (call.copy > 0)
            done += (uint64_t)call.copy;
        else if (errno != EAGAIN && errno != EINTR)
            return false;
    }
    return true;
}

/* Place a page of zeros where there is none, and wake who waits for it.  False, and errno. */
bool userfault_zero(int fd, char *target) {
    for (;;) {
        struct uffdio_zeropage call = {.range = {.start = (uintptr_t)target, .len = HOST_PAGE}};
        if (!ioctl(fd, UFFDIO_ZEROPAGE, &call)) return true;
        if (errno == EAGAIN || errno == EINTR) continue;
        if (errno != EEXIST) return false;
        userfault_wake(fd, target, HOST_PAGE);
        return true;
    }
}

/* Let whoever waits in a range try again. */
void userfault_wake(int fd, char *start, uint64_t length) {
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length};
    ioctl(fd, UFFDIO_WAKE, &range);
}

/* Have writes to a range wait, or let them happen again, and wake who waited.  False, and errno. */
bool userfault_protect(int fd, char *start, uint64_t length, bool protect) {
    for (;;) {
        struct uffdio_writeprotect call = {
            .range = {.start = (uintptr_t)start, .len = length},
            .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
        };
        if (!ioctl(fd, UFFDIO_WRITEPROTECT, &call)) return true;
        if (errno != EAGAIN && errno != EINTR) return false;
    }
}

/* Take the faults that wait; returns how many there are. */
int userfault_read(int fd, struct uffd_msg messages[FAULTS_AT_ONCE]) {
    ssize_t count = read(fd, messages, FAULTS_AT_ONCE * sizeof *messages);
    return count > 0 ? (int)((size_t)count / sizeof *messages) : 0;
}
