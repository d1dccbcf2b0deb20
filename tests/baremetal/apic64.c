/* Local APIC: registers, timer in its three modes, self IPIs, priorities, TPR and CR8, ISR and IRR; I/O APIC.
 * BITS: 64
 * OPTIONS: -cpu max -serial null
 */
#include "kit/kit.h"

#define TSC_DEADLINE 0x6e0
#define APIC_BASE_MSR 0x1b
#define IOAPIC 0xfec00000u

static volatile u32 count[256];
static volatile u8 order[32];
static volatile u32 order_count;

static void let_in(void) { asm volatile("sti; nop; nop; cli" : : : "memory"); }

/* A busy host may deliver an interrupt late, but not never. */
static void let_in_until(u32 vector, u32 times)
{
    while (count[vector] < times)
        let_in();
}

static void on_interrupt(struct frame *frame)
{
    count[frame->vector]++;
    order[order_count++ & 31] = (u8)frame->vector;
    apic_write(APIC_EOI, 0);
}

static u32 ioapic_read(u32 index)
{
    *(volatile u32 *)(word)IOAPIC = index;
    return *(volatile u32 *)(word)(IOAPIC + 0x10);
}

static void ioapic_write(u32 index, u32 value)
{
    *(volatile u32 *)(word)IOAPIC = index;
    *(volatile u32 *)(word)(IOAPIC + 0x10) = value;
}

static void wait_us(u32 microseconds)
{
    u32 ticks = microseconds * 12 / 10;

    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);
    outb(0x42, (u8)ticks);
    outb(0x42, (u8)(ticks >> 8));
    while (!(inb(0x61) & 0x20))
        pause();
}

static void self_ipi(u32 vector) { apic_write(APIC_ICR_LOW, 0x40000 | vector); }

static bool in_irr(u32 vector) { return apic_read(APIC_IRR + (vector >> 5) * 16) >> (vector & 31) & 1; }
static bool in_isr(u32 vector) { return apic_read(APIC_ISR + (vector >> 5) * 16) >> (vector & 31) & 1; }

static void registers(void)
{
    check_equal("base msr", rdmsr(APIC_BASE_MSR), 0xfee00900);
    check_equal("id", apic_read(APIC_ID) >> 24, 0);
    check_equal("version", apic_read(APIC_VERSION) & 0xff, 0x14);
    check_equal("lvt entries", apic_read(APIC_VERSION) >> 16 & 0xff, 5);
    check_equal("timer lvt is masked", apic_read(APIC_LVT_TIMER) >> 16 & 1, 1);
    apic_enable();
    check_equal("svr", apic_read(APIC_SVR), 0x1ff);
    apic_write(APIC_TPR, 0x35);
    check_equal("tpr", apic_read(APIC_TPR), 0x35);
    u64 cr8;
    asm volatile("mov %%cr8, %0" : "=r"(cr8));
    check_equal("cr8", cr8, 3);
    asm volatile("mov %0, %%cr8" : : "r"(5ul));
    check_equal("tpr after cr8", apic_read(APIC_TPR), 0x50);
    check_equal("ppr follows", apic_read(APIC_PPR), 0x50);
    TRY("mov $0x10, %%eax; mov %%rax, %%cr8");
    say("cr8 out of range: %s\n", last.vector == 13 || last.vector == NO_TRAP ? "handled" : "odd trap");
    asm volatile("mov %0, %%cr8" : : "r"(0ul));
    apic_write(APIC_DFR, 0xffffffff);
    apic_write(APIC_LDR, 0x01000000);
    check_equal("ldr", apic_read(APIC_LDR), 0x01000000);
}

