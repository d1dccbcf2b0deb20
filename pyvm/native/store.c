/* Stores into pages that hold translated code.
 *
 * Such a store leaves the fast way: it may change an instruction.  Boot loaders keep their variables beside their code,
 * and each of their stores would look for translations in its page.  Here a mask for each page says which of its 64
 * parts ever held code since they were last dropped; a store beside them just happens.
 *
 * An entry of the TLB says whether stores to its page are plain.  Unicorn makes those of an address that is not executed
 * plain after the first one, whatever code the page has at another address, and when code is translated it looks at the
 * code's own address only.  Kernels fill pages of code in just that way.  So here a page with code is never plain, and
 * for each page it is noted where stores to it became so.
 */
#include <string.h>

#include "engine.h"

#define PAGE_MASK (~UINT64_C(0xfff))

enum { PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT, PART_SHIFT = 6, MMU_MODE_MASK = 15, NO_PAGE = -1 };

static uint64_t parts(uint64_t offset, uint64_t length) {
    uint64_t first = offset >> PART_SHIFT, last = (offset + length - 1) >> PART_SHIFT;
    return (UINT64_MAX << first) & (UINT64_MAX >> (63 - last));
}

static void note_part(Engine *engine, uint64_t page_address, uint64_t offset, uint64_t length) {
    uint64_t page = page_address >> PAGE_SHIFT;
    if (length && page < engine->code_page_count) engine->code_parts[page] |= parts(offset, length);
}

/* A block was translated: note what it was made of, which may go on in a second page. */
void store_note_block(Engine *engine, const void *block) {
    uint64_t offset = FIELD((void *)block, uint64_t, BLOCK_PC) & ~PAGE_MASK;
    uint64_t size = FIELD((void *)block, uint16_t, BLOCK_SIZE), here = size;
    if (offset + size > PAGE_SIZE) here = PAGE_SIZE - offset;
    note_part(engine, FIELD((void *)block, uint64_t, BLOCK_PAGES), offset, here);
    int64_t second = FIELD((void *)block, int64_t, BLOCK_PAGES + 8);
    if (second != NO_PAGE) note_part(engine, (uint64_t)second, 0, size - here ? size - here : 1);
}

static bool has_code(const Engine *engine, uint64_t page) {
    return __atomic_load_n(&engine->code_pages[page / 64], __ATOMIC_RELAXED) >> (page % 64) & 1;
}

/* The entry for stores to an address that take the slow way because of code, and the RAM they go to; else NULL. */
static char *slow_entry(char *tlb, unsigned mode, uint64_t address, uint64_t *ram) {
    char *fast = tlb + TLB_FAST + mode * TLB_FAST_SIZE;
    uint64_t place = address >> PAGE_SHIFT << TLB_ENTRY_BITS & FIELD(fast, uint64_t, 0);
    char *entry = FIELD(fast, char *, 8) + place;
    if (FIELD(entry, uint64_t, TLB_ENTRY_WRITE) != ((address & PAGE_MASK) | TLB_NOTDIRTY)) return NULL;
    char *numbers = FIELD(tlb, char *, TLB_DESC + mode * TLB_DESC_SIZE + TLB_DESC_NUMBERS);
    *ram = address + FIELD(numbers, uint64_t, place >> TLB_ENTRY_BITS << TLB_NUMBER_BITS);
    return entry;
}

/* ---- Which stores are plain */

static void make_slow(char *entry, uint64_t page) {
    uint64_t *address = (uint64_t *)(entry + TLB_ENTRY_WRITE);
    if (!(*address & TLB_NOT_PLAIN) && (*address & PAGE_MASK) == page) *address |= TLB_NOTDIRTY;
}

