/* Where Unicorn would end the process although it is the guest that is wrong.
 *
 * Two of its ways to give up can be reached by guest code.  cpu_abort() is called where an interrupt enters an inner ring
 * and the task register does not hold a task state segment: a processor raises #TS.  And its translator calls abort()
 * for instructions that it cannot make sense of, such as LOCK BTS with a register: a processor raises #UD.  Whatever
 * else should abort, the emulation of this guest fails and the process goes on.
 *
 * Some instructions lose temporaries of the code generator, which does not check that any are left: blocks of them would
 * write past its table.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"

enum { EXCEPTION_UD = 6, EXCEPTION_TS = 10 };

EXPORT void cpu_abort_x86_64(void *cpu, const char *format, ...) {
    Engine *engine = current_engine;
    if (!engine || engine->cpu != cpu || strncmp(format, "invalid tss", 11)) abort();
    unicorn.raise_exception_err_ra(engine->env, EXCEPTION_TS, engine->env->tr.selector & 0xfffc, 0);
}

/* Replaces Unicorn's function of this name, to know which block is being translated. */
EXPORT void *tb_gen_code_x86_64(void *cpu, uint64_t pc, uint64_t code_base, uint32_t flags, int block_flags) {
    Engine *engine = current_engine;
    if (!engine || engine->cpu != cpu) return unicorn.tb_gen_code(cpu, pc, code_base, flags, block_flags);
    engine->translating = true;
    engine->block_flags = block_flags;
    engine->cut = engine->single_instructions;
    debug_before_translation(engine, block_flags);
    void *block = unicorn.tb_gen_code(cpu, pc, code_base, flags, block_flags);
    engine->translating = false;
    store_note_block(engine, block);
    log_translation(engine, block);
    return block;
}

/* The translator has given up on a block.  Each of its instructions then gets a block of its own; the one that has
 * already is an invalid one. */
static void refuse_block(Engine *engine) {
    engine->translating = false;
    engine->label = NULL;
    if ((engine->block_flags & BLOCK_COUNT_MASK) == ONE_INSTRUCTION)
        unicorn.raise_exception_err_ra(engine->env, EXCEPTION_UD, 0, 0);
    FIELD(engine->cpu, uint32_t, CPU_NEXT_BLOCK_FLAGS) = ONE_INSTRUCTION;
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = -1;
    unicorn.cpu_loop_exit(engine->cpu);
}

/* Have the translator take the block for a full one when it has done its present instruction. */
static void end_block_soon(void *context) {
    if (FIELD(context, int32_t, TCG_OP_COUNT) < TCG_ENOUGH_OPS) FIELD(context, int32_t, TCG_OP_COUNT) += TCG_ENOUGH_OPS;
}

/* Replaces Unicorn's function of this name: a block ends in time before temporaries run out. */
EXPORT void *tcg_temp_new_internal_x86_64(void *context, int type, bool local) {
    enum { FEW_LEFT = TCG_MAX_TEMPS - 128, NONE_LEFT = TCG_MAX_TEMPS - 2 };
    int32_t count = FIELD(context, int32_t, TCG_TEMP_COUNT);
    if (count >= FEW_LEFT && current_engine && current_engine->translating) {
        if (count >= NONE_LEFT) refuse_block(current_engine);
        end_block_soon(context);
    }
    if (current_engine && current_engine->cut && current_engine->translating) {
        current_engine->cut = false;
        end_block_soon(context);
    }
    return unicorn.temp_new(context, type, local);
}

/* What libunicorn calls for abort(). */
static void on_abort(void) {
    Engine *engine = current_engine;
    if (!engine || !engine->in_guest) abort();
    if (engine->translating) refuse_block(engine);
    engine->aborted = true;
    engine_kick_self(engine);
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = EXCP_INTERRUPT;
    unicorn.cpu_loop_exit(engine->cpu);
}

/* Let calls of `name` from the library go to `function`; false where it makes none. */
static bool redirect(const struct link_map *map, const char *name, void (*function)(void)) {
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL, *table = NULL;
    size_t size = 0;
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
        if (entry->d_tag == DT_SYMTAB) symbols = (const void *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_STRTAB) names = (const void *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_JMPREL) table = (const void *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_PLTRELSZ) size = entry->d_un.d_val;
    }
    if (!symbols || !names || !table) return false;
    for (size_t i = 0; i < size / sizeof(ElfW(Rela)); i++) {
        const ElfW(Rela) *relocation = (const ElfW(Rela) *)table + i;
        if (strcmp(names + symbols[ELF64_R_SYM(relocation->r_info)].st_name, name)) continue;
        char *slot = (char *)map->l_addr + relocation->r_offset;
        uintptr_t page = (uintptr_t)slot & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
        if (mprotect((void *)page, (uintptr_t)slot + sizeof function - page, PROT_READ | PROT_WRITE)) return false;
        memcpy(slot, &function, sizeof function);
        return true;
    }
    return false;
}

/* Keep libunicorn from ending the process; sets a Python exception where that cannot be done. */
bool faults_redirect(void *library) {
    struct link_map *map;
    if (!dlinfo(library, RTLD_DI_LINKMAP, &map) && redirect(map, "abort", on_abort)) return true;
    PyErr_SetString(PyExc_RuntimeError, "libunicorn cannot be kept from aborting: pyvm needs the unicorn " SUPPORTED_UNICORN
                                        " wheel");
    return false;
}
