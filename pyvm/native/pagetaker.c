/* The Python face of the destination of a migration by postcopy. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pagebits.h"
#include "pageobjects.h"
#include "taker.h"
#include "userfault.h"

typedef struct {
    PyObject_HEAD
    Py_buffer ram;
    Taker taker;
    bool open;
} PageTaker;

static const char *const state_names[] = {"loading", "running", "paused", "complete", "failed"};

static int init(PageTaker *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ram", "missing", "token", "fd", NULL};
    PyObject *buffer;
    int fd;
    Py_buffer missing, token;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a PageTaker is made once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oy*y*i", names, &buffer, &missing, &token, &fd)) return -1;
    int result = -1;
    if (!PyObject_GetBuffer(buffer, &self->ram, PyBUF_WRITABLE)) {
        Taker *taker = &self->taker;
        uint64_t pages = (uint64_t)self->ram.len >> HOST_PAGE_SHIFT;
        *taker = (Taker){.faults = -1, .wake = -1, .told = -1, .in.fd = -1, .candidate = -1, .given = -1, .fresh_count = -1};
        pthread_mutex_init(&taker->lock, NULL);
        self->open = true;
        bool right = (uint64_t)missing.len == bits_bytes(pages) && token.len == TOKEN_SIZE &&
                     !((uintptr_t)self->ram.buf % HOST_PAGE) && pages <= UINT32_MAX;
        if (right) memcpy(taker->token, token.buf, TOKEN_SIZE);
        if (!right)
            PyErr_SetString(PyExc_ValueError, "whole pages, a bit for each, and a token are needed");
        else if ((fd = dup(fd)) >= 0 && taker_init(taker, self->ram.buf, pages, missing.buf) && taker_start(taker, fd))
            result = 0; /* no other thread of Python's has run in between, and might wait for a page now */
        else
            PyErr_SetFromErrno(PyExc_OSError);
    }
    PyBuffer_Release(&missing);
    PyBuffer_Release(&token);
    return result;
}

static void shut(PageTaker *self) {
    if (!self->open) return;
    self->open = false;
    Py_BEGIN_ALLOW_THREADS
    taker_close(&self->taker);
    Py_END_ALLOW_THREADS
    pthread_mutex_destroy(&self->taker.lock);
    PyBuffer_Release(&self->ram);
}

