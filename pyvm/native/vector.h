/* Scatter-gather lists of guest RAM; see vector.c. */
#ifndef PYVM_VECTOR_H
#define PYVM_VECTOR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t gpa, offset, length; /* where the guest has it, and where it is in the buffer; in bytes */
} Piece;

typedef struct {
    PyObject_VAR_HEAD
    Py_buffer ram;
    uint64_t bytes;
    Piece pieces[];
} Vector;

extern PyTypeObject vector_type;

/* Find where the guest's range lies in the buffer, in one of the blocks (gpa, size, offset). */
bool vector_place(PyObject *blocks, Piece *piece);

/* Whether a piece is in the buffer. */
bool vector_fits(const Py_buffer *ram, const Piece *piece);

#endif
