/* Calls of firmware services from guest code.
 *
 * The services of the built-in BIOS are Python.  Their entry points in the guest are stubs whose OUT instruction to one
 * port leads here: the vCPU leaves the block behind that instruction, its registers go back into its image, and Python
 * reads and changes them there like those of a stopped machine.
 */
#include "engine.h"

enum { TRAP_PORT = 0xb1, OUT_LENGTH = 2, EFLAGS_VM = 1 << 17 };

/* Guest code writes to a port: does not return where that is a firmware call. */
void firmware_check(Engine *engine, uint32_t port, uintptr_t caller) {
    if ((port & 0xffff) != TRAP_PORT || !engine->firmware_end) return;
    Env *env = engine->env;
    if (env->hflags & HF_PE && !(env->eflags & EFLAGS_VM)) return;
    unicorn.cpu_restore_state(engine->cpu, caller, false);
    uint64_t address = env->segs[CS].base + env->eip;
    if (address < engine->firmware_start || address >= engine->firmware_end) return;
    env->eip = (env->eip + OUT_LENGTH) & 0xffff;
    engine->firmware_called = true;
    FIELD(engine->cpu, int32_t, CPU_EXCEPTION_INDEX) = EXCP_INTERRUPT;
    unicorn.cpu_loop_exit(engine->cpu);
}

/* Run the service; on the vCPU thread, outside of any block. */
void firmware_serve(Engine *engine) {
    engine->firmware_called = false;
    vcpu_unload(engine);
    engine->in_firmware = true;
    callback_firmware(engine);
    engine->in_firmware = false;
}
