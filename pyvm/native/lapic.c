/* The vectors of a local APIC: which interrupts were requested, which are in service, and whether one should be taken.
 *
 * The rest of a local APIC is pyvm.devices.lapic, which the machine lock guards.  A guest takes and ends several interrupts
 * for everything that it does with a device, and the main loop has often just raised one and still works: so the vCPU
 * thread does both here, without the interpreter and without waiting for it.  That is why there is a lock of its own.
 *
 * What an interrupt controller has to hear of is left to the interpreter: the end of level-triggered interrupts, and those
 * that come from the 8259A pair.
 */
#include <stddef.h>
#include <string.h>

#include "calls.h"
#include "lapic.h"

/* By which register the guest ends interrupts. */
enum { EOI_NOWHERE, EOI_BY_PAGE, EOI_BY_MSR, EOI_WAYS };

enum { EOI_GPA = 0xfee000b0, EOI_MSR = 0x80b, EOI_MIN_SIZE = 4, NO_VECTOR = -1 };

/* ---- Rules; with the lock held */

static int highest(const uint64_t *bits) {
    for (int i = VECTOR_WORDS - 1; i >= 0; i--)
        if (bits[i]) return 64 * i + 63 - __builtin_clzll(bits[i]);
    return NO_VECTOR;
}

static bool has(const uint64_t *bits, int vector) { return bits[vector / 64] >> vector % 64 & 1; }

static void set(uint64_t *bits, int vector) { bits[vector / 64] |= UINT64_C(1) << vector % 64; }

static void clear(uint64_t *bits, int vector) { bits[vector / 64] &= ~(UINT64_C(1) << vector % 64); }

static void update_ppr(LapicVectors *self) {
    int in_service = highest(self->isr) >> 4;
    self->ppr = self->tpr >> 4 >= in_service ? self->tpr : (uint8_t)(in_service << 4);
}

/* The vector to take next, of higher priority than what the processor does now. */
static int deliverable(const LapicVectors *self) {
    int vector = highest(self->irr);
    return vector >> 4 > self->ppr >> 4 ? vector : NO_VECTOR;
}

/* Let the processor know of a change; true where it is told by on_change, which the caller does without the lock. */
static bool update(LapicVectors *self, bool anyway) {
    bool pending = self->extint || deliverable(self) != NO_VECTOR;
    if (pending == self->pending && !anyway) return false;
    self->pending = pending;
    if (!self->engine) return true;
    atomic_store(&self->engine->vcpus[self->index].interrupt, pending);
    if (pending) engine_kick(self->engine);
    return false;
}

static int take(LapicVectors *self) {
    int vector = deliverable(self);
    if (vector == NO_VECTOR) return vector;
    clear(self->irr, vector);
    set(self->isr, vector);
    self->ppr = (uint8_t)(vector & 0xf0); /* higher than TPR, or it would not have been delivered */
    return vector;
}

static void end(LapicVectors *self, int vector) {
    clear(self->isr, vector);
    update_ppr(self);
}

/* ---- The vCPU thread */

/* The vector of the interrupt that the current vCPU takes; negative where the interpreter has to find out. */
int lapic_acknowledge(Engine *engine) {
    LapicVectors *self = engine->vcpus[engine->current].vectors;
    if (!self) return NO_VECTOR;
    pthread_mutex_lock(&self->lock);
    int vector = take(self);
    if (vector != NO_VECTOR) update(self, false);
    pthread_mutex_unlock(&self->lock);
    return vector;
}

static bool end_edge(Engine *engine, int way) {
    LapicVectors *self = engine->vcpus[engine->current].vectors;
    if (!self) return false;
    pthread_mutex_lock(&self->lock);
    int vector = highest(self->isr);
    bool done = self->eoi == way && (vector == NO_VECTOR || !has(self->tmr, vector));
    if (done && vector != NO_VECTOR) {
        end(self, vector);
        update(self, false);
    }
    pthread_mutex_unlock(&self->lock);
    return done;
}

/* Whether a store to registers was the end of an edge-triggered interrupt, and is done. */
bool lapic_ends_by_page(Engine *engine, uint64_t gpa, unsigned size) {
    return gpa == EOI_GPA && size >= EOI_MIN_SIZE && end_edge(engine, EOI_BY_PAGE);
}

/* The same for a write of an MSR; values other than 0 are for the interpreter to refuse. */
bool lapic_ends_by_msr(Engine *engine, uint32_t index, uint64_t value) {
    return index == EOI_MSR && !value && end_edge(engine, EOI_BY_MSR);
}

/* ---- The interpreter; on any thread */

static PyObject *none_or_vector(int vector) {
    if (vector == NO_VECTOR) Py_RETURN_NONE;
    return PyLong_FromLong(vector);
}

/* Return `result` once whoever listens was told of a change; with the lock, which is given back. */
static PyObject *unlock(LapicVectors *self, bool tell, PyObject *result) {
    bool pending = self->pending;
    pthread_mutex_unlock(&self->lock);
    if (!tell || !self->on_change || !result) return result;
    PyObject *told = PyObject_CallOneArg(self->on_change, pending ? Py_True : Py_False);
    if (!told) Py_CLEAR(result);
    Py_XDECREF(told);
    return result;
}

