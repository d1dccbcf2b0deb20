/* Files that are needed soon, read into the host's page cache by a thread of its own.
 *
 * What a machine is made of may not be in memory: byte code, the CPU engine, saved RAM.  Whoever needs it waits for one
 * read after the other; here they are made meanwhile.  A file is read in pieces, one of which is waited for before the
 * next but one is asked for, so that a read that somebody waits for has few before it.  All of it is advice: nothing is
 * told of errors, and a file that is in memory already costs a look at each piece.
 */
#define _GNU_SOURCE
#include "pageobjects.h"

#include <fcntl.h>
#include <fts.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PIECE = 1 << 20, SAMPLE = 16 };
static const off_t most = 512 << 20; /* bytes of one file */

typedef struct {
    char *suffix;
    char *paths[]; /* ends with NULL */
} Wanted;

static void wanted_free(Wanted *wanted) {
    for (char **path = wanted->paths; *path; path++) free(*path);
    free(wanted->suffix);
    free(wanted);
}

static bool is_in_memory(int fd, off_t offset) {
    char byte;
    struct iovec place = {&byte, 1};
    return preadv2(fd, &place, 1, offset, RWF_NOWAIT) == 1;
}

static void wait_for(int fd, off_t offset) {
    char byte;
    if (pread(fd, &byte, 1, offset) < 0) return;
}

/* Read a file, but for its holes; return whether any of it had to be read. */
static bool read_file(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    off_t last = -1, done = 0, start = 0, end = 0;
    bool any = false;
    while (done < most && (start = lseek(fd, end, SEEK_DATA)) >= 0 && (end = lseek(fd, start, SEEK_HOLE)) > start)
        for (; start < end; start += PIECE) {
            off_t size = end - start < PIECE ? end - start : PIECE;
            done += size;
            if (is_in_memory(fd, start) && is_in_memory(fd, start + size - 1)) continue;
            posix_fadvise(fd, start, size, POSIX_FADV_WILLNEED);
            if (last >= 0) wait_for(fd, last);
            last = start + size - 1;
            any = true;
        }
    close(fd);
    return any;
}

static bool ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), end = strlen(suffix);
    return length >= end && !strcmp(name + length - end, suffix);
}

/* Read the files of a tree whose names have the suffix, unless the first of them are all in memory; or one file. */
static void read_tree(char *path, const char *suffix) {
    char *roots[] = {path, NULL};
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    if (!tree) return;
    int seen = 0;
    bool any = false;
    for (FTSENT *entry; (any || seen < SAMPLE) && (entry = fts_read(tree));)
        if (entry->fts_info == FTS_F && (entry->fts_level == FTS_ROOTLEVEL || ends_with(entry->fts_name, suffix))) {
            any = read_file(entry->fts_accpath) || any;
            seen++;
        }
    fts_close(tree);
}

static void *read_all(void *argument) {
    Wanted *wanted = argument;
    for (char **path = wanted->paths; *path; path++) read_tree(*path, wanted->suffix);
    wanted_free(wanted);
    return NULL;
}

static void start_thread(Wanted *wanted) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads that run Python */
    if (pthread_create(&thread, NULL, read_all, wanted))
        wanted_free(wanted);
    else
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Begin to read files and trees, one after the other; returns at once. */
PyObject *files_read_ahead(PyObject *module, PyObject *arguments) {
    PyObject *paths;
    const char *suffix;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!y", &PyList_Type, &paths, &suffix)) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(paths);
    Wanted *wanted = calloc(1, sizeof *wanted + ((size_t)count + 1) * sizeof(char *));
    if (!wanted || !(wanted->suffix = strdup(suffix))) {
        free(wanted);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        char *path;
        if (!PyBytes_AsStringAndSize(PyList_GET_ITEM(paths, i), &path, NULL) && !(wanted->paths[i] = strdup(path)))
            PyErr_NoMemory();
        if (PyErr_Occurred()) {
            wanted_free(wanted);
            return NULL;
        }
    }
    start_thread(wanted);
    Py_RETURN_NONE;
}
