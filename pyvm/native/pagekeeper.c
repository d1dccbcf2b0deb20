/* The Python face of memory that is kept as it was at one moment. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <unistd.h>

#include "keeper.h"
#include "pagebits.h"
#include "pageobjects.h"
#include "userfault.h"

typedef struct {
    PyObject_HEAD
    Py_buffer ram;
    Keeper keeper;
    bool open;
} PageKeeper;

static int init(PageKeeper *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ram", "needed", "limit", NULL};
    PyObject *buffer;
    Py_buffer needed;
    unsigned long long limit;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a PageKeeper is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oy*K", names, &buffer, &needed, &limit)) return -1;
    int result = -1;
    if (!PyObject_GetBuffer(buffer, &self->ram, PyBUF_WRITABLE)) {
        uint64_t pages = (uint64_t)self->ram.len >> HOST_PAGE_SHIFT;
        self->keeper = (Keeper){.faults = -1, .wake = -1};
        pthread_mutex_init(&self->keeper.lock, NULL);
        self->open = true;
        if ((uint64_t)needed.len != bits_bytes(pages) || (uintptr_t)self->ram.buf % HOST_PAGE)
            PyErr_SetString(PyExc_ValueError, "whole pages, and a bit for each, are needed");
        else if (keeper_init(&self->keeper, self->ram.buf, pages, needed.buf, limit))
            result = 0;
        else
            PyErr_SetFromErrno(PyExc_OSError);
    }
    PyBuffer_Release(&needed);
    return result;
}

static void shut(PageKeeper *self) {
    if (!self->open) return;
    self->open = false;
    Py_BEGIN_ALLOW_THREADS
    keeper_close(&self->keeper);
    Py_END_ALLOW_THREADS
    pthread_mutex_destroy(&self->keeper.lock);
    PyBuffer_Release(&self->ram);
}

static void dealloc(PageKeeper *self) {
    shut(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool require_open(PageKeeper *self) {
    if (self->open) return true;
    PyErr_SetString(PyExc_ValueError, "it is closed");
    return false;
}

static PyObject *method_close(PageKeeper *self, PyObject *unused) {
    (void)unused;
    shut(self);
    Py_RETURN_NONE;
}

static bool all_inside(const PageKeeper *self, const int64_t *numbers, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (numbers[i] < 0 || (uint64_t)numbers[i] >= self->keeper.pages || (i && numbers[i] <= numbers[i - 1])) return false;
    return true;
}

static PyObject *method_take(PageKeeper *self, PyObject *args) {
    Py_buffer numbers, target;
    if (!require_open(self) || !PyArg_ParseTuple(args, "y*w*", &numbers, &target)) return NULL;
    uint64_t count = (uint64_t)numbers.len / sizeof(int64_t);
    bool right = (uint64_t)target.len >= count << HOST_PAGE_SHIFT && all_inside(self, numbers.buf, count), done = false;
    if (right) {
        Py_BEGIN_ALLOW_THREADS
        done = keeper_take(&self->keeper, numbers.buf, count, target.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&target);
    if (!right) return PyErr_Format(PyExc_ValueError, "numbers of pages in order, and room for the pages, are needed");
    if (!done) return PyErr_Format(PyExc_MemoryError, "pages could not be kept as they were");
    Py_RETURN_NONE;
}

static PyObject *method_saved(PageKeeper *self, PyObject *target) {
    Py_buffer numbers;
    if (!require_open(self) || PyObject_GetBuffer(target, &numbers, PyBUF_WRITABLE)) return NULL;
    uint64_t count = keeper_saved(&self->keeper, numbers.buf, (uint64_t)numbers.len / sizeof(int64_t));
    PyBuffer_Release(&numbers);
    return PyLong_FromUnsignedLongLong(count);
}

static PyMethodDef methods[] = {
    {"take", (PyCFunction)method_take, METH_VARARGS,
     "take(numbers, target)\n\nCopy pages as they were, by their numbers, int64 that ascend; they are not kept any longer."},
    {"saved", (PyCFunction)method_saved, METH_O,
     "saved(numbers) -> int\n\nFill an array of int64 with the pages that were written, and lie aside; return how many."},
    {"close", (PyCFunction)method_close, METH_NOARGS, "close()\n\nKeep nothing any more."},
    {NULL, NULL, 0, NULL},
};

PyTypeObject pagekeeper_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.PageKeeper",
    .tp_doc = "PageKeeper(ram, needed, limit)\n\nKeeps pages of `ram` as they are now, while others write to them; `needed` has a bit for\neach, and more than `limit` pages that lie aside hold the writers up.",
    .tp_basicsize = sizeof(PageKeeper),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
};

/* Whether the host, and this memory, allow it: None, or OSError. */
PyObject *pages_check_protect(PyObject *module, PyObject *buffer) {
    Py_buffer ram;
    (void)module;
    if (PyObject_GetBuffer(buffer, &ram, PyBUF_WRITABLE)) return NULL;
    int fd = userfault_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    uint64_t length = (uint64_t)ram.len & ~(uint64_t)(HOST_PAGE - 1);
    bool done = fd >= 0 && userfault_watch(fd, ram.buf, length, UFFDIO_REGISTER_MODE_WP);
    int error = errno;
    if (fd >= 0) close(fd);
    PyBuffer_Release(&ram);
    errno = error;
    if (!done) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}
