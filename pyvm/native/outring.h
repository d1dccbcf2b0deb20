/* Moving what a driver gives a device to a socket; see outring.c. */
#ifndef PYVM_OUTRING_H
#define PYVM_OUTRING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

PyObject *outring_send(PyObject *module, PyObject *args);

#endif
