/* Triple fault where the machine may not restart: it ends, with nothing said and status 0.
 * BITS: 32
 * OPTIONS: -no-reboot
 * STATUS: 0
 */
#include "kit/kit.h"

void test(void)
{
    say("an exception without an idt\n");
    load_idt(0);
    asm volatile("int3");
    say("not reached\n");
}
