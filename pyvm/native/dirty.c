/* Which pages of guest RAM were written since somebody asked last: the dirty log of a migration.
 *
 * The first store through an entry of the TLB takes the slow way, where store.c sees it and makes later ones plain; so a
 * page is noted there at next to no cost.  Taking the log makes all entries slow again.  What does not go through the TLB
 * is noted where it happens: the processor's own writes to page tables, and those of devices, which tell of each.
 *
 * The log starts, ends and is taken while no guest code runs; devices may write at any time, in whichever thread.
 */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT };

static uint64_t word_count(const Engine *engine) { return (engine->dirty_pages + 63) / 64; }

/* Begin to note writes to `size` bytes of RAM at `host`; nothing is noted yet. */
bool dirty_start(Engine *engine, void *host, uint64_t size) {
    uint64_t pages = size >> PAGE_SHIFT;
    uint64_t *log = calloc((pages + 63) / 64, sizeof *log);
    if (!log) {
        PyErr_NoMemory();
        return false;
    }
    dirty_stop(engine);
    engine->dirty_log = log;
    engine->dirty_pages = pages;
    engine->dirty_host = (uintptr_t)host;
    store_make_all_slow(engine);
    return true;
}

void dirty_stop(Engine *engine) {
    free(engine->dirty_log);
    engine->dirty_log = NULL;
    engine->dirty_pages = 0;
}

/* Move the log to `target`, a bit for each page, and begin anew; return how many pages are in it. */
uint64_t dirty_take(Engine *engine, uint8_t *target) {
    uint64_t found = 0, bytes = (engine->dirty_pages + 7) / 8;
    for (uint64_t i = 0; i < word_count(engine); i++) {
        uint64_t word = __atomic_exchange_n(&engine->dirty_log[i], 0, __ATOMIC_RELAXED);
        memcpy(target + i * 8, &word, bytes - i * 8 < 8 ? bytes - i * 8 : 8);
        found += (uint64_t)__builtin_popcountll(word);
    }
    store_make_all_slow(engine);
    return found;
}

/* Note a write to memory of the host, which may be guest RAM. */
void dirty_note(Engine *engine, uintptr_t host, uint64_t length) {
    uint64_t offset = host - engine->dirty_host, size = engine->dirty_pages << PAGE_SHIFT;
    if (!engine->dirty_log || !length || offset >= size) return;
    uint64_t last = offset + (length < size - offset ? length : size - offset) - 1;
    for (uint64_t page = offset >> PAGE_SHIFT; page <= last >> PAGE_SHIFT; page++)
        __atomic_fetch_or(&engine->dirty_log[page / 64], UINT64_C(1) << (page % 64), __ATOMIC_RELAXED);
}

static bool note_in_region(Engine *engine, const Region *region, uint64_t gpa, uint64_t length) {
    if (!region->is_ram || gpa < region->start || gpa >= region->end) return false;
    if (length > region->end - gpa) length = region->end - gpa;
    dirty_note(engine, (uintptr_t)region->host + (gpa - region->start), length);
    return true;
}

/* Note a write to a guest-physical address. */
void dirty_note_physical(Engine *engine, uint64_t gpa, uint64_t length) {
    if (!engine->dirty_log) return;
    for (int i = 0; i < engine->region_count; i++)
        if (note_in_region(engine, &engine->regions[i], gpa, length)) return;
}

static void note_numbered(Engine *engine, const Region *region, uint64_t ram_address, uint64_t length) {
    uint64_t offset = ram_address - region->ram_address;
    if (region->is_ram && ram_address >= region->ram_address && offset < region->end - region->start)
        dirty_note(engine, (uintptr_t)region->host + offset, length);
}

/* Replaces Unicorn's function of this name, which each slow store calls, whatever its instruction. */
EXPORT void tb_invalidate_phys_page_fast_x86_64(void *uc, void *pages, uint64_t ram_address, int length, uintptr_t caller) {
    Engine *engine = current_engine;
    if (engine && engine->uc == uc && engine->dirty_log) {
        for (int i = 0; i < engine->region_count; i++)
            note_numbered(engine, &engine->regions[i], ram_address, (uint64_t)length);
        for (int i = 0; i < engine->overlay_count; i++)
            note_numbered(engine, &engine->overlays[i].region, ram_address, (uint64_t)length);
    }
    unicorn.invalidate_page_fast(uc, pages, ram_address, length, caller);
}

/* Replaces Unicorn's function of this name, by which it sets the accessed and dirty bits of page tables. */
EXPORT void x86_stl_phys_notdirty_x86_64(void *cpu, uint64_t gpa, uint32_t value) {
    Engine *engine = current_engine;
    if (engine && engine->cpu == cpu) dirty_note_physical(engine, gpa, sizeof value);
    unicorn.store_physical(cpu, gpa, value);
}
