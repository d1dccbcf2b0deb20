/* The Python face of the engine: what a debugger asks for. */
#include <stdlib.h>

#include "calls.h"

/* Addresses at which guest code stops, in place of those before. */
PyObject *engine_set_breakpoints(EngineObject *self, PyObject *addresses) {
    Engine *engine = &self->engine;
    if (!require_stopped(engine)) return NULL;
    PyObject *sequence = PySequence_Fast(addresses, "a sequence of addresses is needed");
    if (!sequence) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    uint64_t taken[MAX_BREAKPOINTS];
    bool done = count <= MAX_BREAKPOINTS;
    if (!done) PyErr_SetString(PyExc_ValueError, "too many breakpoints");
    for (Py_ssize_t i = 0; done && i < count; i++) {
        taken[i] = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(sequence, i));
        done = !PyErr_Occurred();
    }
    Py_DECREF(sequence);
    if (!done) return NULL;
    for (Py_ssize_t i = 0; i < count; i++) engine->debug.breakpoints[i] = taken[i];
    engine->debug.breakpoint_count = (int)count;
    engine->debug.changed = true;
    Py_RETURN_NONE;
}

/* Ranges whose accesses stop guest code, in place of those before. */
PyObject *engine_set_watchpoints(EngineObject *self, PyObject *watchpoints) {
    Engine *engine = &self->engine;
    if (!require_stopped(engine)) return NULL;
    PyObject *sequence = PySequence_Fast(watchpoints, "a sequence of 3-tuples is needed");
    if (!sequence) return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    Watchpoint taken[MAX_WATCHPOINTS];
    bool done = count <= MAX_WATCHPOINTS;
    if (!done) PyErr_SetString(PyExc_ValueError, "too many watchpoints");
    for (Py_ssize_t i = 0; done && i < count; i++) {
        unsigned long long address, length;
        done = PyArg_ParseTuple(PySequence_Fast_GET_ITEM(sequence, i), "KKi", &address, &length, &taken[i].accesses);
        if (!done) break;
        taken[i].address = address;
        taken[i].length = length;
    }
    Py_DECREF(sequence);
    if (!done) return NULL;
    for (Py_ssize_t i = 0; i < count; i++) engine->debug.watchpoints[i] = taken[i];
    engine->debug.watchpoint_count = (int)count;
    Py_RETURN_NONE;
}

/* How far a vCPU may run when the engine does. */
PyObject *engine_set_pace(EngineObject *self, PyObject *args) {
    int index, pace, interrupts;
    if (!PyArg_ParseTuple(args, "iip", &index, &pace, &interrupts) || !require_stopped(&self->engine)) return NULL;
    if (index < 0 || index >= self->engine.vcpu_count || pace < FREE || pace > HELD) {
        PyErr_SetString(PyExc_ValueError, "no such vCPU, or no such pace");
        return NULL;
    }
    self->engine.vcpus[index].pace = (Pace)pace;
    self->engine.debug.step_into_interrupts = interrupts;
    Py_RETURN_NONE;
}

/* What of guest code is told, and whether blocks have one instruction each. */
PyObject *engine_set_log(EngineObject *self, PyObject *args) {
    int log, single;
    if (!PyArg_ParseTuple(args, "ip", &log, &single) || !require_stopped(&self->engine)) return NULL;
    log_set(&self->engine, log & LOG_ALL, single);
    Py_RETURN_NONE;
}

/* Why run() returned "debug": the vCPU, the reason, and which watchpoint it was. */
PyObject *engine_debugged(EngineObject *self, void *unused) {
    static const char *const reasons[] = {"breakpoint", "step", "watchpoint"};
    (void)unused;
    return Py_BuildValue("(isi)", self->engine.debug.vcpu, reasons[self->engine.debug.reason], self->engine.debug.watchpoint);
}
