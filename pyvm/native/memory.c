/* Guest-physical memory as Unicorn sees it, and dropping translations of code that a device overwrote. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { PAGE_SHIFT = 12, PROTECTION_READ = 1, PROTECTION_WRITE = 2, PROTECTION_EXECUTE = 4 };

static bool check_error(int error, uint64_t gpa) {
    if (!error) return true;
    PyErr_Format(PyExc_RuntimeError, "cannot map guest memory at %llx: %s", (unsigned long long)gpa,
                 unicorn.uc_strerror(error));
    return false;
}

static Region *new_region(Engine *engine, uint64_t gpa, uint64_t size) {
    if (engine->region_count == MAX_REGIONS) {
        PyErr_SetString(PyExc_RuntimeError, "too many memory regions");
        return NULL;
    }
    Region *region = &engine->regions[engine->region_count];
    *region = (Region){.start = gpa, .end = gpa + size};
    return region;
}

static void take_region(Engine *engine, Region *region) {
    region->memory_region = unicorn.find_memory_mapping(engine->uc, region->start);
    engine->region_count++;
    engine->last_region = NULL;
}

/* Make an array longer; what is new is zero, and takes no memory before it is used. */
static bool grow(uint64_t **array, uint64_t from, uint64_t to) {
    uint64_t *grown = calloc(to, sizeof *grown);
    if (!grown) return false;
    if (*array) memcpy(grown, *array, from * sizeof *grown);
    free(*array);
    *array = grown;
    return true;
}

/* Keep account of translated code in a run of RAM whose Unicorn number is known. */
bool memory_note_ram(Engine *engine, Region *region, uint64_t size) {
    uint64_t pages = (region->ram_address + size) >> PAGE_SHIFT;
    if (pages <= engine->code_page_count) return true;
    uint64_t words = (pages + 63) / 64, old = (engine->code_page_count + 63) / 64;
    uint64_t *grown = realloc(engine->code_pages, words * 8);
    if (grown) engine->code_pages = grown;
    if (!grown || !grow(&engine->code_parts, engine->code_page_count, pages) ||
        !grow(&engine->plain_at, engine->code_page_count, pages)) {
        PyErr_NoMemory();
        return false;
    }
    memset(grown + old, 0, (words - old) * 8);
    engine->code_page_count = pages;
    return true;
}

bool memory_map_ram(Engine *engine, uint64_t gpa, uint64_t size, void *host, bool writable) {
    Region *region = new_region(engine, gpa, size);
    if (!region) return false;
    uint32_t protection = PROTECTION_READ | PROTECTION_EXECUTE | (writable ? PROTECTION_WRITE : 0);
    if (!check_error(unicorn.uc_mem_map_ptr(engine->uc, gpa, size, protection, host), gpa)) return false;
    region->is_ram = true;
    region->host = host;
    region->ram_address = unicorn.ram_address_of(engine->uc, host);
    if (!memory_note_ram(engine, region, size)) return false;
    take_region(engine, region);
    return true;
}

bool memory_map_io(Engine *engine, uint64_t gpa, uint64_t size) {
    Region *region = new_region(engine, gpa, size);
    if (!region) return false;
    void *base = (void *)(uintptr_t)gpa;
    int error = unicorn.uc_mmio_map(engine->uc, gpa, size, (void *)callback_mmio_read, base, (void *)callback_mmio_write, base);
    // A jump to registers fetches what they read as; Unicorn would end the emulation.
    const uint32_t all = PROTECTION_READ | PROTECTION_WRITE | PROTECTION_EXECUTE;
    if (!error) error = unicorn.uc_mem_protect(engine->uc, gpa, size, all);
    if (!check_error(error, gpa)) return false;
    take_region(engine, region);
    return true;
}

bool memory_unmap(Engine *engine, uint64_t gpa, uint64_t size) {
    for (int i = 0; i < engine->region_count; i++) {
        Region *region = &engine->regions[i];
        if (region->start != gpa || region->end != gpa + size) continue;
        if (region->is_ram)
            unicorn.tb_invalidate_phys_range(engine->uc, region->ram_address, region->ram_address + size);
        if (!check_error(unicorn.uc_mem_unmap(engine->uc, gpa, size), gpa)) return false;
        engine->regions[i] = engine->regions[--engine->region_count];
        engine->last_region = NULL;
        unicorn.tlb_flush(engine->cpu);
        return true;
    }
    PyErr_Format(PyExc_ValueError, "nothing is mapped at %llx", (unsigned long long)gpa);
    return false;
}

static bool holds(const Region *region, uint64_t gpa) {
    return gpa >= region->start && gpa < region->end;
}

/* Remember a region for the addresses around `gpa` that no overlay covers. */
static const Region *remember(Engine *engine, const Region *region, uint64_t gpa) {
    uint64_t start = region->start, end = region->end;
    for (int i = 0; i < engine->overlay_count; i++) {
        const Overlay *overlay = &engine->overlays[i];
        if (!overlay->shown || &overlay->region == region) continue;
        if (overlay->region.end <= gpa && overlay->region.end > start) start = overlay->region.end;
        if (overlay->region.start > gpa && overlay->region.start < end) end = overlay->region.start;
    }
    engine->last_range = (Range){start, end - start};
    return engine->last_region = region;
}

