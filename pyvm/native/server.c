/* The source of a migration by postcopy: sends pages of memory that does not change any more, those first that the other
 * side waits for.  All without the interpreter, whose lock somebody may hold who waits for such a page.
 */
#define _GNU_SOURCE
#include "server.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pagebits.h"
#include "userfault.h"

/* Pages in a record: those that are asked for wait until one is sent. */
enum { BATCH = 64, ASKED_BATCH = 8, NANOSECONDS = 1000000000, MILLISECOND = 1000000 };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NANOSECONDS + (uint64_t)time.tv_nsec;
}

/* ---- What comes */

static bool take_request(Server *server) {
    PageRequest request;
    if (server->in.head.length != sizeof request) return false;
    memcpy(&request, server->in.body, sizeof request);
    if (request.block || request.count != 1 || request.first >= server->pages) return false;
    uint32_t page = request.first;
    atomic_fetch_add(&server->asked, 1);
    if (!bits_have(server->wanted, page) || bits_have(server->urgent, page)) return true; /* it is on its way */
    bits_set(server->urgent, page);
    server->requests[(server->first_request + server->request_count++) % REQUESTS_LIMIT] = page;
    return true;
}

typedef enum { NOTHING, SOMETHING, ANSWER, BROKEN, NONSENSE } Heard;

static Heard nonsense(Server *server, const char *what) {
    server->nonsense = what;
    return NONSENSE;
}

/* Read what has come, up to the end of a record. */
static Heard hear(Server *server, int fd) {
    if (server->request_count == REQUESTS_LIMIT) return NOTHING; /* until some are served */
    size_t size = sizeof server->in.head;
    if (server->in_length >= size) size += server->in.head.length;
    ssize_t count = recv(fd, (char *)&server->in + server->in_length, size - server->in_length, MSG_DONTWAIT);
    if (count < 0) return errno == EAGAIN || errno == EINTR ? NOTHING : BROKEN;
    if (!count) return nonsense(server, "the stream is cut off");
    server->in_length += (size_t)count;
    if (server->in_length < sizeof server->in.head) return SOMETHING;
    if (server->in.head.length > ANSWER_LIMIT) return nonsense(server, "the other side answered something that makes no sense");
    if (server->in_length < sizeof server->in.head + server->in.head.length) return SOMETHING;
    server->in_length = 0;
    if (!record_intact(&server->in.head, server->in.body)) return nonsense(server, "an answer is damaged: its checksum is wrong");
    if (!record_is(&server->in.head, "WANT")) return ANSWER;
    return take_request(server) ? SOMETHING : nonsense(server, "the other side asked for pages that there are not");
}

/* ---- What goes */

static bool send_all(Server *server, int fd, struct iovec *parts, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return false;
        atomic_fetch_add(&server->bytes, (uint64_t)sent);
        for (; count && (size_t)sent >= parts->iov_len; parts++, count--) sent -= (ssize_t)parts->iov_len;
        if (!count) break;
        parts->iov_base = (char *)parts->iov_base + sent;
        parts->iov_len -= (size_t)sent;
    }
    return true;
}

static bool is_zero(const char *page) {
    const uint64_t *words = (const uint64_t *)page;
    uint64_t any = 0;
    for (int i = 0; i < HOST_PAGE / 8; i += 8) {
        for (int k = 0; k < 8; k++) any |= words[i + k];
        if (any) return false;
    }
    return true;
}

typedef struct {
    PageRun runs[BATCH];
    uint32_t count, pages;
} Runs;

static void append(Runs *runs, uint32_t page) {
    PageRun *last = runs->count ? &runs->runs[runs->count - 1] : NULL;
    if (last && last->first + last->count == page)
        last->count++;
    else
        runs->runs[runs->count++] = (PageRun){page, 1};
    runs->pages++;
}

static bool send_runs(Server *server, int fd, const Runs *runs, uint8_t encoding) {
    PagesHead fixed = {.encoding = encoding, .runs = runs->count};
    RecordHead head;
    struct iovec parts[3 + BATCH] = {
        {&head, sizeof head}, {&fixed, sizeof fixed}, {(void *)runs->runs, runs->count * sizeof *runs->runs}};
    int count = 3;
    if (!runs->count) return true;
    for (uint32_t i = 0; encoding == PAGES_PLAIN && i < runs->count; i++)
        parts[count++] = (struct iovec){server->ram + ((uint64_t)runs->runs[i].first << HOST_PAGE_SHIFT),
                                        (size_t)runs->runs[i].count << HOST_PAGE_SHIFT};
    record_seal(&head, "PAGE", parts + 1, count - 1);
    atomic_fetch_add(encoding == PAGES_PLAIN ? &server->normal : &server->zero, runs->pages);
    return send_all(server, fd, parts, count);
}

static void give_back(Server *server, const Runs *runs) {
    for (uint32_t i = 0; server->release && server->begun && i < runs->count; i++)
        madvise(server->ram + ((uint64_t)runs->runs[i].first << HOST_PAGE_SHIFT),
                (size_t)runs->runs[i].count << HOST_PAGE_SHIFT, MADV_REMOVE); /* or not, if it can't */
}

