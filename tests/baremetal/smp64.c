/* A second processor: INIT and SIPI, IPIs both ways, NMI, shared memory, locks, TLB shootdown, code changed by the other.
 * BITS: 64
 * OPTIONS: -smp 2
 */
#include "kit/kit.h"

extern u64 pml4[512];
static volatile u32 stage, pings, pongs, nmis, lock_word, ap_error, ap_apic_id;
static volatile u64 counter, ap_value;
static u64 *table;
static u8 *frame_a, *frame_b, *code_page;
typedef u32 function(void);

#define ALIAS 0x8000000000ull
#define ROUNDS 20000

/* The value or a later one: the other side may have gone on already. */
static void wait_for(volatile u32 *what, u32 value)
{
    while (*what < value)
        pause();
}

static void on_ping(struct frame *frame)
{
    (void)frame;
    pings++;
    apic_write(APIC_EOI, 0);
    apic_ipi(0, 0x4051);
}

static void on_pong(struct frame *frame)
{
    (void)frame;
    pongs++;
    apic_write(APIC_EOI, 0);
}

static void on_nmi(struct frame *frame)
{
    (void)frame;
    nmis++;
}

static void on_shootdown(struct frame *frame)
{
    (void)frame;
    invlpg(ALIAS);
    ap_value = *(volatile u8 *)ALIAS;
    apic_write(APIC_EOI, 0);
    stage = 21;
}

static void take(void)
{
    u32 one = 1;
    for (;;) {
        asm volatile("xchg %0, %1" : "+r"(one), "+m"(lock_word) : : "memory");
        if (!one)
            return;
        while (lock_word)
            pause();
        one = 1;
    }
}

static void count_locked(void)
{
    for (u32 round = 0; round < ROUNDS; round++) {
        take();
        counter = counter + 1;
        asm volatile("" : : : "memory");
        lock_word = 0;
    }
}

static volatile u64 added, exchanged;

static void count_atomically(void)
{
    for (u32 round = 0; round < ROUNDS; round++) {
        asm volatile("lock; incq %0" : "+m"(added) : : "memory");
        u64 old, new;
        do {
            old = exchanged;
            new = old + 1;
            asm volatile("lock; cmpxchgq %2, %1" : "+a"(old), "+m"(exchanged) : "r"(new) : "memory", "cc");
        } while (old + 1 != new);
    }
}

static void second(void)
{
    ap_apic_id = apic_read(APIC_ID) >> 24;
    apic_enable();
    stage = 1;
    wait_for(&stage, 2);
    for (;;) {
        asm volatile("sti; hlt; cli" : : : "memory");
        if (stage == 3)
            break;
    }
    count_locked();
    stage = 4;
    wait_for(&stage, 5);
    count_atomically();
    stage = 6;
    wait_for(&stage, 7);
    ap_value = *(volatile u8 *)ALIAS;
    stage = 8;
    while (stage < 21)
        asm volatile("sti; nop; nop; cli; pause" : : : "memory");
    wait_for(&stage, 22);
    function *code = (function *)(word)code_page;
    ap_value = code();
    stage = 23;
    wait_for(&stage, 24);
    u32 leaf[4];
    cpuid(0, 0, leaf);                          /* serialise, as cross-modifying code must */
    ap_value = code();
    stage = 25;
    for (;;)
        asm volatile("cli; hlt");
}

static void startup(void)
{
    check_equal("bsp bit", rdmsr(0x1b) >> 8 & 1, 1);
    start_processor(1, second);
    wait_for(&stage, 1);
    check_equal("its apic id", ap_apic_id, 1);
}

static void interrupts(void)
{
    sti();
    stage = 2;
    for (u32 round = 0; round < 100; round++) {
        apic_ipi(1, 0x4050);
        wait_for(&pongs, round + 1);
    }
    check_equal("pings taken", pings, 100);
    check_equal("pongs taken", pongs, 100);
    apic_write(APIC_ICR_LOW, 0xc4050);          /* all but self */
    wait_for(&pongs, 101);
    check_equal("all but self", pings, 101);
    apic_ipi(1, 0x4400);                        /* NMI wakes it as well */
    wait_for(&nmis, 1);
    check_equal("nmi", nmis, 1);
    cli();
    stage = 3;
    apic_ipi(1, 0x4400);
}

static void shared_memory(void)
{
    count_locked();
    wait_for(&stage, 4);
    check_equal("locked increments", counter, 2 * ROUNDS);
    stage = 5;
    count_atomically();
    wait_for(&stage, 6);
    check_equal("atomic increments", added, 2 * ROUNDS);
    check_equal("compare and exchange", exchanged, 2 * ROUNDS);
}

static void shootdown(void)
{
    stage = 7;
    wait_for(&stage, 8);
    check_equal("the other's view", ap_value, 0xaa);
    table[0] = (word)frame_b | 7;
    apic_ipi(1, 0x4060);
    wait_for(&stage, 21);
    check_equal("its view after the shootdown", ap_value, 0xbb);
}

static void emit(volatile u8 *at, u32 value)
{
    at[0] = 0xb8;
    *(volatile u32 *)(at + 1) = value;
    at[5] = 0xc3;
}

static void cross_modifying(void)
{
    emit(code_page, 0x100);
    check_equal("code run here", ((function *)(word)code_page)(), 0x100);
    stage = 22;
    wait_for(&stage, 23);
    check_equal("code run there", ap_value, 0x100);
    emit(code_page, 0x200);
    stage = 24;
    wait_for(&stage, 25);
    check_equal("changed here, run there", ap_value, 0x200);
}

/* INIT puts the other into wait-for-SIPI; it can be started anew. */
static void again(void)
{
    stage = 0;
    start_processor(1, second);
    wait_for(&stage, 1);
    check_equal("started a second time", stage, 1);
}

void test(void)
{
    u64 *pdpt = pages(1), *directory = pages(1);

    table = pages(1);
    frame_a = pages(1);
    frame_b = pages(1);
    code_page = pages(1);
    memset(frame_a, 0xaa, 4096);
    memset(frame_b, 0xbb, 4096);
    table[0] = (word)frame_a | 7;
    directory[0] = (word)table | 7;
    pdpt[0] = (word)directory | 7;
    pml4[1] = (word)pdpt | 7;
    handlers[2] = on_nmi;
    handlers[0x50] = on_ping;
    handlers[0x51] = on_pong;
    handlers[0x60] = on_shootdown;
    apic_enable();
    startup();
    interrupts();
    shared_memory();
    shootdown();
    cross_modifying();
    again();
}
