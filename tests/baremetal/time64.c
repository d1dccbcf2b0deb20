/* RDTSC, RDTSCP, CPUID, the PM timer and the HPET: time goes forward, at rates that agree.
 * BITS: 64
 */
#include "kit/kit.h"

#define HPET 0xfed00000u

static u64 hpet(void) { return *(volatile u64 *)(word)(HPET + 0xf0); }
static u32 pm_timer(void) { return inl(0x608) & 0xffffff; }

/* Wait with channel 2 of the PIT: `ticks` of 1,193,182 Hz. */
static void pit_wait(u16 ticks)
{
    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);
    outb(0x42, (u8)ticks);
    outb(0x42, (u8)(ticks >> 8));
    while (!(inb(0x61) & 0x20))
        pause();
}

static void tsc(void)
{
    u64 previous = rdtsc();
    u32 backwards = 0, rounds = 0;

    for (; rounds < 10000; rounds++) {
        u64 now = rdtsc();
        backwards += now < previous;
        previous = now;
    }
    check_equal("rdtsc went back", backwards, 0);
    u64 start = rdtsc();
    pit_wait(11932);
    check("rdtsc moves", rdtsc() - start > 1000000);
    u32 leaf[4];
    cpuid(0x80000001, 0, leaf);
    if (leaf[3] >> 27 & 1) {
        wrmsr(0xc0000103, 0x1234);
        u32 low, high, aux;
        asm volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
        check_equal("tsc_aux", aux, 0x1234);
    }
    TRY("rdtsc; shl $32, %%rdx; or %%rdx, %%rax; mov %%rax, %%rbx; rdtsc; shl $32, %%rdx; or %%rdx, %%rax;"
        "cmp %%rbx, %%rax; jae 3f; ud2; 3: nop");
    show("two in a row");
}

static void rates(void)
{
    u64 control = *(volatile u64 *)(word)(HPET + 0x10);
    u64 period = *(volatile u64 *)(word)HPET >> 32;

    check_equal("hpet period in femtoseconds", period, 10000000);
    *(volatile u64 *)(word)(HPET + 0x10) = control | 1;
    pit_wait(1000);
    u64 hpet_start = hpet();
    u32 pm_start = pm_timer();
    u64 tsc_start = rdtsc();
    pit_wait(59659);                            /* 50 ms */
    u64 hpet_ticks = hpet() - hpet_start;
    u32 pm_ticks = (pm_timer() - pm_start) & 0xffffff;
    u64 tsc_ticks = rdtsc() - tsc_start;
    /* 50 ms are 5,000,000 ticks of the HPET and 178,977 of the PM timer; the host may be slow, not fast. */
    check("hpet ran for 50 ms at least", hpet_ticks >= 4990000);
    check("pm timer ran for 50 ms at least", pm_ticks >= 178600);
    check("tsc ran", tsc_ticks > 10000000);
    u64 expected = (u64)pm_ticks * 10000 / 358;  /* in HPET ticks, roughly: 27.93 of them each */
    check("hpet and pm timer agree within 10 %", hpet_ticks > expected - expected / 10 && hpet_ticks < expected + expected / 10);
    *(volatile u64 *)(word)(HPET + 0x10) = control;
}

static void identification(void)
{
    u32 leaf[4], name[13];

    cpuid(0, 0, leaf);
    check("basic leaves", leaf[0] >= 7);
    cpuid(1, 0, leaf);
    say("fpu %d tsc %d msr %d pae %d apic %d pge %d cmov %d pat %d mmx %d fxsr %d sse %d sse2 %d\n", leaf[3] & 1,
        leaf[3] >> 4 & 1, leaf[3] >> 5 & 1, leaf[3] >> 6 & 1, leaf[3] >> 9 & 1, leaf[3] >> 13 & 1, leaf[3] >> 15 & 1,
        leaf[3] >> 16 & 1, leaf[3] >> 23 & 1, leaf[3] >> 24 & 1, leaf[3] >> 25 & 1, leaf[3] >> 26 & 1);
    say("sse3 %d cx16 %d hypervisor %d\n", leaf[2] & 1, leaf[2] >> 13 & 1, leaf[2] >> 31);
    check_equal("initial apic id", leaf[1] >> 24, 0);
    cpuid(0x80000000, 0, leaf);
    check("extended leaves", leaf[0] >= 0x80000008);
    cpuid(0x80000001, 0, leaf);
    say("syscall %d nx %d long mode %d\n", leaf[3] >> 11 & 1, leaf[3] >> 20 & 1, leaf[3] >> 29 & 1);
    for (u32 index = 0; index < 3; index++)
        cpuid(0x80000002 + index, 0, name + 4 * index);
    name[12] = 0;
    check("brand string", ((u8 *)name)[0] != 0);
    cpuid(0x80000008, 0, leaf);
    check_equal("virtual address bits", leaf[0] >> 8 & 0xff, 48);
    check("physical address bits", (leaf[0] & 0xff) >= 36 && (leaf[0] & 0xff) <= 52);
}

void test(void)
{
    tsc();
    rates();
    identification();
}
