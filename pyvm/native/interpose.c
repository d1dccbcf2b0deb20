/* The half of a PC processor that Unicorn leaves out: functions of libunicorn that are replaced by ours.
 *
 * libunicorn calls these through its procedure linkage table, so a definition in a library that was loaded before it
 * with RTLD_GLOBAL takes precedence.  All of them run on the vCPU thread.  A call made outside of run(), while
 * current_engine is NULL, goes to the original.
 */
#include <time.h>

#include "engine.h"

enum { EFLAGS_TF = 1 << 8, EFLAGS_IF = 1 << 9, EFLAGS_DF = 1 << 10, EFLAGS_RF = 1 << 16, EFLAGS_VM = 1 << 17 };
enum { EFER_SCE = 1 };
enum { EXCEPTION_UD = 6, EXCEPTION_GP = 13 };
enum { MSR_TSC = 0x10, MSR_APIC_BASE = 0x1b, MSR_TSC_ADJUST = 0x3b, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC_FIRST = 0x800, MSR_X2APIC_LAST = 0x8ff };

/* Descriptor bits, as in the second word of a descriptor. */
enum {
    DESC_A = 1 << 8,
    DESC_W = 1 << 9,  /* of data */
    DESC_R = 1 << 9,  /* of code */
    DESC_CODE = 1 << 11,
    DESC_S = 1 << 12,
    DESC_DPL3 = 3 << 13,
    DESC_P = 1 << 15,
    DESC_L = 1 << 21,
    DESC_B = 1 << 22,
    DESC_G = 1 << 23,
};

#define CALLER ((uintptr_t)__builtin_return_address(0))

/* ---- Time */

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The time stamp counter at TSC offset 0: guest time in ticks. */
static uint64_t guest_tsc(Engine *engine) {
    uint64_t now = (uint64_t)(monotonic_ns() + atomic_load(&engine->clock_offset));
    if (engine->tsc_hz == 1000000000) return now;
    return (uint64_t)((unsigned __int128)now * engine->tsc_hz / 1000000000);
}

EXPORT uint64_t cpu_get_tsc_x86_64(Env *env) {
    (void)env;
    return current_engine ? guest_tsc(current_engine) : 0;
}

/* ---- Ports */

enum { TSS_LIMIT = 103, TSS_BITMAP_POINTER = 102, TSS_AVAILABLE = 9, TSS_BUSY = 11, MMU_KERNEL = 2 };

/* Whether the I/O permission bitmap of the task lets `size` ports pass (Intel SDM volume 1, 19.5.2). */
static bool bitmap_permits(Env *env, uint32_t port, int size, uintptr_t caller) {
    uint32_t type = env->tr.flags >> 8 & 15;
    if (!(env->tr.flags & DESC_P) || (type != TSS_AVAILABLE && type != TSS_BUSY) || env->tr.limit < TSS_LIMIT) return false;
    uint32_t offset = unicorn.load_u16(env, env->tr.base + TSS_BITMAP_POINTER, MMU_KERNEL, caller) + (port >> 3);
    if (offset + 1 > env->tr.limit) return false;
    uint32_t bits = unicorn.load_u16(env, env->tr.base + offset, MMU_KERNEL, caller) >> (port & 7);
    return !(bits & ((1u << size) - 1));
}

/* The translator leaves out the privilege check of IN and OUT; raises #GP. */
static Engine *check_port(uint32_t port, int size, uintptr_t caller) {
    Engine *engine = current_engine;
    if (!engine) return NULL;
    Env *env = engine->env;
    uint32_t level = env->hflags & HF_CPL, io_level = env->eflags >> 12 & 3;
    bool privileged = level <= io_level && !(env->eflags & EFLAGS_VM);
    if (env->hflags & HF_PE && !privileged && !bitmap_permits(env, port & 0xffff, size, caller))
        unicorn.raise_exception_err_ra(env, EXCEPTION_GP, 0, caller);
    return engine;
}

static void write_port(uint32_t port, int size, uint32_t value, uintptr_t caller) {
    Engine *engine = check_port(port, size, caller);
    if (engine) firmware_check(engine, port, caller);
    callback_port_write(engine, port, size, value);
}

EXPORT uint8_t cpu_inb_x86_64(void *uc, uint32_t port, uintptr_t caller) {
    (void)uc;
    return (uint8_t)callback_port_read(check_port(port, 1, caller), port, 1);
}

EXPORT uint16_t cpu_inw_x86_64(void *uc, uint32_t port, uintptr_t caller) {
    (void)uc;
    return (uint16_t)callback_port_read(check_port(port, 2, caller), port, 2);
}

EXPORT uint32_t cpu_inl_x86_64(void *uc, uint32_t port, uintptr_t caller) {
    (void)uc;
    return (uint32_t)callback_port_read(check_port(port, 4, caller), port, 4);
}

EXPORT void cpu_outb_x86_64(void *uc, uint32_t port, uint8_t value, uintptr_t caller) {
    (void)uc;
    write_port(port, 1, value, caller);
}

