/* Register images: reset values, the hidden flags that follow from visible registers, and conversion to Python.
 *
 * While a machine is stopped, and whenever another vCPU has the engine, a vCPU's registers are in its image, which has
 * the layout of Unicorn's processor state.  What comes from outside goes through image_set(), which takes architectural
 * registers only; everything the translator relies on is computed here.
 */
#include <string.h>

#include "engine.h"

enum { CR0_PE = 1, CR0_RESET = 0x60000010, CR4_OSFXSR = 1 << 9, CR4_SMAP = 1 << 21, EFER_LMA = 1 << 10 };
enum { EFLAGS_VM = 1 << 17 };
enum { FLAGS_CODE16 = 0x9b00, FLAGS_DATA16 = 0x9300, FLAGS_LDT = 0x8200, FLAGS_TSS = 0x8b00 };
enum { FLAG_L = 1 << 21, FLAG_B = 1 << 22 };
enum { INIT_KEEPS_FIRST = 0x258, INIT_KEEPS_END = 0x14d0 };
enum { FPREG_SIZE = 16, XMM_STRIDE = 64, XMM_SIZE = 16, VECTOR_COUNT = 16 };

static uint32_t segment_flags(const Env *env) {
    uint32_t hidden = env->segs[SS].flags >> 13 & HF_CPL;
    bool protected = env->cr[0] & CR0_PE;
    if (FIELD((void *)env, uint64_t, ENV_EFER) & EFER_LMA && env->segs[CS].flags & FLAG_L) {
        hidden |= HF_CS32 | HF_SS32 | HF_CS64;
        return hidden;
    }
    if (env->segs[CS].flags & FLAG_B) hidden |= HF_CS32;
    if (env->segs[SS].flags & FLAG_B) hidden |= HF_SS32;
    if (!protected || env->eflags & EFLAGS_VM || !(hidden & HF_CS32))
        hidden |= HF_ADDSEG;
    else if (env->segs[DS].base | env->segs[ES].base | env->segs[SS].base)
        hidden |= HF_ADDSEG;
    return hidden;
}

/* Compute what the translator keeps beside the architectural registers. */
void image_update_hidden(uint8_t *image) {
    Env *env = (Env *)image;
    uint32_t hidden = segment_flags(env) | (env->hflags & HF_INHIBIT_IRQ);
    if (env->cr[0] & CR0_PE) hidden |= HF_PE;
    hidden |= (uint32_t)env->cr[0] << 8 & 7 << 9; /* MP, EM, TS */
    if (env->cr[4] & CR4_OSFXSR) hidden |= HF_OSFXSR;
    if (env->cr[4] & CR4_SMAP) hidden |= HF_SMAP;
    if (FIELD(env, uint64_t, ENV_EFER) & EFER_LMA) hidden |= HF_LMA;
    env->hflags = hidden;
    FIELD(env, int32_t, ENV_OLD_EXCEPTION) = -1;
    memset(image + ENV_BREAKPOINTS, 0, 4 * sizeof(void *));
    unicorn.update_fp_status(env);
    unicorn.update_mxcsr_status(env);
}

static void reset_init_preserved(Env *env) {
    memset((char *)env + ENV_FPREGS, 0, 8 * FPREG_SIZE);
    memset((char *)env + ENV_FPTAGS, 1, 8);
    memset((char *)env + ENV_XMM_REGS, 0, 32 * XMM_STRIDE);
    FIELD(env, uint32_t, ENV_FPSTT) = 0;
    FIELD(env, uint16_t, ENV_FPUS) = 0;
    FIELD(env, uint16_t, ENV_FPUC) = 0x37f;
    FIELD(env, uint32_t, ENV_MXCSR) = 0x1f80;
    memset((char *)env + ENV_SYSENTER_CS, 0, ENV_TSC_AUX + 8 - ENV_SYSENTER_CS);
    FIELD(env, uint64_t, ENV_XCR0) = 1;
    FIELD(env, uint64_t, ENV_MISC_ENABLE) = 1;
    FIELD(env, uint64_t, ENV_PAT) = UINT64_C(0x0007040600070406);
    FIELD(env, uint32_t, ENV_PKRU) = 0;
}

