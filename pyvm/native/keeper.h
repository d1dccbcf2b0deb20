/* Memory as it was at one moment, while the guest goes on: what the thread that keeps it and its Python face share. */
#ifndef PYVM_KEEPER_H
#define PYVM_KEEPER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    char *ram;
    uint64_t pages;
    int faults, wake;
    pthread_t thread;
    bool started;
    _Atomic bool failed; /* a page could not be kept: what is kept is of no use any more */
    uint64_t limit;      /* pages that may lie aside before the guest is held up */

    pthread_mutex_t lock;
    uint64_t *taken; /* pages that nobody needs any more */
    uint64_t *saved; /* pages of which there is a copy, */
    char **copies;   /* and these */
    uint64_t held;   /* how many there are */
} Keeper;

bool keeper_init(Keeper *keeper, void *ram, uint64_t pages, const void *needed, uint64_t limit);
bool keeper_take(Keeper *keeper, const int64_t *numbers, uint64_t count, char *target);
uint64_t keeper_saved(Keeper *keeper, int64_t *numbers, uint64_t room);
void keeper_close(Keeper *keeper);

#endif