static void dealloc(PageTaker *self) {
    shut(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool require_open(PageTaker *self) {
    if (self->open) return true;
    PyErr_SetString(PyExc_ValueError, "it is closed");
    return false;
}

static PyObject *method_close(PageTaker *self, PyObject *unused) {
    (void)unused;
    shut(self);
    Py_RETURN_NONE;
}

static PyObject *method_send(PageTaker *self, PyObject *args) {
    Py_buffer data;
    if (!require_open(self) || !PyArg_ParseTuple(args, "y*", &data)) return NULL;
    bool done = taker_send(&self->taker, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    if (!done) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *method_listen(PageTaker *self, PyObject *numbers) {
    int fds[MAX_LISTENERS], count = 0;
    if (!require_open(self)) return NULL;
    PyObject *sequence = PySequence_Fast(numbers, "descriptors are needed");
    if (!sequence) return NULL;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(sequence) && count < MAX_LISTENERS; i++) {
        int fd = PyObject_AsFileDescriptor(PySequence_Fast_GET_ITEM(sequence, i));
        if (fd >= 0 && (fds[count] = dup(fd)) >= 0) count++;
    }
    Py_DECREF(sequence);
    taker_listen(&self->taker, fds, count);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *method_take_up(PageTaker *self, PyObject *number) {
    int fd = PyObject_AsFileDescriptor(number);
    if (fd < 0 || !require_open(self)) return NULL;
    int own = dup(fd);
    if (own < 0) return PyErr_SetFromErrno(PyExc_OSError);
    taker_give(&self->taker, own);
    Py_RETURN_NONE;
}

static PyObject *method_interrupt(PageTaker *self, PyObject *unused) {
    (void)unused;
    if (self->open) taker_interrupt(&self->taker);
    Py_RETURN_NONE;
}

static PyObject *method_watch(PageTaker *self, PyObject *thread) {
    long number = PyLong_AsLong(thread);
    if (number == -1 && PyErr_Occurred()) return NULL;
    atomic_store(&self->taker.processor, (int)number);
    Py_RETURN_NONE;
}

static PyObject *method_fileno(PageTaker *self, PyObject *unused) {
    (void)unused;
    return require_open(self) ? PyLong_FromLong(self->taker.told) : NULL;
}

static PyObject *method_look(PageTaker *self, PyObject *unused) {
    char error[TAKER_ERROR_SIZE];
    uint64_t count;
    (void)unused;
    if (!require_open(self)) return NULL;
    if (read(self->taker.told, &count, sizeof count) < 0) count = 0; /* nothing is new */
    pthread_mutex_lock(&self->taker.lock);
    TakerState state = self->taker.state;
    memcpy(error, self->taker.error, sizeof error);
    pthread_mutex_unlock(&self->taker.lock);
    return Py_BuildValue("ss", state_names[state], error);
}

static PyObject *get_missing(PageTaker *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(atomic_load(&self->taker.left));
}

static PyObject *get_requests(PageTaker *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(atomic_load(&self->taker.requests));
}

static PyObject *get_waited(PageTaker *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(atomic_load(&self->taker.waited));
}

static PyMethodDef methods[] = {
    {"send", (PyCFunction)method_send, METH_VARARGS, "send(data)\n\nTell the source something, which is whole records."},
    {"listen", (PyCFunction)method_listen, METH_O,
     "listen(fds)\n\nTake up a broken connection with one that comes from these sockets, and no other ones."},
    {"take_up", (PyCFunction)method_take_up, METH_O, "take_up(fd)\n\nTake up a broken connection with this one."},
    {"interrupt", (PyCFunction)method_interrupt, METH_NOARGS, "interrupt()\n\nBreak the connection."},
    {"watch", (PyCFunction)method_watch, METH_O, "watch(thread)\n\nMeasure how long the thread of this id waits."},
    {"fileno", (PyCFunction)method_fileno, METH_NOARGS, "fileno() -> int\n\nReadable when look() has something new."},
    {"look", (PyCFunction)method_look, METH_NOARGS,
     "look() -> (state, error)\n\n'loading', 'running', 'paused', 'complete' or 'failed', and what broke the connection."},
    {"close", (PyCFunction)method_close, METH_NOARGS, "close()\n\nEnd it; what has not come is zeros."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"missing", (getter)get_missing, NULL, "How many pages are still to come.", NULL},
    {"requests", (getter)get_requests, NULL, "How often the source was asked for pages.", NULL},
    {"waited", (getter)get_waited, NULL, "How long the thread that is watched has waited for pages, in ns.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject pagetaker_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.PageTaker",
    .tp_doc = "PageTaker(ram, missing, token, fd)\n\nHave pages of `ram` come over a socket when they are needed; `missing` has a"
              " bit for\neach, and what is in these is dropped.",
    .tp_basicsize = sizeof(PageTaker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
    .tp_getset = properties,
};

/* Whether the host, and this memory, allow it: None, or OSError. */
PyObject *pages_check_missing(PyObject *module, PyObject *buffer) {
    Py_buffer ram;
    (void)module;
    if (PyObject_GetBuffer(buffer, &ram, PyBUF_WRITABLE)) return NULL;
    int fd = userfault_open(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID);
    uint64_t length = (uint64_t)ram.len & ~(uint64_t)(HOST_PAGE - 1);
    bool done = fd >= 0 && userfault_watch(fd, ram.buf, length, UFFDIO_REGISTER_MODE_MISSING);
    int error = errno;
    if (fd >= 0) close(fd);
    PyBuffer_Release(&ram);
    errno = error;
    if (!done) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}
