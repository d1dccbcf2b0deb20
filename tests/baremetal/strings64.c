/* String instructions and other long ones that meet a page fault or an interrupt half-way: registers say how far they got.
 * BITS: 64
 */
#include "kit/kit.h"

#define BASE 0x8000000000ull

extern u64 pml4[512];
static u64 *table;
static u8 *frames;
static u32 faults;
static word seen_rcx, seen_rdi, seen_rsi, seen_cr2;

/* Map the page that is missing and go on: the instruction resumes. */
static void on_page_fault(struct frame *frame)
{
    u32 page = (u32)((read_cr2() - BASE) >> 12);

    faults++;
    seen_rcx = frame->rcx;
    seen_rdi = frame->rdi;
    seen_rsi = frame->rsi;
    seen_cr2 = read_cr2();
    if (page < 16)
        table[page] |= 1;
    else
        finish();
}

static void unmap(u32 page)
{
    table[page] &= ~1ull;
    invlpg(BASE + page * 4096ull);
}

static void stores(void)
{
    unmap(1);
    faults = 0;
    word rdi = BASE + 4096 - 100, rcx = 200;
    asm volatile("rep stosb" : "+D"(rdi), "+c"(rcx) : "a"(0x5a) : "memory");
    check_equal("one fault", faults, 1);
    check_equal("rcx at the fault", seen_rcx, 100);
    check_equal("rdi at the fault", seen_rdi, BASE + 4096);
    check_equal("cr2", seen_cr2, BASE + 4096);
    check_equal("rcx at the end", rcx, 0);
    check_equal("first byte", frames[4096 - 100], 0x5a);
    check_equal("last byte", frames[4096 + 99], 0x5a);
    check_equal("byte behind", frames[4096 + 100], 0);
}

static void moves(void)
{
    for (u32 index = 0; index < 4096; index++)
        frames[2 * 4096 + index] = (u8)(index * 7);
    unmap(3);
    unmap(5);
    faults = 0;
    word rsi = BASE + 2 * 4096 + 4096 - 64, rdi = BASE + 4 * 4096 + 4096 - 32, rcx = 12;
    asm volatile("rep movsq" : "+S"(rsi), "+D"(rdi), "+c"(rcx) : : "memory");
    check_equal("two faults", faults, 2);
    check_equal("rcx at the last fault", seen_rcx, 4);
    check_equal("rsi at the last fault", seen_rsi, BASE + 3 * 4096);
    check_equal("copied", memcmp(frames + 4 * 4096 + 4096 - 32, frames + 2 * 4096 + 4096 - 64, 32), 0);

    /* Backwards. */
    unmap(6);
    faults = 0;
    rsi = BASE + 7 * 4096 + 7;
    rdi = BASE + 9 * 4096 - 1;
    rcx = 16;
    asm volatile("std; rep movsb; cld" : "+S"(rsi), "+D"(rdi), "+c"(rcx) : : "memory");
    check_equal("backwards: faults", faults, 1);
    check_equal("backwards: rcx at the fault", seen_rcx, 8);
    check_equal("backwards: cr2", seen_cr2, BASE + 7 * 4096 - 1);
}

static void scans(void)
{
    memset(frames + 8 * 4096, 0x20, 2 * 4096);
    frames[9 * 4096 + 5] = 0x21;
    unmap(9);
    faults = 0;
    word rdi = BASE + 8 * 4096, rcx = 10000;
    asm volatile("mov $0x20, %%al; repe scasb" : "+D"(rdi), "+c"(rcx) : : "rax", "memory", "cc");
    check_equal("scas: faults", faults, 1);
    check_equal("scas: found at", rdi - BASE - 8 * 4096, 4096 + 6);
    check_equal("scas: rcx", rcx, 10000 - 4096 - 6);
    word rsi = BASE + 8 * 4096;
    rdi = BASE + 9 * 4096;
    rcx = 100;
    asm volatile("repe cmpsb" : "+S"(rsi), "+D"(rdi), "+c"(rcx) : : "memory", "cc");
    check_equal("cmps: rcx", rcx, 100 - 6);
    rcx = 0;
    rdi = BASE + 15 * 4096;
    asm volatile("rep stosb" : "+D"(rdi), "+c"(rcx) : : "memory");
    check_equal("count of zero touches nothing", faults, 1);
    rcx = 5;
    asm volatile("addr32 rep lodsb" : "+S"(rsi), "+c"(rcx) : : "rax", "memory");
    check_equal("32-bit addresses: rcx", rcx, 0);
}

