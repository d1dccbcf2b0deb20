/* Calling the vCPU thread out of guest code: the kick, which any thread may give, and the slice timer, which gives one
 * whenever a vCPU has had its turn while others wait.
 */
#include <time.h>

#include "engine.h"

enum { SLICE_NS = 3000000 };

__thread Engine *current_engine;

/* Make the vCPU thread come round to cpu_exec at the next block; on that thread.
 *
 * The kick word ends the block and the exit request ends Unicorn's inner loop.  The word is set first: were it the last,
 * the thread could answer the exit request, clear the word too early, and then leave block after block for ever.
 */
void engine_kick_self(Engine *engine) {
    atomic_store(kick_word(engine), -1);
    FIELD(engine->cpu, _Atomic uint8_t, CPU_EXIT_REQUEST) = 1;
}

/* Make the vCPU thread come round to cpu_exec soon; from any thread. */
void engine_kick(Engine *engine) {
    if (!engine->uc) return;
    engine_kick_self(engine);
    pthread_mutex_lock(&engine->lock);
    if (engine->sleeping) pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
}

static void *ticker_main(void *argument) {
    Engine *engine = argument;
    pthread_mutex_lock(&engine->lock);
    while (!engine->ticker_quit) {
        if (!engine->contended) {
            pthread_cond_wait(&engine->ticker_wake, &engine->lock);
            continue;
        }
        struct timespec deadline;
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline.tv_nsec += SLICE_NS;
        deadline.tv_sec += deadline.tv_nsec / 1000000000;
        deadline.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&engine->ticker_wake, &engine->lock, &deadline) && engine->contended) {
            pthread_mutex_unlock(&engine->lock);
            atomic_store(&engine->slice_over, true);
            engine_kick(engine);
            pthread_mutex_lock(&engine->lock);
        }
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

/* Say whether more than one vCPU wants the engine, so that their turns must end by the clock. */
void engine_contended(Engine *engine, bool contended) {
    if (contended == engine->contended) return;
    pthread_mutex_lock(&engine->lock);
    engine->contended = contended;
    if (contended && !engine->ticker_started)
        engine->ticker_started = !pthread_create(&engine->ticker, NULL, ticker_main, engine);
    pthread_cond_signal(&engine->ticker_wake);
    pthread_mutex_unlock(&engine->lock);
}

/* End the slice timer's thread. */
void engine_ticker_stop(Engine *engine) {
    if (!engine->ticker_started) return;
    pthread_mutex_lock(&engine->lock);
    engine->ticker_quit = true;
    pthread_cond_signal(&engine->ticker_wake);
    pthread_mutex_unlock(&engine->lock);
    pthread_join(engine->ticker, NULL);
    engine->ticker_started = false;
}
