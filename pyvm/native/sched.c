/* The vCPU loop: whose turn it is on the engine, halting and waking, and leaving the engine when asked.
 *
 * Unicorn has one processor per engine.  The vCPUs of a machine take turns on it, so translated code is shared, stays
 * coherent, and guest atomics are atomic.  A turn ends on HLT, on PAUSE, when its time slice is over, or when a halted
 * vCPU gets an interrupt.  All of this happens in cpu_exec, the function that Unicorn's outer loop calls again and
 * again; uc_emu_start returns only when the machine stops.
 *
 * Other threads speak to the vCPU thread through atomic flags and engine_kick().
 */
#include <string.h>

#include "engine.h"

enum { EFLAGS_IF = 1 << 9 };

static uint32_t debug_enable_bits(const void *state) {
    return FIELD((void *)state, uint64_t, ENV_DR + 7 * 8) & 0xff;
}

/* Put the current vCPU's registers back into its image. */
void vcpu_unload(Engine *engine) {
    if (!engine->loaded) return;
    Vcpu *vcpu = &engine->vcpus[engine->current];
    uint64_t dr7 = FIELD(engine->env, uint64_t, ENV_DR + 7 * 8);
    if (debug_enable_bits(engine->env)) unicorn.update_dr7(engine->env, dr7 & ~0xff);
    memcpy(vcpu->image, engine->env, ENV_STATE_SIZE);
    FIELD(vcpu->image, uint64_t, ENV_DR + 7 * 8) = dr7;
    engine->loaded = false;
}

static void vcpu_load(Engine *engine, int index) {
    if (engine->loaded && engine->current == index) return;
    vcpu_unload(engine);
    const uint8_t *image = engine->vcpus[index].image;
    uint64_t dr7 = FIELD((void *)image, uint64_t, ENV_DR + 7 * 8);
    memcpy(engine->env, image, ENV_BREAKPOINTS);
    memcpy((char *)engine->env + ENV_OLD_EXCEPTION, image + ENV_OLD_EXCEPTION, ENV_STATE_SIZE - ENV_OLD_EXCEPTION);
    if (debug_enable_bits(image)) {
        FIELD(engine->env, uint64_t, ENV_DR + 7 * 8) = dr7 & ~0xff;
        unicorn.update_dr7(engine->env, dr7);
    }
    engine->current = index;
    engine->loaded = true;
    engine_count(engine, COUNT_SWITCH);
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = -1;
    unicorn.tlb_flush(engine->cpu);
}

/* The registers of a vCPU wherever they are now. */
static Env *vcpu_registers(Engine *engine, int index) {
    if (engine->loaded && engine->current == index) return engine->env;
    return (Env *)engine->vcpus[index].image;
}

/* Take INIT, SIPI and NMI requests; they change what the vCPU is doing. */
static void take_requests(Engine *engine, int index) {
    Vcpu *vcpu = &engine->vcpus[index];
    if (atomic_load_explicit(&vcpu->init, memory_order_relaxed) && atomic_exchange(&vcpu->init, false)) {
        if (engine->current == index) vcpu_unload(engine);
        image_reset(engine, vcpu->image, false);
        vcpu->activity = index == 0 ? RUNNING : WAIT_FOR_SIPI;
        vcpu->nmi_pending = false;
    }
    int vector = atomic_load_explicit(&vcpu->sipi_vector, memory_order_relaxed);
    if (vector >= 0) {
        vector = atomic_exchange(&vcpu->sipi_vector, -1);
        if (vcpu->activity == WAIT_FOR_SIPI) {
            if (engine->current == index) vcpu_unload(engine);
            image_start(vcpu->image, vector);
            vcpu->activity = RUNNING;
        }
    }
    if (atomic_load_explicit(&vcpu->nmi, memory_order_relaxed) && atomic_exchange(&vcpu->nmi, false))
        vcpu->nmi_pending = true;
}

static bool runnable(Engine *engine, int index) {
    Vcpu *vcpu = &engine->vcpus[index];
    if (vcpu->pace == HELD) return false;
    if (vcpu->activity == RUNNING) return true;
    if (vcpu->activity == WAIT_FOR_SIPI) return false;
    const Env *env = vcpu_registers(engine, index);
    if (vcpu->nmi_pending && !(env->hflags2 & HF2_NMI)) return true;
    return atomic_load(&vcpu->interrupt) && env->eflags & EFLAGS_IF;
}