/* Two writes, the second of which faults: what was pushed or popped must not be half done. */
static void others(void)
{
    unmap(10);
    faults = 0;
    word value = 0x1111222233334444;
    asm volatile("mov %%rsp, %%rbx; mov %1, %%rsp; push %0; pop %0; mov %%rbx, %%rsp"
                 : "+r"(value) : "i"(BASE + 11 * 4096) : "rbx", "memory");
    check_equal("push into an absent page", faults, 1);
    check_equal("value", value, 0x1111222233334444);
    unmap(11);
    u64 flag = 0;
    asm volatile("mov %1, %%rdi; mov $7, %%eax; lock; xadd %%rax, (%%rdi); mov %%rax, %0"
                 : "=m"(flag) : "i"(BASE + 12 * 4096 - 4) : "rax", "rdi", "memory");
    check_equal("locked add across into a page that was absent", faults, 2);
    unmap(12);
    asm volatile("mov %0, %%rdi; xor %%eax, %%eax; xor %%edx, %%edx; mov $1, %%ebx; mov $2, %%ecx; lock; cmpxchg16b (%%rdi)"
                 : : "i"(BASE + 12 * 4096 + 32) : "rax", "rbx", "rcx", "rdx", "rdi", "memory", "cc");
    check_equal("cmpxchg16b", faults, 3);
    check_equal("its low half", *(u64 *)(frames + 12 * 4096 + 32), 1);
    check_equal("its high half", *(u64 *)(frames + 12 * 4096 + 40), 2);
    unmap(13);
    asm volatile("mov %0, %%rdi; movl $1, (%%rdi); enter $16, $0; leave" : : "i"(BASE + 13 * 4096) : "rdi", "memory");
    check_equal("plain store", faults, 4);
    /* INS writes what it read once only. */
    unmap(14);
    outb(0x70, 0x0f);
    outb(0x71, 0x77);
    outb(0x70, 0x0f);
    word rdi = BASE + 14 * 4096, rcx = 1;
    asm volatile("mov $0x71, %%edx; rep insb" : "+D"(rdi), "+c"(rcx) : : "rdx", "memory");
    check_equal("ins", frames[14 * 4096], 0x77);
    check_equal("ins: faults", faults, 5);
}

static volatile u32 ticks;

static void on_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    pic_eoi(0);
}

/* A long REP is interruptible: interrupts come while it runs, and its result is whole. */
static void interrupted(void)
{
    u8 *area = pages(4096);
    u32 wrong = 0;

    handlers[0x20] = on_tick;
    outb(0x43, 0x34);
    outb(0x40, 1193 & 0xff);                    /* 1 kHz */
    outb(0x40, 1193 >> 8);
    pic_mask(0xfffe);
    asm volatile("sti");
    for (u32 round = 0; round < 8; round++) {
        word rdi = (word)area, rcx = 4096ul * 4096;
        asm volatile("rep stosb" : "+D"(rdi), "+c"(rcx) : "a"(round) : "memory");
        wrong += rcx != 0 || rdi != (word)area + 4096ul * 4096;
        for (u32 index = 0; index < 4096ul * 4096; index += 997)
            wrong += area[index] != (u8)round;
    }
    asm volatile("cli");
    check_equal("wrong bytes", wrong, 0);
    check("interrupts came", ticks > 0);
    pic_mask(0xffff);
}

void test(void)
{
    u64 *pdpt = pages(1), *directory = pages(1);

    table = pages(1);
    frames = pages(16);
    for (u32 index = 0; index < 16; index++)
        table[index] = ((word)frames + index * 4096) | 7;
    directory[0] = (word)table | 7;
    pdpt[0] = (word)directory | 7;
    pml4[1] = (word)pdpt | 7;
    handlers[14] = on_page_fault;
    default_gate(14, GATE_INTERRUPT, 1);        /* the stack itself is absent in one test */
    stores();
    moves();
    scans();
    others();
    interrupted();
}