/* The state after power-on, or after INIT, which keeps FPU, SSE and most MSRs (Intel SDM volume 3, 9.1.1). */
void image_reset(Engine *engine, uint8_t *image, bool power_on) {
    Env *env = (Env *)image;
    int32_t a20_mask = env->a20_mask;
    uint32_t signature = 0;
    for (int i = 0; i < engine->cpuid_count; i++)
        if (engine->cpuid[i].leaf == 1) signature = engine->cpuid[i].eax;
    memset(image, 0, INIT_KEEPS_FIRST);
    memset(image + INIT_KEEPS_END, 0, ENV_STATE_SIZE - INIT_KEEPS_END);
    if (power_on) {
        reset_init_preserved(env);
        a20_mask = -1;
    }
    env->a20_mask = a20_mask;
    env->regs[RDX] = signature;
    env->eflags = 2;
    env->df = 1;
    env->cc_op = CC_OP_EFLAGS;
    env->hflags2 = HF2_GIF;
    env->cr[0] = CR0_RESET;
    env->eip = 0xfff0;
    for (int i = 0; i < 6; i++) env->segs[i] = (Segment){.limit = 0xffff, .flags = FLAGS_DATA16};
    env->segs[CS] = (Segment){.selector = 0xf000, .base = 0xffff0000, .limit = 0xffff, .flags = FLAGS_CODE16};
    env->ldt = (Segment){.limit = 0xffff, .flags = FLAGS_LDT};
    env->tr = (Segment){.limit = 0xffff, .flags = FLAGS_TSS};
    env->gdt.limit = env->idt.limit = 0xffff;
    FIELD(env, uint64_t, ENV_DR + 6 * 8) = 0xffff0ff0;
    FIELD(env, uint64_t, ENV_DR + 7 * 8) = 0x400;
    image_update_hidden(image);
}

/* Start-up IPI: real mode at vector x 4 KiB. */
void image_start(uint8_t *image, int sipi_vector) {
    Env *env = (Env *)image;
    env->eip = 0;
    env->segs[CS].selector = (uint32_t)sipi_vector << 8;
    env->segs[CS].base = (uint64_t)sipi_vector << 12;
    image_update_hidden(image);
}

/* ---- Conversion */

typedef struct {
    const char *name;
    uint16_t offset;
    uint8_t size;
} IntegerField;

static const IntegerField integer_fields[] = {
    {"rip", offsetof(Env, eip), 8},
    {"rflags", offsetof(Env, eflags), 8},
    {"cr0", offsetof(Env, cr[0]), 8},
    {"cr2", offsetof(Env, cr[2]), 8},
    {"cr3", offsetof(Env, cr[3]), 8},
    {"cr4", offsetof(Env, cr[4]), 8},
    {"a20_mask", offsetof(Env, a20_mask), 4},
    {"efer", ENV_EFER, 8},
    {"fpu_top", ENV_FPSTT, 4},
    {"fpu_status", ENV_FPUS, 2},
    {"fpu_control", ENV_FPUC, 2},
    {"fpu_opcode", ENV_FPOP, 2},
    {"fpu_ip", ENV_FPIP, 8},
    {"fpu_dp", ENV_FPDP, 8},
    {"mxcsr", ENV_MXCSR, 4},
    {"sysenter_cs", ENV_SYSENTER_CS, 4},
    {"sysenter_esp", ENV_SYSENTER_ESP, 8},
    {"sysenter_eip", ENV_SYSENTER_EIP, 8},
    {"star", ENV_STAR, 8},
    {"lstar", ENV_LSTAR, 8},
    {"cstar", ENV_CSTAR, 8},
    {"fmask", ENV_FMASK, 8},
    {"kernel_gs_base", ENV_KERNELGSBASE, 8},
    {"tsc_aux", ENV_TSC_AUX, 8},
    {"tsc_offset", ENV_TSC_OFFSET, 8},
    {"xcr0", ENV_XCR0, 8},
    {"misc_enable", ENV_MISC_ENABLE, 8},
    {"pat", ENV_PAT, 8},
    {"pkru", ENV_PKRU, 4},
    {"dr0", ENV_DR, 8},
    {"dr1", ENV_DR + 8, 8},
    {"dr2", ENV_DR + 16, 8},
    {"dr3", ENV_DR + 24, 8},
    {"dr6", ENV_DR + 48, 8},
    {"dr7", ENV_DR + 56, 8},
};

/* Runs of equal items: general registers, and vector registers of which only the low 16 bytes are in use. */
static const struct {
    const char *name;
    uint16_t offset;
    uint8_t count, stride, size;
} block_fields[] = {
    {"gpr", offsetof(Env, regs), 16, 8, 8},
    {"fpu_tags", ENV_FPTAGS, 8, 1, 1},
    {"fpu_registers", ENV_FPREGS, 8, FPREG_SIZE, FPREG_SIZE},
    {"xmm", ENV_XMM_REGS, VECTOR_COUNT, XMM_STRIDE, XMM_SIZE},
};

static const struct {
    const char *name;
    uint16_t offset;
} segment_fields[] = {
    {"es", offsetof(Env, segs[ES])}, {"cs", offsetof(Env, segs[CS])}, {"ss", offsetof(Env, segs[SS])},
    {"ds", offsetof(Env, segs[DS])}, {"fs", offsetof(Env, segs[FS])}, {"gs", offsetof(Env, segs[GS])},
    {"ldt", offsetof(Env, ldt)},     {"tr", offsetof(Env, tr)},       {"gdt", offsetof(Env, gdt)},
    {"idt", offsetof(Env, idt)},
};

