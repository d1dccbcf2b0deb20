/* Code that changes: stores into the page being run, other addresses of it, freshly mapped code, string stores, far jumps.
 * BITS: 64
 */
#include "kit/kit.h"

#define ALIAS 0x8000000000ull

extern u64 pml4[512];
typedef u32 function(void);

/* mov $value, %eax; ret */
static void emit(volatile u8 *at, u32 value)
{
    at[0] = 0xb8;
    at[1] = (u8)value;
    at[2] = (u8)(value >> 8);
    at[3] = (u8)(value >> 16);
    at[4] = (u8)(value >> 24);
    at[5] = 0xc3;
}

static void rewritten(u8 *page)
{
    function *code = (function *)(word)page;
    u32 sum = 0;

    emit(page, 1);
    check_equal("first", code(), 1);
    emit(page, 2);
    check_equal("rewritten", code(), 2);
    for (u32 round = 0; round < 2000; round++) {
        emit(page, round);
        sum += code() == round;
    }
    check_equal("rewritten 2,000 times", sum, 2000);
    page[1] = 0x99;
    check_equal("one byte changed", code(), 1999 - (1999 & 0xff) + 0x99);
    u8 other[6];
    emit(other, 0x1234567);
    memcpy(page, other, 6);
    check_equal("by a string store", code(), 0x1234567);
    asm volatile("lock; xaddl %1, %0" : "+m"(*(u32 *)(page + 1)) : "r"(1) : "memory");
    check_equal("by a locked add", code(), 0x1234568);
    asm volatile("movd %1, %%xmm0; movd %%xmm0, %0" : "=m"(*(u32 *)(page + 1)) : "r"(0x777) : "memory");
    check_equal("by an sse store", code(), 0x777);
}

/* The store changes the instruction right behind it. */
static void own_block(void)
{
    u32 result;

    for (u32 round = 0; round < 3; round++) {
        asm volatile("movl $0, 1f + 1\n"
                     "movl %1, 1f + 1\n"
                     "1: mov $0x55555555, %%eax\n"
                     "mov %%eax, %0\n"
                     : "=m"(result) : "r"(0xabc0 + round) : "eax", "memory");
        check_equal("next instruction changed", result, 0xabc0 + round);
    }
    asm volatile("mov $3, %%ecx; xor %%eax, %%eax\n"
                 "2: 3: add $1, %%eax\n"
                 "movb $16, 3b + 2\n"
                 "dec %%ecx; jnz 2b\n"
                 "movb $1, 3b + 2\n"
                 "mov %%eax, %0" : "=m"(result) : : "eax", "ecx", "memory");
    check_equal("loop that changes itself", result, 33);
}

static void map_alias(u8 *page)
{
    u64 *pdpt = pages(1), *directory = pages(1), *table = pages(1);

    pml4[1] = (word)pdpt | 7;
    pdpt[0] = (word)directory | 7;
    directory[0] = (word)table | 7;
    for (u32 index = 0; index < 4; index++)
        table[index] = ((word)page + index * 4096) | 7;
}

static void aliases(u8 *page)
{
    function *code = (function *)(word)page, *alias = (function *)ALIAS;
    u64 *table = (u64 *)(((u64 *)((((u64 *)(pml4[1] & ~0xfffull))[0]) & ~0xfffull))[0] & ~0xfffull);

    emit(page, 10);
    check_equal("by its address", code(), 10);
    check_equal("by its alias", alias(), 10);
    emit((u8 *)ALIAS, 11);
    check_equal("written by the alias", code(), 11);
    check_equal("run by the alias", alias(), 11);
    emit(page + 4096, 20);
    emit(page + 8192, 30);
    table[0] = (word)(page + 4096) | 7;
    invlpg(ALIAS);
    check_equal("mapped elsewhere", alias(), 20);
    table[0] = (word)(page + 8192) | 7;
    write_cr3(read_cr3());
    check_equal("and elsewhere", alias(), 30);
    emit(page + 8192, 31);
    check_equal("and written there", alias(), 31);
}

/* An instruction across two pages, changed in either. */
static void across_pages(u8 *page)
{
    u8 *at = page + 4096 - 2;
    function *code = (function *)(word)at;

    emit(at, 0x11223344);
    check_equal("across two pages", code(), 0x11223344);
    page[4096 - 1] = 0x99;
    check_equal("changed in the first", code(), 0x11223399);
    page[4096 + 1] = 0x88;
    check_equal("changed in the second", code(), 0x11883399);
    page[4096 + 3] = 0x90;
    page[4096 + 4] = 0xc3;
    check_equal("its end changed", code(), 0x11883399);
}

static void modes(void)
{
    u32 result;

    /* The same bytes in 64-bit and 32-bit code: 48 is REX.W in one and DEC EAX in the other. */
    asm volatile("mov $5, %%eax\n"
                 "push %1; push $4f; lretq\n"
                 "4: .byte 0x48, 0x89, 0xc3\n"          /* mov %rax, %rbx; or dec %eax, mov %eax, %ebx */
                 ".code32\n"
                 "ljmp %2, $5f\n"
                 ".code64\n"
                 "5: mov %%ebx, %0\n"
                 : "=m"(result) : "i"(SEL_CODE32), "i"(SEL_CODE) : "rax", "rbx", "memory");
    check_equal("48 89 c3 in 32-bit code", result, 4);
    asm volatile("mov $5, %%eax\n.byte 0x48, 0x89, 0xc3\nmov %%ebx, %0\n" : "=m"(result) : : "rax", "rbx", "memory");
    check_equal("48 89 c3 in 64-bit code", result, 5);
}

void test(void)
{
    u8 *code = pages(4);

    write_cr4(read_cr4() | 0x600);
    rewritten(code);
    own_block();
    map_alias(code);
    aliases(code);
    across_pages(code);
    modes();
}