static PyObject *vectors_accept(LapicVectors *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "accept(vector, level_triggered)");
    long vector = PyLong_AsLong(args[0]);
    int level = PyObject_IsTrue(args[1]);
    if (PyErr_Occurred()) return NULL;
    if (vector < 0 || vector > 255) return PyErr_Format(PyExc_ValueError, "there is no vector %ld", vector);
    pthread_mutex_lock(&self->lock);
    set(self->irr, (int)vector);
    (level ? set : clear)(self->tmr, (int)vector);
    return unlock(self, update(self, false), Py_NewRef(Py_None));
}

static PyObject *vectors_acknowledge(LapicVectors *self, PyObject *unused) {
    (void)unused;
    pthread_mutex_lock(&self->lock);
    int vector = take(self);
    return unlock(self, vector != NO_VECTOR && update(self, false), none_or_vector(vector));
}

static PyObject *vectors_end(LapicVectors *self, PyObject *unused) {
    (void)unused;
    pthread_mutex_lock(&self->lock);
    int vector = highest(self->isr), level = NO_VECTOR;
    if (vector != NO_VECTOR) {
        end(self, vector);
        if (has(self->tmr, vector)) level = vector;
    }
    return unlock(self, update(self, false), none_or_vector(level));
}

static PyObject *vectors_update(LapicVectors *self, PyObject *unused) {
    (void)unused;
    pthread_mutex_lock(&self->lock);
    return unlock(self, update(self, false), Py_NewRef(Py_None));
}

static PyObject *vectors_clear(LapicVectors *self, PyObject *unused) {
    (void)unused;
    pthread_mutex_lock(&self->lock);
    memset(self->irr, 0, sizeof self->irr);
    memset(self->isr, 0, sizeof self->isr);
    memset(self->tmr, 0, sizeof self->tmr);
    self->tpr = self->ppr = 0;
    self->extint = false;
    return unlock(self, false, Py_NewRef(Py_None));
}

static PyObject *vectors_load(LapicVectors *self, PyObject *args) {
    Py_buffer banks[3];
    int tpr, extint;
    if (!PyArg_ParseTuple(args, "y*y*y*ip:load", &banks[0], &banks[1], &banks[2], &tpr, &extint)) return NULL;
    bool fits = tpr >= 0 && tpr <= 255;
    for (int i = 0; i < 3; i++) fits = fits && banks[i].len == sizeof self->irr;
    bool tell = false;
    pthread_mutex_lock(&self->lock);
    if (fits) {
        memcpy(self->irr, banks[0].buf, sizeof self->irr);
        memcpy(self->isr, banks[1].buf, sizeof self->isr);
        memcpy(self->tmr, banks[2].buf, sizeof self->tmr);
        self->tpr = (uint8_t)tpr;
        self->extint = extint;
        update_ppr(self);
        tell = update(self, true);
    }
    PyObject *result = unlock(self, tell, Py_NewRef(Py_None));
    for (int i = 0; i < 3; i++) PyBuffer_Release(&banks[i]);
    if (fits) return result;
    Py_XDECREF(result);
    return PyErr_Format(PyExc_ValueError, "banks are of %zu bytes, and a priority is one", sizeof self->irr);
}

/* ---- Registers */

static PyObject *get_bank(LapicVectors *self, void *place) {
    uint64_t copy[VECTOR_WORDS];
    pthread_mutex_lock(&self->lock);
    memcpy(copy, (char *)self + (uintptr_t)place, sizeof copy);
    pthread_mutex_unlock(&self->lock);
    return PyBytes_FromStringAndSize((const char *)copy, sizeof copy);
}

static PyObject *get_byte(LapicVectors *self, void *place) { return PyLong_FromLong(*((uint8_t *)self + (uintptr_t)place)); }

static PyObject *get_extint(LapicVectors *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(self->extint);
}

static PyObject *get_eoi(LapicVectors *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(self->eoi);
}

/* A number that may be set, below a limit; negative with an exception. */
static long number(PyObject *value, long limit) {
    long found = value ? PyLong_AsLong(value) : -1;
    if (PyErr_Occurred()) return -1;
    if (found < 0 || found >= limit) {
        PyErr_Format(PyExc_ValueError, "a number below %ld is needed", limit);
        return -1;
    }
    return found;
}

static int set_tpr(LapicVectors *self, PyObject *value, void *unused) {
    (void)unused;
    long found = number(value, 256);
    if (found < 0) return -1;
    pthread_mutex_lock(&self->lock);
    self->tpr = (uint8_t)found;
    update_ppr(self);
    pthread_mutex_unlock(&self->lock);
    return 0;
}

static int set_extint(LapicVectors *self, PyObject *value, void *unused) {
    (void)unused;
    long found = number(value, 2);
    if (found < 0) return -1;
    pthread_mutex_lock(&self->lock);
    self->extint = found;
    pthread_mutex_unlock(&self->lock);
    return 0;
}

