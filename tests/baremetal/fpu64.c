/* x87, MMX, SSE: state images of FXSAVE and XSAVE, rounding, exceptions masked and not, lazy switching with CR0.TS.
 * BITS: 64
 * OPTIONS: -cpu max
 */
#include "kit/kit.h"

struct __attribute__((packed, aligned(64))) image {
    u16 fcw, fsw;
    u8 ftw, reserved;
    u16 fop;
    u64 fip, fdp;
    u32 mxcsr, mxcsr_mask;
    u8 st[8][16], xmm[16][16];
    u8 rest[96];
    u8 header[64];
    u8 extended[4096];
};

static struct image first, second;

static void fxsave(struct image *image) { asm volatile("fxsave64 %0" : "=m"(*image)); }
static void fxrstor(struct image *image) { asm volatile("fxrstor64 %0" : : "m"(*image)); }

static void show_bytes(const char *what, const u8 *bytes, u32 count)
{
    say("%s:", what);
    for (u32 index = 0; index < count; index++)
        say(" %c%c", "0123456789abcdef"[bytes[index] >> 4], "0123456789abcdef"[bytes[index] & 15]);
    put_char('\n');
}

static void x87(void)
{
    static const double values[] = {1.0, 3.0, -2.5, 1e300, 0.1};
    static u64 result;
    static u8 extended[10];

    asm volatile("fninit; fld1; fldpi; fldl2e; fldz");
    fxsave(&first);
    check_equal("control word", first.fcw, 0x37f);
    check_equal("top of stack", first.fsw >> 11 & 7, 4);
    check_equal("abridged tag word", first.ftw, 0xf0);
    show_bytes("pi", first.st[2], 10);
    show_bytes("log2 e", first.st[1], 10);
    asm volatile("fninit; fldl %1; fdivl %2; fstpl %0" : "=m"(result) : "m"(values[0]), "m"(values[1]));
    check_equal("1 / 3", result, 0x3fd5555555555555);
    asm volatile("fldl %1; fsqrt; fstpt %0" : "=m"(extended) : "m"(values[1]));
    show_bytes("sqrt 3", extended, 10);
    asm volatile("fldpi; fsin; fstpl %0" : "=m"(result));
    say("sin pi is small: %d\n", (u32)(result >> 52 & 0x7ff) < 1023 - 40);
    static const u16 round_up = 0xb7f, round_down = 0x77f;
    static u32 integer;
    asm volatile("fldcw %1; fldl %2; fistpl %0; fninit" : "=m"(integer) : "m"(round_up), "m"(values[2]));
    check_equal("-2.5 rounded up", integer, (u32)-2);
    asm volatile("fldcw %1; fldl %2; fistpl %0; fninit" : "=m"(integer) : "m"(round_down), "m"(values[2]));
    check_equal("-2.5 rounded down", integer, (u32)-3);
    asm volatile("fldl %1; fistpl %0" : "=m"(integer) : "m"(values[2]));
    check_equal("-2.5 to even", integer, (u32)-2);
    static u8 decimal[10];
    static u64 large = 123456789012345678ull;
    asm volatile("fildq %1; fbstp %0" : "=m"(decimal) : "m"(large));
    show_bytes("bcd", decimal, 10);
    static u16 status;
    asm volatile("fninit; fldl %1; fcompl %2; fnstsw %0" : "=m"(status) : "m"(values[0]), "m"(values[1]));
    check_equal("1 < 3", status & 0x4500, 0x0100);
    asm volatile("fninit; fld1; fldz; fdivrp; fnstsw %0" : "=m"(status));
    say("zero into one: %x\n", status & 0x3f);
    asm volatile("fninit; fldz; fld1; fdivp; fnstsw %0" : "=m"(status));
    say("one into zero: %x\n", status & 0x3f);
}

/* Unmasked, with CR0.NE: #MF at the next waiting instruction, not at the faulting one. */
static void x87_exception(void)
{
    static const u16 unmasked = 0x37b;

    write_cr0(read_cr0() | 0x20);
    TRY("fninit; fldcw %0; fld1; fldz; fdivrp %%st, %%st(1); nop; fwait", "m"(unmasked));
    say("x87 divide by zero: %s\n", last.vector == NO_TRAP ? "no trap" : trap_name(last.vector));
    asm volatile("fnclex; fninit");
}

