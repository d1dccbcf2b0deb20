/* The host timer of the main loop: a descriptor that becomes readable at a time.
 *
 * Guests set their timers thousands of times a second.  Setting this one is a short system call, for which the GIL is kept.
 */
#include <sys/timerfd.h>

#include "calls.h"

PyObject *timer_open(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

PyObject *timer_set(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    enum { NANOSECONDS = 1000000000 };
    (void)module;
    if (count != 2) return PyErr_Format(PyExc_TypeError, "set_timer(fd, deadline)");
    struct itimerspec when = {.it_value = {0}};
    int fd = (int)PyLong_AsLong(args[0]), overflow = 0;
    if (args[1] != Py_None) {
        long long deadline = PyLong_AsLongLongAndOverflow(args[1], &overflow);
        if (overflow > 0) deadline = INT64_MAX;
        if (deadline < 1) deadline = 1; /* 0 would mean never */
        when.it_value = (struct timespec){.tv_sec = deadline / NANOSECONDS, .tv_nsec = deadline % NANOSECONDS};
    }
    if (PyErr_Occurred()) return NULL;
    if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL)) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}
