/* The destination of a migration by postcopy: a thread that serves the guest's accesses to memory that is not there yet.
 *
 * Whoever touches such a page sleeps in the kernel, be it the guest, a device or a system call, and whatever locks it
 * holds.  So this thread takes none that others hold while they touch memory, and never the interpreter's: it reads of
 * faults, asks the source for pages over the connection, and places what comes from there.
 *
 * When the connection breaks, who waits goes on waiting.  The thread accepts another one by itself, as Python may be
 * among those who wait: from a source that knows the token, which is told which pages are still missing.
 */
#define _GNU_SOURCE
#include "taker.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pagebits.h"
#include "userfault.h"

#define NO_PAGE UINT64_MAX
#define GREETING_MAGIC "pyvmchan"
#define RESUMING UINT32_MAX

enum { OUT_LIMIT = 64 << 20 };

/* ---- Connections */

static void signal_thread(Taker *taker) {
    uint64_t one = 1;
    if (write(taker->wake, &one, sizeof one) < 0) return; /* it is awake already */
}

/* Send of what waits as much as the connection takes, with the lock held; returns errno, 0 where nothing is wrong. */
static int push(Taker *taker) {
    Outlet *out = &taker->out;
    while (out->length && taker->in.fd >= 0) {
        ssize_t count = send(taker->in.fd, out->data, out->length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno == EAGAIN ? 0 : errno;
        out->length -= (size_t)count;
        memmove(out->data, out->data + count, out->length);
    }
    return 0;
}

/* Send something, now or soon; from any thread.  False where there is no memory for it. */
bool taker_send(Taker *taker, const void *data, size_t length) {
    Outlet *out = &taker->out;
    bool done = false;
    pthread_mutex_lock(&taker->lock);
    if (out->length + length > out->room && out->length + length <= OUT_LIMIT) {
        size_t room = (out->length + length) * 2;
        uint8_t *grown = realloc(out->data, room);
        if (grown) {
            out->data = grown;
            out->room = room;
        }
    }
    if (out->length + length <= out->room) {
        memcpy(out->data + out->length, data, length);
        out->length += length;
        done = true;
        push(taker); /* an error is noticed by the thread */
    }
    pthread_mutex_unlock(&taker->lock);
    signal_thread(taker);
    return done;
}

static void flush(Taker *taker) {
    pthread_mutex_lock(&taker->lock);
    int error = push(taker);
    bool sent = !taker->out.length;
    pthread_mutex_unlock(&taker->lock);
    if (error)
        taker_lose(taker, "Unable to write to socket: %s", strerror(error));
    else if (taker->finishing && sent)
        taker_enter(taker, TAKER_COMPLETE);
}

static void drop_candidate(Taker *taker) {
    if (taker->candidate >= 0) close(taker->candidate);
    taker->candidate = -1;
    taker->greeted = 0;
}

/* Go on with a connection: the source is told what is missing, and asked again for what somebody waits for. */
static void take_up(Taker *taker, int fd) {
    struct iovec body = {taker->missing, bits_bytes(taker->pages)};
    RecordHead head;
    record_seal(&head, "HAVE", &body, 1);
    pthread_mutex_lock(&taker->lock);
    taker->in.fd = fd;
    taker->error[0] = 0;
    pthread_mutex_unlock(&taker->lock);
    bool done = taker_send(taker, &head, sizeof head) && taker_send(taker, body.iov_base, body.iov_len);
    for (uint64_t page = 0; done && (page = bits_next(taker->asked, page, taker->pages)) < taker->pages; page++)
        if (bits_have(taker->missing, page)) done = taker_ask(taker, page);
    if (done)
        taker_enter(taker, TAKER_RUNNING);
    else
        taker_lose(taker, "%s", strerror(ENOMEM));
}

static void hear_greeting(Taker *taker) {
    char *place = (char *)&taker->greeting + taker->greeted;
    ssize_t count = recv(taker->candidate, place, sizeof taker->greeting - taker->greeted, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
        drop_candidate(taker);
        return;
    }
    taker->greeted += (size_t)count;
    if (taker->greeted < sizeof taker->greeting) return;
    const Greeting *said = &taker->greeting;
    bool right = !memcmp(said->magic, GREETING_MAGIC, sizeof said->magic) &&
                 !memcmp(said->token, taker->token, TOKEN_SIZE) && said->number == RESUMING;
    int fd = taker->candidate;
    taker->candidate = -1;
    taker->greeted = 0;
    if (right && taker->in.fd < 0)
        take_up(taker, fd);
    else
        close(fd);
}

/* Somebody connects; who has come before and said nothing makes room. */
static void accept_one(Taker *taker, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return;
    drop_candidate(taker);
    taker->candidate = fd;
}

/* ---- Faults */

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void serve_fault(Taker *taker, const struct uffd_msg *message) {
    uint64_t page = (message->arg.pagefault.address - (uintptr_t)taker->ram) >> HOST_PAGE_SHIFT;
    if (message->event != UFFD_EVENT_PAGEFAULT || page >= taker->pages) return;
    if (!bits_have(taker->missing, page)) {
        char *place = taker->ram + (page << HOST_PAGE_SHIFT);
        if (!userfault_zero(taker->faults, place)) userfault_wake(taker->faults, place, HOST_PAGE);
        return;
    }
    if (taker->awaited == NO_PAGE && message->arg.pagefault.feat.ptid == (uint32_t)atomic_load(&taker->processor)) {
        taker->awaited = page;
        taker->awaited_since = now();
    }
    if (bits_have(taker->asked, page)) return;
    bits_set(taker->asked, page);
    if (taker->in.fd >= 0 && !taker_ask(taker, page)) taker_lose(taker, "%s", strerror(ENOMEM));
}

static void serve_faults(Taker *taker) {
    struct uffd_msg messages[FAULTS_AT_ONCE];
    int count = userfault_read(taker->faults, messages);
    for (int i = 0; i < count; i++) serve_fault(taker, &messages[i]);
}

/* ---- The thread */

typedef struct {
    struct pollfd fds[4 + MAX_LISTENERS];
    int count, socket, candidate, listeners;
} Waiting;

static int add(Waiting *waiting, int fd, short events) {
    waiting->fds[waiting->count] = (struct pollfd){.fd = fd, .events = events};
    return waiting->count++;
}

static void prepare(Taker *taker, Waiting *waiting) {
    waiting->count = 0;
    add(waiting, taker->wake, POLLIN);
    add(waiting, taker->faults, POLLIN);
    pthread_mutex_lock(&taker->lock);
    waiting->socket = add(waiting, taker->in.fd, (short)(POLLIN | (taker->out.length ? POLLOUT : 0)));
    pthread_mutex_unlock(&taker->lock);
    waiting->candidate = add(waiting, taker->candidate, POLLIN);
    waiting->listeners = waiting->count;
    bool broken = taker->in.fd < 0;
    for (int i = 0; broken && i < taker->listener_count; i++) add(waiting, taker->listeners[i], POLLIN);
}

static void close_listeners(Taker *taker) {
    for (int i = 0; i < taker->listener_count; i++) close(taker->listeners[i]);
    taker->listener_count = 0;
}

/* With the lock held. */
static void take_listeners(Taker *taker) {
    if (taker->fresh_count < 0) return;
    close_listeners(taker);
    memcpy(taker->listeners, taker->fresh, sizeof taker->listeners);
    taker->listener_count = taker->fresh_count;
    taker->fresh_count = -1;
}

/* Do what other threads have asked for; false where that is to end. */
static bool take_orders(Taker *taker) {
    uint64_t count;
    if (read(taker->wake, &count, sizeof count) < 0) return true;
    pthread_mutex_lock(&taker->lock);
    take_listeners(taker);
    int given = taker->given;
    taker->given = -1;
    bool quit = taker->quit;
    pthread_mutex_unlock(&taker->lock);
    if (given >= 0 && taker->in.fd < 0) {
        drop_candidate(taker);
        taker->candidate = given;
    } else if (given >= 0) {
        close(given);
    }
    return !quit;
}

static bool over(const Taker *taker) { return taker->state == TAKER_COMPLETE || taker->state == TAKER_FAILED; }

static void *run(void *argument) {
    Taker *taker = argument;
    Waiting waiting;
    for (;;) {
        if (taker->in.fd >= 0) flush(taker);
        if (over(taker)) break;
        prepare(taker, &waiting);
        if (poll(waiting.fds, (nfds_t)waiting.count, -1) < 0) continue;
        if (waiting.fds[0].revents) {
            if (!take_orders(taker)) break;
            continue; /* what is waited for may have changed */
        }
        if (waiting.fds[1].revents) serve_faults(taker);
        for (int i = waiting.listeners; i < waiting.count; i++)
            if (waiting.fds[i].revents) accept_one(taker, waiting.fds[i].fd);
        if (waiting.fds[waiting.candidate].revents && taker->candidate == waiting.fds[waiting.candidate].fd)
            hear_greeting(taker);
        if (taker->in.fd < 0) continue;
        if (taker->in.fd == waiting.fds[waiting.socket].fd && waiting.fds[waiting.socket].revents & ~POLLOUT)
            taker_receive(taker);
    }
    userfault_leave(taker->faults, taker->ram, taker->pages << HOST_PAGE_SHIFT);
    return NULL;
}

/* ---- For its owner */

/* Have nothing in the pages that are to come, whoever may have touched them before. */
static bool discard_missing(const Taker *taker) {
    for (uint64_t page = 0; (page = bits_next(taker->missing, page, taker->pages)) < taker->pages;) {
        uint64_t first = page;
        while (page < taker->pages && bits_have(taker->missing, page)) page++;
        if (madvise(taker->ram + (first << HOST_PAGE_SHIFT), (page - first) << HOST_PAGE_SHIFT, MADV_REMOVE)) return false;
    }
    return true;
}

/* Hear of accesses to pages of `ram`, of which `missing` are to come: what is in these is dropped.  False, and errno. */
bool taker_init(Taker *taker, void *ram, uint64_t pages, const void *missing) {
    taker->ram = ram;
    taker->pages = pages;
    taker->awaited = NO_PAGE;
    taker->missing = bits_new(pages);
    taker->asked = bits_new(pages);
    taker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    taker->told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!taker->missing || !taker->asked || taker->wake < 0 || taker->told < 0) return false;
    bits_load(taker->missing, missing, pages);
    atomic_store(&taker->left, bits_count(taker->missing, pages));
    taker->faults = userfault_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID);
    return taker->faults >= 0 &&
           userfault_watch(taker->faults, ram, pages << HOST_PAGE_SHIFT, UFFDIO_REGISTER_MODE_MISSING) &&
           discard_missing(taker);
}

