/* Overlays: RAM, ROM or registers that appear over the memory regions and disappear again while the guest runs.
 *
 * A region of Unicorn cannot be unmapped cheaply: it forgets every page of it one by one, and the registers around the
 * RAM are one region of a terabyte.  So an overlay is made once and then only hung into the address space and taken out.
 * The newest of two regions at one address is the one that shows.
 */
#include "engine.h"

enum { PERMIT_ALL = 7 };

static Overlay *overlay_at(Engine *engine, int index) {
    if (index >= 0 && index < engine->overlay_count) return &engine->overlays[index];
    PyErr_SetString(PyExc_IndexError, "there is no such overlay");
    return NULL;
}

static void changed(Engine *engine) {
    engine->last_region = NULL;
    unicorn.tlb_flush(engine->cpu);
}

/* Make an overlay of `size` bytes, shown at `gpa` from the start; without `host` it is registers.  Returns its number, or
 * -1 with an exception.  Writes to ROM are dropped. */
int overlay_make(Engine *engine, uint64_t gpa, uint64_t size, void *host, bool writable) {
    if (engine->overlay_count == MAX_OVERLAYS) {
        PyErr_SetString(PyExc_RuntimeError, "too many overlays");
        return -1;
    }
    Overlay *overlay = &engine->overlays[engine->overlay_count];
    void *base = (void *)(uintptr_t)gpa, *region;
    if (host)
        region = unicorn.memory_map_ptr(engine->uc, gpa, size, PERMIT_ALL, host);
    else
        region = unicorn.memory_map_io(engine->uc, gpa, size, (void *)callback_mmio_read, (void *)callback_mmio_write, base, base);
    if (!region) {
        PyErr_NoMemory();
        return -1;
    }
    FIELD(region, uint32_t, MEMORY_PERMISSIONS) = PERMIT_ALL;
    if (host && !writable) unicorn.memory_set_readonly(region, true);
    *overlay = (Overlay){.region = {.start = gpa, .end = gpa + size, .memory_region = region, .is_ram = host, .host = host},
                         .shown = true};
    if (host) overlay->region.ram_address = unicorn.memory_ram_address(region);
    if (host && !memory_note_ram(engine, &overlay->region, size)) return -1;
    changed(engine);
    return engine->overlay_count++;
}

bool overlay_show(Engine *engine, int index, uint64_t gpa) {
    Overlay *overlay = overlay_at(engine, index);
    if (!overlay) return false;
    if (overlay->shown && overlay->region.start == gpa) return true;
    if (!overlay_hide(engine, index)) return false;
    uint64_t size = overlay->region.end - overlay->region.start;
    overlay->region.start = gpa;
    overlay->region.end = gpa + size;
    overlay->shown = true;
    unicorn.memory_add(engine->system_memory, gpa, overlay->region.memory_region);
    changed(engine);
    return true;
}

bool overlay_hide(Engine *engine, int index) {
    Overlay *overlay = overlay_at(engine, index);
    if (!overlay) return false;
    if (!overlay->shown) return true;
    engine->system_memory = FIELD(overlay->region.memory_region, void *, MEMORY_CONTAINER);
    overlay->shown = false;
    unicorn.memory_remove(engine->system_memory, overlay->region.memory_region);
    changed(engine);
    return true;
}
