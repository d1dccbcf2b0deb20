/* Calls from guest code into Python: registers of devices, interrupt acknowledge, and the MSRs of the local APIC.
 *
 * The vCPU thread runs guest code without the GIL and takes it for each call.  An exception in Python must not unwind
 * through translated code: it is kept, the guest reads all ones, and run() raises it after the current block.
 *
 * A device with a buffer that is read word by word through one port may give more than was asked for: what the port
 * will read as next.  Such reads need no call; the device is told of them before it is asked anything else.
 */
#include <string.h>

#include "engine.h"

/* A call raised an exception: it is what run() raises. */
void callback_keep_failure(Engine *engine) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback && value) PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    if (engine->failure)
        Py_XDECREF(value);
    else
        engine->failure = value;
    engine_kick(engine);
}

static PyObject *call(Engine *engine, PyObject *function, const uint64_t *values, size_t count) {
    PyObject *slots[4], **arguments = slots + 1, *result = NULL;
    size_t made = 0;
    for (; made < count; made++)
        if (!(arguments[made] = PyLong_FromUnsignedLongLong(values[made]))) break;
    if (made == count) result = PyObject_Vectorcall(function, arguments, count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    while (made) Py_DECREF(arguments[--made]);
    if (!result) callback_keep_failure(engine);
    return result;
}

/* Tell the device whose stream was read how far; with the GIL held. */
static void settle_stream(Engine *engine) {
    uint64_t values[] = {engine->stream.port, engine->stream.used};
    bool used = engine->stream.used;
    engine->stream.used = engine->stream.length = 0;
    if (used) Py_XDECREF(call(engine, engine->callbacks.port_consume, values, 2));
}

/* The same at the end of a run, where the GIL is held as well. */
void callback_settle_stream(Engine *engine) {
    if (engine->stream.length) settle_stream(engine);
}

/* Call a function that returns an integer; where it fails or returns None, `otherwise`. */
static uint64_t call_integer(Engine *engine, PyObject *function, const uint64_t *values, size_t count, uint64_t otherwise,
                             bool *is_none) {
    PyEval_RestoreThread(engine->thread_state);
    if (engine->stream.length) settle_stream(engine);
    PyObject *result = call(engine, function, values, count);
    uint64_t value = otherwise;
    if (is_none) *is_none = !result || result == Py_None || result == Py_False;
    if (result && result != Py_None) {
        value = PyLong_AsUnsignedLongLongMask(result);
        if (PyErr_Occurred()) {
            value = otherwise;
            callback_keep_failure(engine);
        }
    }
    Py_XDECREF(result);
    engine->thread_state = PyEval_SaveThread();
    return value;
}

static uint64_t take_from_stream(Engine *engine) {
    uint64_t value = 0;
    memcpy(&value, engine->stream.data + engine->stream.used, (size_t)engine->stream.size);
    engine->stream.used += (size_t)engine->stream.size;
    return value;
}

/* A device gave what a port reads as next, as bytes: keep it, and return the first item. */
static uint64_t start_stream(Engine *engine, PyObject *bytes, uint32_t port, int size) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(bytes, &buffer, PyBUF_SIMPLE)) {
        callback_keep_failure(engine);
        return UINT64_MAX;
    }
    size_t length = (size_t)buffer.len < sizeof engine->stream.data ? (size_t)buffer.len : sizeof engine->stream.data;
    length -= length % (size_t)size;
    memcpy(engine->stream.data, buffer.buf, length);
    PyBuffer_Release(&buffer);
    engine->stream.port = port;
    engine->stream.size = size;
    engine->stream.length = length;
    engine->stream.used = 0;
    return length ? take_from_stream(engine) : UINT64_MAX;
}

uint64_t callback_port_read(Engine *engine, uint32_t port, int size) {
    if (!engine) return UINT64_MAX;
    port &= 0xffff;
    if (engine->stream.used < engine->stream.length && engine->stream.port == port && engine->stream.size == size)
        return take_from_stream(engine);
    engine_count(engine, COUNT_PORT);
    PyEval_RestoreThread(engine->thread_state);
    if (engine->stream.length) settle_stream(engine);
    PyObject *result = call(engine, engine->callbacks.port_read, (uint64_t[]){port, (uint64_t)size}, 2);
    uint64_t value = UINT64_MAX;
    if (result && PyLong_Check(result))
        value = PyLong_AsUnsignedLongLongMask(result);
    else if (result)
        value = start_stream(engine, result, port, size);
    Py_XDECREF(result);
    engine->thread_state = PyEval_SaveThread();
    return value;
}

void callback_port_write(Engine *engine, uint32_t port, int size, uint32_t value) {
    if (!engine) return;
    engine_count(engine, COUNT_PORT);
    call_integer(engine, engine->callbacks.port_write, (uint64_t[]){port & 0xffff, (uint64_t)size, value}, 3, 0, NULL);
}

uint64_t callback_mmio_read(void *uc, uint64_t offset, unsigned size, void *base) {
    Engine *engine = current_engine;
    if (!engine || engine->uc != uc) return UINT64_MAX;
    engine_count(engine, COUNT_MMIO);
    return call_integer(engine, engine->callbacks.mmio_read, (uint64_t[]){(uintptr_t)base + offset, size}, 2, UINT64_MAX, NULL);
}

void callback_mmio_write(void *uc, uint64_t offset, unsigned size, uint64_t value, void *base) {
    Engine *engine = current_engine;
    if (!engine || engine->uc != uc) return;
    engine_count(engine, COUNT_MMIO);
    uint64_t gpa = (uintptr_t)base + offset;
    if (lapic_ends_by_page(engine, gpa, size)) return;
    if (size < 8) value &= (UINT64_C(1) << 8 * size) - 1;
    call_integer(engine, engine->callbacks.mmio_write, (uint64_t[]){gpa, size, value}, 3, 0, NULL);
}

/* Returns the vector of the interrupt that the current vCPU takes, or -1 where none is left. */
int callback_acknowledge(Engine *engine) {
    bool none;
    int known = lapic_acknowledge(engine);
    if (known >= 0) return known;
    uint64_t vector = call_integer(engine, engine->callbacks.acknowledge, (uint64_t[]){(uint64_t)engine->current}, 1, 0, &none);
    return none ? -1 : (int)(vector & 0xff);
}

/* False means #GP. */
bool callback_msr_read(Engine *engine, uint32_t index, uint64_t *value) {
    bool none;
    engine_count(engine, COUNT_MSR);
    *value = call_integer(engine, engine->callbacks.msr_read, (uint64_t[]){(uint64_t)engine->current, index}, 2, 0, &none);
    return !none;
}

/* False means #GP. */
bool callback_msr_write(Engine *engine, uint32_t index, uint64_t value) {
    bool none;
    engine_count(engine, COUNT_MSR);
    if (lapic_ends_by_msr(engine, index, value)) return true;
    call_integer(engine, engine->callbacks.msr_write, (uint64_t[]){(uint64_t)engine->current, index, value}, 3, 0, &none);
    return !none;
}

uint64_t callback_cr8_read(Engine *engine) {
    return call_integer(engine, engine->callbacks.cr8_read, (uint64_t[]){(uint64_t)engine->current}, 1, 0, NULL) & 15;
}

void callback_cr8_write(Engine *engine, uint64_t value) {
    call_integer(engine, engine->callbacks.cr8_write, (uint64_t[]){(uint64_t)engine->current, value}, 2, 0, NULL);
}

void callback_firmware(Engine *engine) {
    call_integer(engine, engine->callbacks.firmware_call, (uint64_t[]){(uint64_t)engine->current}, 1, 0, NULL);
}
