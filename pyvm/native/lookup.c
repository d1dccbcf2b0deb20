/* Finding the translation of the code at an address.
 *
 * A block that ends in a jump to no fixed address looks the next one up.  Unicorn has a table for that, by linear
 * address, of 4096 entries in sets of 64 for a page; a kernel and a few programs fill it many times over, and every
 * change of the address space empties it.  What it does not have is looked for in a hash table of all blocks, which is
 * slow.  So there is another table in between, by physical address: it outlives changes of the address space.
 *
 * An entry may be out of date, and is compared with what is wanted each time.  A block that was invalidated says so in
 * its flags; its memory is not used for another one until all blocks are dropped, and that empties the table.
 */
#include <string.h>

#include "engine.h"

/* TranslationBlock, as far as it is compared: segment base, state of the processor, and how it was translated. */
enum { BLOCK_CS_BASE = 8, BLOCK_STATE = 0x10, BLOCK_FLAGS = 0x18 };
enum { PAGE_BITS = 12 };

static const uint32_t COMPARED_FLAGS = 0xff0effff; /* BLOCK_FLAGS, but those that say how it was used; invalid is one */

/* How often the blocks of any engine were dropped. */
static _Atomic uint32_t flushes;

static bool is_wanted(const void *block, uint64_t pc, uint64_t cs_base, uint32_t state, uint32_t flags, uint64_t page) {
    return block && FIELD(block, uint64_t, BLOCK_PC) == pc && FIELD(block, uint64_t, BLOCK_CS_BASE) == cs_base &&
           FIELD(block, uint32_t, BLOCK_STATE) == state &&
           (FIELD(block, uint32_t, BLOCK_FLAGS) & COMPARED_FLAGS) == flags &&
           FIELD(block, uint64_t, BLOCK_PAGES) == page;
}

static void **found_entry(Engine *engine, uint64_t address, uint32_t state) {
    uint32_t now = atomic_load_explicit(&flushes, memory_order_relaxed);
    if (now != engine->found_flushes) {
        memset(engine->found, 0, sizeof engine->found);
        engine->found_flushes = now;
    }
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

/* Replaces Unicorn's function of this name, which drops all blocks. */
EXPORT void tb_flush_x86_64(void *cpu) {
    atomic_fetch_add(&flushes, 1);
    unicorn.tb_flush(cpu);
}
