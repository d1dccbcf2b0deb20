/* Finding the translation of the code at an address.
 *
 * A block that ends in a jump to no fixed address looks the next one up.  Unicorn has a table for that, by linear
 * address, of 4096 entries in sets of 64 for a page; a kernel and a few programs fill it many times over, and each look
 * into it goes to the block as well, which is rarely in the host's cache.  What it does not have is looked for in a hash
 * table of all blocks, which is slow.  So there are two other tables.
 *
 * The first is by linear address, and says where the translated code is.  An entry is good as long as no page was mapped
 * to another place and no block was dropped since: either begins a new generation of entries.  What a piece of code
 * calls and returns to is in one line of the host's cache.
 *
 * The second is by physical address, so it outlives changes of the address space.  An entry may be out of date, and is
 * compared with what is wanted each time.  A block that was invalidated says so in its flags; its memory is not used for
 * another one until all blocks are dropped, and that empties both tables.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "engine.h"

/* TranslationBlock, as far as it is compared: segment base, state of the processor, and how it was translated. */
enum { BLOCK_CS_BASE = 8, BLOCK_STATE = 0x10, BLOCK_FLAGS = 0x18 };
enum { PAGE_BITS = 12 };

static const uint32_t COMPARED_FLAGS = 0xff0effff; /* BLOCK_FLAGS, but those that say how it was used; invalid is one */

/* The bits of EFLAGS that blocks are translated for: TF, IOPL, RF, VM, AC; and where in a block's flags its group is. */
enum { STATE_EFLAGS = 1 << 8 | 3 << 12 | 1 << 16 | 1 << 17 | 1 << 18, CLUSTER_SHIFT = 24 };

/* Where a jump to a linear address goes on: from the top, the state of the processor, the generation of the entry, and the
 * place of the code, in units to which all code is aligned. */
typedef struct Jump {
    uint64_t pc, target;
} Jump;

enum { WAYS = 4, LINE_BITS = 12, REGION_BITS = 6 };
enum { STATE_BITS = 27, GENERATION_BITS = 11, GENERATIONS = (1 << GENERATION_BITS) - 1, PLACE_BITS = 26, UNIT = 16 };
enum { JUMPS_SIZE = WAYS * sizeof(Jump) << LINE_BITS };

/* What threads that run no guest code did to any engine's translations and mappings. */
static _Atomic uint32_t changes;

/* Whether the running function of Unicorn may drop blocks. */
static __thread bool dropping __attribute__((tls_model("initial-exec")));

/* ---- By physical address */

static bool is_wanted(const void *block, uint64_t pc, uint64_t cs_base, uint32_t state, uint32_t flags, uint64_t page) {
    return block && FIELD(block, uint64_t, BLOCK_PC) == pc && FIELD(block, uint64_t, BLOCK_CS_BASE) == cs_base &&
           FIELD(block, uint32_t, BLOCK_STATE) == state &&
           (FIELD(block, uint32_t, BLOCK_FLAGS) & COMPARED_FLAGS) == flags &&
           FIELD(block, uint64_t, BLOCK_PAGES) == page;
}

static void **found_entry(Engine *engine, uint64_t address, uint32_t state) {
    uint64_t mixed = (address ^ (uint64_t)state << PAGE_BITS) * UINT64_C(0x9e3779b97f4a7c15);
    return &engine->found[mixed >> (64 - FOUND_BITS)];
}

/* Replaces Unicorn's function of this name, which looks for a block in the hash table; it raises page faults. */
EXPORT void *tb_htable_lookup_x86_64(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t state, uint32_t flags) {
    Engine *engine = current_engine;
    if (!engine || engine->cpu != cpu) return unicorn.tb_htable_lookup(cpu, pc, cs_base, state, flags);
    uint64_t address = unicorn.get_page_addr_code(engine->env, pc);
    if (address == UINT64_MAX) return NULL;
    void **entry = found_entry(engine, address, state);
    if (is_wanted(*entry, pc, cs_base, state, flags, address >> PAGE_BITS << PAGE_BITS)) return *entry;
    void *block = unicorn.tb_htable_lookup(cpu, pc, cs_base, state, flags);
    // What is in two pages depends on the second one's place too, which only the other function looks at.
    if (block && FIELD(block, uint64_t, BLOCK_PAGES + 8) == UINT64_MAX) *entry = block;
    return block;
}

