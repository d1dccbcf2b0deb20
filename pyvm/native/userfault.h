/* userfaultfd(2): a thread of this process serves the page faults of others. */
#ifndef PYVM_USERFAULT_H
#define PYVM_USERFAULT_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HOST_PAGE_SHIFT = 12, HOST_PAGE = 1 << HOST_PAGE_SHIFT, FAULTS_AT_ONCE = 16 };

int userfault_open(uint64_t features);
bool userfault_watch(int fd, void *start, uint64_t length, uint64_t mode);
void userfault_leave(int fd, void *start, uint64_t length);
bool userfault_copy(int fd, char *target, const char *source, uint64_t length);
bool userfault_zero(int fd, char *target);
void userfault_wake(int fd, char *start, uint64_t length);
bool userfault_protect(int fd, char *start, uint64_t length, bool protect);
int userfault_read(int fd, struct uffd_msg messages[FAULTS_AT_ONCE]);

#endif
