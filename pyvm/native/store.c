/* Stores into pages that hold translated code.
 *
 * Such a store leaves the fast way: it may change an instruction.  Boot loaders keep their variables beside their code,
 * and each of their stores would look for translations in its page.  Here a mask for each page says which of its 64
 * parts ever held code since they were last dropped; a store beside them just happens.
 */
#include <string.h>

#include "engine.h"

#define CR0_PG (UINT64_C(1) << 31)

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
    uint64_t offset = FIELD((void *)block, uint64_t, BLOCK_PC) & (PAGE_SIZE - 1);
    uint64_t size = FIELD((void *)block, uint16_t, BLOCK_SIZE), here = size;
    if (offset + size > PAGE_SIZE) here = PAGE_SIZE - offset;
    note_part(engine, FIELD((void *)block, uint64_t, BLOCK_PAGES), offset, here);
    int64_t second = FIELD((void *)block, int64_t, BLOCK_PAGES + 8);
    if (second != NO_PAGE) note_part(engine, (uint64_t)second, 0, size - here ? size - here : 1);
}

/* Let stores to this page be plain until code is translated there, where there never was any.  That is known by the
 * address of the code, so it can be done only as long as a page has one address: without paging, and with A20 open. */
static void leave_alone(Engine *engine, char *entry, uint64_t page) {
    bool code = __atomic_load_n(&engine->code_pages[page / 64], __ATOMIC_RELAXED) >> (page % 64) & 1;
    if (!code && !(engine->env->cr[0] & CR0_PG) && engine->env->a20_mask == -1)
        FIELD(entry, uint64_t, TLB_ENTRY_WRITE) &= ~(uint64_t)TLB_NOTDIRTY;
}

/* Where a store goes that only looks as if it might change code; NULL where it may, or where it is of another kind. */
static void *beside_code(Env *env, uint64_t address, unsigned size, uint32_t operation) {
    Engine *engine = current_engine;
    uint64_t offset = address & (PAGE_SIZE - 1);
    if (!engine || engine->env != env || offset + size > PAGE_SIZE) return NULL;
    char *tlb = (char *)env - TLB_BEFORE_ENV;
    unsigned mode = operation & MMU_MODE_MASK;
    char *fast = tlb + TLB_FAST + mode * TLB_FAST_SIZE;
    uint64_t place = address >> PAGE_SHIFT << TLB_ENTRY_BITS & FIELD(fast, uint64_t, 0);
    char *entry = FIELD(fast, char *, 8) + place;
    if (FIELD(entry, uint64_t, TLB_ENTRY_WRITE) != ((address - offset) | TLB_NOTDIRTY)) return NULL;
    char *numbers = FIELD(tlb, char *, TLB_DESC + mode * TLB_DESC_SIZE + TLB_DESC_NUMBERS);
    uint64_t ram = address + FIELD(numbers, uint64_t, place >> TLB_ENTRY_BITS << TLB_NUMBER_BITS);
    uint64_t page = ram >> PAGE_SHIFT;
    if (page >= engine->code_page_count || engine->code_parts[page] & parts(offset, size)) return NULL;
    leave_alone(engine, entry, page);
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
