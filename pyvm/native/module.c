/* pyvm.native: the Python face of the engine. */
#include <stdlib.h>
#include <string.h>

#include <sys/syscall.h>
#include <unistd.h>

#include "calls.h"
#include "lapic.h"
#include "outring.h"
#include "pageobjects.h"
#include "pieces.h"
#include "spans.h"
#include "vector.h"

enum { ARCH_X86 = 4, MODE_64 = 1 << 3 };
enum { HOOK_INTR = 1 << 0, HOOK_INSN_INVALID = 1 << 14 };
enum { REG_RIP = 41, REG_MSR = 248 };
enum { MSR_MTRR_FIRST = 0x200, MSR_MTRR_LAST = 0x2ff };
enum { CTL_USE_EXITS = 4, CTL_CPU_MODEL = 7, CTL_TCG_BUFFER_SIZE = 13, CTL_WRITE = 1 };
/* Translated code is dropped when this is full: 1 GiB by default, which code run from device registers fills at once. */
enum { CODE_BUFFER_SIZE = 256 << 20 };
enum { CPU_MODEL_QEMU64 = 0 }; /* its feature words are overwritten by set_features() */

#define CTL(type, count) ((type) | (count) << 26 | CTL_WRITE << 30)

/* ---- Exceptions of guest code */

static void on_exception(void *uc, uint32_t number, void *data) {
    Engine *engine = data;
    (void)uc;
    engine->translating = false; /* the fetch of an instruction may have faulted */
    debug_count_step(engine);
    if (FIELD(engine->env, int32_t, ENV_EXCEPTION_IS_INT)) engine->env->eip = engine->soft_interrupt_eip;
    log_interrupt(engine, (int)number, false);
    engine->delivering = 1 + (int)number;
    unicorn.do_interrupt(engine->cpu);
    engine->delivering = 0;
}

static bool on_invalid_instruction(void *uc, void *data) {
    on_exception(uc, 6, data);
    return true;
}

/* ---- Life */

static bool make_lock(Engine *engine) {
    pthread_condattr_t attributes;
    pthread_mutex_init(&engine->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->wake, NULL);
    pthread_cond_init(&engine->ticker_wake, &attributes);
    pthread_condattr_destroy(&attributes);
    return true;
}

static bool open_unicorn(Engine *engine) {
    uintptr_t hook;
    uint64_t rip = 0;
    int error = unicorn.uc_open(ARCH_X86, MODE_64, &engine->uc);
    if (!error) error = unicorn.uc_ctl(engine->uc, CTL(CTL_CPU_MODEL, 1), CPU_MODEL_QEMU64);
    if (!error) error = unicorn.uc_ctl(engine->uc, CTL(CTL_USE_EXITS, 1), 1);
    if (!error) error = unicorn.uc_ctl(engine->uc, CTL(CTL_TCG_BUFFER_SIZE, 1), CODE_BUFFER_SIZE);
    if (!error) error = unicorn.uc_reg_write(engine->uc, REG_RIP, &rip); /* makes the processor */
    if (!error) error = unicorn.uc_hook_add(engine->uc, &hook, HOOK_INTR, (void *)on_exception, engine, 1, 0);
    if (!error) error = unicorn.uc_hook_add(engine->uc, &hook, HOOK_INSN_INVALID, (void *)on_invalid_instruction, engine, 1, 0);
    if (error) {
        PyErr_Format(PyExc_RuntimeError, "cannot open the CPU engine: %s", unicorn.uc_strerror(error));
        return false;
    }
    engine->cpu = FIELD(engine->uc, void *, UC_CPU);
    engine->env = FIELD(engine->cpu, Env *, CPU_ENV_PTR);
    return layout_check(engine);
}

static void close_unicorn(Engine *engine) {
    if (engine->uc) unicorn.uc_close(engine->uc);
    engine->uc = engine->cpu = engine->env = NULL;
}

