/* The Python face of the engine: what is mapped, what was translated of it, and which pages are written. */
#include "calls.h"
#include "vector.h"

/* ---- What is mapped */

PyObject *engine_map_ram(EngineObject *self, PyObject *args) {
    unsigned long long gpa, offset, size;
    Py_buffer buffer;
    int writable;
    if (!PyArg_ParseTuple(args, "Kw*KKp", &gpa, &buffer, &offset, &size, &writable)) return NULL;
    bool inside = offset <= (size_t)buffer.len && size <= (size_t)buffer.len - offset;
    if (!inside) PyErr_SetString(PyExc_ValueError, "the range is not in the buffer");
    bool done = inside && require_stopped(&self->engine) &&
                memory_map_ram(&self->engine, gpa, size, (char *)buffer.buf + offset, writable);
    PyBuffer_Release(&buffer); /* the machine keeps the mapping alive as long as the engine */
    if (!done) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_map_io(EngineObject *self, PyObject *args) {
    unsigned long long gpa, size;
    if (!PyArg_ParseTuple(args, "KK", &gpa, &size) || !require_stopped(&self->engine)) return NULL;
    if (!memory_map_io(&self->engine, gpa, size)) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_unmap(EngineObject *self, PyObject *args) {
    unsigned long long gpa, size;
    if (!PyArg_ParseTuple(args, "KK", &gpa, &size) || !require_stopped(&self->engine)) return NULL;
    if (!memory_unmap(&self->engine, gpa, size)) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_overlay(EngineObject *self, PyObject *args) {
    unsigned long long gpa, offset, size;
    Py_buffer buffer = {0};
    int writable;
    if (!PyArg_ParseTuple(args, "Kz*KKp", &gpa, &buffer, &offset, &size, &writable)) return NULL;
    bool inside = !buffer.buf || (offset <= (size_t)buffer.len && size <= (size_t)buffer.len - offset);
    if (!inside) PyErr_SetString(PyExc_ValueError, "the range is not in the buffer");
    void *host = buffer.buf ? (char *)buffer.buf + offset : NULL;
    int index = -1;
    if (inside && (called_by_guest(&self->engine) || require_stopped(&self->engine)))
        index = overlay_make(&self->engine, gpa, size, host, writable);
    PyBuffer_Release(&buffer); /* the machine keeps the mapping alive as long as the engine */
    return index < 0 ? NULL : PyLong_FromLong(index);
}

PyObject *engine_show_overlay(EngineObject *self, PyObject *args) {
    int index;
    unsigned long long gpa;
    if (!PyArg_ParseTuple(args, "iK", &index, &gpa)) return NULL;
    if (!called_by_guest(&self->engine) && !require_stopped(&self->engine)) return NULL;
    if (!overlay_show(&self->engine, index, gpa)) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_hide_overlay(EngineObject *self, PyObject *args) {
    int index;
    if (!PyArg_ParseTuple(args, "i", &index)) return NULL;
    if (!called_by_guest(&self->engine) && !require_stopped(&self->engine)) return NULL;
    if (!overlay_hide(&self->engine, index)) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_set_firmware(EngineObject *self, PyObject *args) {
    unsigned long long start, size;
    if (!PyArg_ParseTuple(args, "KK", &start, &size) || !require_stopped(&self->engine)) return NULL;
    self->engine.firmware_start = start;
    self->engine.firmware_end = start + size;
    Py_RETURN_NONE;
}

PyObject *engine_invalidate(EngineObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "invalidate(gpa, length)");
        return NULL;
    }
    unsigned long long gpa = PyLong_AsUnsignedLongLong(args[0]), length = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    memory_invalidate(&self->engine, gpa, length);
    Py_RETURN_NONE;
}

/* The same for the first bytes of a vector: the segments of one request. */
PyObject *engine_invalidate_vector(EngineObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !Py_IS_TYPE(args[0], &vector_type))
        return PyErr_Format(PyExc_TypeError, "invalidate_vector(vector, length)");
    const Vector *vector = (const Vector *)args[0];
    uint64_t left = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    for (Py_ssize_t i = 0; left && i < Py_SIZE(vector); i++) {
        const Piece *piece = &vector->pieces[i];
        uint64_t length = piece->length < left ? piece->length : left;
        memory_invalidate(&self->engine, piece->gpa, length);
        left -= length;
    }
    Py_RETURN_NONE;
}

/* ---- Writes to RAM */

PyObject *engine_dirty_start(EngineObject *self, PyObject *buffer) {
    Py_buffer ram;
    if (!require_stopped(&self->engine) || PyObject_GetBuffer(buffer, &ram, PyBUF_WRITABLE)) return NULL;
    bool done = dirty_start(&self->engine, ram.buf, (uint64_t)ram.len);
    PyBuffer_Release(&ram); /* the machine keeps the mapping alive as long as the engine */
    if (!done) return NULL;
    Py_RETURN_NONE;
}

PyObject *engine_dirty_stop(EngineObject *self, PyObject *unused) {
    (void)unused;
    if (atomic_load(&self->engine.running) && !require_stopped(&self->engine)) return NULL;
    dirty_stop(&self->engine);
    Py_RETURN_NONE;
}

PyObject *engine_dirty_take(EngineObject *self, PyObject *target) {
    Py_buffer log;
    if (!require_stopped(&self->engine) || PyObject_GetBuffer(target, &log, PyBUF_WRITABLE)) return NULL;
    PyObject *result = NULL;
    if ((uint64_t)log.len == (self->engine.dirty_pages + 7) / 8)
        result = PyLong_FromUnsignedLongLong(dirty_take(&self->engine, log.buf));
    else
        PyErr_SetString(PyExc_ValueError, "the log needs a bit for each page");
    PyBuffer_Release(&log);
    return result;
}