EXPORT void cpu_outw_x86_64(void *uc, uint32_t port, uint16_t value, uintptr_t caller) {
    (void)uc;
    write_port(port, 2, value, caller);
}

EXPORT void cpu_outl_x86_64(void *uc, uint32_t port, uint32_t value, uintptr_t caller) {
    (void)uc;
    write_port(port, 4, value, caller);
}

/* ---- Interrupts */

/* The processor takes an interrupt: ask the interrupt controller which.  NMI and machine check carry their vector. */
EXPORT void do_interrupt_x86_hardirq_x86_64(Env *env, int vector, int is_hardware) {
    Engine *engine = current_engine;
    if (engine && vector == 0) {
        vector = callback_acknowledge(engine);
        if (atomic_load(&engine->vcpus[engine->current].interrupt))
            FIELD(engine->cpu, uint32_t, CPU_INTERRUPT_REQUEST) |= REQUEST_HARD;
        if (vector < 0) return;
        engine_count(engine, COUNT_INTERRUPT);
        debug_count_step(engine);
    }
    if (engine) log_interrupt(engine, vector, true);
    unicorn.hardware_interrupt(env, vector, is_hardware);
}

/* INT n, INT3: the engine moves RIP behind the instruction before it asks for delivery, but a fault of the delivery
 * itself must point at the instruction. */
EXPORT void helper_raise_interrupt_x86_64(Env *env, int vector, int length) {
    if (current_engine) current_engine->soft_interrupt_eip = env->eip;
    unicorn.raise_interrupt(env, vector, 1, 0, length);
}

EXPORT void helper_into_x86_64(Env *env, int length) {
    enum { EXCEPTION_OF = 4, FLAG_OVERFLOW = 1 << 11 };
    if (!(unicorn.compute_flags(env, (int)env->cc_op) & FLAG_OVERFLOW)) return;
    if (current_engine) current_engine->soft_interrupt_eip = env->eip;
    unicorn.raise_interrupt(env, EXCEPTION_OF, 1, 0, length);
}

/* A spin loop waits for another vCPU, which is waiting for its turn on the engine: give way at the next block. */
EXPORT void helper_pause_x86_64(Env *env, int length) {
    Engine *engine = current_engine;
    env->eip += (unsigned)length;
    if (!engine || engine->vcpu_count == 1) return;
    engine->yield = true;
    engine_kick_self(engine);
}

/* The idle instruction of some CPU models.  A write to the monitored address must wake it, and is made by a vCPU that is
 * waiting for its turn on the engine: so it gives way where there are others, and halts where there are none. */
EXPORT void helper_mwait_x86_64(Env *env, int length) {
    Engine *engine = current_engine;
    if ((uint32_t)env->regs[RCX]) unicorn.raise_exception_err_ra(env, EXCEPTION_GP, 0, CALLER);
    env->eip += (unsigned)length;
    if (engine && engine->vcpu_count > 1) {
        engine->yield = true;
        engine_kick_self(engine);
        FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = EXCP_INTERRUPT;
        unicorn.cpu_loop_exit(engine->cpu);
    }
    env->hflags &= ~(uint32_t)HF_INHIBIT_IRQ;
    if (!engine) return;
    FIELD(engine->cpu, uint32_t, CPU_HALTED) = 1;
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = EXCP_HLT;
    unicorn.cpu_loop_exit(engine->cpu);
}

/* ---- System calls */

static void load_flat_segment(Env *env, int index, uint32_t selector, uint32_t flags) {
    env->segs[index] = (Segment){.selector = selector, .limit = 0xffffffff, .flags = flags};
}

static void enter_kernel_segments(Env *env, uint32_t code_selector, bool long_mode) {
    const uint32_t common = DESC_G | DESC_P | DESC_S | DESC_A;
    load_flat_segment(env, CS, code_selector & 0xfffc, common | DESC_CODE | DESC_R | (long_mode ? DESC_L : DESC_B));
    load_flat_segment(env, SS, (code_selector + 8) & 0xfffc, common | DESC_B | DESC_W);
    uint32_t hidden = env->hflags & ~(uint32_t)(HF_CPL | HF_CS32 | HF_SS32 | HF_CS64 | HF_ADDSEG);
    hidden |= HF_CS32 | HF_SS32 | (long_mode ? HF_CS64 : 0);
    if (!long_mode && (env->segs[DS].base | env->segs[ES].base)) hidden |= HF_ADDSEG;
    env->hflags = hidden;
}

/* RFLAGS while guest code runs, when some of them are kept elsewhere. */
uint64_t full_flags(Env *env) {
    return env->eflags | unicorn.compute_flags(env, (int)env->cc_op) | ((uint32_t)env->df & EFLAGS_DF);
}

static void set_flags(Env *env, uint64_t flags) {
    env->cc_src = flags & CC_MASK;
    env->cc_op = CC_OP_EFLAGS;
    env->df = flags & EFLAGS_DF ? -1 : 1;
    env->eflags = (flags & ~(uint64_t)(CC_MASK | EFLAGS_DF)) | 2;
}

