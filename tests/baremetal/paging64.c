/* Four-level paging: permissions, error codes, accessed and dirty bits, large pages, NX, WP, INVLPG, global pages.
 * BITS: 64
 */
#include "kit/kit.h"

#define P 1ull
#define W 2ull
#define U 4ull
#define PCD 16ull
#define A 32ull
#define D 64ull
#define PS 128ull
#define G 256ull
#define NX (1ull << 63)
#define BASE 0x8000000000ull                    /* 512 GiB: nothing of the kit's map is there */

extern u64 pml4[512];
static u64 *pdpt, *directory, *table;
static u8 *frames;                              /* physical pages to map */

static volatile u8 *at(u32 page) { return (volatile u8 *)(BASE + page * 4096ull); }

static void map(u32 page, u32 frame, u64 bits) { table[page] = (word)(frames + frame * 4096) | bits; }

static void flush(void) { write_cr3(read_cr3()); }

static void build(void)
{
    pdpt = pages(1);
    directory = pages(1);
    table = pages(1);
    frames = pages(16);
    pml4[1] = (word)pdpt | P | W | U;
    pdpt[0] = (word)directory | P | W | U;
    directory[0] = (word)table | P | W | U;
    for (u32 frame = 0; frame < 16; frame++)
        memset(frames + frame * 4096, (int)(0xa0 + frame), 4096);
}

/* The present bit of such a fault differs between emulators: only the reserved bit is shown. */
static void show_reserved(const char *what)
{
    say("%s: %s reserved=%d cr2=%w\n", what, trap_name(last.vector), (u32)last.error >> 3 & 1, last.cr2);
}

static void read_write(void)
{
    map(0, 0, P | W | U);
    map(1, 1, P | U);
    check_equal("mapped page", *at(0), 0xa0);
    *at(0) = 0x11;
    check_equal("store through the mapping", frames[0], 0x11);
    write_cr0(read_cr0() | 1 << 16);            /* WP */
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 4096 + 5));
    show("write to a read-only page with wp");
    write_cr0(read_cr0() & ~(1ul << 16));
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 4096 + 5));
    show("the same without wp");
    check_equal("byte stored", frames[4096 + 5], 1);
    write_cr0(read_cr0() | 1 << 16);
    flush();

    /* The stricter level wins. */
    map(2, 2, P | W | U);
    directory[0] &= ~W;
    flush();
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 2 * 4096));
    show("directory read-only");
    directory[0] |= W;
    pdpt[0] &= ~W;
    flush();
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 2 * 4096));
    show("pdpt read-only");
    pdpt[0] |= W;
    pml4[1] &= ~W;
    flush();
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 2 * 4096));
    show("pml4 read-only");
    pml4[1] |= W;
    flush();
}

static void accessed_dirty(void)
{
    pml4[1] &= ~A;
    pdpt[0] &= ~A;
    directory[0] &= ~A;
    map(3, 3, P | W);
    flush();
    check_equal("bits before", table[3] & (A | D), 0);
    (void)*at(3);
    check_equal("after a read", table[3] & (A | D), A);
    check_equal("accessed in the directory", directory[0] & (A | D), A);
    check_equal("accessed in the pdpt", pdpt[0] & A, A);
    check_equal("accessed in the pml4", pml4[1] & A, A);
    *at(3) = 1;
    check_equal("after a write", table[3] & (A | D), A | D);
    table[3] &= ~(A | D);
    invlpg((word)at(3));
    *at(3) = 2;
    check_equal("cleared and written again", table[3] & (A | D), A | D);
    table[3] &= ~D;
    invlpg((word)at(3));
    (void)*at(3);
    check_equal("dirty cleared, read", table[3] & (A | D), A);
    *at(3) = 3;
    check_equal("then written", table[3] & (A | D), A | D);

    /* A refused access leaves no dirty bit. */
    map(4, 4, P);
    TRY("mov %0, %%rax; movb $1, (%%rax)", "i"(BASE + 4 * 4096));
    check_equal("refused write", table[4] & D, 0);
    /* Read-modify-write and locked ones are writes. */
    map(5, 5, P | W);
    asm volatile("lock; orb $1, (%0)" : : "r"(at(5)) : "memory");
    check_equal("locked write", table[5] & (A | D), A | D);
}

static void tlb(void)
{
    map(6, 6, P | W);
    check_equal("first mapping", *at(6), 0xa6);
    map(6, 7, P | W);
    invlpg((word)at(6));
    check_equal("after invlpg", *at(6), 0xa7);
    map(6, 8, P | W);
    flush();
    check_equal("after a write to cr3", *at(6), 0xa8);
    map(6, 9, P | W);
    invlpg((word)at(6) + 4095);
    check_equal("invlpg of the page's last byte", *at(6), 0xa9);

    write_cr4(read_cr4() | 0x80);               /* PGE */
    map(7, 10, P | W | G);
    (void)*at(7);
    map(7, 11, P | W | G);
    write_cr4(read_cr4() & ~0x80ul);
    check_equal("turning global pages off drops them", *at(7), 0xab);

    map(8, 12, 0);
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(BASE + 8 * 4096 + 1));
    show("not present");
    map(8, 12, P | W);
    check_equal("present needs no flush", *at(8), 0xac);
    /* Two addresses, one frame. */
    map(9, 12, P | W);
    *at(8) = 0x55;
    check_equal("alias", *at(9), 0x55);
}

