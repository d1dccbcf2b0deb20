/* The Python face of the source of a migration by postcopy. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pagebits.h"
#include "pageobjects.h"
#include "server.h"
#include "userfault.h"

typedef struct {
    PyObject_HEAD
    Py_buffer ram;
    Server server;
    bool open, busy;
} PageServer;

static bool take_wanted(PageServer *self, PyObject *object) {
    Server *server = &self->server;
    Py_buffer wanted;
    if (PyObject_GetBuffer(object, &wanted, PyBUF_SIMPLE)) return false;
    bool right = (uint64_t)wanted.len == bits_bytes(server->pages);
    if (right) {
        bits_load(server->wanted, wanted.buf, server->pages);
        memset(server->urgent, 0, bits_bytes(server->pages));
        server->request_count = 0;
        server->in_length = 0;
        server->cursor = 0;
        server->ended = false;
        atomic_store(&server->left, bits_count(server->wanted, server->pages));
    } else {
        PyErr_SetString(PyExc_ValueError, "a bit for each page is needed");
    }
    PyBuffer_Release(&wanted);
    return right;
}

static int init(PageServer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ram", "wanted", NULL};
    PyObject *buffer, *wanted;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", names, &buffer, &wanted)) return -1;
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "a PageServer is made once");
        return -1;
    }
    Server *server = &self->server;
    if (PyObject_GetBuffer(buffer, &self->ram, PyBUF_SIMPLE)) return -1;
    self->open = true;
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->told = eventfd(0, EFD_CLOEXEC);
    if (server->wake < 0 || server->told < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    server->ram = self->ram.buf;
    server->pages = (uint64_t)self->ram.len >> HOST_PAGE_SHIFT;
    if (server->pages > UINT32_MAX || (uintptr_t)server->ram % HOST_PAGE) {
        PyErr_SetString(PyExc_ValueError, "whole pages are needed");
        return -1;
    }
    server->wanted = bits_new(server->pages);
    server->urgent = bits_new(server->pages);
    if (server->wanted && server->urgent) return take_wanted(self, wanted) ? 0 : -1;
    PyErr_NoMemory();
    return -1;
}

static void shut(PageServer *self) {
    if (!self->open) return;
    self->open = false;
    if (self->server.wake >= 0) close(self->server.wake);
    if (self->server.told >= 0) close(self->server.told);
    free(self->server.wanted);
    free(self->server.urgent);
    self->server.wanted = self->server.urgent = NULL;
    PyBuffer_Release(&self->ram);
}

static void dealloc(PageServer *self) {
    shut(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static bool require_idle(PageServer *self) {
    if (self->open && !self->busy) return true;
    PyErr_SetString(PyExc_ValueError, self->busy ? "it is at work" : "it is closed");
    return false;
}

static PyObject *method_close(PageServer *self, PyObject *unused) {
    (void)unused;
    if (self->open && !require_idle(self)) return NULL;
    shut(self);
    Py_RETURN_NONE;
}

static PyObject *method_want(PageServer *self, PyObject *wanted) {
    if (!require_idle(self) || !take_wanted(self, wanted)) return NULL;
    Py_RETURN_NONE;
}

static PyObject *method_serve(PageServer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "release", NULL};
    Server *server = &self->server;
    int fd, release = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|p", names, &fd, &release) || !require_idle(self)) return NULL;
    server->release = release;
    self->busy = true;
    Served result;
    int error;
    Py_BEGIN_ALLOW_THREADS
    result = server_run(server, fd);
    error = errno;
    server_tell(server->told);
    Py_END_ALLOW_THREADS
    self->busy = false;
    if (result == SERVED_ANSWER)
        return Py_BuildValue("y#y#", server->in.head.kind, (Py_ssize_t)RECORD_KIND_SIZE, server->in.body,
                             (Py_ssize_t)server->in.head.length);
    if (result == SERVED_NONSENSE) {
        PyErr_SetString(PyExc_ValueError, server->nonsense);
        return NULL;
    }
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *method_begin(PageServer *self, PyObject *unused) {
    (void)unused;
    if (!self->open) return PyErr_Format(PyExc_ValueError, "it is closed");
    atomic_store(&self->server.begin, true);
    server_tell(self->server.wake);
    Py_RETURN_NONE;
}

static PyObject *method_fileno(PageServer *self, PyObject *unused) {
    (void)unused;
    if (!self->open) return PyErr_Format(PyExc_ValueError, "it is closed");
    return PyLong_FromLong(self->server.told);
}

static PyObject *get_loaded(PageServer *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(atomic_load(&self->server.loaded));
}

static PyObject *method_pace(PageServer *self, PyObject *value) {
    unsigned long long bandwidth = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred()) return NULL;
    atomic_store(&self->server.bandwidth, bandwidth);
    Py_RETURN_NONE;
}

static PyObject *get_begun(PageServer *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(atomic_load(&self->server.begun));
}

static PyObject *get_figure(PageServer *self, void *offset) {
    return PyLong_FromUnsignedLongLong(atomic_load((_Atomic uint64_t *)((char *)&self->server + (size_t)offset)));
}

static PyMethodDef methods[] = {
    {"serve", (PyCFunction)(void (*)(void))method_serve, METH_VARARGS | METH_KEYWORDS,
     "serve(fd, release=False) -> (kind, body)\n\nSend pages over this socket until the other side says something, but that"
     " it is loaded.  `release`: give them back to the host then."},
    {"begin", (PyCFunction)method_begin, METH_NOARGS, "begin()\n\nLet the other side begin; from any thread."},
    {"fileno", (PyCFunction)method_fileno, METH_NOARGS,
     "fileno() -> int\n\nAn eventfd that is readable when the other side is loaded, and when serve() returns."},
    {"want", (PyCFunction)method_want, METH_O, "want(wanted)\n\nBegin anew with these pages."},
    {"pace", (PyCFunction)method_pace, METH_O, "pace(bandwidth)\n\nBytes a second for pages not asked for; 0: no limit."},
    {"close", (PyCFunction)method_close, METH_NOARGS, "close()\n\nLet the memory go."},
    {NULL, NULL, 0, NULL},
};

#define FIGURE(name, member, text) {name, (getter)get_figure, NULL, text, (void *)offsetof(Server, member)}
static PyGetSetDef properties[] = {
    {"loaded", (getter)get_loaded, NULL, "Whether the other side has all that it needs to begin.", NULL},
    {"begun", (getter)get_begun, NULL, "Whether the other side may have begun.", NULL},
    FIGURE("left", left, "How many pages are still to be sent."),
    FIGURE("requests", asked, "How often the other side has asked for pages."),
    FIGURE("zero", zero, "Pages sent as zeros."),
    FIGURE("normal", normal, "Pages sent with data."),
    FIGURE("bytes", bytes, "All that was sent."),
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject pageserver_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.PageServer",
    .tp_doc = "PageServer(ram, wanted)\n\nSends pages of memory that does not change; `wanted` has a bit for each.",
    .tp_basicsize = sizeof(PageServer),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_methods = methods,
    .tp_getset = properties,
};
