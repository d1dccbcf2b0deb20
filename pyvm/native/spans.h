/* Copying from file to file by the host; see spans.c. */
#ifndef PYVM_SPANS_H
#define PYVM_SPANS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *spans_splice(PyObject *module, PyObject *args);

#endif