static void crossing(void)
{
    map(16, 0, P | W);
    map(17, 5, P | W);
    frames[4095] = 0x34;
    frames[5 * 4096] = 0x12;
    check_equal("read across two pages", *(volatile u16 *)(BASE + 17 * 4096 - 1), 0x1234);
    *(volatile u32 *)(BASE + 17 * 4096 - 2) = 0xddccbbaa;
    check_equal("written, low part", frames[4094] | frames[4095] << 8, 0xbbaa);
    check_equal("written, high part", frames[5 * 4096] | frames[5 * 4096 + 1] << 8, 0xddcc);
    map(17, 5, 0);
    invlpg((word)at(17));
    TRY("mov %0, %%rax; movl $0, (%%rax)", "i"(BASE + 17 * 4096 - 2));
    show("write across into an absent page");
    check_equal("nothing was written", frames[4094] | frames[4095] << 8, 0xbbaa);
}

static void no_execute(void)
{
    u8 *code = frames + 13 * 4096;

    memset(code, 0x90, 4096);
    code[16] = 0xc3;
    map(10, 13, P | W | NX);
    flush();
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(BASE + 10 * 4096));
    show_reserved("bit 63 while nxe is off");
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    flush();
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(BASE + 10 * 4096));
    show("read of a no-execute page");
    TRY("mov %0, %%rax; call *%%rax", "i"(BASE + 10 * 4096));
    say("call into it: %s error=%w cr2=%w ip=%w\n", trap_name(last.vector), last.error, last.cr2, last.ip);
    map(10, 13, P);
    invlpg((word)at(10));
    TRY("mov %0, %%rax; call *%%rax", "i"(BASE + 10 * 4096));
    show("call without nx");
    TRY("mov %0, %%rax; jmp *%%rax", "i"(0x9000000000));
    say("jump to nowhere with nxe: %s error=%w\n", trap_name(last.vector), last.error);
    directory[0] |= NX;
    flush();
    TRY("mov %0, %%rax; call *%%rax", "i"(BASE + 10 * 4096));
    say("nx in the directory: %s error=%w\n", trap_name(last.vector), last.error);
    directory[0] &= ~NX;
    flush();
}

static void large_pages(void)
{
    u64 frame = ((word)frames & ~0x1fffffull);

    directory[1] = frame | P | W | PS;
    check_equal("2 MiB page", *(volatile u8 *)(BASE + 0x200000 + ((word)frames & 0x1fffff) + 14 * 4096), 0xae);
    check_equal("its accessed bit", directory[1] & (A | D), A);
    *(volatile u8 *)(BASE + 0x200000 + ((word)frames & 0x1fffff) + 14 * 4096) = 0x77;
    check_equal("its dirty bit", directory[1] & (A | D), A | D);
    check_equal("the store", frames[14 * 4096], 0x77);
    directory[2] = frame | 0x2000 | P | W | PS; /* a reserved bit: 20..13 must be zero */
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(BASE + 0x400000));
    show_reserved("reserved bit in a 2 MiB entry");
    directory[2] = 0;
    pdpt[0x20] = 0;
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(BASE + 0x800000000));
    show("absent pdpt entry");
    pml4[2] = (word)pdpt | P | W | PS;          /* bit 7 is reserved in a PML4 entry */
    TRY("mov %0, %%rax; mov (%%rax), %%cl", "i"(0x10000000000));
    show_reserved("reserved bit in a pml4 entry");
    pml4[2] = 0;
}

USER_CODE(user_read, "mov $0x8000000000 + 11 * 4096, %rax; mov (%rax), %cl");
USER_CODE(user_write, "mov $0x8000000000 + 12 * 4096, %rax; movb $1, (%rax)");
USER_CODE(user_absent, "mov $0x8000000000 + 15 * 4096, %rax; mov (%rax), %cl");
USER_CODE(user_jump, "mov $0x8000000000 + 11 * 4096, %rax; jmp *%rax");
USER_CODE(user_allowed, "mov $0x8000000000, %rax; movb $0x22, (%rax); int $0x50");

static void user_mode(void)
{
    map(11, 11, P | W);
    map(12, 12, P | U);
    map(15, 12, 0);
    flush();
    run_user(user_read, 2);
    show_user("ring 3 reads a supervisor page", user_read);
    run_user(user_write, 2);
    show_user("ring 3 writes a read-only page", user_write);
    write_cr0(read_cr0() & ~(1ul << 16));
    run_user(user_write, 2);
    show_user("the same without wp", user_write);
    write_cr0(read_cr0() | 1 << 16);
    run_user(user_absent, 2);
    show_user("ring 3 reads an absent page", user_absent);
    run_user(user_jump, 2);
    say("ring 3 jumps to a supervisor page: %s error=%w cr2=%w\n", trap_name(last.vector), last.error, last.cr2);
    default_gate(0x50, GATE_INTERRUPT | GATE_USER, 0);
    run_user(user_allowed, 2);
    show_user("ring 3 writes its page", user_allowed);
    check_equal("its store", frames[0], 0x22);
}

void test(void)
{
    build();
    read_write();
    accessed_dirty();
    tlb();
    crossing();
    no_execute();
    large_pages();
    user_mode();
}