/* Choose who runs next; -1 where all sleep.  A vCPU that just woke goes first: somebody waits for it. */
static int choose(Engine *engine) {
    int count = engine->vcpu_count, first = -1, runnables = 0, woken = -1, stepping = -1;
    bool stay = (!engine->yield && !atomic_load(&engine->slice_over)) || engine->watch_repeated;
    for (int i = 0; i < count; i++) take_requests(engine, i);
    for (int step = 0; step < count; step++) {
        int index = (engine->current + 1 + step) % count;
        if (!runnable(engine, index)) continue;
        runnables++;
        if (engine->vcpus[index].pace == ONE_STEP) stepping = index;
        if (engine->vcpus[index].activity == HALTED && woken < 0) woken = index;
        if (first < 0) first = index;
    }
    engine_contended(engine, runnables > 1);
    if (first < 0) return -1;
    engine->yield = false;
    atomic_store(&engine->slice_over, false);
    if (stepping >= 0 && !engine->watch_repeated) return stepping;
    if (woken >= 0 && !engine->watch_repeated) return woken;
    const Vcpu *current = &engine->vcpus[engine->current];
    return stay && current->activity == RUNNING && current->pace != HELD ? engine->current : first;
}

/* Sleep until kicked; true where the machine is to stop. */
static void sleep_until_kicked(Engine *engine) {
    engine_count(engine, COUNT_HALT);
    pthread_mutex_lock(&engine->lock);
    engine->sleeping = true;
    while (atomic_load(kick_word(engine)) == 0) pthread_cond_wait(&engine->wake, &engine->lock);
    engine->sleeping = false;
    pthread_mutex_unlock(&engine->lock);
}

/* Bring the chosen vCPU onto the engine with its interrupt lines as they are; false where the machine is to stop. */
static bool prepare(Engine *engine) {
    for (;;) {
        atomic_store(kick_word(engine), 0);
        if (atomic_load(&engine->invalidations_pending)) memory_run_invalidations(engine);
        if (atomic_load(&engine->stop) || engine->failure) {
            engine->exit_reason = engine->failure ? EXIT_FAILED : EXIT_STOPPED;
            return false;
        }
        int index = choose(engine);
        if (index >= 0) {
            Vcpu *vcpu = &engine->vcpus[index];
            vcpu->activity = RUNNING;
            vcpu_load(engine, index);
            uint32_t request = 0;
            if (atomic_load(&vcpu->interrupt)) request |= REQUEST_HARD;
            if (vcpu->nmi_pending) request |= REQUEST_NMI;
            FIELD(engine->cpu, uint32_t, CPU_INTERRUPT_REQUEST) = debug_masks_interrupts(engine) ? 0 : request;
            watch_deliver(engine);
            debug_prepare(engine);
            return true;
        }
        sleep_until_kicked(engine);
    }
}

/* Replaces Unicorn's function of this name: runs guest code until there is something to decide, decides, and goes on. */
EXPORT int cpu_exec_x86_64(void *uc, void *cpu) {
    Engine *engine = current_engine;
    if (!engine || engine->uc != uc) return unicorn.cpu_exec(uc, cpu);
    for (;;) {
        if (!prepare(engine)) return EXCP_HLT;
        engine->in_guest = true;
        int result = unicorn.cpu_exec(uc, cpu);
        engine->in_guest = false;
        Vcpu *vcpu = &engine->vcpus[engine->current];
        if (!debug_masks_interrupts(engine))
            vcpu->nmi_pending = FIELD(cpu, uint32_t, CPU_INTERRUPT_REQUEST) & REQUEST_NMI;
        if (FIELD(uc, int, UC_INVALID_ERROR) || engine->aborted) {
            engine->exit_reason = EXIT_FAILED;
            return EXCP_HLT;
        }
        if (result == EXCP_HLT) {
            if (!FIELD(cpu, uint32_t, CPU_HALTED)) {
                engine->exit_reason = EXIT_TRIPLE_FAULT;
                return EXCP_HLT;
            }
            FIELD(cpu, uint32_t, CPU_HALTED) = 0;
            vcpu->activity = HALTED;
        }
        if (engine->firmware_called) firmware_serve(engine);
        if (debug_stops(engine, result)) {
            engine->exit_reason = EXIT_DEBUG;
            return EXCP_HLT;
        }
    }
}

/* Replaces Unicorn's function of this name, which ends the block of a third fault in a row; cpu_exec sees EXCP_HLT. */
EXPORT void qemu_system_reset_request(void *uc) {
    (void)uc;
}
