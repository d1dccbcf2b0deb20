/* Memory as it was at one moment, while the guest goes on: for snapshots in the background.
 *
 * All pages that are still needed are protected against writes (userfaultfd, write-protect mode).  Whoever writes to one
 * sleeps in the kernel until the thread here has copied it; that thread takes no lock that others hold while they touch
 * memory, and never the interpreter's.  The pages are taken one after the other: a copy where there is one, else the
 * page itself, which may be written from then on.
 *
 * Copies take memory.  Where there are more than a limit, each write waits for a moment, so that who takes them can
 * catch up; it is never made to wait for him, as he may be the one that writes.
 */
#define _GNU_SOURCE
#include "keeper.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pagebits.h"
#include "userfault.h"

enum { MOMENT = 5 /* ms */ };

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

static char *place(const Keeper *keeper, uint64_t page) { return keeper->ram + (page << HOST_PAGE_SHIFT); }

/* ---- Writes */

static void give_up(Keeper *keeper) {
    atomic_store(&keeper->failed, true);
    userfault_leave(keeper->faults, keeper->ram, keeper->pages << HOST_PAGE_SHIFT);
}

/* Copy a page that is about to be written, unless it is not needed any more; says how many copies there are. */
static uint64_t keep(Keeper *keeper, uint64_t page) {
    pthread_mutex_lock(&keeper->lock);
    if (!bits_have(keeper->taken, page) && !bits_have(keeper->saved, page)) {
        char *copy = malloc(HOST_PAGE);
        if (copy) {
            memcpy(copy, place(keeper, page), HOST_PAGE);
            keeper->copies[page] = copy;
            bits_set(keeper->saved, page);
            keeper->held++;
        } else {
            give_up(keeper);
        }
    }
    uint64_t held = keeper->held;
    pthread_mutex_unlock(&keeper->lock);
    return held;
}

static void serve_fault(Keeper *keeper, const struct uffd_msg *message) {
    uint64_t page = (message->arg.pagefault.address - (uintptr_t)keeper->ram) >> HOST_PAGE_SHIFT;
    if (message->event != UFFD_EVENT_PAGEFAULT || page >= keeper->pages) return;
    struct pollfd woken = {.fd = keeper->wake, .events = POLLIN};
    if (keep(keeper, page) > keeper->limit) poll(&woken, 1, MOMENT);
    if (!userfault_protect(keeper->faults, place(keeper, page), HOST_PAGE, false)) give_up(keeper);
}

static void *run(void *argument) {
    Keeper *keeper = argument;
    struct uffd_msg messages[FAULTS_AT_ONCE];
    struct pollfd fds[] = {{.fd = keeper->faults, .events = POLLIN}, {.fd = keeper->wake, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0) continue;
        if (fds[1].revents) break;
        int count = userfault_read(keeper->faults, messages);
        for (int i = 0; i < count; i++) serve_fault(keeper, &messages[i]);
    }
    return NULL;
}

/* ---- For its owner */

static bool protect_needed(Keeper *keeper) {
    for (uint64_t page = 0; page < keeper->pages; page++) {
        uint64_t first = page;
        while (page < keeper->pages && !bits_have(keeper->taken, page)) page++;
        if (page > first && !userfault_protect(keeper->faults, place(keeper, first), (page - first) << HOST_PAGE_SHIFT, true))
            return false;
    }
    return true;
}

/* Keep the pages of `ram` that are `needed` as they are now, while nobody writes to them; false, and errno. */
bool keeper_init(Keeper *keeper, void *ram, uint64_t pages, const void *needed, uint64_t limit) {
    keeper->ram = ram;
    keeper->pages = pages;
    keeper->limit = limit;
    keeper->taken = bits_new(pages);
    keeper->saved = bits_new(pages);
    keeper->copies = calloc(pages + 1, sizeof *keeper->copies);
    keeper->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!keeper->taken || !keeper->saved || !keeper->copies || keeper->wake < 0) return false;
    bits_load(keeper->taken, needed, pages);
    for (uint64_t i = 0; i < (pages + 63) / 64; i++) keeper->taken[i] = ~keeper->taken[i];
    keeper->faults = userfault_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    if (keeper->faults < 0) return false;
    if (!userfault_watch(keeper->faults, ram, pages << HOST_PAGE_SHIFT, UFFDIO_REGISTER_MODE_WP)) return false;
    if (!protect_needed(keeper)) return false;
    keeper->started = !pthread_create(&keeper->thread, NULL, run, keeper);
    return keeper->started;
}

/* Copy pages, by their numbers, which ascend, as they were; they are not kept any longer.  False where they are lost. */
bool keeper_take(Keeper *keeper, const int64_t *numbers, uint64_t count, char *target) {
    pthread_mutex_lock(&keeper->lock);
    for (uint64_t i = 0; i < count; i++, target += HOST_PAGE) {
        uint64_t page = (uint64_t)numbers[i];
        memcpy(target, bits_have(keeper->saved, page) ? keeper->copies[page] : place(keeper, page), HOST_PAGE);
        if (bits_have(keeper->saved, page)) {
            free(keeper->copies[page]);
            keeper->copies[page] = NULL;
            bits_clear(keeper->saved, page);
            keeper->held--;
        }
        bits_set(keeper->taken, page);
    }
    pthread_mutex_unlock(&keeper->lock);
    bool done = true;
    for (uint64_t i = 0; done && i < count;) {
        uint64_t first = i++;
        while (i < count && numbers[i] == numbers[i - 1] + 1) i++;
        done = userfault_protect(keeper->faults, place(keeper, (uint64_t)numbers[first]), (i - first) << HOST_PAGE_SHIFT, false);
    }
    return done && !atomic_load(&keeper->failed);
}

/* Write down which pages there are copies of, as many as there is room for; says how many. */
uint64_t keeper_saved(Keeper *keeper, int64_t *numbers, uint64_t room) {
    uint64_t count = 0;
    pthread_mutex_lock(&keeper->lock);
    for (uint64_t page = 0; keeper->held && count < room; page++) {
        page = bits_next(keeper->saved, page, keeper->pages);
        if (page == keeper->pages) break;
        numbers[count++] = (int64_t)page;
    }
    pthread_mutex_unlock(&keeper->lock);
    return count;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* Keep nothing any more: whoever waits goes on. */
void keeper_close(Keeper *keeper) {
    uint64_t one = 1;
    if (keeper->started) {
        while (write(keeper->wake, &one, sizeof one) < 0 && errno == EINTR) continue;
        pthread_join(keeper->thread, NULL);
        keeper->started = false;
    }
    close_fd(&keeper->faults);
    close_fd(&keeper->wake);
    for (uint64_t page = 0; keeper->copies && keeper->saved; page++) {
        page = bits_next(keeper->saved, page, keeper->pages);
        if (page == keeper->pages) break;
        free(keeper->copies[page]);
    }
    free(keeper->copies);
    free(keeper->taken);
    free(keeper->saved);
    keeper->copies = NULL;
    keeper->taken = keeper->saved = NULL;
}