EXPORT void helper_syscall_x86_64(Env *env, int length) {
    if (!(FIELD(env, uint64_t, ENV_EFER) & EFER_SCE)) unicorn.raise_exception_err_ra(env, EXCEPTION_UD, 0, CALLER);
    uint64_t star = FIELD(env, uint64_t, ENV_STAR), flags = full_flags(env);
    uint32_t selector = star >> 32 & 0xffff;
    if (env->hflags & HF_LMA) {
        bool from_64 = env->hflags & HF_CS64;
        env->regs[RCX] = env->eip + (unsigned)length;
        env->regs[R11] = flags & ~(uint64_t)EFLAGS_RF;
        set_flags(env, flags & ~(FIELD(env, uint64_t, ENV_FMASK) | EFLAGS_RF));
        enter_kernel_segments(env, selector, true);
        env->eip = from_64 ? FIELD(env, uint64_t, ENV_LSTAR) : FIELD(env, uint64_t, ENV_CSTAR);
    } else {
        env->regs[RCX] = (uint32_t)(env->eip + (unsigned)length);
        set_flags(env, flags & ~(uint64_t)(EFLAGS_IF | EFLAGS_RF | EFLAGS_VM));
        enter_kernel_segments(env, selector, false);
        env->eip = (uint32_t)star;
    }
}

EXPORT void helper_sysenter_x86_64(Env *env, int length) {
    (void)length;
    uint32_t selector = FIELD(env, uint32_t, ENV_SYSENTER_CS);
    if (!(selector & 0xfffc)) unicorn.raise_exception_err_ra(env, EXCEPTION_GP, 0, CALLER);
    bool long_mode = env->hflags & HF_LMA;
    env->eflags &= ~(uint64_t)(EFLAGS_VM | EFLAGS_IF | EFLAGS_RF);
    enter_kernel_segments(env, selector, long_mode);
    uint64_t rsp = FIELD(env, uint64_t, ENV_SYSENTER_ESP), rip = FIELD(env, uint64_t, ENV_SYSENTER_EIP);
    env->regs[RSP] = long_mode ? rsp : (uint32_t)rsp;
    env->eip = long_mode ? rip : (uint32_t)rip;
}

/* ---- Model-specific registers, CR8 and CPUID */

static bool is_ours(uint32_t index) {
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || (index >= MSR_X2APIC_FIRST && index <= MSR_X2APIC_LAST);
}

/* What software made of the time stamp counter, by writing it or by writing the difference (SDM volume 3, 18.17.3). */
static bool is_of_tsc(uint32_t index) {
    return index == MSR_TSC || index == MSR_TSC_ADJUST;
}

EXPORT void helper_rdmsr_x86_64(Env *env) {
    Engine *engine = current_engine;
    uint32_t index = (uint32_t)env->regs[RCX];
    uint64_t value = 0;
    if (!engine || (!is_ours(index) && !is_of_tsc(index))) {
        unicorn.rdmsr(env);
        return;
    }
    if (is_of_tsc(index))
        value = FIELD(env, uint64_t, ENV_TSC_OFFSET) + (index == MSR_TSC ? guest_tsc(engine) : 0);
    else if (!callback_msr_read(engine, index, &value))
        unicorn.raise_exception_err_ra(env, EXCEPTION_GP, 0, CALLER);
    env->regs[RAX] = (uint32_t)value;
    env->regs[RDX] = value >> 32;
}

EXPORT void helper_wrmsr_x86_64(Env *env) {
    Engine *engine = current_engine;
    uint32_t index = (uint32_t)env->regs[RCX];
    uint64_t value = (uint32_t)env->regs[RAX] | env->regs[RDX] << 32;
    if (!engine || (!is_ours(index) && !is_of_tsc(index)))
        unicorn.wrmsr(env);
    else if (is_of_tsc(index))
        FIELD(env, uint64_t, ENV_TSC_OFFSET) = value - (index == MSR_TSC ? guest_tsc(engine) : 0);
    else if (!callback_msr_write(engine, index, value))
        unicorn.raise_exception_err_ra(env, EXCEPTION_GP, 0, CALLER);
}

EXPORT uint64_t helper_read_crN_x86_64(Env *env, int number) {
    if (current_engine && number == 8) return callback_cr8_read(current_engine);
    return unicorn.read_crN(env, number);
}

EXPORT void helper_write_crN_x86_64(Env *env, int number, uint64_t value) {
    if (current_engine && number == 8)
        callback_cr8_write(current_engine, value & 15);
    else
        unicorn.write_crN(env, number, value);
}

EXPORT void cpu_x86_cpuid_x86_64(Env *env, uint32_t leaf, uint32_t subleaf, uint32_t *eax, uint32_t *ebx, uint32_t *ecx,
                                 uint32_t *edx) {
    uint32_t out[4] = {0};
    if (current_engine) cpuid_lookup(current_engine, env, leaf, subleaf, out);
    *eax = out[0];
    *ebx = out[1];
    *ecx = out[2];
    *edx = out[3];
}