/* ---- By linear address */

bool lookup_prepare(Engine *engine) {
    void *jumps = mmap(NULL, JUMPS_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (jumps == MAP_FAILED) {
        PyErr_NoMemory();
        return false;
    }
    engine->jumps = jumps;
    engine->jump_generation = 1; /* 0 is that of empty entries */
    return true;
}

void lookup_close(Engine *engine) {
    if (engine->jumps) munmap(engine->jumps, JUMPS_SIZE);
    engine->jumps = NULL;
}

/* The first place to look for an address; the others are those in the same line. */
static Jump *first_place(const Engine *engine, uint64_t pc) {
    uint64_t region = pc >> REGION_BITS, line = (region ^ region >> LINE_BITS) & ((1 << LINE_BITS) - 1);
    return &engine->jumps[line * WAYS + (pc ^ pc >> 2 ^ pc >> 4) % WAYS];
}

static Jump *other_place(Jump *first, uintptr_t number) { return (Jump *)((uintptr_t)first ^ number * sizeof(Jump)); }

static uint64_t key_of(const Engine *engine, uint32_t state) {
    return (uint64_t)state << GENERATION_BITS | engine->jump_generation;
}

static bool is_current(const Engine *engine, const Jump *jump) {
    return (jump->target >> PLACE_BITS & GENERATIONS) == engine->jump_generation;
}

static void *code_of(const Engine *engine, const Jump *jump) {
    return (void *)(engine->jump_base + (jump->target & ((1 << PLACE_BITS) - 1)) * UNIT);
}

/* Note where a jump led, in the first place; what was there moves to one that is free. */
static void note_jump(Engine *engine, Jump *first, uint64_t pc, uint64_t key, uintptr_t code) {
    const uintptr_t reach = (uintptr_t)UNIT << PLACE_BITS;
    if (!engine->jump_base) engine->jump_base = (code & ~(uintptr_t)(UNIT - 1)) - reach / 2;
    uintptr_t place = code - engine->jump_base;
    if (place >= reach || place % UNIT || key >> (STATE_BITS + GENERATION_BITS)) return;
    if (is_current(engine, first)) {
        uintptr_t number = 1;
        while (number < WAYS - 1 && is_current(engine, other_place(first, number))) number++;
        *other_place(first, number) = *first;
    }
    *first = (Jump){pc, key << PLACE_BITS | place / UNIT};
}

static __attribute__((noinline)) void *find_code(Engine *engine, Jump *first, uint64_t pc, uint32_t state) {
    uint64_t cs_base = engine->env->segs[CS].base, key = key_of(engine, state);
    for (uintptr_t number = 1; number < WAYS && !cs_base; number++) {
        Jump *jump = other_place(first, number), found = *jump;
        if (found.pc != pc || found.target >> PLACE_BITS != key) continue;
        *jump = *first;
        *first = found;
        return code_of(engine, first);
    }
    uint32_t flags = FIELD(engine->cpu, uint32_t, CPU_CLUSTER) << CLUSTER_SHIFT;
    void *block = tb_htable_lookup_x86_64(engine->cpu, pc + cs_base, cs_base, state, flags);
    if (!block) return unicorn.helper_lookup_tb_ptr(engine->env);
    void *code = FIELD(block, void *, BLOCK_CODE);
    if (!cs_base) note_jump(engine, first, pc, key_of(engine, state), (uintptr_t)code);
    return code;
}

/* Replaces Unicorn's function of this name, which blocks call to know where to go on. */
EXPORT void *helper_lookup_tb_ptr_x86_64(Env *env) {
    Engine *engine = current_engine;
    if (__builtin_expect(!engine || engine->env != env, 0)) return unicorn.helper_lookup_tb_ptr(env);
    uint64_t pc = env->eip;
    uint32_t state = env->hflags | ((uint32_t)env->eflags & STATE_EFLAGS);
    Jump *jump = first_place(engine, pc);
    if (jump->pc == pc && jump->target >> PLACE_BITS == key_of(engine, state) && !env->segs[CS].base)
        return code_of(engine, jump);
    return find_code(engine, jump, pc, state);
}

/* ---- What makes entries out of date */

static void forget_jumps(Engine *engine) {
    memset(engine->jumps, 0, JUMPS_SIZE);
    engine->jump_generation = 1;
}

static void forget_all(Engine *engine) {
    forget_jumps(engine);
    memset(engine->found, 0, sizeof engine->found);
}

/* Something of the engine `is_it` changed; where no engine runs in this thread, it may have been any. */
static void begin_generation(bool is_it) {
    if (!is_it)
        atomic_fetch_add(&changes, 1);
    else if (++current_engine->jump_generation >> GENERATION_BITS)
        forget_jumps(current_engine);
}

static bool is_cpu(const void *cpu) { return current_engine && current_engine->cpu == cpu; }

static bool is_uc(const void *uc) { return current_engine && current_engine->uc == uc; }

/* Before guest code runs on: follow what was done while it did not. */
void lookup_follow(Engine *engine) {
    uint32_t now = atomic_load(&changes);
    if (now == engine->lookup_changes) return;
    engine->lookup_changes = now;
    forget_all(engine);
}

/* Replaces Unicorn's function of this name, which drops all blocks. */
EXPORT void tb_flush_x86_64(void *cpu) {
    if (is_cpu(cpu))
        forget_all(current_engine);
    else
        begin_generation(false);
    unicorn.tb_flush(cpu);
}

/* Replaces Unicorn's function of this name, by which all ways to empty the TLB go. */
EXPORT void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t modes) {
    begin_generation(is_cpu(cpu));
    unicorn.tlb_flush_modes(cpu, modes);
}