enum { INTEGERS = sizeof integer_fields / sizeof *integer_fields, BLOCKS = sizeof block_fields / sizeof *block_fields };
enum { SEGMENTS = sizeof segment_fields / sizeof *segment_fields };

static bool put(PyObject *values, const char *name, PyObject *value) {
    bool done = value && !PyDict_SetItemString(values, name, value);
    Py_XDECREF(value);
    return done;
}

static PyObject *get_block(const uint8_t *image, int index) {
    int count = block_fields[index].count, size = block_fields[index].size;
    PyObject *value = PyBytes_FromStringAndSize(NULL, count * size);
    if (!value) return NULL;
    for (int i = 0; i < count; i++)
        memcpy(PyBytes_AS_STRING(value) + i * size, image + block_fields[index].offset + i * block_fields[index].stride,
               (size_t)size);
    return value;
}

/* Return the registers as a dict: integers, bytes for runs of registers, 4-tuples for segments. */
PyObject *image_get(const uint8_t *image) {
    PyObject *values = PyDict_New();
    if (!values) return NULL;
    bool done = true;
    for (int i = 0; done && i < INTEGERS; i++) {
        uint64_t value = 0;
        memcpy(&value, image + integer_fields[i].offset, integer_fields[i].size);
        done = put(values, integer_fields[i].name, PyLong_FromUnsignedLongLong(value));
    }
    for (int i = 0; done && i < BLOCKS; i++) done = put(values, block_fields[i].name, get_block(image, i));
    for (int i = 0; done && i < SEGMENTS; i++) {
        const Segment *segment = (const Segment *)(image + segment_fields[i].offset);
        done = put(values, segment_fields[i].name,
                   Py_BuildValue("(IKII)", segment->selector, segment->base, segment->limit, segment->flags));
    }
    const Env *env = (const Env *)image;
    done = done && put(values, "nmi_masked", PyBool_FromLong(env->hflags2 & HF2_NMI));
    done = done && put(values, "interrupt_shadow", PyBool_FromLong(env->hflags & HF_INHIBIT_IRQ));
    if (done) return values;
    Py_DECREF(values);
    return NULL;
}

static bool set_integers(uint8_t *image, PyObject *values) {
    for (int i = 0; i < INTEGERS; i++) {
        PyObject *item = PyDict_GetItemString(values, integer_fields[i].name);
        if (!item) continue;
        uint64_t value = PyLong_AsUnsignedLongLongMask(item);
        if (PyErr_Occurred()) return false;
        memcpy(image + integer_fields[i].offset, &value, integer_fields[i].size);
    }
    return true;
}

static bool set_blocks(uint8_t *image, PyObject *values) {
    for (int i = 0; i < BLOCKS; i++) {
        PyObject *item = PyDict_GetItemString(values, block_fields[i].name);
        if (!item) continue;
        int count = block_fields[i].count, size = block_fields[i].size;
        if (!PyBytes_Check(item) || PyBytes_GET_SIZE(item) != count * size) {
            PyErr_Format(PyExc_ValueError, "%s: expected %d bytes", block_fields[i].name, count * size);
            return false;
        }
        for (int k = 0; k < count; k++)
            memcpy(image + block_fields[i].offset + k * block_fields[i].stride, PyBytes_AS_STRING(item) + k * size,
                   (size_t)size);
    }
    return true;
}

static bool set_segments(uint8_t *image, PyObject *values) {
    for (int i = 0; i < SEGMENTS; i++) {
        PyObject *item = PyDict_GetItemString(values, segment_fields[i].name);
        Segment segment = {0};
        unsigned long long base;
        if (!item) continue;
        if (!PyTuple_Check(item)) {
            PyErr_Format(PyExc_TypeError, "%s: expected a tuple", segment_fields[i].name);
            return false;
        }
        if (!PyArg_ParseTuple(item, "IKII", &segment.selector, &base, &segment.limit, &segment.flags)) return false;
        segment.base = base;
        memcpy(image + segment_fields[i].offset, &segment, sizeof segment);
    }
    return true;
}

/* Take over the registers that a dict names; the others stay.  Sets a Python exception on a value of the wrong kind. */
bool image_set(uint8_t *image, PyObject *values) {
    if (!set_integers(image, values) || !set_blocks(image, values) || !set_segments(image, values)) return false;
    Env *env = (Env *)image;
    PyObject *masked = PyDict_GetItemString(values, "nmi_masked"), *shadow = PyDict_GetItemString(values, "interrupt_shadow");
    if (masked) env->hflags2 = HF2_GIF | (PyObject_IsTrue(masked) ? HF2_NMI : 0);
    if (shadow) env->hflags = PyObject_IsTrue(shadow) ? HF_INHIBIT_IRQ : 0;
    FIELD(env, uint32_t, ENV_FPSTT) &= 7;
    for (int i = 0; i < 8; i++) image[ENV_FPTAGS + i] &= 1;
    image_update_hidden(image);
    return true;
}
