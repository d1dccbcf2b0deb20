/* Copying disks from file to file: pieces of data are read, and what of them is not zeros is written.
 *
 * All of that is one call without the interpreter, so that several threads copy at once, each through a buffer of its
 * own that is small enough to stay in a processor's cache.  Either data keeps its place on the disk, or it is packed:
 * whole units of it are written one behind the other, and the caller learns which they were.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "pieces.h"

typedef struct {
    uint64_t start, end; /* on the disk, in bytes */
    uint64_t fd, place;  /* in which file the data is, and from where on */
} Source;

typedef struct {
    uint64_t start, length; /* on the disk */
} Run;

typedef struct {
    const Source *sources;
    Py_ssize_t count, next;
    int target;
    bool packed;
    uint64_t place, room; /* where the next packed data goes, or where the disk starts; how much there is room for */
    uint64_t unit, position;
    char *buffer;
    uint64_t size;
    Run *runs; /* what was packed */
    Py_ssize_t run_count, run_limit;
    int error;
    bool writing; /* when the error occurred */
} Copy;

/* The host has writers of one file wait for one another, and spin at that, while the next data could be read. */
static pthread_mutex_t write_turn = PTHREAD_MUTEX_INITIALIZER;

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t down(const Copy *copy, uint64_t at) { return copy->packed ? at - at % copy->unit : at; }
static uint64_t up(const Copy *copy, uint64_t at) { return copy->packed ? down(copy, at + copy->unit - 1) : at; }

static bool fail(Copy *copy, int error, bool writing, uint64_t position) {
    copy->error = error, copy->writing = writing, copy->position = position;
    return false;
}

/* Read so many bytes of a source; what is behind the end of its file is zeros. */
static bool read_all(Copy *copy, const Source *source, uint64_t from, char *to, uint64_t length) {
    uint64_t place = source->place + (from - source->start);
    while (length) {
        ssize_t done = pread((int)source->fd, to, length, (off_t)place);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail(copy, errno, false, from);
        if (!done) {
            memset(to, 0, length);
            return true;
        }
        to += done, place += (uint64_t)done, length -= (uint64_t)done;
    }
    return true;
}

/* Write data that starts at this position of the disk. */
static bool write_all(Copy *copy, uint64_t position, const char *data, uint64_t length, uint64_t place) {
    while (length) {
        pthread_mutex_lock(&write_turn);
        ssize_t done = pwrite(copy->target, data, length, (off_t)place);
        int error = done < 0 ? errno : ENOSPC;
        pthread_mutex_unlock(&write_turn);
        if (done < 0 && error == EINTR) continue;
        if (done <= 0) return fail(copy, error, true, position);
        data += done, place += (uint64_t)done, length -= (uint64_t)done;
    }
    return true;
}

static bool is_zero(const char *data, uint64_t length) { return !data[0] && !memcmp(data, data + 1, length - 1); }

static bool note_run(Copy *copy, uint64_t start, uint64_t length) {
    Run *last = copy->run_count ? &copy->runs[copy->run_count - 1] : NULL;
    if (last && last->start + last->length == start) {
        last->length += length;
        return true;
    }
    if (copy->run_count == copy->run_limit) {
        Py_ssize_t limit = 2 * copy->run_limit + 16;
        Run *runs = PyMem_RawRealloc(copy->runs, (size_t)limit * sizeof *runs);
        if (!runs) return fail(copy, ENOMEM, true, start);
        copy->runs = runs, copy->run_limit = limit;
    }
    copy->runs[copy->run_count++] = (Run){start, length};
    return true;
}

/* Fill the buffer from the position on, which moves to where that starts; return the end of it, 0 after an error. */
static uint64_t fill(Copy *copy) {
    uint64_t start = down(copy, copy->sources[copy->next].start);
    if (start < copy->position) start = copy->position;
    copy->position = start;
    uint64_t end = start, limit = start + (copy->packed ? least(copy->size, copy->room) : copy->size);
    while (copy->next < copy->count && copy->sources[copy->next].start < limit) {
        const Source *source = &copy->sources[copy->next];
        uint64_t from = source->start > end ? source->start : end, stop = least(source->end, limit);
        if (end > start && down(copy, from) >= up(copy, end) && from > end) break;
        memset(copy->buffer + (end - start), 0, from - end);
        if (!read_all(copy, source, from, copy->buffer + (from - start), stop - from)) return 0;
        end = stop;
        if (stop < source->end) break;
        copy->next++;
    }
    memset(copy->buffer + (end - start), 0, up(copy, end) - end);
    return up(copy, end);
}

