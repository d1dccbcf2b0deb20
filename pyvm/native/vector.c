/* Scatter-gather lists of guest RAM: the segments of one request.
 *
 * A guest hands over a MiB as 256 pages or so.  A list of that many Python objects takes longer to make, walk and drop
 * than the host takes for the data, so a list is one object here: it is made from a descriptor table at once, cut by
 * bytes, given to preadv() and pwritev(), and looks like a sequence of memoryviews to whoever wants to see its segments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "engine.h"
#include "vector.h"

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };

typedef struct {
    uint64_t gpa;
    uint32_t length;
    uint16_t words[2]; /* split: flags, next; packed: buffer ID, flags */
} Descriptor;

static Vector *new_vector(PyObject *ram, Py_ssize_t count) {
    if (!PyMemoryView_Check(ram)) { /* only of these are slices views */
        PyErr_SetString(PyExc_TypeError, "a Vector is of a memoryview");
        return NULL;
    }
    Vector *self = PyObject_NewVar(Vector, &vector_type, count);
    if (!self) return NULL;
    self->bytes = 0;
    if (PyObject_GetBuffer(ram, &self->ram, PyBUF_WRITABLE)) {
        self->ram.obj = NULL;
        Py_CLEAR(self);
    }
    return self;
}

static void vector_dealloc(Vector *self) {
    PyBuffer_Release(&self->ram);
    PyObject_Free(self);
}

/* ---- Making */

bool vector_fits(const Py_buffer *ram, const Piece *piece) {
    return piece->offset <= (uint64_t)ram->len && piece->length <= (uint64_t)ram->len - piece->offset;
}

static PyObject *vector_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    (void)type;
    PyObject *ram, *pieces;
    if (keywords && PyDict_GET_SIZE(keywords)) return PyErr_Format(PyExc_TypeError, "Vector takes no keywords");
    if (!PyArg_ParseTuple(args, "OO:Vector", &ram, &pieces)) return NULL;
    pieces = PySequence_Fast(pieces, "Vector: a sequence of pieces is needed");
    if (!pieces) return NULL;
    Vector *self = new_vector(ram, PySequence_Fast_GET_SIZE(pieces));
    for (Py_ssize_t i = 0; self && i < Py_SIZE(self); i++) {
        unsigned long long gpa, offset, length;
        PyObject *piece = PySequence_Fast_GET_ITEM(pieces, i);
        if (!PyTuple_Check(piece)) {
            PyErr_SetString(PyExc_TypeError, "Vector: a piece is (gpa, offset, length)");
            Py_CLEAR(self);
        } else if (!PyArg_ParseTuple(piece, "KKK", &gpa, &offset, &length)) {
            Py_CLEAR(self);
        } else {
            self->pieces[i] = (Piece){gpa, offset, length};
            self->bytes += length;
            if (vector_fits(&self->ram, &self->pieces[i])) continue;
            PyErr_Format(PyExc_ValueError, "Vector: a piece at %llu is not in the buffer", offset);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(pieces);
    return (PyObject *)self;
}

bool vector_place(PyObject *blocks, Piece *piece) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(blocks); i++) {
        PyObject *block = PyTuple_GET_ITEM(blocks, i);
        if (!PyTuple_Check(block) || PyTuple_GET_SIZE(block) != 3) return false;
        uint64_t gpa = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(block, 0));
        uint64_t size = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(block, 1));
        uint64_t offset = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(block, 2));
        if (PyErr_Occurred()) return false;
        if (piece->gpa < gpa || piece->gpa - gpa > size || piece->length > size - (piece->gpa - gpa)) continue;
        piece->offset = piece->gpa - gpa + offset;
        return true;
    }
    return false;
}

/* Read the next descriptor; false where it is none that stands in its place in a regular table. */
static bool read_descriptor(const char *table, Py_ssize_t index, bool linked, Descriptor *out, bool *last) {
    memcpy(out, table + index * (Py_ssize_t)sizeof *out, sizeof *out); /* the guest may change it meanwhile */
    uint16_t flags = linked ? out->words[0] : out->words[1];
    if (!out->length || flags & DESC_F_INDIRECT) return false;
    if (linked) {
        if (flags & DESC_F_NEXT && out->words[1] != index + 1) return false;
        *last = !(flags & DESC_F_NEXT);
    }
    out->words[0] = flags;
    return true;
}

/* Fill both vectors from a table of at most so many descriptors; false where it is not a regular one. */
static bool read_table(const Py_buffer *table, PyObject *blocks, bool linked, uint64_t left, Vector *half[2]) {
    Py_ssize_t count = table->len / (Py_ssize_t)sizeof(Descriptor), used[2] = {0, 0};
    bool last = false;
    for (Py_ssize_t i = 0; !last; i++) {
        Descriptor descriptor;
        if (i == count && linked) return false;
        if (!read_descriptor(table->buf, i, linked, &descriptor, &last)) return false;
        if (!linked) last = i + 1 == count;
        Piece piece = {.gpa = descriptor.gpa, .length = descriptor.length};
        int kind = descriptor.words[0] & DESC_F_WRITE ? 1 : 0;
        if (piece.length > left || (!kind && used[1]) || !vector_place(blocks, &piece)) return false;
        if (!vector_fits(&half[kind]->ram, &piece)) return false;
        left -= piece.length;
        half[kind]->pieces[used[kind]++] = piece;
        half[kind]->bytes += piece.length;
    }
    for (int kind = 0; kind < 2; kind++) Py_SET_SIZE(half[kind], used[kind]);
    return true;
}

