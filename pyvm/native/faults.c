/* What Unicorn ends the process for, although a guest can bring it about.
 *
 * Unicorn gives up with cpu_abort() where a guest takes an interrupt to an inner ring and the task register does not
 * hold a usable task state segment.  A processor raises #TS there.
 */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { EXCEPTION_TS = 10 };

EXPORT void cpu_abort_x86_64(void *cpu, const char *format, ...) {
    Engine *engine = current_engine;
    if (!engine || engine->cpu != cpu || strncmp(format, "invalid tss", 11)) abort();
    unicorn.raise_exception_err_ra(engine->env, EXCEPTION_TS, engine->env->tr.selector & 0xfffc, 0);
}
