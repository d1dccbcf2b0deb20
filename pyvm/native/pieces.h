/* Copying disks from file to file; see pieces.c. */
#ifndef PYVM_PIECES_H
#define PYVM_PIECES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *pieces_copy(PyObject *module, PyObject *args);

#endif
