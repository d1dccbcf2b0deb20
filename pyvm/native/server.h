/* The source of a migration by postcopy: what its loop and its Python face share. */
#ifndef PYVM_SERVER_H
#define PYVM_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "records.h"

enum { REQUESTS_LIMIT = 1024, ANSWER_LIMIT = 4096 };

typedef enum { SERVED_ANSWER, SERVED_ERROR, SERVED_NONSENSE } Served;

typedef struct {
    char *ram;
    uint64_t pages;
    uint64_t *wanted; /* pages that are still to be sent */
    uint64_t *urgent; /* pages that were asked for, and are in `requests` */
    uint32_t requests[REQUESTS_LIMIT];
    unsigned first_request, request_count;
    uint64_t cursor; /* where the next pages are taken that nobody has asked for */
    int wake, told;  /* tell the loop, and its owner, that something has changed */
    bool release;    /* what was sent is given back to the host */
    _Atomic bool loaded; /* the other side has all that it needs to begin */
    _Atomic bool begin;  /* and is to, */
    _Atomic bool begun;  /* and was told to: the end is sent when all pages are */
    bool ended;

    /* What has come from the other side, and is no whole record yet. */
    struct {
        RecordHead head;
        uint8_t body[ANSWER_LIMIT];
    } in;
    size_t in_length;

    _Atomic uint64_t bandwidth; /* bytes a second for pages that nobody has asked for; 0: as many as there are */
    uint64_t pace, started, paced; /* what it was last; since when, in ns; bytes of these pages since then */
    _Atomic uint64_t left, asked, zero, normal, bytes;
    const char *nonsense;
} Server;

Served server_run(Server *server, int fd);
void server_tell(int fd);

#endif