static bool take_callbacks(Engine *engine, PyObject *callbacks) {
    static const struct {
        const char *name;
        size_t offset;
    } slots[] = {
#define C(member) {#member, offsetof(Callbacks, member)}
        C(port_read), C(port_write), C(port_consume), C(mmio_read), C(mmio_write), C(acknowledge),
        C(msr_read),  C(msr_write),  C(cr8_read),  C(cr8_write),  C(firmware_call),
        C(block_translated), C(block_entered), C(interrupt_taken),
#undef C
    };
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        PyObject *function = PyObject_GetAttrString(callbacks, slots[i].name);
        if (!function) return false;
        Py_XSETREF(FIELD(&engine->callbacks, PyObject *, slots[i].offset), function);
    }
    return true;
}

static bool make_vcpus(Engine *engine, int count) {
    size_t size = (size_t)count * sizeof *engine->vcpus;
    engine->vcpus = aligned_alloc(_Alignof(Vcpu), size);
    if (!engine->vcpus) {
        PyErr_NoMemory();
        return false;
    }
    memset(engine->vcpus, 0, size);
    engine->vcpu_count = count;
    for (int i = 0; i < count; i++) {
        memcpy(engine->vcpus[i].image, engine->env, ENV_STATE_SIZE);
        engine->vcpus[i].activity = i ? WAIT_FOR_SIPI : RUNNING;
        engine->vcpus[i].apic_id = (uint32_t)i;
        atomic_init(&engine->vcpus[i].sipi_vector, -1);
        image_reset(engine, engine->vcpus[i].image, true);
    }
    return true;
}

static int engine_init(EngineObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"vcpus", "callbacks", "tsc_hz", NULL};
    Engine *engine = &self->engine;
    PyObject *callbacks;
    int count;
    unsigned long long tsc_hz = 1000000000;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|K", names, &count, &callbacks, &tsc_hz)) return -1;
    if (engine->uc || engine->vcpus) {
        PyErr_SetString(PyExc_RuntimeError, "an Engine is made once");
        return -1;
    }
    if (count < 1 || count > MAX_VCPUS || !tsc_hz) {
        PyErr_Format(PyExc_ValueError, "an engine has 1 to %d vCPUs", MAX_VCPUS);
        return -1;
    }
    make_lock(engine);
    engine->tsc_hz = tsc_hz;
    if (!unicorn.uc_open) {
        PyErr_SetString(PyExc_RuntimeError, "libunicorn is not loaded");
        return -1;
    }
    if (!take_callbacks(engine, callbacks) || !open_unicorn(engine) || !make_vcpus(engine, count)) {
        close_unicorn(engine);
        return -1;
    }
    return 0;
}

static int engine_traverse(EngineObject *self, visitproc visit, void *arg) {
    PyObject **callbacks = (PyObject **)&self->engine.callbacks;
    for (size_t i = 0; i < sizeof self->engine.callbacks / sizeof *callbacks; i++) Py_VISIT(callbacks[i]);
    for (int i = 0; i < self->engine.vcpu_count; i++) Py_VISIT(self->engine.vcpus[i].vectors);
    Py_VISIT(self->engine.failure);
    return 0;
}

static int engine_clear(EngineObject *self) {
    PyObject **callbacks = (PyObject **)&self->engine.callbacks;
    for (size_t i = 0; i < sizeof self->engine.callbacks / sizeof *callbacks; i++) Py_CLEAR(callbacks[i]);
    for (int i = 0; i < self->engine.vcpu_count; i++) lapic_vectors_part(&self->engine.vcpus[i]);
    Py_CLEAR(self->engine.failure);
    return 0;
}

