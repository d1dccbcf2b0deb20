/* All ways to reset a PC, one after the other; each starts this program anew, and a CMOS byte tells how far it is.
 * BITS: 32
 */
#include "kit/kit.h"

#define STAGE 0x50

static u8 cmos(u8 index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void wait(void)
{
    for (u32 round = 0; round < 1000000; round++)
        pause();
}

void test(void)
{
    u8 stage = cmos(STAGE);

    say("start %d\n", stage);
    check_equal("cr0", read_cr0() & 0x80000001, 1);
    check_equal("cr4", read_cr4(), 0);
    check_equal("efer", rdmsr(0xc0000080), 0);
    check_equal("interrupt mask", inb(0x21), 0xff);
    outb(0x71, stage + 1);
    write_cr4(read_cr4() | 0x10);
    switch (stage) {
    case 0:
        say("triple fault\n");
        load_idt(0);
        asm volatile("int3");
        break;
    case 1:
        say("port 0xcf9\n");
        outb(0xcf9, 0x02);
        outb(0xcf9, 0x06);
        break;
    case 2:
        say("keyboard controller\n");
        outb(0x64, 0xfe);
        break;
    case 3:
        say("port 92\n");
        outb(0x92, inb(0x92) | 1);
        break;
    case 4:
        return;
    }
    wait();
    check("reset", 0);
}