/* Replaces Unicorn's function of this name, by which all ways to drop a page from the TLB go. */
EXPORT void tlb_flush_page_by_mmuidx_x86_64(void *cpu, uint64_t address, uint16_t modes) {
    begin_generation(is_cpu(cpu));
    unicorn.tlb_flush_page_modes(cpu, address, modes);
}

/* Replaces Unicorn's function of this name, which drops a block. */
EXPORT void tb_phys_invalidate_x86_64(void *context, void *block, uint64_t page) {
    begin_generation(current_engine);
    unicorn.tb_phys_invalidate(context, block, page);
}

/* Replaces Unicorn's function of this name, which drops the blocks of a run of RAM. */
EXPORT void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end) {
    begin_generation(is_uc(uc));
    unicorn.tb_invalidate_phys_range(uc, start, end);
}

/* Replaces Unicorn's function of this name, which drops the blocks of a part of a page. */
EXPORT void tb_invalidate_phys_page_range_x86_64(void *uc, uint64_t start, uint64_t end) {
    begin_generation(is_uc(uc));
    unicorn.tb_invalidate_phys_page_range(uc, start, end);
}

/* Drop the blocks that a store changes: seldom any. */
void lookup_invalidate_fast(void *uc, void *pages, uint64_t ram_address, int length, uintptr_t caller) {
    dropping = true; // and stays so where the running block is one of them, and is left at once
    unicorn.invalidate_page_fast(uc, pages, ram_address, length, caller);
    dropping = false;
}

/* Replaces Unicorn's function of this name, which does nothing here.  It is called before a block is dropped. */
EXPORT void tb_exec_unlock_x86_64(void *uc) {
    if (dropping) begin_generation(is_uc(uc));
}
