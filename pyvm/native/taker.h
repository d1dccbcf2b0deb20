/* The destination of a migration by postcopy: what its thread and its Python face share. */
#ifndef PYVM_TAKER_H
#define PYVM_TAKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "records.h"

enum { TOKEN_SIZE = 16, MAX_LISTENERS = 16, TAKER_ERROR_SIZE = 160 };

/* What has become of it. */
typedef enum {
    TAKER_LOADING,  /* pages come, the guest does not run yet */
    TAKER_RUNNING,  /* the source has said that this is the machine now */
    TAKER_PAUSED,   /* the guest runs, as far as it can without the connection */
    TAKER_COMPLETE, /* all is there */
    TAKER_FAILED,   /* the connection ended before the guest ran: memory is of no use */
} TakerState;

/* How a connection that takes up a broken one begins. */
typedef struct __attribute__((packed)) {
    char magic[8];
    uint8_t token[TOKEN_SIZE];
    uint32_t number;
} Greeting;

typedef struct {
    int fd;
    uint8_t *data; /* a head and a body */
    size_t length;
} Inlet;

typedef struct {
    uint8_t *data;
    size_t length, room;
} Outlet;

typedef struct {
    char *ram;
    uint64_t pages;
    uint64_t *missing; /* pages that are still to come */
    uint64_t *asked;   /* pages that somebody waits for */
    _Atomic uint64_t left, requests;
    int faults, wake, told; /* userfaultfd; tells the thread, and Python, that something has changed */
    uint8_t token[TOKEN_SIZE];

    pthread_t thread;
    bool started;
    bool finishing; /* all is there, but not all of `out` is sent */
    Inlet in;
    int candidate; /* a connection that has not said yet what it is */
    Greeting greeting;
    size_t greeted;
    int listeners[MAX_LISTENERS];
    int listener_count;

    /* When the thread of the processors waits for a page, and for how long it has. */
    _Atomic int processor;
    uint64_t awaited, awaited_since; /* page and ns; NO_PAGE */
    _Atomic uint64_t waited;

    pthread_mutex_t lock; /* for what is below, and for in.fd where others use it */
    Outlet out;
    int fresh[MAX_LISTENERS]; /* sockets to listen to in place of the present ones, */
    int fresh_count;          /* and how many; -1: none are given */
    int given;                /* a connection to go on with; -1 */
    TakerState state;
    char error[TAKER_ERROR_SIZE];
    bool quit;
} Taker;

bool taker_init(Taker *taker, void *ram, uint64_t pages, const void *missing);
bool taker_start(Taker *taker, int fd);
bool taker_send(Taker *taker, const void *data, size_t length);
void taker_listen(Taker *taker, const int *fds, int count);
void taker_give(Taker *taker, int fd);
void taker_interrupt(Taker *taker);
void taker_close(Taker *taker);

/* arriving.c */
void taker_lose(Taker *taker, const char *format, ...) __attribute__((format(printf, 2, 3)));
void taker_enter(Taker *taker, TakerState state);
bool taker_ask(Taker *taker, uint64_t page);
void taker_receive(Taker *taker);

#endif