static PyObject *vector_from_table(PyObject *type, PyObject *args) {
    (void)type;
    PyObject *ram, *blocks, *result = NULL;
    Py_buffer table;
    int linked;
    unsigned long long limit;
    if (!PyArg_ParseTuple(args, "OO!y*pK:from_table", &ram, &PyTuple_Type, &blocks, &table, &linked, &limit)) return NULL;
    Py_ssize_t count = table.len / (Py_ssize_t)sizeof(Descriptor);
    Vector *half[2] = {new_vector(ram, count), new_vector(ram, count)};
    if (half[0] && half[1]) {
        if (count && read_table(&table, blocks, linked, limit, half))
            result = PyTuple_Pack(2, half[0], half[1]);
        else if (!PyErr_Occurred())
            result = Py_NewRef(Py_None);
    }
    Py_XDECREF(half[0]);
    Py_XDECREF(half[1]);
    PyBuffer_Release(&table);
    return result;
}

/* ---- Cutting */

static PyObject *vector_span(Vector *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "span(start, stop)");
    uint64_t start = PyLong_AsUnsignedLongLong(args[0]), stop = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    if (stop > self->bytes) stop = self->bytes;
    if (start > stop) start = stop;
    Py_ssize_t first = 0, end = 0;
    uint64_t before = 0, place = 0; /* bytes before the first piece that is taken */
    for (Py_ssize_t i = 0; i < Py_SIZE(self) && place < stop; i++) {
        uint64_t length = self->pieces[i].length;
        if (place + length <= start) first = i + 1, before = place + length;
        place += length;
        end = i + 1;
    }
    Vector *part = new_vector(self->ram.obj, start < stop ? end - first : 0);
    if (!part || start == stop) return (PyObject *)part;
    memcpy(part->pieces, self->pieces + first, (size_t)(end - first) * sizeof *part->pieces);
    part->pieces[end - first - 1].length -= place - stop;
    part->pieces[0].gpa += start - before;
    part->pieces[0].offset += start - before;
    part->pieces[0].length -= start - before;
    part->bytes = stop - start;
    return (PyObject *)part;
}

static Py_ssize_t vector_length(Vector *self) { return Py_SIZE(self); }

static PyObject *segment(Vector *self, Py_ssize_t index) {
    const Piece *piece = &self->pieces[index];
    PyObject *start = PyLong_FromUnsignedLongLong(piece->offset);
    PyObject *stop = PyLong_FromUnsignedLongLong(piece->offset + piece->length);
    PyObject *slice = start && stop ? PySlice_New(start, stop, NULL) : NULL;
    PyObject *result = slice ? PyObject_GetItem(self->ram.obj, slice) : NULL;
    Py_XDECREF(start);
    Py_XDECREF(stop);
    Py_XDECREF(slice);
    return result;
}

static PyObject *vector_item(Vector *self, Py_ssize_t index) {
    if (index >= 0 && index < Py_SIZE(self)) return segment(self, index);
    PyErr_SetString(PyExc_IndexError, "Vector index out of range");
    return NULL;
}

static PyObject *vector_subscript(Vector *self, PyObject *key) {
    if (PyIndex_Check(key)) {
        Py_ssize_t index = PyNumber_AsSsize_t(key, PyExc_IndexError);
        if (index == -1 && PyErr_Occurred()) return NULL;
        return vector_item(self, index < 0 ? index + Py_SIZE(self) : index);
    }
    Py_ssize_t start, stop, step;
    if (!PySlice_Check(key)) return PyErr_Format(PyExc_TypeError, "Vector indices are integers or slices");
    if (PySlice_Unpack(key, &start, &stop, &step)) return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(Py_SIZE(self), &start, &stop, step);
    if (step != 1) return PyErr_Format(PyExc_ValueError, "Vector slices have no step");
    Vector *part = new_vector(self->ram.obj, count);
    for (Py_ssize_t i = 0; part && i < count; i++) {
        part->pieces[i] = self->pieces[start + i];
        part->bytes += part->pieces[i].length;
    }
    return (PyObject *)part;
}

