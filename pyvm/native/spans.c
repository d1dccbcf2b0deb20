/* Copying from file to file through a pipe: each byte is copied once, by the host, and the files share no blocks.
 *
 * All of a range is one call without the interpreter: whoever else wants that would be waited for after each turn
 * through the pipe.
 */
#define _GNU_SOURCE
#include "spans.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

/* Move bytes as splice does; one end is a file, at an offset. */
static ssize_t move(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t length) {
    ssize_t count;
    do
        count = splice(from, from_offset, to, to_offset, length, 0);
    while (count < 0 && errno == EINTR);
    return count;
}

/* Empty the pipe into the file; return whether all of it has got there. */
static bool empty(int way_out, int target, off64_t *offset, size_t length) {
    while (length) {
        ssize_t count = move(way_out, NULL, target, offset, length);
        if (count < 0) return false;
        if (!count) {
            errno = EIO;
            return false;
        }
        length -= (size_t)count;
    }
    return true;
}

PyObject *spans_splice(PyObject *module, PyObject *args) {
    int way_out, way_in, source, target;
    long long start, offset, length, done = 0;
    bool failed = false;
    (void)module;
    if (!PyArg_ParseTuple(args, "iiiLiLL:splice", &way_out, &way_in, &source, &start, &target, &offset, &length)) return NULL;
    if (start < 0 || offset < 0 || length < 0 || start > LLONG_MAX - length || offset > LLONG_MAX - length) {
        PyErr_SetString(PyExc_ValueError, "splice: numbers out of range");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    off64_t from = start, to = offset;
    while (done < length) {
        ssize_t count = move(source, &from, way_in, NULL, (size_t)(length - done));
        if (!count) break; /* the end of the source */
        failed = count < 0 || !empty(way_out, target, &to, (size_t)count);
        if (failed) break;
        done += count;
    }
    Py_END_ALLOW_THREADS
    if (failed) return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLongLong(done);
}