/* An address can only be in one place of each table, or among the victims. */
static void make_address_slow(char *tlb, uint64_t page) {
    for (int mode = 0; mode < TLB_MODES; mode++) {
        char *fast = tlb + TLB_FAST + mode * TLB_FAST_SIZE;
        uint64_t mask = FIELD(fast, uint64_t, 0);
        make_slow(FIELD(fast, char *, 8) + (page >> PAGE_SHIFT << TLB_ENTRY_BITS & mask), page);
        char *victims = tlb + TLB_DESC + mode * TLB_DESC_SIZE + TLB_DESC_VICTIMS;
        for (int i = 0; i < TLB_VICTIMS; i++) make_slow(victims + (i << TLB_ENTRY_BITS), page);
    }
}

/* Replaces Unicorn's function of this name: stores to the pages of a new block must be seen.  The original looks at every
 * entry of every table each time. */
EXPORT void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t start, uint64_t length) {
    char *tlb = FIELD(cpu, char *, CPU_ENV_PTR) - TLB_BEFORE_ENV;
    for (uint64_t page = start & PAGE_MASK; page - start < length || page == start; page += PAGE_SIZE)
        make_address_slow(tlb, page);
}

/* Where stores to a page became plain since the TLB was last empty: the address and, in its low bits, the number of times
 * that the TLB had been emptied.  These wrap; an old note that looks new does no harm. */
enum { PLAIN_ONCE = 1, PLAIN_AT_SEVERAL = 2, FLUSHES_SHIFT = 2, FLUSHES_MASK = (PAGE_SIZE - 1) & ~3 };

static uint64_t flushes(const Engine *engine) { return engine->tlb_flushes << FLUSHES_SHIFT & FLUSHES_MASK; }

static bool is_new(const Engine *engine, uint64_t note) { return note && (note & FLUSHES_MASK) == flushes(engine); }

/* Replaces Unicorn's function of this name, to know that nothing is plain any more. */
EXPORT void tlb_flush_x86_64(void *cpu) {
    Engine *engine = current_engine;
    if (engine && engine->cpu == cpu) engine->tlb_flushes++;
    unicorn.tlb_flush(cpu);
}

static void note_plain(Engine *engine, uint64_t page, uint64_t address) {
    uint64_t note = (address & PAGE_MASK) | flushes(engine) | PLAIN_ONCE, old = engine->plain_at[page];
    if (is_new(engine, old) && old != note) note |= PLAIN_AT_SEVERAL;
    engine->plain_at[page] = note;
}

static void make_all_slow(char *tlb) {
    for (int mode = 0; mode < TLB_MODES; mode++) {
        char *fast = tlb + TLB_FAST + mode * TLB_FAST_SIZE, *table = FIELD(fast, char *, 8);
        uint64_t last = FIELD(fast, uint64_t, 0) >> TLB_ENTRY_BITS;
        for (uint64_t i = 0; i <= last; i++)
            make_slow(table + (i << TLB_ENTRY_BITS), FIELD(table, uint64_t, (i << TLB_ENTRY_BITS) + TLB_ENTRY_WRITE) & PAGE_MASK);
        char *victims = tlb + TLB_DESC + mode * TLB_DESC_SIZE + TLB_DESC_VICTIMS;
        for (int i = 0; i < TLB_VICTIMS; i++)
            make_slow(victims + (i << TLB_ENTRY_BITS),
                      FIELD(victims, uint64_t, (i << TLB_ENTRY_BITS) + TLB_ENTRY_WRITE) & PAGE_MASK);
    }
}

/* Let the next store to each page be seen. */
void store_make_all_slow(Engine *engine) { make_all_slow((char *)engine->env - TLB_BEFORE_ENV); }