static void priorities(void)
{
    self_ipi(0x41);
    check_equal("requested", in_irr(0x41), 1);
    check_equal("nothing is taken with interrupts off", count[0x41], 0);
    let_in();
    check_equal("taken", count[0x41], 1);
    check_equal("no longer requested", in_irr(0x41), 0);
    check_equal("no longer in service", in_isr(0x41), 0);

    order_count = 0;
    self_ipi(0x51);
    self_ipi(0x91);
    self_ipi(0x71);
    self_ipi(0x72);
    asm volatile("sti; nop; nop; nop; nop; nop; nop; cli" : : : "memory");
    say("order: %x %x %x %x\n", order[0], order[1], order[2], order[3]);

    asm volatile("mov %0, %%cr8" : : "r"(8ul));
    order_count = 0;
    self_ipi(0x81);
    self_ipi(0x61);
    let_in();
    check_equal("below the task priority", order_count, 0);
    self_ipi(0x95);
    let_in();
    check_equal("above the task priority", order_count, 1);
    asm volatile("mov %0, %%cr8; sti; nop; nop; nop; nop; cli" : : "r"(7ul) : "memory");
    check_equal("lowered by one class", order_count, 2);
    asm volatile("mov %0, %%cr8; sti; nop; nop; nop; nop; cli" : : "r"(0ul) : "memory");
    check_equal("lowered to none", order_count, 3);
    say("order: %x %x %x\n", order[0], order[1], order[2]);
}

static void on_nested(struct frame *frame)
{
    order[order_count++ & 31] = (u8)frame->vector;
    check_equal("in service", in_isr((u32)frame->vector), 1);
    check_equal("processor priority", apic_read(APIC_PPR), frame->vector & 0xf0);
    if (frame->vector == 0x63) {
        self_ipi(0x55);                         /* waits */
        self_ipi(0x6f);                         /* same class: waits */
        self_ipi(0xa1);                         /* nests */
        let_in();
        check_equal("one nested", order_count, 2);
    }
    apic_write(APIC_EOI, 0);
}

static void nesting(void)
{
    order_count = 0;
    handlers[0x63] = handlers[0xa1] = on_nested;
    self_ipi(0x63);
    asm volatile("sti; nop; nop; nop; nop; nop; nop; cli" : : : "memory");
    say("order: %x %x %x %x of %d\n", order[0], order[1], order[2], order[3], order_count);
    handlers[0x63] = handlers[0xa1] = on_interrupt;
}

static void timer(void)
{
    apic_write(APIC_DIVIDE, 0xb);               /* by 1 */
    check_equal("divide", apic_read(APIC_DIVIDE), 0xb);
    apic_write(APIC_LVT_TIMER, 0x10000 | 0x42);
    apic_write(APIC_INITIAL, 0xffffffff);
    u32 start = apic_read(APIC_CURRENT);
    wait_us(1000);
    u32 elapsed = start - apic_read(APIC_CURRENT);
    check("current count runs down", elapsed > 10000);
    apic_write(APIC_INITIAL, 0);
    check_equal("stopped", apic_read(APIC_CURRENT), 0);

    apic_write(APIC_LVT_TIMER, 0x42);           /* one-shot */
    apic_write(APIC_INITIAL, 100000);
    let_in_until(0x42, 1);
    check_equal("one shot", count[0x42], 1);
    wait_us(20000);
    let_in();
    check_equal("and no more", count[0x42], 1);
    check_equal("current count rests at 0", apic_read(APIC_CURRENT), 0);

    apic_write(APIC_LVT_TIMER, 0x20000 | 0x43); /* periodic */
    apic_write(APIC_INITIAL, 1000000);
    for (u32 round = 0; round < 5; round++)
        asm volatile("sti; hlt; cli" : : : "memory");
    check("periodic ticks wake from hlt", count[0x43] >= 5);
    apic_write(APIC_LVT_TIMER, 0x30000 | 0x43); /* masked while it runs */
    let_in();
    u32 before = count[0x43];
    wait_us(5000);
    let_in();
    check_equal("masked", count[0x43] - before, 0);
    check("masked it still runs", apic_read(APIC_CURRENT) != 0);
    apic_write(APIC_INITIAL, 0);
}

