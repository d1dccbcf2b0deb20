/* The Python types that have to do with pages of memory on the move. */
#ifndef PYVM_PAGEOBJECTS_H
#define PYVM_PAGEOBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyTypeObject pagetaker_type, pageserver_type, pagekeeper_type;

PyObject *pages_check_missing(PyObject *module, PyObject *buffer);
PyObject *pages_check_protect(PyObject *module, PyObject *buffer);
PyObject *pages_used(PyObject *module, PyObject *buffer);
PyObject *files_read_ahead(PyObject *module, PyObject *arguments);

#endif