static const Region *find_region(Engine *engine, uint64_t gpa) {
    if (engine->last_region && gpa - engine->last_range.start < engine->last_range.length) return engine->last_region;
    for (int i = 0; i < engine->overlay_count; i++)
        if (engine->overlays[i].shown && holds(&engine->overlays[i].region, gpa))
            return remember(engine, &engine->overlays[i].region, gpa);
    for (int i = 0; i < engine->region_count; i++)
        if (holds(&engine->regions[i], gpa)) return remember(engine, &engine->regions[i], gpa);
    return NULL;
}

/* Replaces Unicorn's function of this name, which walks its memory tree for every slow store. */
EXPORT void *find_memory_mapping_x86_64(void *uc, uint64_t gpa) {
    Engine *engine = current_engine;
    if (engine && engine->uc == uc) {
        const Region *region = find_region(engine, gpa);
        if (region) return region->memory_region;
    }
    return unicorn.find_memory_mapping(uc, gpa);
}

static bool may_hold_code(const Engine *engine, uint64_t first, uint64_t last) {
    for (uint64_t page = first; page <= last && page < engine->code_page_count;) {
        uint64_t word = __atomic_load_n(&engine->code_pages[page / 64], __ATOMIC_SEQ_CST) >> (page % 64);
        uint64_t left = last - page + 1;
        if (left < 64 - page % 64) word &= (UINT64_C(1) << left) - 1;
        if (word) return true;
        page = (page | 63) + 1;
    }
    return false;
}

/* Note that a run of RAM was written; says whether there may be translations of it. */
static bool note_invalidation(Engine *engine, const Region *region, uint64_t gpa, uint64_t length) {
    if (!region->is_ram || !holds(region, gpa)) return false;
    if (length > region->end - gpa) length = region->end - gpa;
    uint64_t start = gpa - region->start + region->ram_address;
    if (!may_hold_code(engine, start >> PAGE_SHIFT, (start + length - 1) >> PAGE_SHIFT)) return false;
    pthread_mutex_lock(&engine->lock);
    if (engine->invalidation_count < MAX_INVALIDATIONS)
        engine->invalidations[engine->invalidation_count++] = (Range){start, length};
    else
        engine->invalidate_all = true;
    pthread_mutex_unlock(&engine->lock);
    return true;
}

/* Drop translations of guest RAM that a device has written; from any thread, before the guest can see the completion.
 *
 * The vCPU thread leaves its block at once, and enters no other before it has done the work: the kick word is tested at
 * the start of each block, and it becomes visible before whatever the device stores next.  An overlay may show the same
 * RAM, and has translations of its own.
 */
void memory_invalidate(Engine *engine, uint64_t gpa, uint64_t length) {
    if (!length || !engine->uc) return;
    dirty_note_physical(engine, gpa, length);
    bool any = false;
    for (int i = 0; i < engine->region_count; i++) any |= note_invalidation(engine, &engine->regions[i], gpa, length);
    for (int i = 0; i < engine->overlay_count; i++)
        any |= note_invalidation(engine, &engine->overlays[i].region, gpa, length);
    if (!any) return;
    atomic_store(&engine->invalidations_pending, true);
    engine_kick(engine);
}

/* Drop translations of a run of RAM; on the vCPU thread. */
void memory_drop_code(Engine *engine, Range range) {
    unicorn.tb_invalidate_phys_range(engine->uc, range.start, range.start + range.length);
    uint64_t first = (range.start + 4095) >> PAGE_SHIFT, end = (range.start + range.length) >> PAGE_SHIFT;
    for (uint64_t page = first; page < end && page < engine->code_page_count; page++) {
        __atomic_fetch_and(&engine->code_pages[page / 64], ~(UINT64_C(1) << (page % 64)), __ATOMIC_SEQ_CST);
        engine->code_parts[page] = 0;
    }
}

/* Do what memory_invalidate() asked for; on the vCPU thread, outside of any block. */
void memory_run_invalidations(Engine *engine) {
    Range ranges[MAX_INVALIDATIONS];
    pthread_mutex_lock(&engine->lock);
    int count = engine->invalidation_count;
    bool all = engine->invalidate_all;
    memcpy(ranges, engine->invalidations, (size_t)count * sizeof *ranges);
    engine->invalidation_count = 0;
    engine->invalidate_all = false;
    atomic_store(&engine->invalidations_pending, false);
    pthread_mutex_unlock(&engine->lock);
    engine_count(engine, COUNT_INVALIDATE);
    if (all) {
        tb_flush_x86_64(engine->cpu);
        memset(engine->code_pages, 0, (engine->code_page_count + 63) / 64 * 8);
        memset(engine->code_parts, 0, engine->code_page_count * sizeof *engine->code_parts);
        return;
    }
    for (int i = 0; i < count; i++) memory_drop_code(engine, ranges[i]);
}