static void deadline(void)
{
    u32 leaf[4];

    cpuid(1, 0, leaf);
    if (!(leaf[2] >> 24 & 1)) {
        /* QEMU offers the deadline mode to hardware virtualisation only: there is nothing to compare with. */
        return;
    }
    apic_write(APIC_LVT_TIMER, 0x40000 | 0x44);
    wrmsr(TSC_DEADLINE, rdtsc() + 2000000);
    asm volatile("sti; hlt; cli" : : : "memory");
    if (count[0x44] != 1)
        check_equal("deadline", count[0x44], 1);
    if (rdmsr(TSC_DEADLINE) != 0)
        check("deadline disarmed", 0);
    wrmsr(TSC_DEADLINE, 1);                     /* in the past: at once */
    let_in();
    if (count[0x44] != 2)
        check_equal("deadline in the past", count[0x44], 2);
    wrmsr(TSC_DEADLINE, rdtsc() + 5000000);
    wrmsr(TSC_DEADLINE, 0);
    wait_us(20000);
    let_in();
    if (count[0x44] != 2)
        check("cancelled deadline", 0);
    apic_write(APIC_LVT_TIMER, 0x10000);
}

/* The UART's line stays up until the third interrupt reads IIR, which takes "transmitter empty" back. */
static void on_level(struct frame *frame)
{
    if (++count[frame->vector] == 3)
        inb(0x3fa);
    apic_write(APIC_EOI, 0);
}

/* The PIT by way of the I/O APIC's pin 2, edge and masked. */
static void io_apic(void)
{
    check_equal("io apic pins", ioapic_read(1) >> 16 & 0xff, 23);
    ioapic_write(0x10 + 2 * 2 + 1, 0);
    ioapic_write(0x10 + 2 * 2, 0x10000 | 0x45);
    outb(0x43, 0x34);
    outb(0x40, 11932 & 0xff);
    outb(0x40, 11932 >> 8);
    wait_us(30000);
    let_in();
    check_equal("masked pin", count[0x45], 0);
    ioapic_write(0x10 + 2 * 2, 0x45);
    for (u32 round = 0; round < 3; round++)
        asm volatile("sti; hlt; cli" : : : "memory");
    check("pit by the io apic", count[0x45] >= 3);
    ioapic_write(0x10 + 2 * 2, 0x10000);
    outb(0x43, 0x30);
    let_in();

    /* A level pin is held until EOI: the UART's, with its line up all the while. */
    ioapic_write(0x10 + 4 * 2 + 1, 0);
    ioapic_write(0x10 + 4 * 2, 0x8046);
    handlers[0x46] = on_level;
    outb(0x3fc, 8);
    outb(0x3f9, 2);
    let_in();
    check_equal("taken again while the line is up", count[0x46], 3);
    let_in();
    check_equal("quiet once it is down", count[0x46], 3);
    check_equal("remote irr is clear", ioapic_read(0x10 + 4 * 2) >> 14 & 1, 0);
    outb(0x3f9, 0);
    ioapic_write(0x10 + 4 * 2, 0x10000);
}

/* The 8259s by LINT0 as ExtINT: how a PC starts. */
static void on_pic(struct frame *frame)
{
    count[frame->vector]++;
    pic_eoi(0);
}

static void virtual_wire(void)
{
    handlers[0x20] = on_pic;
    apic_write(APIC_LVT_LINT0, 0x700);
    pic_init(0x20, 0x28);
    outb(0x43, 0x30);
    outb(0x40, 10);
    outb(0x40, 0);
    pic_mask(0xfffe);
    let_in_until(0x20, 1);
    wait_us(1000);
    let_in();
    check_equal("extint", count[0x20], 1);
    apic_write(APIC_LVT_LINT0, 0x10700);
    pic_mask(0xffff);
}

static void errors(void)
{
    apic_write(APIC_ESR, 0);
    check_equal("error status", apic_read(APIC_ESR), 0);
    apic_write(APIC_SVR, 0x0ff);                /* software-disabled */
    check_equal("disabling masks the lvt", apic_read(APIC_LVT_TIMER) >> 16 & 1, 1);
    apic_write(APIC_SVR, 0x1ff);
}

void test(void)
{
    for (u32 vector = 0x40; vector < 0xf0; vector++)
        handlers[vector] = on_interrupt;
    registers();
    priorities();
    nesting();
    timer();
    deadline();
    io_apic();
    virtual_wire();
    errors();
}