/* Begin to serve, over the socket `fd`, which belongs to it from now on. */
bool taker_start(Taker *taker, int fd) {
    taker->in.fd = fd;
    taker->started = !pthread_create(&taker->thread, NULL, run, taker);
    return taker->started;
}

/* Go on over a connection that comes from one of these sockets, should the present one break. */
void taker_listen(Taker *taker, const int *fds, int count) {
    pthread_mutex_lock(&taker->lock);
    for (int i = 0; i < taker->fresh_count; i++) close(taker->fresh[i]);
    taker->fresh_count = count < MAX_LISTENERS ? count : MAX_LISTENERS;
    memcpy(taker->fresh, fds, (size_t)taker->fresh_count * sizeof *fds);
    pthread_mutex_unlock(&taker->lock);
    for (int i = MAX_LISTENERS; i < count; i++) close(fds[i]);
    signal_thread(taker);
}

/* Go on over a connection that is there already. */
void taker_give(Taker *taker, int fd) {
    pthread_mutex_lock(&taker->lock);
    if (taker->given >= 0) close(taker->given);
    taker->given = fd;
    pthread_mutex_unlock(&taker->lock);
    signal_thread(taker);
}

/* Break the connection. */
void taker_interrupt(Taker *taker) {
    pthread_mutex_lock(&taker->lock);
    if (taker->in.fd >= 0) shutdown(taker->in.fd, SHUT_RDWR);
    pthread_mutex_unlock(&taker->lock);
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* End it.  Whoever waits for a page goes on with zeros in its place. */
void taker_close(Taker *taker) {
    pthread_mutex_lock(&taker->lock);
    taker->quit = true;
    pthread_mutex_unlock(&taker->lock);
    if (taker->started) {
        signal_thread(taker);
        pthread_join(taker->thread, NULL);
        taker->started = false;
    }
    take_listeners(taker);
    close_listeners(taker);
    int *fds[] = {&taker->in.fd, &taker->candidate, &taker->given, &taker->faults, &taker->wake, &taker->told};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) close_fd(fds[i]);
    free(taker->missing);
    free(taker->asked);
    free(taker->in.data);
    free(taker->out.data);
    taker->missing = taker->asked = NULL;
    taker->in.data = taker->out.data = NULL;
    taker->out.length = taker->out.room = 0;
}