static void engine_dealloc(EngineObject *self) {
    Engine *engine = &self->engine;
    PyObject_GC_UnTrack(self);
    engine_ticker_stop(engine);
    close_unicorn(engine);
    engine_clear(self);
    free(engine->vcpus);
    free(engine->code_pages);
    free(engine->code_parts);
    free(engine->plain_at);
    dirty_stop(engine);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* Give the engine back.  Registers stay readable; whatever would need Unicorn does nothing from now on. */
static PyObject *engine_close(EngineObject *self, PyObject *unused) {
    Engine *engine = &self->engine;
    (void)unused;
    if (atomic_load(&engine->running)) {
        PyErr_SetString(PyExc_RuntimeError, "the engine is running");
        return NULL;
    }
    engine_ticker_stop(engine);
    close_unicorn(engine);
    engine_clear(self);
    Py_RETURN_NONE;
}

/* ---- Running */

static PyObject *engine_run(EngineObject *self, PyObject *unused) {
    Engine *engine = &self->engine;
    (void)unused;
    if (!engine->uc || atomic_exchange(&engine->running, true)) {
        PyErr_SetString(PyExc_RuntimeError, "the engine is running");
        return NULL;
    }
    engine->exit_reason = EXIT_STOPPED;
    engine->aborted = false;
    engine->thread_state = PyEval_SaveThread();
    current_engine = engine;
    engine->error = unicorn.uc_emu_start(engine->uc, engine->env->eip, 0, 0, 0);
    vcpu_unload(engine);
    current_engine = NULL;
    PyEval_RestoreThread(engine->thread_state);
    callback_settle_stream(engine);
    atomic_store(&engine->stop, false);
    atomic_store(&engine->running, false);
    if (engine->failure) {
        PyObject *failure = engine->failure;
        engine->failure = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
        Py_DECREF(failure);
        return NULL;
    }
    if (engine->exit_reason == EXIT_FAILED || engine->error) {
        PyErr_Format(PyExc_RuntimeError, "the CPU engine failed: %s", unicorn.uc_strerror(engine->error));
        return NULL;
    }
    if (engine->exit_reason == EXIT_DEBUG) return PyUnicode_FromString("debug");
    return PyUnicode_FromString(engine->exit_reason == EXIT_TRIPLE_FAULT ? "triple-fault" : "stopped");
}

static PyObject *engine_stop(EngineObject *self, PyObject *unused) {
    (void)unused;
    atomic_store(&self->engine.stop, true);
    engine_kick(&self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_set_clock(EngineObject *self, PyObject *value) {
    long long offset = PyLong_AsLongLong(value);
    if (PyErr_Occurred()) return NULL;
    atomic_store(&self->engine.clock_offset, offset);
    Py_RETURN_NONE;
}

/* ---- Interrupts, INIT and SIPI */

static Vcpu *vcpu_argument(Engine *engine, int index) {
    if (index >= 0 && index < engine->vcpu_count) return &engine->vcpus[index];
    PyErr_Format(PyExc_IndexError, "there is no vCPU %d", index);
    return NULL;
}

static PyObject *engine_interrupt(EngineObject *self, PyObject *args) {
    int index, level;
    if (!PyArg_ParseTuple(args, "ip", &index, &level)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    atomic_store(&vcpu->interrupt, level);
    if (level) engine_kick(&self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_nmi(EngineObject *self, PyObject *args) {
    int index;
    if (!PyArg_ParseTuple(args, "i", &index)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    atomic_store(&vcpu->nmi, true);
    engine_kick(&self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_initialize(EngineObject *self, PyObject *args) {
    int index;
    if (!PyArg_ParseTuple(args, "i", &index)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    atomic_store(&vcpu->sipi_vector, -1);
    atomic_store(&vcpu->init, true);
    engine_kick(&self->engine);
    Py_RETURN_NONE;
}

static PyObject *engine_startup(EngineObject *self, PyObject *args) {
    int index, vector;
    if (!PyArg_ParseTuple(args, "ii", &index, &vector)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    atomic_store(&vcpu->sipi_vector, vector & 0xff);
    engine_kick(&self->engine);
    Py_RETURN_NONE;
}

/* ---- State of a stopped engine */

bool require_stopped(Engine *engine) {
    if (engine->uc && !atomic_load(&engine->running)) return true;
    PyErr_SetString(PyExc_RuntimeError, engine->uc ? "the engine is running" : "the engine is closed");
    return false;
}

bool called_by_guest(Engine *engine) {
    return engine->uc && current_engine == engine;
}

static bool require_registers(Engine *engine) {
    return (called_by_guest(engine) && engine->in_firmware) || require_stopped(engine);
}

static PyObject *engine_reset_vcpu(EngineObject *self, PyObject *args) {
    int index;
    if (!PyArg_ParseTuple(args, "i", &index) || !require_stopped(&self->engine)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    image_reset(&self->engine, vcpu->image, true);
    vcpu->activity = index ? WAIT_FOR_SIPI : RUNNING;
    vcpu->nmi_pending = false;
    atomic_store(&vcpu->nmi, false);
    atomic_store(&vcpu->init, false);
    atomic_store(&vcpu->sipi_vector, -1);
    Py_RETURN_NONE;
}

static const char *const activities[] = {"running", "halted", "wait-for-sipi"};

static PyObject *engine_get_state(EngineObject *self, PyObject *args) {
    int index;
    if (!PyArg_ParseTuple(args, "i", &index) || !require_registers(&self->engine)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    PyObject *values = image_get(vcpu->image);
    if (!values) return NULL;
    bool nmi = vcpu->nmi_pending || atomic_load(&vcpu->nmi);
    PyObject *more = Py_BuildValue("{s:s,s:O,s:O,s:i}", "activity", activities[vcpu->activity], "nmi_pending",
                                   nmi ? Py_True : Py_False, "init_pending",
                                   atomic_load(&vcpu->init) ? Py_True : Py_False, "sipi_vector",
                                   atomic_load(&vcpu->sipi_vector));
    if (!more || PyDict_Update(values, more)) Py_CLEAR(values);
    Py_XDECREF(more);
    return values;
}

static bool set_activity(Vcpu *vcpu, PyObject *name) {
    if (!name) return true;
    for (int i = 0; i < 3; i++)
        if (PyUnicode_Check(name) && !PyUnicode_CompareWithASCIIString(name, activities[i])) {
            vcpu->activity = (Activity)i;
            return true;
        }
    PyErr_SetString(PyExc_ValueError, "activity: unknown");
    return false;
}

static PyObject *engine_set_state(EngineObject *self, PyObject *args) {
    int index;
    PyObject *values;
    if (!PyArg_ParseTuple(args, "iO!", &index, &PyDict_Type, &values) || !require_registers(&self->engine)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu || !image_set(vcpu->image, values) || !set_activity(vcpu, PyDict_GetItemString(values, "activity"))) return NULL;
    PyObject *nmi = PyDict_GetItemString(values, "nmi_pending"), *init = PyDict_GetItemString(values, "init_pending");
    PyObject *sipi = PyDict_GetItemString(values, "sipi_vector");
    if (nmi) vcpu->nmi_pending = PyObject_IsTrue(nmi);
    if (init) atomic_store(&vcpu->init, PyObject_IsTrue(init));
    if (sipi) atomic_store(&vcpu->sipi_vector, (int)PyLong_AsLong(sipi));
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* A register that all vCPUs share: the MTRRs, which nothing here depends on but which must read as they were written. */
static PyObject *engine_set_shared_msr(EngineObject *self, PyObject *args) {
    struct {
        uint32_t index;
        uint64_t value;
    } msr;
    unsigned long long value;
    if (!PyArg_ParseTuple(args, "IK", &msr.index, &value) || !require_stopped(&self->engine)) return NULL;
    msr.value = value;
    if (msr.index < MSR_MTRR_FIRST || msr.index > MSR_MTRR_LAST || unicorn.uc_reg_write(self->engine.uc, REG_MSR, &msr)) {
        PyErr_Format(PyExc_ValueError, "no shared MSR %x", msr.index);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The A20 gate; may be called by the vCPU thread while guest code runs, or while the engine is stopped. */
static PyObject *engine_set_a20(EngineObject *self, PyObject *value) {
    Engine *engine = &self->engine;
    int enabled = PyObject_IsTrue(value);
    if (enabled < 0) return NULL;
    int32_t mask = enabled ? -1 : ~(1 << 20);
    for (int i = 0; i < engine->vcpu_count; i++) ((Env *)engine->vcpus[i].image)->a20_mask = mask;
    if (engine->loaded) {
        engine->env->a20_mask = mask;
        unicorn.tlb_flush(engine->cpu);
    }
    Py_RETURN_NONE;
}

/* ---- CPU model */

static PyObject *engine_set_cpuid(EngineObject *self, PyObject *entries) {
    Engine *engine = &self->engine;
    PyObject *sequence = PySequence_Fast(entries, "a sequence of 6-tuples is needed");
    if (!sequence) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    bool done = count <= CPUID_CACHE;
    if (!done) PyErr_SetString(PyExc_ValueError, "too many CPUID entries");
    for (Py_ssize_t i = 0; done && i < count; i++) {
        CpuidEntry *entry = &engine->cpuid[i];
        done = PyArg_ParseTuple(PySequence_Fast_GET_ITEM(sequence, i), "IIIIII", &entry->leaf, &entry->subleaf, &entry->eax,
                                &entry->ebx, &entry->ecx, &entry->edx);
    }
    Py_DECREF(sequence);
    if (!done) return NULL;
    engine->cpuid_count = (int)count;
    Py_RETURN_NONE;
}

static PyObject *engine_set_apic_id(EngineObject *self, PyObject *args) {
    int index;
    unsigned id;
    if (!PyArg_ParseTuple(args, "iI", &index, &id)) return NULL;
    Vcpu *vcpu = vcpu_argument(&self->engine, index);
    if (!vcpu) return NULL;
    vcpu->apic_id = id;
    Py_RETURN_NONE;
}

/* The feature words by which the translator accepts instructions. */
static PyObject *engine_set_features(EngineObject *self, PyObject *args) {
    int word;
    unsigned long long bits;
    if (!PyArg_ParseTuple(args, "iK", &word, &bits)) return NULL;
    if (!self->engine.uc || word < 0 || word >= FEATURE_WORDS) {
        PyErr_SetString(PyExc_IndexError, "no such feature word");
        return NULL;
    }
    FIELD(self->engine.env, uint64_t, ENV_FEATURES + 8 * word) = bits;
    Py_RETURN_NONE;
}

static PyObject *engine_get_features(EngineObject *self, PyObject *args) {
    int word;
    if (!PyArg_ParseTuple(args, "i", &word)) return NULL;
    if (!self->engine.uc || word < 0 || word >= FEATURE_WORDS) {
        PyErr_SetString(PyExc_IndexError, "no such feature word");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(FIELD(self->engine.env, uint64_t, ENV_FEATURES + 8 * word));
}

/* ---- Figures */

static PyObject *engine_counters(EngineObject *self, PyObject *unused) {
    enum { COUNTERS = sizeof self->engine.counters / sizeof *self->engine.counters };
    unsigned long long c[COUNTERS];
    (void)unused;
    for (int i = 0; i < COUNTERS; i++) c[i] = __atomic_load_n(&self->engine.counters[i], __ATOMIC_RELAXED);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K}", "port", c[COUNT_PORT], "mmio", c[COUNT_MMIO], "interrupt",
                         c[COUNT_INTERRUPT], "switch", c[COUNT_SWITCH], "msr", c[COUNT_MSR], "halt", c[COUNT_HALT],
                         "invalidate", c[COUNT_INVALIDATE]);
}

static PyObject *engine_current(EngineObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->engine.current);
}

static PyMethodDef engine_methods[] = {
    {"run", (PyCFunction)engine_run, METH_NOARGS, "run() -> str\n\nRun guest code until stop(), a triple fault, or what a debugger asked for; says which."},
    {"close", (PyCFunction)engine_close, METH_NOARGS, "close()\n\nGive the engine back; it must not be running."},
    {"stop", (PyCFunction)engine_stop, METH_NOARGS, "stop()\n\nLet run() return soon; from any thread."},
    {"set_clock", (PyCFunction)engine_set_clock, METH_O, "set_clock(ns)\n\nGuest time less host monotonic time, for the TSC."},
    {"interrupt", (PyCFunction)engine_interrupt, METH_VARARGS, "interrupt(vcpu, level)\n\nDrive INTR of a vCPU; any thread."},
    {"vectors", (PyCFunction)engine_vectors, METH_O, "vectors(vcpu) -> LapicVectors\n\nWhich drive its INTR."},
    {"nmi", (PyCFunction)engine_nmi, METH_VARARGS, "nmi(vcpu)\n\nAn NMI edge; from any thread."},
    {"init", (PyCFunction)engine_initialize, METH_VARARGS, "init(vcpu)\n\nINIT; from any thread."},
    {"startup", (PyCFunction)engine_startup, METH_VARARGS, "startup(vcpu, vector)\n\nSIPI; from any thread."},
    {"reset_vcpu", (PyCFunction)engine_reset_vcpu, METH_VARARGS, "reset_vcpu(vcpu)\n\nThe state after power-on."},
    {"get_state", (PyCFunction)engine_get_state, METH_VARARGS, "get_state(vcpu) -> dict of registers"},
    {"set_state", (PyCFunction)engine_set_state, METH_VARARGS, "set_state(vcpu, dict)\n\nTake over the registers named."},
    {"set_shared_msr", (PyCFunction)engine_set_shared_msr, METH_VARARGS, "set_shared_msr(index, value)\n\nAn MTRR."},
    {"set_a20", (PyCFunction)engine_set_a20, METH_O, "set_a20(enabled)\n\nThe A20 gate of all vCPUs."},
    {"set_cpuid", (PyCFunction)engine_set_cpuid, METH_O,
     "set_cpuid(entries)\n\nTuples (leaf, subleaf, eax, ebx, ecx, edx); subleaf 0xffffffff stands for any."},
    {"set_apic_id", (PyCFunction)engine_set_apic_id, METH_VARARGS, "set_apic_id(vcpu, id)\n\nFor CPUID; the index at first."},
    {"set_features", (PyCFunction)engine_set_features, METH_VARARGS, "set_features(word, bits)\n\nFor the translator."},
    {"get_features", (PyCFunction)engine_get_features, METH_VARARGS, "get_features(word) -> int"},
    {"map_ram", (PyCFunction)engine_map_ram, METH_VARARGS, "map_ram(gpa, buffer, offset, size, writable)"},
    {"map_io", (PyCFunction)engine_map_io, METH_VARARGS, "map_io(gpa, size)\n\nAccesses call mmio_read and mmio_write."},
    {"unmap", (PyCFunction)engine_unmap, METH_VARARGS, "unmap(gpa, size)\n\nTake away what was mapped with these values."},
    {"overlay", (PyCFunction)engine_overlay, METH_VARARGS,
     "overlay(gpa, buffer, offset, size, writable) -> number\n\nShow memory, or registers without a buffer, over what is"
     " mapped; stopped or in a call from guest code."},
    {"show_overlay", (PyCFunction)engine_show_overlay, METH_VARARGS, "show_overlay(number, gpa)\n\nShow it, or move it."},
    {"hide_overlay", (PyCFunction)engine_hide_overlay, METH_VARARGS, "hide_overlay(number)\n\nTake it away."},
    {"set_firmware", (PyCFunction)engine_set_firmware, METH_VARARGS,
     "set_firmware(start, size)\n\nWhere OUT instructions are firmware calls, in linear addresses."},
    {"invalidate", (PyCFunction)(void (*)(void))engine_invalidate, METH_FASTCALL,
     "invalidate(gpa, length)\n\nDrop translations of RAM that a device wrote; from any thread."},
    {"invalidate_vector", (PyCFunction)(void (*)(void))engine_invalidate_vector, METH_FASTCALL,
     "invalidate_vector(vector, length)\n\nThe same for the first bytes of a request's segments."},
    {"dirty_start", (PyCFunction)engine_dirty_start, METH_O, "dirty_start(buffer)\n\nNote which pages of it are written."},
    {"dirty_stop", (PyCFunction)engine_dirty_stop, METH_NOARGS, "dirty_stop()\n\nNote nothing any more."},
    {"dirty_take", (PyCFunction)engine_dirty_take, METH_O,
     "dirty_take(log) -> int\n\nMove what was noted to log, a bit for each page; return how many they are."},
    {"set_breakpoints", (PyCFunction)engine_set_breakpoints, METH_O,
     "set_breakpoints(addresses)\n\nLinear addresses of instructions in front of which run() returns; at most 1024."},
    {"set_watchpoints", (PyCFunction)engine_set_watchpoints, METH_O,
     "set_watchpoints(ranges)\n\nTuples (address, length, accesses): 1 reads, 2 writes, behind which run() returns; at most 28."},
    {"set_log", (PyCFunction)engine_set_log, METH_VARARGS,
     "set_log(mask, single)\n\nTell of 1: translated blocks, 2: entered blocks, 4: with registers, 8: interrupts; single:"
     " blocks have one instruction each."},
    {"set_pace", (PyCFunction)engine_set_pace, METH_VARARGS,
     "set_pace(vcpu, pace, interrupts)\n\n0: free, 1: one step, with interrupts or without, 2: held."},
    {"counters", (PyCFunction)engine_counters, METH_NOARGS, "counters() -> dict of event counts since the start"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef engine_properties[] = {
    {"current", (getter)engine_current, NULL, "The vCPU that has the engine.", NULL},
    {"debugged", (getter)engine_debugged, NULL, "The vCPU, the reason and the number of the watchpoint, after run() == \"debug\".", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject engine_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.Engine",
    .tp_doc = "Engine(vcpus, callbacks, tsc_hz=10**9)\n\nThe vCPUs of one machine, taking turns on one Unicorn engine.",
    .tp_basicsize = sizeof(EngineObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)engine_traverse,
    .tp_clear = (inquiry)engine_clear,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)engine_init,
    .tp_dealloc = (destructor)engine_dealloc,
    .tp_methods = engine_methods,
    .tp_getset = engine_properties,
};

/* Have every thread of the process pass a full memory barrier.  Guest barriers are not translated to any.
 *
 * All guest code runs on the vCPU thread, so what is done on that thread is in order with it already.
 */
static PyObject *module_barrier(PyObject *module, PyObject *unused) {
    enum { PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4 };
    static bool registered;
    (void)module;
    (void)unused;
    if (current_engine) Py_RETURN_NONE;
    if (!registered) registered = !syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0);
    if (!registered || syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0)) __sync_synchronize();
    Py_RETURN_NONE;
}

static PyObject *module_load(PyObject *module, PyObject *path) {
    (void)module;
    const char *name = PyUnicode_AsUTF8(path);
    if (!name || !unicorn_load(name)) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"barrier", module_barrier, METH_NOARGS, "barrier()\n\nA full memory barrier in every thread of the process."},
    {"load", module_load, METH_O, "load(path)\n\nLoad libunicorn; once, and before anything else has."},
    {"check_missing", pages_check_missing, METH_O,
     "check_missing(ram)\n\nRaise OSError where the host cannot have a PageTaker for this memory."},
    {"check_protect", pages_check_protect, METH_O,
     "check_protect(ram)\n\nRaise OSError where the host cannot have a PageKeeper for this memory."},
    {"used_pages", pages_used, METH_O,
     "used_pages(memory) -> bytes\n\nFor each page of the memory 1 where it holds anything but zeros, else 0."},
    {"read_ahead", files_read_ahead, METH_VARARGS,
     "read_ahead(paths, suffix)\n\nHave a thread read files, and of directories what ends with the suffix, into memory."},
    {"copy_pieces", pieces_copy, METH_VARARGS,
     "copy_pieces(pieces, position, target, place, room, unit, buffer) -> (position, runs, failure)\n\nCopy a disk from "
     "files, in 64-bit words (start, end, fd, place in it), but for units of zeros."},
    {"open_timer", timer_open, METH_NOARGS, "open_timer() -> fd\n\nA timer, which is readable once its time has come."},
    {"set_timer", (PyCFunction)(void (*)(void))timer_set, METH_FASTCALL,
     "set_timer(fd, deadline)\n\nBe readable at so many ns of the monotonic clock; None: never."},
    {"send_chains", outring_send, METH_VARARGS,
     "send_chains(ram, blocks, table, avail, used, (next_avail, next_used), fd) -> (chains, bytes of one more)\n\nSend what"
     " is available in a split virtqueue to a socket, as much as that takes."},
    {"splice", spans_splice, METH_VARARGS,
     "splice(way_out, way_in, source, start, target, offset, length) -> count\n\nCopy bytes between files through a pipe; "
     "fewer only where the source ends.  Raises OSError: something may be left in the pipe then."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pyvm.native",
    .m_doc = "The half of a PC processor that Unicorn leaves out.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit_native(void) {
    PyTypeObject *const types[] = {&engine_type, &vector_type, &lapic_vectors_type, &pagetaker_type, &pageserver_type, &pagekeeper_type};
    PyObject *self = PyModule_Create(&module);
    for (size_t i = 0; self && i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(self, types[i])) Py_CLEAR(self);
    return self;
}