/* Replaces Unicorn's function of this name: the first code of a page is being translated. */
EXPORT void tlb_protect_code_x86_64(void *uc, uint64_t ram_address) {
    Engine *engine = current_engine;
    uint64_t page = ram_address >> PAGE_SHIFT;
    if (engine && engine->uc == uc && page < engine->code_page_count) {
        __atomic_fetch_or(&engine->code_pages[page / 64], UINT64_C(1) << (page % 64), __ATOMIC_SEQ_CST);
        char *tlb = (char *)engine->env - TLB_BEFORE_ENV;
        uint64_t note = is_new(engine, engine->plain_at[page]) ? engine->plain_at[page] : 0;
        if (note & PLAIN_AT_SEVERAL)
            make_all_slow(tlb);
        else if (note)
            make_address_slow(tlb, note & PAGE_MASK);
        engine->plain_at[page] = 0;
    }
    unicorn.tlb_protect_code(uc, ram_address);
}

/* A store at an address that is not executed has hit code of its page: whether the whole page is being filled anew, so
 * that its code may as well be dropped.  Single stores, as of a kernel that patches itself, leave the rest alone. */
static bool is_refilled(Engine *engine, uint64_t page) {
    enum { SEVERAL = 8 };
    if (engine->overwritten_page != page) engine->overwritten_times = 0;
    engine->overwritten_page = page;
    return ++engine->overwritten_times >= SEVERAL;
}

/* Replaces Unicorn's function of this name: stores to an address that is not executed shall be plain from now on. */
EXPORT void tlb_set_dirty_x86_64(void *cpu, uint64_t address) {
    Engine *engine = current_engine;
    uint64_t ram = 0;
    if (engine && engine->cpu == cpu) {
        char *tlb = (char *)engine->env - TLB_BEFORE_ENV;
        for (unsigned mode = 0; mode < TLB_MODES; mode++) {
            if (!slow_entry(tlb, mode, address, &ram)) continue;
            uint64_t page = ram >> PAGE_SHIFT;
            if (page >= engine->code_page_count) continue;
            if (has_code(engine, page)) {
                if (!is_refilled(engine, page)) return;
                memory_drop_code(engine, (Range){page << PAGE_SHIFT, PAGE_SIZE});
            }
            note_plain(engine, page, address);
        }
    }
    unicorn.tlb_set_dirty(cpu, address);
}

/* ---- Stores beside code */

/* Where a store goes that only looks as if it might change code; NULL where it may, or where it is of another kind. */
static void *beside_code(Env *env, uint64_t address, unsigned size, uint32_t operation) {
    Engine *engine = current_engine;
    uint64_t offset = address & ~PAGE_MASK, ram;
    if (!engine || engine->env != env || offset + size > PAGE_SIZE) return NULL;
    char *entry = slow_entry((char *)env - TLB_BEFORE_ENV, operation & MMU_MODE_MASK, address, &ram);
    if (!entry) return NULL;
    uint64_t page = ram >> PAGE_SHIFT;
    if (page >= engine->code_page_count || engine->code_parts[page] & parts(offset, size)) return NULL;
    if (engine->dirty_log) dirty_note(engine, (uintptr_t)(address + FIELD(entry, uint64_t, TLB_ENTRY_HOST)), 1);
    if (!has_code(engine, page)) {
        note_plain(engine, page, address);
        FIELD(entry, uint64_t, TLB_ENTRY_WRITE) &= ~(uint64_t)TLB_NOTDIRTY;
    }
    return (void *)(address + FIELD(entry, uint64_t, TLB_ENTRY_HOST));
}

#define STORE(name, type, original)                                                                                  \
    EXPORT void name(Env *env, uint64_t address, type value, uint32_t operation, uintptr_t caller) {                \
        void *host = beside_code(env, address, sizeof value, operation);                                            \
        if (host)                                                                                                    \
            memcpy(host, &value, sizeof value);                                                                      \
        else                                                                                                         \
            unicorn.original(env, address, value, operation, caller);                                                \
    }

STORE(helper_ret_stb_mmu_x86_64, uint8_t, store_8)
STORE(helper_le_stw_mmu_x86_64, uint16_t, store_16)
STORE(helper_le_stl_mmu_x86_64, uint32_t, store_32)
STORE(helper_le_stq_mmu_x86_64, uint64_t, store_64)
