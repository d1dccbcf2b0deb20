/* Two-level and PAE paging in 32-bit mode: turning it on and off, 4 KiB, 2 MiB and 4 MiB pages, permissions, faults.
 * BITS: 32
 */
#include "kit/kit.h"

#define P 1
#define W 2
#define U 4
#define A 32
#define D 64
#define PS 128
#define BASE 0x40000000u

static u32 *directory, *table;
static u64 *pae_pointers, *pae_directories, *pae_table;
static u8 *frames;

static volatile u8 *at(u32 page) { return (volatile u8 *)(BASE + page * 4096); }

/* One to one for the first 8 MiB with 4 KiB pages, so that PSE is not needed; a table of our own at BASE. */
static void build_two_level(void)
{
    u32 *low = pages(2);

    directory = pages(1);
    table = pages(1);
    for (u32 page = 0; page < 2048; page++)
        low[page] = page * 4096 | P | W | U;
    directory[0] = (word)low | P | W | U;
    directory[1] = ((word)low + 4096) | P | W | U;
    directory[BASE >> 22] = (word)table | P | W | U;
}

static void paging_on(word root)
{
    write_cr3(root);
    write_cr0(read_cr0() | 0x80010000);         /* PG, WP */
}

static void two_level(void)
{
    build_two_level();
    paging_on((word)directory);
    check_equal("paging is on", read_cr0() >> 31, 1);
    table[0] = (word)frames | P | W;
    check_equal("4 KiB page", *at(0), 0xb0);
    *at(0) = 0x31;
    check_equal("store", frames[0], 0x31);
    check_equal("accessed and dirty", table[0] & (A | D), A | D);
    check_equal("directory accessed", directory[BASE >> 22] & A, A);
    table[1] = (word)(frames + 4096) | P;
    TRY("mov %0, %%eax; movb $1, (%%eax)", "i"(BASE + 4096 + 9));
    show("write to a read-only page");
    TRY("mov %0, %%eax; movb (%%eax), %%cl", "i"(BASE + 2 * 4096 + 9));
    show("read of an absent page");
    TRY("mov %0, %%eax; movb (%%eax), %%cl", "i"(0x80000123));
    show("read through an absent directory entry");
    TRY("mov %0, %%eax; jmp *%%eax", "i"(0x80000123));
    say("jump to it: %s error=%w cr2=%w\n", trap_name(last.vector), last.error, last.cr2);

    write_cr4(read_cr4() | 0x10);               /* PSE */
    directory[0x204] = ((word)frames & 0xffc00000) | P | W | PS;
    check_equal("4 MiB page", *(volatile u8 *)(0x81000000 + ((word)frames & 0x3fffff) + 3 * 4096), 0xb3);
    *(volatile u8 *)(0x81000000 + ((word)frames & 0x3fffff) + 3 * 4096) = 0x32;
    check_equal("its store", frames[3 * 4096], 0x32);
    check_equal("its accessed and dirty bits", directory[0x204] & (A | D), A | D);
    write_cr4(read_cr4() & ~0x10u);
    write_cr0(read_cr0() & 0x7fffffff);
    check_equal("paging is off again", read_cr0() >> 31, 0);
    check_equal("and so are addresses", frames[0], 0x31);
}

USER_CODE(user_read, "mov $0x40000000 + 11 * 4096, %eax; mov (%eax), %cl");
USER_CODE(user_write, "mov $0x40000000 + 12 * 4096, %eax; movb $1, (%eax)");
USER_CODE(user_allowed, "mov $0x40000000 + 13 * 4096, %eax; movb $0x22, (%eax); int $0x50");

static void ring3(void)
{
    run_user(user_read, 2);
    show_user("ring 3 reads a supervisor page", user_read);
    run_user(user_write, 2);
    show_user("ring 3 writes a read-only page", user_write);
    frames[13 * 4096] = 0;
    default_gate(0x50, GATE_INTERRUPT | GATE_USER, 0);
    run_user(user_allowed, 2);
    show_user("ring 3 writes its page", user_allowed);
    check_equal("its store", frames[13 * 4096], 0x22);
    check_equal("ring", last.cs & 3, 3);
    check_equal("stack segment", last.ss, SEL_USER_DATA);
}

static void two_level_user(void)
{
    table[11] = (word)(frames + 11 * 4096) | P | W;
    table[12] = (word)(frames + 12 * 4096) | P | U;
    table[13] = (word)(frames + 13 * 4096) | P | W | U;
    paging_on((word)directory);
    ring3();
    write_cr0(read_cr0() & 0x7fffffff);
}

static void pae(void)
{
    pae_pointers = pages(1);
    pae_directories = pages(4);
    pae_table = pages(1);
    for (u32 index = 0; index < 4; index++)
        pae_pointers[index] = (word)(pae_directories + index * 512) | P;
    for (u32 index = 0; index < 4; index++)
        pae_directories[index] = (u64)index << 21 | P | W | U | PS;
    pae_directories[BASE >> 21] = (word)pae_table | P | W | U;
    pae_table[0] = (word)frames | P | W;
    pae_table[11] = (word)(frames + 11 * 4096) | P | W;
    pae_table[12] = (word)(frames + 12 * 4096) | P | U;
    pae_table[13] = (word)(frames + 13 * 4096) | P | W | U;

    write_cr4(read_cr4() | 0x20);               /* PAE */
    paging_on((word)pae_pointers);
    check_equal("4 KiB page", *at(0), 0x31);
    check_equal("accessed", pae_table[0] & (A | D), A);
    *at(0) = 0x41;
    check_equal("dirty", pae_table[0] & (A | D), A | D);
    pae_directories[3 * 512] = ((word)frames & 0xffe00000) | P | W | PS;
    check_equal("2 MiB page", *(volatile u8 *)(0xc0000000 + ((word)frames & 0x1fffff) + 4 * 4096), 0xb4);
    TRY("mov %0, %%eax; movb (%%eax), %%cl", "i"(0x80000123));
    show("read of an absent page");
    ring3();

    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    pae_table[14] = (word)(frames + 14 * 4096) | P | W | 1ull << 63;
    TRY("mov %0, %%eax; movb (%%eax), %%cl", "i"(BASE + 14 * 4096));
    show("read of a no-execute page");
    TRY("mov %0, %%eax; jmp *%%eax", "i"(BASE + 14 * 4096));
    say("jump into it: %s error=%w cr2=%w\n", trap_name(last.vector), last.error, last.cr2);
    write_cr0(read_cr0() & 0x7fffffff);
    write_cr4(read_cr4() & ~0x20u);
    check_equal("paging is off again", frames[0], 0x41);
}

void test(void)
{
    frames = pages(16);
    for (u32 frame = 0; frame < 16; frame++)
        memset(frames + frame * 4096, (int)(0xb0 + frame), 4096);
    two_level();
    two_level_user();
    pae();
}