static void sse(void)
{
    static u32 mxcsr = 0x1f80;
    static float a[4] __attribute__((aligned(16))) = {1, 2, 3, 4}, b[4] __attribute__((aligned(16))) = {10, 20, 40, 80};
    static u8 bytes[16] __attribute__((aligned(16)));

    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
    asm volatile("movaps %1, %%xmm0; divps %2, %%xmm0; movaps %%xmm0, %0" : "=m"(bytes) : "m"(a), "m"(b));
    show_bytes("divps", bytes, 16);
    asm volatile("movaps %1, %%xmm1; shufps $0x1b, %%xmm1, %%xmm1; movaps %%xmm1, %0" : "=m"(bytes) : "m"(a));
    show_bytes("shufps", bytes, 16);
    asm volatile("pcmpeqd %%xmm2, %%xmm2; psrlq $4, %%xmm2; movaps %%xmm2, %0" : "=m"(bytes));
    show_bytes("psrlq", bytes, 16);
    asm volatile("movaps %1, %%xmm3; cvttps2dq %%xmm3, %%xmm3; movaps %%xmm3, %0" : "=m"(bytes) : "m"(b));
    show_bytes("cvttps2dq", bytes, 16);
    u32 down = 0x3f80;
    u64 result;
    asm volatile("ldmxcsr %1; mov $10, %%eax; cvtsi2sd %%eax, %%xmm4; mov $3, %%eax; cvtsi2sd %%eax, %%xmm5;"
                 "divsd %%xmm5, %%xmm4; movq %%xmm4, %0" : "=r"(result) : "m"(down) : "eax");
    say("10 / 3 rounded down: %X\n", result);
    asm volatile("ldmxcsr %1; mov $10, %%eax; cvtsi2sd %%eax, %%xmm4; mov $3, %%eax; cvtsi2sd %%eax, %%xmm5;"
                 "divsd %%xmm5, %%xmm4; movq %%xmm4, %0" : "=r"(result) : "m"(mxcsr) : "eax");
    say("10 / 3 rounded to nearest: %X\n", result);
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
}

static void sse_gating(void)
{
    write_cr4(read_cr4() & ~0x200ul);
    TRY("movaps %%xmm0, %%xmm1");
    show("sse without osfxsr");
    write_cr4(read_cr4() | 0x200);
    TRY("movaps %%xmm0, %%xmm1");
    show("sse with osfxsr");
    write_cr0(read_cr0() | 8);
    TRY("movaps %%xmm0, %%xmm1");
    show("sse with ts");
    TRY("movd %%eax, %%mm0");
    show("mmx with ts");
    TRY("fxsave first");
    show("fxsave with ts");
    asm volatile("clts");
}

static void state_images(void)
{
    static u64 pattern[2] __attribute__((aligned(16))) = {0x0123456789abcdef, 0xfedcba9876543210};

    asm volatile("fninit; fld1; fldpi; movaps %0, %%xmm7; movaps %0, %%xmm15" : : "m"(pattern));
    fxsave(&first);
    show_bytes("xmm7", first.xmm[7], 16);
    show_bytes("xmm15", first.xmm[15], 16);
    asm volatile("fninit; xorps %xmm7, %xmm7; xorps %xmm15, %xmm15");
    fxrstor(&first);
    fxsave(&second);
    check("fxsave after fxrstor", memcmp(first.st, second.st, sizeof(first.st) + sizeof(first.xmm)) == 0
                                      && first.fcw == second.fcw && first.fsw == second.fsw && first.ftw == second.ftw
                                      && first.mxcsr == second.mxcsr);
    /* MMX registers lie in the x87 ones. */
    asm volatile("fninit; mov %0, %%rax; movq %%rax, %%mm3" : : "i"(0x1122334455667788) : "rax");
    fxsave(&second);
    show_bytes("mm3 as st3", second.st[3], 8);
    check_equal("tags after mmx", second.ftw, 0xff);
    asm volatile("emms");
    fxsave(&second);
    check_equal("tags after emms", second.ftw, 0);
}

static void xsave(void)
{
    u32 leaf[4];

    cpuid(1, 0, leaf);
    if (!(leaf[2] >> 26 & 1)) {
        say("FAIL no xsave\n");
        return;
    }
    TRY("xor %%ecx, %%ecx; xgetbv");
    show("xgetbv without osxsave");
    write_cr4(read_cr4() | 0x40000);
    cpuid(1, 0, leaf);
    check_equal("osxsave in cpuid", leaf[2] >> 27 & 1, 1);
    TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; mov $2, %%eax; xsetbv");
    show("xcr0 without x87");
    TRY("mov $1, %%ecx; xor %%edx, %%edx; mov $3, %%eax; xsetbv");
    show("xcr1");
    TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; mov $3, %%eax; xsetbv");
    show("xcr0 = x87 and sse");
    u32 low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    check_equal("xcr0", low, 3);
    cpuid(13, 0, leaf);
    check_equal("size of the enabled state", leaf[1], 576);

    fxrstor(&first);
    memset(&second, 0, sizeof(second));
    asm volatile("xsave64 %0" : "=m"(second) : "a"(3), "d"(0));
    check_equal("xstate_bv", second.header[0], 3);
    check("xsave equals fxsave", memcmp(first.xmm, second.xmm, sizeof(first.xmm)) == 0);
    asm volatile("xorps %xmm7, %xmm7; fninit");
    asm volatile("xrstor64 %0" : : "m"(second), "a"(3), "d"(0));
    fxsave(&second);
    check("xrstor brings it back", memcmp(first.xmm, second.xmm, sizeof(first.xmm)) == 0);
    memset(second.header, 0, 64);
    second.mxcsr = 0x1f80;
    asm volatile("xrstor64 %0" : : "m"(second), "a"(3), "d"(0));
    fxsave(&second);
    u8 zeros[16];
    memset(zeros, 0, 16);
    check("xrstor of nothing is the initial state", memcmp(second.xmm[7], zeros, 16) == 0);
    check_equal("and the initial control word", second.fcw, 0x37f);
}

void test(void)
{
    write_cr0((read_cr0() & ~0xcul) | 2);
    write_cr4(read_cr4() | 0x600);
    x87();
    x87_exception();
    sse();
    sse_gating();
    state_images();
    xsave();
}
