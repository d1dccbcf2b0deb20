/* Data breakpoints (Intel SDM volume 3, 18.2): DR0-DR3 match a load or a store, #DB comes after the instruction.  The
 * watchpoints of a debugger are found in the same way, and end the run there.
 *
 * Unicorn has left the three functions empty that are replaced here: one asks which pages hold a breakpoint, so that
 * accesses to them are slow, and one is called for each slow access.  At a match the instruction is taken back and executed again in a block of its own; the kick that
 * its second execution sets off ends in watch_deliver(), on the boundary behind it.
 */
#include "engine.h"

enum { ON_WRITE = 1, ON_READ_WRITE = 3 };
enum { EXCEPTION_DB = 1 };

static uint64_t breakpoint_length(uint64_t dr7, int index) {
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[dr7 >> (18 + 4 * index) & 3];
}

/* The kinds of access to which data breakpoint `index` answers within a range of linear addresses. */
static int accesses_watched(void *env, int index, uint64_t address, uint64_t length) {
    uint64_t dr7 = FIELD(env, uint64_t, ENV_DR + 7 * 8);
    int kind = dr7 >> (16 + 4 * index) & 3;
    bool enabled = dr7 >> (2 * index) & 3;
    if (!enabled || (kind != ON_WRITE && kind != ON_READ_WRITE)) return 0;
    uint64_t size = breakpoint_length(dr7, index), start = FIELD(env, uint64_t, ENV_DR + 8 * index) & ~(size - 1);
    if (address >= start + size || start >= address + length) return 0;
    return kind == ON_WRITE ? ACCESS_WRITE : ACCESS_READ | ACCESS_WRITE;
}

static uint32_t matches(void *env, uint64_t address, uint64_t length, int access) {
    uint32_t hits = 0;
    for (int i = 0; i < WATCH_GUEST_COUNT; i++)
        if (accesses_watched(env, i, address, length) & access) hits |= 1u << i;
    return hits;
}

EXPORT int cpu_watchpoint_address_matches_x86_64(void *cpu, uint64_t address, uint64_t length) {
    (void)cpu;
    if (!current_engine) return 0;
    int accesses = debug_accesses_watched(current_engine, address, length);
    for (int i = 0; i < WATCH_GUEST_COUNT; i++)
        accesses |= accesses_watched(current_engine->env, i, address, length);
    return accesses;
}

EXPORT int cpu_watchpoint_insert_x86_64(void *cpu, uint64_t address, uint64_t length, int flags, void **watchpoint) {
    (void)address, (void)length, (void)flags, (void)watchpoint;
    unicorn.tlb_flush(cpu);
    return 0;
}

EXPORT void cpu_check_watchpoint_x86_64(void *cpu, uint64_t address, uint64_t length, uint32_t attributes, int access,
                                        uintptr_t caller) {
    Engine *engine = current_engine;
    (void)attributes;
    if (!engine) return;
    uint32_t hits = matches(engine->env, address, length, access);
    hits |= debug_watchpoints_hit(engine, address, length, access) << WATCH_GUEST_COUNT;
    if (!hits) return;
    engine->watch_hits |= hits;
    if (!engine->watch_repeated) {
        engine->watch_repeated = true;
        engine->watch_waits = 0;
        engine->debug.stepped = false;
        FIELD(cpu, uint32_t, CPU_NEXT_BLOCK_FLAGS) = 1; /* one instruction */
        unicorn.cpu_loop_exit_restore(cpu, caller);
    }
    engine->watch_done = true;
    engine_kick(engine);
}

/* Have #DB delivered before the next instruction where a breakpoint was hit; on the vCPU thread, outside of any block. */
void watch_deliver(Engine *engine) {
    enum { PATIENCE = 3 };
    if (!engine->watch_done) {
        // An interrupt has come first, and its handler may not return here at all.
        if (engine->watch_repeated && ++engine->watch_waits > PATIENCE) {
            engine->watch_repeated = false;
            engine->watch_hits = 0;
        }
        return;
    }
    FIELD(engine->env, uint64_t, ENV_DR + 6 * 8) |= engine->watch_hits & WATCH_GUEST_HITS;
    FIELD(engine->env, int32_t, ENV_ERROR_CODE) = 0;
    FIELD(engine->env, int32_t, ENV_EXCEPTION_IS_INT) = 0;
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = EXCEPTION_DB;
    engine->watch_hits = 0;
    engine->watch_repeated = engine->watch_done = false;
}
