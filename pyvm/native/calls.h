/* The Python face of the engine: what its parts share. */
#ifndef PYVM_CALLS_H
#define PYVM_CALLS_H

#include "engine.h"

typedef struct {
    PyObject_HEAD
    Engine engine;
} EngineObject;

/* module.c */
bool require_stopped(Engine *engine); /* false, with an exception, where it runs or is closed */
bool called_by_guest(Engine *engine); /* whether this thread is the vCPU thread, in a call from guest code */

/* memory_calls.c */
PyObject *engine_map_ram(EngineObject *self, PyObject *args);
PyObject *engine_map_io(EngineObject *self, PyObject *args);
PyObject *engine_unmap(EngineObject *self, PyObject *args);
PyObject *engine_overlay(EngineObject *self, PyObject *args);
PyObject *engine_show_overlay(EngineObject *self, PyObject *args);
PyObject *engine_hide_overlay(EngineObject *self, PyObject *args);
PyObject *engine_set_firmware(EngineObject *self, PyObject *args);
PyObject *engine_invalidate(EngineObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *engine_invalidate_vector(EngineObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *engine_dirty_start(EngineObject *self, PyObject *buffer);
PyObject *engine_dirty_stop(EngineObject *self, PyObject *unused);
PyObject *engine_dirty_take(EngineObject *self, PyObject *target);

/* lapic.c */
PyObject *engine_vectors(EngineObject *self, PyObject *index);

/* timerfd.c */
PyObject *timer_open(PyObject *module, PyObject *unused);
PyObject *timer_set(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* debug_calls.c */
PyObject *engine_set_breakpoints(EngineObject *self, PyObject *addresses);
PyObject *engine_set_watchpoints(EngineObject *self, PyObject *watchpoints);
PyObject *engine_set_pace(EngineObject *self, PyObject *args);
PyObject *engine_set_log(EngineObject *self, PyObject *args);
PyObject *engine_debugged(EngineObject *self, void *unused);

#endif
