/* Replacements inside the code generator.
 *
 * Stock Unicorn checks for a stop request after every guest load and store and restarts the instruction where one is
 * pending, even though its store has been done.  An asynchronous kick would so execute `lock cmpxchg` twice.  The check
 * for memory accesses is therefore removed.  The check at the start of each block stays, but as three inline
 * instructions that test our kick word instead of a call.
 */
#include "engine.h"

/* Emits the check behind a memory access; replaced by nothing. */
EXPORT void check_exit_request_x86_64(void *context) {
    (void)context;
}

/* The check at the start of blocks of one instruction, which a debugger may step through, of those whose entry is logged,
 * and of those that were translated before the generator's handle of env was known. */
EXPORT void helper_check_exit_request_x86_64(void *uc, uint32_t in_delay_slot) {
    (void)in_delay_slot;
    Engine *engine = current_engine;
    if (!engine || engine->uc != uc) return;
    if (__atomic_load_n(&FIELD(engine->env, int32_t, ENV_KICK), __ATOMIC_RELAXED) < 0)
        unicorn.cpu_loop_exit_restore(engine->cpu, (uintptr_t)__builtin_return_address(0));
    log_block(engine, (uintptr_t)__builtin_return_address(0));
    debug_count_step(engine);
}

/* Emits: if (kick word < 0) goto label. */
static void gen_kick_check(Engine *engine, void *context) {
    void *word = unicorn.temp_new(context, TYPE_I32, false);
    engine->label = unicorn.new_label(context);
    unicorn.gen_op3(context, OP_LD_I32, (uintptr_t)word, (uintptr_t)engine->env_temp, ENV_KICK);
    unicorn.gen_brcondi_i32(context, COND_LT, (void *)((char *)word - (char *)context), 0, engine->label);
    unicorn.temp_free(context, word);
}

EXPORT void tcg_gen_callN_x86_64(void *context, void *function, void *result, int count, void **arguments) {
    Engine *engine = current_engine;
    if (engine) {
        if (function == (void *)helper_check_exit_request_x86_64) {
            engine->label = NULL;
            bool plain = (engine->block_flags & BLOCK_COUNT_MASK) != ONE_INSTRUCTION && !(engine->log & LOG_BLOCKS);
            if (engine->env_temp && plain) {
                gen_kick_check(engine, context);
                return;
            }
            engine->generator = context;
        } else if (function == unicorn.helper_lookup_tb_ptr && count == 1) {
            engine->env_temp = arguments[0];
        }
    }
    unicorn.gen_call(context, function, result, count, arguments);
    // PAUSE ends its block, and the translator expects its helper not to return; ours does.
    if (engine && function == (void *)helper_pause_x86_64) unicorn.gen_lookup_and_goto_ptr(context);
}

EXPORT void tcg_gen_exit_tb_x86_64(void *context, void *block, unsigned index) {
    Engine *engine = current_engine;
    if (engine && index == EXIT_REQUESTED && engine->label) {
        FIELD(engine->label, uint32_t, 0) |= LABEL_PRESENT;
        unicorn.gen_op1(context, OP_SET_LABEL, (uintptr_t)engine->label);
        engine->label = NULL;
    }
    unicorn.gen_exit_tb(context, block, index);
}
