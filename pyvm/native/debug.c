/* What a debugger outside of the machine does to vCPUs: breakpoints, watchpoints, single steps, and which may run.
 *
 * Breakpoints are in Unicorn's own list, which its translator looks at: a block ends in front of one.  Where there are
 * none, nothing is generated and nothing is tested.  Watchpoints are those of watch.c.  For a step, the next block has one
 * instruction, and the check at its start (codegen.c) asks for the end of the run when it is passed.
 *
 * Such blocks of one instruction know no breakpoint of the debugger: a step leaves one behind.  Translations of them stay
 * valid whatever breakpoints come and go, and a step does not have the list brought up to date, for which Unicorn drops
 * all translations.  So a debugger may take its breakpoints away, step, and put them back, as they do, at no cost.
 */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { BREAKPOINT_OF_DEBUGGER = 0x10 }; /* Unicorn's flag; those are first in its list */

/* ---- Breakpoints */

static void **list_head(Engine *engine) {
    return &FIELD(engine->cpu, void *, CPU_BREAKPOINTS);
}

static void hide_breakpoints(Engine *engine) {
    void *first = *list_head(engine);
    engine->debug.hidden = first;
    for (int i = 0; i < engine->debug.installed_count; i++) first = FIELD(first, void *, BREAKPOINT_NEXT);
    *list_head(engine) = first;
}

/* A translation may end in a long jump, so its end is only seen here. */
static void show_breakpoints(Engine *engine) {
    if (engine->debug.hidden) *list_head(engine) = engine->debug.hidden;
    engine->debug.hidden = NULL;
}

/* A block with these flags is about to be translated. */
void debug_before_translation(Engine *engine, int block_flags) {
    show_breakpoints(engine);
    if (engine->debug.installed_count && (block_flags & BLOCK_COUNT_MASK) == ONE_INSTRUCTION) hide_breakpoints(engine);
}

/* Let Unicorn's list be as the debugger wants it; on the vCPU thread, outside of any block. */
static void install_breakpoints(Engine *engine) {
    show_breakpoints(engine);
    unicorn.breakpoint_remove_all(engine->cpu, BREAKPOINT_OF_DEBUGGER);
    for (int i = 0; i < engine->debug.breakpoint_count; i++)
        unicorn.breakpoint_insert(engine->cpu, engine->debug.breakpoints[i], BREAKPOINT_OF_DEBUGGER, NULL);
    size_t size = (size_t)engine->debug.breakpoint_count * sizeof *engine->debug.breakpoints;
    if (size) memcpy(engine->debug.installed, engine->debug.breakpoints, size);
    engine->debug.installed_count = engine->debug.breakpoint_count;
}

static bool breakpoints_differ(const Engine *engine) {
    int count = engine->debug.breakpoint_count;
    if (count != engine->debug.installed_count) return true;
    return count && memcmp(engine->debug.breakpoints, engine->debug.installed,
                           (size_t)count * sizeof *engine->debug.breakpoints);
}

/* ---- Watchpoints */

/* The kinds of access to which watchpoints answer within a range of linear addresses. */
int debug_accesses_watched(const Engine *engine, uint64_t address, uint64_t length) {
    int accesses = 0;
    for (int i = 0; i < engine->debug.watchpoint_count; i++) {
        const Watchpoint *watchpoint = &engine->debug.watchpoints[i];
        if (address - watchpoint->address < watchpoint->length || watchpoint->address - address < length)
            accesses |= watchpoint->accesses;
    }
    return accesses;
}

/* The watchpoints that an access hits, a bit for each. */
uint32_t debug_watchpoints_hit(const Engine *engine, uint64_t address, uint64_t length, int access) {
    uint32_t hits = 0;
    for (int i = 0; i < engine->debug.watchpoint_count; i++) {
        const Watchpoint *watchpoint = &engine->debug.watchpoints[i];
        bool inside = address - watchpoint->address < watchpoint->length || watchpoint->address - address < length;
        if (inside && watchpoint->accesses & access) hits |= 1u << i;
    }
    return hits;
}

/* ---- Running */

/* Whether the vCPU that has the engine is to take no interrupt, because it steps. */
bool debug_masks_interrupts(const Engine *engine) {
    return engine->vcpus[engine->current].pace == ONE_STEP && !engine->debug.step_into_interrupts;
}

/* A vCPU is about to run. */
void debug_prepare(Engine *engine) {
    engine->debug.stepping = engine->vcpus[engine->current].pace == ONE_STEP;
    engine->debug.stepped = false;
    if (engine->debug.stepping)
        FIELD(engine->cpu, uint32_t, CPU_NEXT_BLOCK_FLAGS) = ONE_INSTRUCTION;
    else if (engine->debug.changed) {
        engine->debug.changed = false;
        if (breakpoints_differ(engine)) install_breakpoints(engine);
    }
}

/* A stepping vCPU is in front of its instruction, or an exception or an interrupt has come in the place of that. */
void debug_count_step(Engine *engine) {
    if (!engine->debug.stepping) return;
    engine->debug.stepped = true;
    engine_kick_self(engine);
}

/* Guest code was left with `result`: whether the debugger is to hear of it. */
bool debug_stops(Engine *engine, int result) {
    enum { DEBUGGER_HITS = ~WATCH_GUEST_HITS };
    uint32_t hits = engine->watch_done ? engine->watch_hits & (uint32_t)DEBUGGER_HITS : 0;
    if (hits) {
        engine->debug.reason = DEBUG_WATCHPOINT;
        engine->debug.watchpoint = __builtin_ctz(hits) - WATCH_GUEST_COUNT;
        engine->watch_hits &= WATCH_GUEST_HITS;
        if (!engine->watch_hits) engine->watch_repeated = engine->watch_done = false;
    } else if (result == EXCP_DEBUG) {
        engine->debug.reason = DEBUG_BREAKPOINT;
    } else if (engine->debug.stepped) {
        engine->debug.reason = DEBUG_STEP;
    } else {
        return false;
    }
    engine->debug.vcpu = engine->current;
    engine->debug.stepping = false;
    return true;
}
