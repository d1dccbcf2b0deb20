/* Loading libunicorn behind our replacements, and checking that it is the build whose private layout we know. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

Unicorn unicorn;

static void *library;

static bool resolve(void **slot, const char *name) {
    *slot = dlsym(library, name);
    if (!*slot) {
        PyErr_Format(PyExc_RuntimeError, "libunicorn has no function %s: pyvm needs unicorn " SUPPORTED_UNICORN, name);
        return false;
    }
    return true;
}

static const struct {
    size_t slot;
    const char *name;
} functions[] = {
#define F(member, name) {offsetof(Unicorn, member), name}
    F(uc_open, "uc_open"),
    F(uc_close, "uc_close"),
    F(uc_ctl, "uc_ctl"),
    F(uc_emu_start, "uc_emu_start"),
    F(uc_mem_map_ptr, "uc_mem_map_ptr"),
    F(uc_mmio_map, "uc_mmio_map"),
    F(uc_mem_protect, "uc_mem_protect"),
    F(uc_mem_unmap, "uc_mem_unmap"),
    F(memory_map_ptr, "memory_map_ptr_x86_64"),
    F(memory_map_io, "memory_map_io_x86_64"),
    F(memory_add, "memory_region_add_subregion_x86_64"),
    F(memory_remove, "memory_region_del_subregion_x86_64"),
    F(memory_set_readonly, "memory_region_set_readonly_x86_64"),
    F(memory_ram_address, "memory_region_get_ram_addr_x86_64"),
    F(uc_hook_add, "uc_hook_add"),
    F(uc_reg_write, "uc_reg_write"),
    F(uc_strerror, "uc_strerror"),
    F(uc_version, "uc_version"),
    F(cpu_exec, "cpu_exec_x86_64"),
    F(store_8, "helper_ret_stb_mmu_x86_64"),
    F(store_16, "helper_le_stw_mmu_x86_64"),
    F(store_32, "helper_le_stl_mmu_x86_64"),
    F(store_64, "helper_le_stq_mmu_x86_64"),
    F(tb_lookup, "tcg_tb_lookup_x86_64"),
    F(tb_htable_lookup, "tb_htable_lookup_x86_64"),
    F(get_page_addr_code, "get_page_addr_code_x86_64"),
    F(tb_gen_code, "tb_gen_code_x86_64"),
    F(do_interrupt, "x86_cpu_do_interrupt_x86_64"),
    F(hardware_interrupt, "do_interrupt_x86_hardirq_x86_64"),
    F(cpu_loop_exit, "cpu_loop_exit_x86_64"),
    F(cpu_loop_exit_restore, "cpu_loop_exit_restore_x86_64"),
    F(cpu_restore_state, "cpu_restore_state_x86_64"),
    F(raise_exception_err_ra, "raise_exception_err_ra_x86_64"),
    F(raise_interrupt, "raise_interrupt_x86_64"),
    F(find_memory_mapping, "find_memory_mapping_x86_64"),
    F(ram_address_of, "qemu_ram_addr_from_host_x86_64"),
    F(tb_invalidate_phys_range, "tb_invalidate_phys_range_x86_64"),
    F(tb_flush, "tb_flush_x86_64"),
    F(breakpoint_insert, "cpu_breakpoint_insert_x86_64"),
    F(breakpoint_remove_all, "cpu_breakpoint_remove_all_x86_64"),
    F(tlb_flush, "tlb_flush_x86_64"),
    F(tlb_protect_code, "tlb_protect_code_x86_64"),
    F(tlb_set_dirty, "tlb_set_dirty_x86_64"),
    F(invalidate_page_fast, "tb_invalidate_phys_page_fast_x86_64"),
    F(store_physical, "x86_stl_phys_notdirty_x86_64"),
    F(compute_flags, "cpu_cc_compute_all_x86_64"),
    F(update_cr0, "cpu_x86_update_cr0_x86_64"),
    F(update_dr7, "cpu_x86_update_dr7_x86_64"),
    F(update_fp_status, "update_fp_status_x86_64"),
    F(update_mxcsr_status, "update_mxcsr_status_x86_64"),
    F(load_u16, "cpu_lduw_mmuidx_ra_x86_64"),
    F(rdmsr, "helper_rdmsr_x86_64"),
    F(wrmsr, "helper_wrmsr_x86_64"),
    F(read_crN, "helper_read_crN_x86_64"),
    F(write_crN, "helper_write_crN_x86_64"),
    F(gen_call, "tcg_gen_callN_x86_64"),
    F(gen_exit_tb, "tcg_gen_exit_tb_x86_64"),
    F(temp_new, "tcg_temp_new_internal_x86_64"),
    F(temp_free, "tcg_temp_free_internal_x86_64"),
    F(new_label, "gen_new_label_x86_64"),
    F(gen_op1, "tcg_gen_op1_x86_64"),
    F(gen_op3, "tcg_gen_op3_x86_64"),
    F(gen_brcondi_i32, "tcg_gen_brcondi_i32_x86_64"),
    F(gen_lookup_and_goto_ptr, "tcg_gen_lookup_and_goto_ptr_x86_64"),
    F(helper_lookup_tb_ptr, "helper_lookup_tb_ptr_x86_64"),
#define S(operation)                                          \
    F(sse_##operation##sd, "helper_" #operation "sd_x86_64"), \
    F(sse_##operation##pd, "helper_" #operation "pd_x86_64"), \
    F(sse_##operation##ss, "helper_" #operation "ss_x86_64"), \
    F(sse_##operation##ps, "helper_" #operation "ps_x86_64")
    S(add), S(sub), S(mul), S(div), S(sqrt),
#undef S
#undef F
};

/* Let the dynamic linker find the functions of this library first when it binds those of the next one. */
static bool become_global(void) {
    Dl_info here;
    return dladdr((void *)&unicorn, &here) && dlopen(here.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/* Load libunicorn so that its calls of replaced functions come to us.  Done once in a process. */
bool unicorn_load(const char *path) {
    if (library) return true;
    if (dlopen(path, RTLD_NOW | RTLD_NOLOAD)) {
        PyErr_SetString(PyExc_RuntimeError, "libunicorn was loaded before the CPU engine of pyvm: start a machine before importing unicorn");
        return false;
    }
    library = become_global() ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) {
        PyErr_Format(PyExc_RuntimeError, "cannot load libunicorn: %s", dlerror());
        return false;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!resolve((void **)((char *)&unicorn + functions[i].slot), functions[i].name)) return false;
    unsigned major, minor, packed = unicorn.uc_version(&major, &minor);
    if (packed >> 8 != 0x020104) {
        PyErr_Format(PyExc_RuntimeError, "unicorn %u.%u.%u was found: pyvm needs unicorn " SUPPORTED_UNICORN, major, minor,
                     packed >> 8 & 0xff);
        return false;
    }
    return faults_redirect(library);
}

/* Numbers of registers in Unicorn's public API. */
enum { UC_REG_RAX = 35, UC_REG_RIP = 41, UC_REG_RSI = 43, UC_REG_R15 = 113, UC_REG_MSR = 248 };

typedef struct {
    uint32_t index;
    uint64_t value;
} Msr;

static bool tlb_matches(const Engine *engine) {
    char *tlb = (char *)engine->env - TLB_BEFORE_ENV;
    for (int mode = 0; mode < TLB_MODES; mode++) {
        uint64_t mask = FIELD(tlb, uint64_t, TLB_FAST + mode * TLB_FAST_SIZE);
        uint64_t entries = (mask >> TLB_ENTRY_BITS) + 1;
        if (mask & ((1 << TLB_ENTRY_BITS) - 1) || entries & (entries - 1) || entries < 2 || entries > 1 << 22) return false;
        const char *table = FIELD(tlb, char *, TLB_FAST + mode * TLB_FAST_SIZE + 8);
        for (uint64_t i = 0; i < entries; i++)
            if (*(const uint64_t *)(table + (i << TLB_ENTRY_BITS) + TLB_ENTRY_WRITE) != UINT64_MAX) return false;
    }
    return true;
}

/* Breakpoints are in a list; one for code comes first. */
static bool breakpoints_match(Engine *engine) {
    enum { FLAG = 0x10 };
    void **head = &FIELD(engine->cpu, void *, CPU_BREAKPOINTS), *first = NULL, *second = NULL;
    if (*head) return false;
    unicorn.breakpoint_insert(engine->cpu, 0x5a5a1234, FLAG, &second);
    unicorn.breakpoint_insert(engine->cpu, 0xa5a54321, FLAG, &first);
    bool matches = *head == first && FIELD(first, uint64_t, BREAKPOINT_ADDRESS) == 0xa5a54321 &&
                   FIELD(first, void *, BREAKPOINT_NEXT) == second && !FIELD(second, void *, BREAKPOINT_NEXT);
    unicorn.breakpoint_remove_all(engine->cpu, FLAG);
    return matches && !*head;
}

static bool layout_matches(Engine *engine) {
    static const struct {
        int reg;
        size_t offset;
    } registers[] = {
        {UC_REG_RAX, offsetof(Env, regs[RAX])},
        {UC_REG_RSI, offsetof(Env, regs[RSI])},
        {UC_REG_R15, offsetof(Env, regs[R15])},
        {UC_REG_RIP, offsetof(Env, eip)},
    };
    static const struct {
        uint32_t index;
        size_t offset;
    } msrs[] = {
        {0xc0000081, ENV_STAR},        {0xc0000082, ENV_LSTAR}, {0xc0000083, ENV_CSTAR},   {0xc0000084, ENV_FMASK},
        {0xc0000102, ENV_KERNELGSBASE}, {0xc0000103, ENV_TSC_AUX}, {0x277, ENV_PAT}, {0x175, ENV_SYSENTER_ESP},
        {0x176, ENV_SYSENTER_EIP},
    };
    if (FIELD(engine->cpu, void *, CPU_UC) != engine->uc) return false;
    unicorn.tlb_flush(engine->cpu);
    if (!tlb_matches(engine) || !breakpoints_match(engine)) return false;
    for (size_t i = 0; i < sizeof registers / sizeof *registers; i++) {
        uint64_t magic = UINT64_C(0x5a5a12345678a500) + i;
        if (unicorn.uc_reg_write(engine->uc, registers[i].reg, &magic)) return false;
        if (FIELD(engine->env, uint64_t, registers[i].offset) != magic) return false;
    }
    for (size_t i = 0; i < sizeof msrs / sizeof *msrs; i++) {
        Msr msr = {msrs[i].index, UINT64_C(0x00a5000012345600) + i};
        if (unicorn.uc_reg_write(engine->uc, UC_REG_MSR, &msr)) return false;
        if (FIELD(engine->env, uint64_t, msrs[i].offset) != msr.value) return false;
    }
    return true;
}

/* Compare the layout we assume with what the public API does to a fresh engine; sets a Python exception. */
bool layout_check(Engine *engine) {
    if (layout_matches(engine)) return true;
    PyErr_SetString(PyExc_RuntimeError,
                    "the private layout of this libunicorn is unknown: pyvm needs the unicorn " SUPPORTED_UNICORN " wheel");
    return false;
}
