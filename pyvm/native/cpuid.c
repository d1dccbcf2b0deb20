/* CPUID: a table that the CPU model made, and the few bits that depend on the processor's state. */
#include <string.h>

#include "engine.h"

enum { LEAF_FEATURES = 1, LEAF_TOPOLOGY = 0xb, LEAF_XSAVE = 0xd, LEAF_HYPERVISOR = 0x40000000 };
enum { CR4_OSXSAVE = 1 << 18 };
enum { ECX_OSXSAVE = 1 << 27 };
enum { LEAF_AMD_TOPOLOGY = 0x8000001eu };

enum { ANY_SUBLEAF = 0xffffffffu };

/* The entry of a leaf; where the leaf has some for single subleaves, the one for any other comes after them. */
static const CpuidEntry *find(const Engine *engine, uint32_t leaf, uint32_t subleaf) {
    for (int i = 0; i < engine->cpuid_count; i++) {
        const CpuidEntry *entry = &engine->cpuid[i];
        if (entry->leaf == leaf && (entry->subleaf == subleaf || entry->subleaf == ANY_SUBLEAF)) return entry;
    }
    return NULL;
}

/* The highest leaf of the range that a leaf belongs to; what is above it reads as the highest basic leaf does. */
static uint32_t highest(const Engine *engine, uint32_t leaf) {
    const CpuidEntry *first = find(engine, leaf & 0xf0000000u, 0);
    return first ? first->eax : 0;
}

static uint32_t xsave_size(uint64_t xcr0) {
    enum { LEGACY_AND_HEADER = 576, PKRU_END = 2696 };
    enum { XCR0_PKRU = 1 << 9 };
    return xcr0 & XCR0_PKRU ? PKRU_END : LEGACY_AND_HEADER;
}

void cpuid_lookup(Engine *engine, Env *env, uint32_t leaf, uint32_t subleaf, uint32_t *out) {
    memset(out, 0, 4 * sizeof *out);
    uint32_t limit = highest(engine, leaf);
    if (leaf > limit) {
        if (leaf >= LEAF_HYPERVISOR && limit) return;
        leaf = highest(engine, 0);
    }
    const CpuidEntry *entry = find(engine, leaf, subleaf);
    if (!entry) return;
    memcpy(out, &entry->eax, 4 * sizeof *out);
    uint32_t id = engine->vcpus[engine->current].apic_id;
    switch (leaf) {
    case LEAF_FEATURES:
        out[1] = (out[1] & 0xffffff) | id << 24;
        if (env->cr[4] & CR4_OSXSAVE) out[2] |= ECX_OSXSAVE;
        break;
    case LEAF_TOPOLOGY:
        out[3] = id;
        break;
    case LEAF_XSAVE:
        if (subleaf == 0 && out[0]) out[1] = xsave_size(FIELD(env, uint64_t, ENV_XCR0));
        break;
    case LEAF_AMD_TOPOLOGY:
        out[0] = id;
        break;
    }
}
