/* What the log is to have of guest code: blocks that are translated, blocks that are entered, and interrupts.
 *
 * All of it is told to Python, with the registers as they are at that moment.  Nothing is generated or tested in blocks
 * while nobody wants to hear of them: where somebody does, the check at the start of each block is a call (codegen.c).
 */
#include <string.h>

#include "engine.h"

enum { BLOCK_CS_BASE = 8, BLOCK_STATE = 0x10, BLOCK_FLAGS = 0x18, BLOCK_HOST = 0x20 };

/* The registers while guest code runs: flags are not yet worked out there. */
static PyObject *current_registers(Engine *engine) {
    uint8_t image[ENV_STATE_SIZE] __attribute__((aligned(16)));
    Env *env = engine->env;
    memcpy(image, env, sizeof image);
    ((Env *)image)->eflags = full_flags(env);
    PyObject *values = image_get(image);
    PyObject *more = values ? Py_BuildValue("{s:K,s:K,s:I}", "cc_src", env->cc_src, "cc_dst", env->cc_dst, "cc_op", env->cc_op) : NULL;
    if (!more || PyDict_Update(values, more)) Py_CLEAR(values);
    Py_XDECREF(more);
    return values;
}

/* Call function(vcpu, values, registers). */
static void tell(Engine *engine, PyObject *function, const uint64_t *values, Py_ssize_t count, bool with_registers) {
    PyEval_RestoreThread(engine->thread_state);
    PyObject *numbers = PyTuple_New(count), *result = NULL;
    for (Py_ssize_t i = 0; numbers && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(values[i]);
        if (!number) Py_CLEAR(numbers);
        else PyTuple_SET_ITEM(numbers, i, number);
    }
    PyObject *registers = with_registers ? current_registers(engine) : Py_NewRef(Py_None);
    if (numbers && registers) result = PyObject_CallFunction(function, "iOO", engine->current, numbers, registers);
    if (!result) callback_keep_failure(engine);
    Py_XDECREF(result);
    Py_XDECREF(registers);
    Py_XDECREF(numbers);
    engine->thread_state = PyEval_SaveThread();
}

/* What is said of a block. */
static void tell_of_block(Engine *engine, PyObject *function, const void *block, bool with_registers) {
    uint64_t values[] = {FIELD(block, uint64_t, BLOCK_PC),    FIELD(block, uint64_t, BLOCK_CS_BASE),
                         FIELD(block, uint32_t, BLOCK_STATE), FIELD(block, uint32_t, BLOCK_FLAGS),
                         FIELD(block, uint16_t, BLOCK_SIZE),  FIELD(block, uintptr_t, BLOCK_HOST)};
    tell(engine, function, values, sizeof values / sizeof *values, with_registers);
}

/* A block was translated. */
void log_translation(Engine *engine, const void *block) {
    if (engine->log & LOG_TRANSLATIONS) tell_of_block(engine, engine->callbacks.block_translated, block, true);
}

/* A block is entered; `caller` is an address in its translation. */
void log_block(Engine *engine, uintptr_t caller) {
    if (!(engine->log & LOG_BLOCKS)) return;
    const void *block = unicorn.tb_lookup(engine->generator, caller);
    if (!block) return;
    engine->env->eip = FIELD(block, uint64_t, BLOCK_PC) - FIELD(block, uint64_t, BLOCK_CS_BASE);
    tell_of_block(engine, engine->callbacks.block_entered, block, engine->log & LOG_REGISTERS);
}

/* An interrupt or exception is about to be delivered; `request` says that it comes from outside of the processor. */
void log_interrupt(Engine *engine, int vector, bool request) {
    if (!(engine->log & LOG_INTERRUPTS)) return;
    bool is_int = !request && FIELD(engine->env, int32_t, ENV_EXCEPTION_IS_INT);
    uint32_t before = (uint32_t)engine->delivering - 1;
    uint32_t error = request ? 0 : FIELD(engine->env, uint32_t, ENV_ERROR_CODE);
    tell(engine, engine->callbacks.interrupt_taken, (uint64_t[]){(uint64_t)vector, error, is_int, request, before}, 5, true);
}

/* What is told from now on, and whether blocks have one instruction each; while no guest code runs. */
void log_set(Engine *engine, int log, bool single) {
    bool other_blocks = (log ^ engine->log) & LOG_BLOCKS || single != engine->single_instructions;
    engine->log = log;
    engine->single_instructions = single;
    if (!other_blocks) return;
    pthread_mutex_lock(&engine->lock);
    engine->invalidate_all = true;
    atomic_store(&engine->invalidations_pending, true);
    pthread_mutex_unlock(&engine->lock);
}
