/* 8259 pair and 8254 in protected mode: delivery, masks, priorities, EOI, HLT, the STI shadow, spurious interrupts.
 * BITS: 32
 * OPTIONS: -serial null
 */
#include "kit/kit.h"

static volatile u32 ticks, nested_seen, order_count;
static volatile u8 order[16];

static void pit_rate(u16 divisor)
{
    outb(0x43, 0x34);                           /* channel 0, both bytes, mode 2 */
    outb(0x40, (u8)divisor);
    outb(0x40, (u8)(divisor >> 8));
}

static void pit_one_shot(u16 count)
{
    outb(0x43, 0x30);                           /* channel 0, both bytes, mode 0 */
    outb(0x40, (u8)count);
    outb(0x40, (u8)(count >> 8));
}

/* Some 20 ms, by the PIT's channel 2: no interrupt is needed. */
static void wait_20ms(void)
{
    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);
    outb(0x42, 23864 & 0xff);
    outb(0x42, 23864 >> 8);
    while (!(inb(0x61) & 0x20))
        ;
}

/* The first instruction after STI is still shielded. */
static void let_in(void) { asm volatile("sti; nop; nop; cli" : : : "memory"); }

static void on_tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    pic_eoi(0);
}

static u8 irr(u16 port) { outb(port, 0x0a); return inb(port); }
static u8 isr(u16 port) { outb(port, 0x0b); return inb(port); }

/* A busy host may deliver an edge late, but not never. */
static void wait_request(u8 mask)
{
    while (!(irr(0x20) & mask))
        pause();
}

static void masks(void)
{
    handlers[0x20] = on_tick;
    pit_rate(11932);                            /* 100 Hz */
    sti();
    wait_request(1);
    wait_20ms();
    check_equal("ticks while masked", ticks, 0);
    check_equal("request waits in the irr", irr(0x20) & 1, 1);
    pic_mask(0xfffe);
    while (ticks < 4)
        pause();
    check("ticks come", 1);
    cli();
    u32 before = ticks;
    wait_request(1);
    wait_20ms();
    check_equal("ticks with interrupts off", ticks - before, 0);
    check_equal("requests collapse into one", irr(0x20) & 1, 1);
    let_in();
    check("the waiting one is delivered", ticks > before);
}

static void halt(void)
{
    u32 before = ticks;
    for (u32 round = 0; round < 10; round++)
        asm volatile("sti; hlt; cli" : : : "memory");
    check("each hlt ends with a tick", ticks - before >= 10);

    /* STI holds interrupts off for one instruction: a pending one does not slip in before HLT. */
    pit_one_shot(1000);
    wait_request(1);
    before = ticks;
    asm volatile("sti; mov ticks, %%eax; cli; mov %%eax, %0" : "=m"(order_count) : : "eax", "memory");
    check_equal("interrupt in the sti shadow", order_count - before, 0);
    let_in();
    pit_one_shot(1000);
    wait_request(1);
    before = ticks;
    asm volatile("sti; cli" : : : "memory");
    check_equal("sti; cli lets nothing in", ticks - before, 0);
    asm volatile("sti; nop; nop; cli" : : : "memory");
    check_equal("sti; nop; nop; cli lets it in", ticks - before, 1);
}

static void note(struct frame *frame)
{
    order[order_count++ & 15] = (u8)frame->vector;
    pic_eoi(frame->vector - 0x20);
}

static void slow_low_priority(struct frame *frame)
{
    order[order_count++ & 15] = (u8)frame->vector;
    if (frame->vector == 0x24 && !nested_seen) {
        pit_one_shot(10);                       /* irq 0 is above irq 4 */
        wait_request(1);
        check_equal("in service: irq 4", isr(0x20), 0x10);
        let_in();
        nested_seen = order_count;
    }
    pic_eoi(frame->vector - 0x20);
}

/* The UART's "transmitter empty" gives interrupts on irq 4 at will. */
static void nesting(void)
{
    pic_mask(0xffff);
    pit_one_shot(65535);
    pic_init(0x20, 0x28);
    handlers[0x20] = note;
    handlers[0x24] = slow_low_priority;
    order_count = nested_seen = 0;
    outb(0x3f9, 0);
    outb(0x3fc, 0x08);                          /* OUT2 gates the line */
    outb(0x3f9, 0x02);
    pic_mask(0xffee);
    let_in();
    outb(0x3f9, 0);
    check_equal("first the uart", order[0], 0x24);
    check_equal("the timer nests inside it", order[1], 0x20);
    check_equal("nested interrupts", nested_seen, 2);
    check_equal("nothing in service", isr(0x20), 0);
}

/* The RTC's periodic interrupt comes through the slave. */
static void on_rtc(struct frame *frame)
{
    (void)frame;
    outb(0x70, 0x0c);
    order[0] = inb(0x71);
    order_count++;
    check_equal("master serves the cascade", isr(0x20), 0x04);
    check_equal("slave serves irq 8", isr(0xa0), 0x01);
    pic_eoi(8);
}

static void cascade(void)
{
    pic_init(0x20, 0x28);
    handlers[0x28] = on_rtc;
    order_count = 0;
    outb(0x70, 0x0a);
    outb(0x71, 0x2f);                           /* 2 Hz: one within the test */
    outb(0x70, 0x0c);
    inb(0x71);
    outb(0x70, 0x0b);
    outb(0x71, 0x42);
    pic_mask(0xfefb);
    while (!order_count)
        asm volatile("sti; hlt; cli" : : : "memory");
    outb(0x70, 0x0b);
    outb(0x71, 0x02);
    check_equal("rtc flags", order[0] & 0xc0, 0xc0);
    check_equal("nothing in service in the slave", isr(0xa0), 0);
}

/* A line that drops between request and acknowledge gives vector 7 and no in-service bit. */
static void spurious(void)
{
    pic_init(0x20, 0x28);
    outb(0x4d0, 0x10);                          /* ELCR: irq 4 level, so that dropping the line takes the request away */
    handlers[0x24] = handlers[0x27] = note;
    order_count = 0;
    pic_mask(0xffef);
    outb(0x3f9, 0x02);
    inb(0x3fd);
    check_equal("level request", irr(0x20) & 0x10, 0x10);
    outb(0x3f9, 0);
    check_equal("level request withdrawn", irr(0x20) & 0x10, 0);
    let_in();
    check_equal("nothing delivered", order_count, 0);
    outb(0x4d0, 0);
}

static void rotation_and_special_eoi(void)
{
    pic_init(0x20, 0x28);
    pit_one_shot(10);
    wait_request(1);
    pic_mask(0xfffe);
    outb(0x20, 0x0c);                           /* poll command */
    check_equal("poll acknowledges irq 0", inb(0x20) & 0x87, 0x80);
    check_equal("in service after poll", isr(0x20), 1);
    outb(0x20, 0x60);                           /* specific EOI, irq 0 */
    check_equal("after a specific eoi", isr(0x20), 0);
    check_equal("mask reads back", inb(0x21), 0xfe);
    pic_mask(0xffff);
}

static void software_interrupts(void)
{
    handlers[0x27] = NULL;
    TRY("int $0x27");
    show("int 0x27");
    TRY("into; nop");
    show("into without overflow");
    TRY("mov $0x7fffffff, %%eax; inc %%eax; into; nop");
    show("into with overflow");
}

void test(void)
{
    masks();
    halt();
    nesting();
    cascade();
    spurious();
    rotation_and_special_eoi();
    software_interrupts();
}