/* Send up to `limit` pages from `page` on that are still to be sent. */
static bool send_pages(Server *server, int fd, uint64_t page, unsigned limit) {
    Runs zero = {.count = 0}, normal = {.count = 0};
    for (unsigned i = 0; i < limit; i++, page++) {
        page = bits_next(server->wanted, page, server->pages);
        if (page == server->pages) break;
        append(is_zero(server->ram + (page << HOST_PAGE_SHIFT)) ? &zero : &normal, (uint32_t)page);
        bits_clear(server->wanted, page);
        atomic_fetch_sub(&server->left, 1);
    }
    server->cursor = page;
    bool done = send_runs(server, fd, &zero, PAGES_ZERO) && send_runs(server, fd, &normal, PAGES_PLAIN);
    give_back(server, &normal);
    return done;
}

static bool serve_request(Server *server, int fd) {
    uint32_t page = server->requests[server->first_request];
    server->first_request = (server->first_request + 1) % REQUESTS_LIMIT;
    server->request_count--;
    bits_clear(server->urgent, page);
    return !bits_have(server->wanted, page) || send_pages(server, fd, page, ASKED_BATCH);
}

/* For how long nothing may be sent that nobody has asked for, in ms. */
static int pause_for(Server *server) {
    uint64_t bandwidth = atomic_load(&server->bandwidth);
    if (bandwidth != server->pace) {
        server->pace = bandwidth;
        server->started = now();
        server->paced = 0;
    }
    if (!bandwidth) return 0;
    double ahead = (double)server->paced / (double)bandwidth * NANOSECONDS - (double)(now() - server->started);
    return ahead <= 0 ? 0 : ahead > NANOSECONDS ? 1000 : 1 + (int)(ahead / MILLISECOND);
}

static bool send_next(Server *server, int fd) {
    uint64_t before = atomic_load(&server->bytes);
    if (bits_next(server->wanted, server->cursor, server->pages) == server->pages) server->cursor = 0;
    bool done = send_pages(server, fd, server->cursor, BATCH);
    server->paced += atomic_load(&server->bytes) - before;
    return done;
}

static bool send_empty(Server *server, int fd, const char *kind) {
    RecordHead head;
    struct iovec part = {&head, sizeof head};
    record_seal(&head, kind, NULL, 0);
    return send_all(server, fd, &part, 1);
}

/* Let the other side begin when its time has come, and say when all pages are sent. */
static bool send_orders(Server *server, int fd) {
    bool done = true;
    if (!server->begun && atomic_load(&server->begin)) {
        done = send_empty(server, fd, "STRT");
        server->begun = done;
    }
    if (done && server->begun && !server->ended && !atomic_load(&server->left)) {
        server->ended = true;
        done = send_empty(server, fd, "DONE");
    }
    return done;
}

/* Write to an eventfd. */
void server_tell(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) < 0) return; /* it was told already */
}

/* Whether an answer is one that the loop goes on behind. */
static bool is_loaded(Server *server) {
    if (!record_is(&server->in.head, "LOAD") || atomic_exchange(&server->loaded, true)) return false;
    server_tell(server->told);
    return true;
}

static void take_wakeup(Server *server) {
    uint64_t count;
    if (read(server->wake, &count, sizeof count) < 0) return; /* somebody was faster */
}

/* Sleep until something has come, or may be sent; -1: an error. */
static int sleep_a_little(Server *server, int fd) {
    bool more = atomic_load(&server->left);
    int patience = server->request_count ? 0 : more ? pause_for(server) : -1;
    struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = server->wake, .events = POLLIN}};
    int count = poll(fds, 2, patience);
    if (count > 0 && fds[1].revents) take_wakeup(server);
    return count < 0 && errno != EINTR ? -1 : 0;
}

static bool send_some(Server *server, int fd) {
    if (server->request_count) return serve_request(server, fd);
    if (atomic_load(&server->left) && !pause_for(server)) return send_next(server, fd);
    return true;
}

static Heard hear_all(Server *server, int fd) {
    Heard heard = SOMETHING;
    while (heard == SOMETHING || (heard == ANSWER && is_loaded(server))) heard = hear(server, fd);
    return heard;
}

/* Nothing can be sent any more: the other side may have said why. */
static Served last_word(Server *server, int fd) {
    int error = errno;
    if (hear_all(server, fd) == ANSWER) return SERVED_ANSWER;
    errno = error;
    return SERVED_ERROR;
}

/* Send pages until the other side says anything but that it wants some, or is ready to begin. */
Served server_run(Server *server, int fd) {
    server->started = now();
    server->paced = 0;
    for (;;) {
        if (!send_orders(server, fd)) return last_word(server, fd);
        if (sleep_a_little(server, fd)) return SERVED_ERROR;
        Heard heard = hear_all(server, fd);
        if (heard == ANSWER) return SERVED_ANSWER;
        if (heard == NONSENSE) return SERVED_NONSENSE;
        if (heard == BROKEN) return SERVED_ERROR;
        if (!send_some(server, fd)) return last_word(server, fd);
    }
}
