/* Which pages of memory hold anything but zeros: what is saved of a guest's memory begins with that question. */
#include "pageobjects.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { PAGE = 4096, STEP = 64 };

static bool is_used(const unsigned char *page) {
    for (size_t at = 0; at < PAGE; at += STEP) {
        uint64_t words[STEP / 8];
        memcpy(words, page + at, STEP);
        if (words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]) return true;
    }
    return false;
}

/* Return a byte for each page of a buffer, 1 where it holds anything but zeros. */
PyObject *pages_used(PyObject *module, PyObject *object) {
    Py_buffer buffer;
    (void)module;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE)) return NULL;
    PyObject *used = NULL;
    if (buffer.len % PAGE)
        PyErr_SetString(PyExc_ValueError, "the buffer must be whole pages");
    else
        used = PyBytes_FromStringAndSize(NULL, buffer.len / PAGE);
    if (used) {
        char *flags = PyBytes_AS_STRING(used);
        const unsigned char *memory = buffer.buf;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t page = 0; page < buffer.len / PAGE; page++) flags[page] = is_used(memory + page * PAGE);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    return used;
}