static bool write_run(Copy *copy, uint64_t at, uint64_t length) {
    uint64_t start = copy->position + at;
    if (!write_all(copy, start, copy->buffer + at, length, copy->packed ? copy->place : copy->place + start)) return false;
    if (!copy->packed) return true;
    copy->place += length, copy->room -= length;
    return note_run(copy, start, length);
}

/* Write what of the first bytes of the buffer is not zeros, in whole units. */
static bool empty(Copy *copy, uint64_t length) {
    uint64_t start = 0; /* of the data that was found */
    for (uint64_t at = 0; at < length;) {
        uint64_t stop = least(at + copy->unit, length);
        bool zero = is_zero(copy->buffer + at, stop - at);
        if (zero && start < at && !write_run(copy, start, at - start)) return false;
        if (zero) start = stop;
        at = stop;
    }
    return start == length || write_run(copy, start, length - start);
}

static void run(Copy *copy) {
    while (copy->next < copy->count && (!copy->packed || copy->room)) {
        uint64_t end = fill(copy);
        if (!end || !empty(copy, end - copy->position)) return;
        copy->position = end;
    }
}

/* Whether the sources are in order, and all places are some that a file can have; start with the first at hand. */
static bool check(Copy *copy) {
    const uint64_t most = INT64_MAX / 2;
    uint64_t end = 0;
    for (Py_ssize_t i = 0; i < copy->count; i++) {
        const Source *it = &copy->sources[i];
        if (it->start < end || it->end <= it->start || it->end > most || it->place > most || it->fd > INT_MAX) return false;
        end = it->end;
        if (end <= copy->position) copy->next = i + 1;
    }
    if (!copy->unit || copy->unit > copy->size || copy->size % copy->unit || copy->size > most) return false;
    return copy->place <= most && copy->room <= most && !(copy->room % copy->unit) && copy->position <= most &&
           down(copy, copy->position) == copy->position;
}

static PyObject *result(const Copy *copy) {
    PyObject *runs = PyList_New(copy->run_count);
    for (Py_ssize_t i = 0; runs && i < copy->run_count; i++) {
        const Run *it = &copy->runs[i];
        PyObject *pair = Py_BuildValue("(KK)", (unsigned long long)it->start, (unsigned long long)it->length);
        if (pair)
            PyList_SET_ITEM(runs, i, pair);
        else
            Py_CLEAR(runs);
    }
    if (!runs) return NULL;
    if (copy->error)
        return Py_BuildValue("(KN(Oi))", (unsigned long long)copy->position, runs, copy->writing ? Py_True : Py_False, copy->error);
    if (copy->next == copy->count) return Py_BuildValue("(ONO)", Py_None, runs, Py_None);
    return Py_BuildValue("(KNO)", (unsigned long long)copy->position, runs, Py_None);
}

PyObject *pieces_copy(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer sources, buffer;
    unsigned long long position, place, room, unit;
    int target;
    if (!PyArg_ParseTuple(args, "y*KiKKKw*:copy_pieces", &sources, &position, &target, &place, &room, &unit, &buffer))
        return NULL;
    Copy copy = {.sources = sources.buf, .count = sources.len / (Py_ssize_t)sizeof(Source), .target = target,
                 .packed = room, .place = place, .room = room, .unit = unit, .position = position,
                 .buffer = buffer.buf, .size = (uint64_t)buffer.len};
    PyObject *answer = NULL;
    if (sources.len % (Py_ssize_t)sizeof(Source) || (uintptr_t)sources.buf % _Alignof(Source) || !check(&copy)) {
        PyErr_SetString(PyExc_ValueError, "copy_pieces: pieces out of order, or numbers out of range");
    } else {
        Py_BEGIN_ALLOW_THREADS;
        run(&copy);
        Py_END_ALLOW_THREADS;
        answer = result(&copy);
    }
    PyMem_RawFree(copy.runs);
    PyBuffer_Release(&sources);
    PyBuffer_Release(&buffer);
    return answer;
}