static int set_eoi(LapicVectors *self, PyObject *value, void *unused) {
    (void)unused;
    long found = number(value, EOI_WAYS);
    if (found < 0) return -1;
    pthread_mutex_lock(&self->lock);
    self->eoi = (int)found;
    pthread_mutex_unlock(&self->lock);
    return 0;
}

/* ---- Life */

static LapicVectors *make(PyTypeObject *type) {
    LapicVectors *self = (LapicVectors *)type->tp_alloc(type, 0); /* all zero */
    if (self) pthread_mutex_init(&self->lock, NULL);
    return self;
}

static PyObject *vectors_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *on_change;
    if (keywords && PyDict_GET_SIZE(keywords)) return PyErr_Format(PyExc_TypeError, "LapicVectors takes no keywords");
    if (!PyArg_ParseTuple(args, "O:LapicVectors", &on_change)) return NULL;
    LapicVectors *self = make(type);
    if (self) self->on_change = Py_NewRef(on_change);
    return (PyObject *)self;
}

/* The vectors of a vCPU, which are made when they are asked for; before the vCPU runs for the first time. */
PyObject *engine_vectors(EngineObject *self, PyObject *value) {
    Engine *engine = &self->engine;
    long index = number(value, engine->vcpu_count);
    if (index < 0) return NULL;
    Vcpu *vcpu = &engine->vcpus[index];
    if (vcpu->vectors) return Py_NewRef(vcpu->vectors);
    LapicVectors *made = make(&lapic_vectors_type);
    if (!made) return NULL;
    made->engine = engine;
    made->index = (int)index;
    vcpu->vectors = made;
    return Py_NewRef(made);
}

void lapic_vectors_part(Vcpu *vcpu) {
    LapicVectors *self = vcpu->vectors;
    if (!self) return;
    vcpu->vectors = NULL;
    pthread_mutex_lock(&self->lock);
    self->engine = NULL;
    pthread_mutex_unlock(&self->lock);
    Py_DECREF(self);
}

static int vectors_traverse(LapicVectors *self, visitproc visit, void *arg) {
    Py_VISIT(self->on_change);
    return 0;
}

static int vectors_forget(LapicVectors *self) {
    Py_CLEAR(self->on_change);
    return 0;
}

static void vectors_dealloc(LapicVectors *self) {
    PyObject_GC_UnTrack(self);
    vectors_forget(self);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef vectors_methods[] = {
    {"accept", (PyCFunction)(void (*)(void))vectors_accept, METH_FASTCALL,
     "accept(vector, level_triggered)\n\nRequest an interrupt."},
    {"acknowledge", (PyCFunction)vectors_acknowledge, METH_NOARGS,
     "acknowledge() -> vector or None\n\nThe processor takes the interrupt of the highest priority."},
    {"end", (PyCFunction)vectors_end, METH_NOARGS,
     "end() -> vector or None\n\nThe processor has dealt with it; returns the vector where that was level-triggered."},
    {"update", (PyCFunction)vectors_update, METH_NOARGS,
     "update()\n\nLet the processor know what tpr, extint and clear() have changed."},
    {"clear", (PyCFunction)vectors_clear, METH_NOARGS, "clear()\n\nForget all of it."},
    {"load", (PyCFunction)vectors_load, METH_VARARGS,
     "load(irr, isr, tmr, tpr, extint)\n\nTake over a state, and tell the processor."},
    {NULL, NULL, 0, NULL},
};

#define PLACE(member) ((void *)offsetof(LapicVectors, member))

static PyGetSetDef vectors_properties[] = {
    {"irr", (getter)get_bank, NULL, "Requested, a bit for each vector.", PLACE(irr)},
    {"isr", (getter)get_bank, NULL, "In service.", PLACE(isr)},
    {"tmr", (getter)get_bank, NULL, "Level-triggered.", PLACE(tmr)},
    {"tpr", (getter)get_byte, (setter)set_tpr, "The task priority.", PLACE(tpr)},
    {"ppr", (getter)get_byte, NULL, "The processor priority.", PLACE(ppr)},
    {"extint", (getter)get_extint, (setter)set_extint, "Whether an interrupt of the 8259A pair waits.", NULL},
    {"eoi", (getter)get_eoi, (setter)set_eoi, "How the guest ends interrupts: 0 not at all, 1 by the page, 2 by the MSR.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject lapic_vectors_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.LapicVectors",
    .tp_doc = "LapicVectors(on_change)\n\nInterrupts requested and in service; on_change(bool) hears whether one should be taken.",
    .tp_basicsize = sizeof(LapicVectors),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = (traverseproc)vectors_traverse,
    .tp_clear = (inquiry)vectors_forget,
    .tp_new = vectors_new,
    .tp_dealloc = (destructor)vectors_dealloc,
    .tp_methods = vectors_methods,
    .tp_getset = vectors_properties,
};