static PyObject *vector_join(PyObject *type, PyObject *vectors) {
    (void)type;
    vectors = PySequence_Fast(vectors, "join: a sequence of vectors is needed");
    if (!vectors) return NULL;
    Py_ssize_t count = 0, all = PySequence_Fast_GET_SIZE(vectors);
    Vector *first = NULL, *joined = NULL;
    for (Py_ssize_t i = 0; i < all; i++) {
        Vector *one = (Vector *)PySequence_Fast_GET_ITEM(vectors, i);
        if (!Py_IS_TYPE(one, &vector_type) || (first && one->ram.buf != first->ram.buf)) {
            PyErr_SetString(PyExc_TypeError, "join: all must be vectors of one buffer");
            goto out;
        }
        if (!first) first = one;
        count += Py_SIZE(one);
    }
    if (!first) {
        PyErr_SetString(PyExc_ValueError, "join: there is nothing to join");
        goto out;
    }
    joined = new_vector(first->ram.obj, count);
    Piece *next = joined ? joined->pieces : NULL;
    for (Py_ssize_t i = 0; joined && i < all; i++) {
        const Vector *one = (Vector *)PySequence_Fast_GET_ITEM(vectors, i);
        memcpy(next, one->pieces, (size_t)Py_SIZE(one) * sizeof *next);
        next += Py_SIZE(one);
        joined->bytes += one->bytes;
    }
out:
    Py_DECREF(vectors);
    return (PyObject *)joined;
}

/* ---- Input and output */

typedef ssize_t (*Transfer)(int, const struct iovec *, int, off_t, int);

static PyObject *transfer(Vector *self, PyObject *const *args, Py_ssize_t count, Transfer function) {
    if (count < 2 || count > 3) return PyErr_Format(PyExc_TypeError, "a descriptor, an offset and flags are needed");
    int fd = PyObject_AsFileDescriptor(args[0]), flags = count == 3 ? (int)PyLong_AsLong(args[2]) : 0;
    long long offset = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    if (offset < 0) { /* which means the place where the file is at */
        errno = EINVAL;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    struct iovec iov[IOV_MAX];
    int pieces = Py_SIZE(self) < IOV_MAX ? (int)Py_SIZE(self) : IOV_MAX;
    for (int i = 0; i < pieces; i++)
        iov[i] = (struct iovec){(char *)self->ram.buf + self->pieces[i].offset, self->pieces[i].length};
    ssize_t done;
    do {
        Py_BEGIN_ALLOW_THREADS;
        done = function(fd, iov, pieces, offset, flags);
        Py_END_ALLOW_THREADS;
    } while (done < 0 && errno == EINTR && !PyErr_CheckSignals());
    if (done >= 0) return PyLong_FromSsize_t(done);
    return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *vector_preadv(Vector *self, PyObject *const *args, Py_ssize_t count) {
    return transfer(self, args, count, preadv2);
}

static PyObject *vector_pwritev(Vector *self, PyObject *const *args, Py_ssize_t count) {
    return transfer(self, args, count, pwritev2);
}

/* ---- The type */

static PyObject *vector_pieces(Vector *self, void *unused) {
    (void)unused;
    PyObject *list = PyList_New(Py_SIZE(self));
    for (Py_ssize_t i = 0; list && i < Py_SIZE(self); i++) {
        const Piece *piece = &self->pieces[i];
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)piece->gpa, (unsigned long long)piece->length);
        if (pair)
            PyList_SET_ITEM(list, i, pair);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *vector_nbytes(Vector *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->bytes);
}

static PyMethodDef vector_methods[] = {
    {"from_table", (PyCFunction)vector_from_table, METH_VARARGS | METH_STATIC,
     "from_table(ram, blocks, table, linked, limit) -> (readable, writable) or None\n\nThe segments of a table of "
     "descriptors that follow one another; None where they do not, or where one breaks a rule."},
    {"join", (PyCFunction)vector_join, METH_O | METH_STATIC, "join(vectors)\n\nAll segments, one vector after the other."},
    {"span", (PyCFunction)(void (*)(void))vector_span, METH_FASTCALL, "span(start, stop)\n\nA part of the bytes."},
    {"preadv", (PyCFunction)(void (*)(void))vector_preadv, METH_FASTCALL,
     "preadv(fd, offset, flags=0) -> bytes read\n\nAs os.preadv(), of at most IOV_MAX segments."},
    {"pwritev", (PyCFunction)(void (*)(void))vector_pwritev, METH_FASTCALL,
     "pwritev(fd, offset, flags=0) -> bytes written\n\nAs os.pwritev(), of at most IOV_MAX segments."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef vector_properties[] = {
    {"nbytes", (getter)vector_nbytes, NULL, "The bytes of all segments.", NULL},
    {"pieces", (getter)vector_pieces, NULL, "The address and the length of each segment.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PySequenceMethods vector_sequence = {.sq_length = (lenfunc)vector_length, .sq_item = (ssizeargfunc)vector_item};
static PyMappingMethods vector_mapping = {.mp_length = (lenfunc)vector_length, .mp_subscript = (binaryfunc)vector_subscript};

PyTypeObject vector_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyvm.native.Vector",
    .tp_doc = "Vector(ram, pieces)\n\nA sequence of views of a buffer; a piece is (gpa, offset, length).",
    .tp_basicsize = offsetof(Vector, pieces),
    .tp_itemsize = sizeof(Piece),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_SEQUENCE,
    .tp_new = vector_new,
    .tp_dealloc = (destructor)vector_dealloc,
    .tp_as_sequence = &vector_sequence,
    .tp_as_mapping = &vector_mapping,
    .tp_methods = vector_methods,
    .tp_getset = vector_properties,
};
