/* Memory that comes late, record by record: what the source of a migration by postcopy sends is checked and placed.
 *
 * Nothing of it is believed: a record is taken as a whole or not at all, and pages only where some are to come.  Memory
 * is never written where something is already; the kernel refuses that.  All is done by the one thread of the Taker.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "pagebits.h"
#include "taker.h"
#include "userfault.h"

enum { BODY_LIMIT = 2 << 20 };
#define NO_PAGE UINT64_MAX

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Go over to another state, and tell. */
void taker_enter(Taker *taker, TakerState state) {
    uint64_t one = 1;
    pthread_mutex_lock(&taker->lock);
    taker->state = state;
    pthread_mutex_unlock(&taker->lock);
    if (write(taker->told, &one, sizeof one) < 0) return; /* it is told already */
}

/* The connection is of no use any more.  A guest that runs waits for another one; otherwise all is over, and whoever
 * waits for a page goes on without. */
void taker_lose(Taker *taker, const char *format, ...) {
    va_list arguments;
    pthread_mutex_lock(&taker->lock);
    va_start(arguments, format);
    vsnprintf(taker->error, sizeof taker->error, format, arguments);
    va_end(arguments);
    shutdown(taker->in.fd, SHUT_RDWR);
    close(taker->in.fd);
    taker->in.fd = -1;
    taker->in.length = taker->out.length = 0;
    bool runs = taker->state != TAKER_LOADING;
    pthread_mutex_unlock(&taker->lock);
    taker->finishing = false;
    if (!runs) userfault_leave(taker->faults, taker->ram, taker->pages << HOST_PAGE_SHIFT);
    taker_enter(taker, runs ? TAKER_PAUSED : TAKER_FAILED);
}

/* Ask for a page; false where there is no memory to do so. */
bool taker_ask(Taker *taker, uint64_t page) {
    PageRequest request = {.first = (uint32_t)page, .count = 1};
    struct iovec body = {&request, sizeof request};
    struct {
        RecordHead head;
        PageRequest request;
    } record = {.request = request};
    record_seal(&record.head, "WANT", &body, 1);
    atomic_fetch_add(&taker->requests, 1);
    return taker_send(taker, &record, sizeof record);
}

/* ---- Pages */

static void note_placed(Taker *taker, uint64_t first, uint64_t count) {
    for (uint64_t page = first; page < first + count; page++) bits_clear(taker->missing, page);
    atomic_fetch_sub(&taker->left, count);
    if (taker->awaited - first < count) {
        atomic_fetch_add(&taker->waited, now() - taker->awaited_since);
        taker->awaited = NO_PAGE;
    }
}

static bool all_missing(const Taker *taker, const PageRun *runs, uint32_t count, uint64_t *total) {
    *total = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!runs[i].count || runs[i].first >= taker->pages || runs[i].count > taker->pages - runs[i].first) return false;
        if (i && runs[i].first < (uint64_t)runs[i - 1].first + runs[i - 1].count) return false; /* they ascend */
        for (uint64_t page = runs[i].first; page < (uint64_t)runs[i].first + runs[i].count; page++)
            if (!bits_have(taker->missing, page)) return false;
        *total += runs[i].count;
    }
    return true;
}

/* Pages of zeros take no room before somebody asks for them: the fault handler knows that none is to come. */
static void place_zeroes(Taker *taker, const PageRun *run) {
    note_placed(taker, run->first, run->count);
    userfault_wake(taker->faults, taker->ram + ((uint64_t)run->first << HOST_PAGE_SHIFT),
                   (uint64_t)run->count << HOST_PAGE_SHIFT);
}

static void take_pages(Taker *taker, const uint8_t *body, uint32_t length) {
    PagesHead head;
    uint64_t total;
    if (length < sizeof head) return taker_lose(taker, "a record of pages is cut off");
    memcpy(&head, body, sizeof head);
    if (head.runs > (length - sizeof head) / sizeof(PageRun)) return taker_lose(taker, "a record of pages is cut off");
    const PageRun *runs = (const PageRun *)(body + sizeof head);
    const char *data = (const char *)(runs + head.runs);
    uint64_t left = length - sizeof head - head.runs * sizeof(PageRun);
    if (head.block || !all_missing(taker, runs, head.runs, &total))
        return taker_lose(taker, "pages have come that were not to come");
    if (head.encoding != PAGES_PLAIN && head.encoding != PAGES_ZERO)
        return taker_lose(taker, "pages in an encoding %u, which is not known here", head.encoding);
    if (left != (head.encoding == PAGES_PLAIN ? total << HOST_PAGE_SHIFT : 0))
        return taker_lose(taker, "a record of pages has not as many bytes as its pages");
    for (uint32_t i = 0; i < head.runs; i++) {
        if (head.encoding == PAGES_ZERO) {
            place_zeroes(taker, &runs[i]);
            continue;
        }
        uint64_t size = (uint64_t)runs[i].count << HOST_PAGE_SHIFT;
        if (!userfault_copy(taker->faults, taker->ram + ((uint64_t)runs[i].first << HOST_PAGE_SHIFT), data, size))
            return taker_lose(taker, "pages cannot be placed: %s", strerror(errno));
        note_placed(taker, runs[i].first, runs[i].count);
        data += size;
    }
}

/* ---- Records */

static void take_end(Taker *taker) {
    RecordHead answer;
    uint64_t left = atomic_load(&taker->left);
    if (taker->state != TAKER_RUNNING || left)
        return taker_lose(taker, "the source has ended, and %llu pages have not come", (unsigned long long)left);
    record_seal(&answer, "HERE", NULL, 0);
    taker->finishing = taker_send(taker, &answer, sizeof answer);
    if (!taker->finishing) taker_lose(taker, "%s", strerror(ENOMEM));
}

static void take_record(Taker *taker, const RecordHead *head, const uint8_t *body) {
    if (!record_intact(head, body)) return taker_lose(taker, "a record is damaged: its checksum is wrong");
    if (record_is(head, "PAGE")) return take_pages(taker, body, head->length);
    if (record_is(head, "STRT") && taker->state == TAKER_LOADING) return taker_enter(taker, TAKER_RUNNING);
    if (record_is(head, "DONE")) return take_end(taker);
    taker_lose(taker, "the source said something that makes no sense");
}

static size_t wanted(const Inlet *in) {
    if (in->length < sizeof(RecordHead)) return sizeof(RecordHead);
    return sizeof(RecordHead) + ((const RecordHead *)in->data)->length;
}

/* Read what has come, and act on it where it is a whole record. */
void taker_receive(Taker *taker) {
    Inlet *in = &taker->in;
    if (!in->data && !(in->data = malloc(sizeof(RecordHead) + BODY_LIMIT)))
        return taker_lose(taker, "%s", strerror(ENOMEM));
    ssize_t count = recv(in->fd, in->data + in->length, wanted(in) - in->length, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count < 0) return taker_lose(taker, "Unable to read from socket: %s", strerror(errno));
    if (!count) return taker_lose(taker, "the stream is cut off");
    in->length += (size_t)count;
    const RecordHead *head = (const RecordHead *)in->data;
    if (in->length >= sizeof *head && head->length > BODY_LIMIT)
        return taker_lose(taker, "a record of %u bytes is too large", head->length);
    if (in->length < sizeof *head || in->length < wanted(in)) return;
    in->length = 0;
    take_record(taker, head, in->data + sizeof *head);
}
