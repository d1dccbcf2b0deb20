/* The rest of a processor's system side: real mode and back, A20, NMI, debug registers.
 * BITS: 32
 */
#include "kit/kit.h"

/* Runs in real mode at 0x7000: int 0x60 through the vector table, 32-bit operands, a big-real segment, then back. */
extern u8 real_start[], real_end[];
void real_trip(void);
struct { u16 magic, vector, flags; u32 wide, far; u16 sp; } __attribute__((packed)) *const real = (void *)0x6000;

asm(".text\n"
    ".global real_trip\n"
    "real_trip:\n"
    "  pusha\n"
    "  sidt saved_idt\n"
    "  mov %esp, saved_sp\n"
    "  lidt real_idt\n"
    "  ljmp $0x38, $0x7000\n"
    ".code16\n"
    ".global real_start, real_end\n"
    "real_start:\n"
    "  mov $0x40, %ax\n"
    "  mov %ax, %ds\n  mov %ax, %es\n  mov %ax, %ss\n  mov %ax, %fs\n  mov %ax, %gs\n"
    "  mov %cr0, %eax\n"
    "  and $0xfe, %al\n"
    "  mov %eax, %cr0\n"
    "  ljmp $0x700, $(1f - real_start)\n"
    "1: xor %ax, %ax\n"
    "  mov %ax, %ds\n"
    "  mov %ax, %ss\n"
    "  mov $0x5000, %sp\n"
    "  mov $0x700, %ax\n"
    "  mov %ax, %es\n"
    "  movw $0x1234, 0x6000\n"
    /* vector 0x60 -> 0700:handler */
    "  movw $(real_handler - real_start), 0x180\n"
    "  movw $0x700, 0x182\n"
    "  sti\n"
    "  int $0x60\n"
    "  pushf\n  popw 0x6004\n"
    "  cli\n"
    "  movl $0x89abcdef, %eax\n"
    "  roll $4, %eax\n"
    "  movl %eax, 0x6006\n"
    /* divide error through vector 0, in real mode: the saved ip is that of the instruction */
    "  movw $(real_divide - real_start), 0\n"
    "  movw $0x700, 2\n"
    "  xor %cx, %cx\n"
    "  div %cx\n"
    "2: movw %sp, 0x600e\n"
    /* ffff:0010 is 0x100000 while A20 is open */
    "  mov $0xffff, %ax\n"
    "  mov %ax, %es\n"
    "  movl %es:0x10, %eax\n"
    "  movl %eax, 0x600a\n"
    "  lgdtl %cs:(real_gdt - real_start)\n"
    "  mov %cr0, %eax\n"
    "  or $1, %al\n"
    "  mov %eax, %cr0\n"
    "  ljmpl $0x08, $real_back\n"
    "real_handler:\n"
    "  movw $0x6060, 0x6002\n"
    "  iret\n"
    "real_divide:\n"
    "  pop %ax\n"
    "  add $2, %ax\n"
    "  push %ax\n"
    "  iret\n"
    "real_gdt: .word 255\n .long gdt\n"
    "real_end:\n"
    ".code32\n"
    "real_back:\n"
    "  mov $0x10, %eax\n"
    "  mov %eax, %ds\n  mov %eax, %es\n  mov %eax, %ss\n  mov %eax, %fs\n  mov %eax, %gs\n"
    "  mov saved_sp, %esp\n"
    "  lidt saved_idt\n"
    "  popa\n"
    "  ret\n"
    ".data\n"
    "saved_idt: .skip 8\n"
    "saved_sp: .skip 4\n"
    "real_idt: .word 0x3ff\n .long 0\n"
    ".previous\n");

static void real_mode(void)
{
    u8 vectors[1024];

    memcpy(vectors, NULL, sizeof(vectors));
    for (u32 round = 0; round < 3; round++) {
        memset(real, 0, sizeof(*real));
        memcpy((void *)0x7000, real_start, (word)(real_end - real_start));
        real_trip();
        check_equal("real mode ran", real->magic, 0x1234);
        check_equal("software interrupt", real->vector, 0x6060);
        check_equal("if after iret", real->flags & 0x200, 0x200);
        check_equal("32-bit operands", real->wide, 0x9abcdef8);
        check_equal("stack after the divide error", real->sp, 0x5000);
        check_equal("ffff:0010", real->far, *(u32 *)0x100000);
    }
    memcpy(NULL, vectors, sizeof(vectors));
}

/* Runs below 1 MiB: with A20 shut, this program's own memory is not where it was.  Returns the byte at 0x300500. */
asm(".text\n"
    ".global a20_start, a20_end\n"
    "a20_start:\n"
    "  in $0x92, %al\n"
    "  and $0xfc, %al\n"
    "  out %al, $0x92\n"
    "  movzbl 0x300500, %ecx\n"
    "  in $0x92, %al\n"
    "  mov %al, %ch\n"
    "  or $2, %al\n"
    "  out %al, $0x92\n"
    "  mov %ecx, %eax\n"
    "  ret\n"
    "a20_end:\n"
    ".previous\n");
extern u8 a20_start[], a20_end[];

static void a20(void)
{
    volatile u8 *low = (volatile u8 *)0x200500, *high = (volatile u8 *)0x300500;
    u32 (*probe)(void) = (u32 (*)(void))0x7000;

    check_equal("port 92 has a20 open", inb(0x92) >> 1 & 1, 1);
    *low = 4;
    *high = 2;
    check_equal("open: the lower address", *low, 4);
    check_equal("open: the upper address", *high, 2);
    memcpy((void *)0x7000, a20_start, (word)(a20_end - a20_start));
    u32 shut = probe();
    check_equal("shut: the upper address shows the lower", shut & 0xff, 4);
    check_equal("shut: port 92", shut >> 9 & 1, 0);
    check_equal("open again: port 92", inb(0x92) >> 1 & 1, 1);
    check_equal("open again: the upper address", *high, 2);
}

static volatile u32 nmis, nmi_depth;

/* An NMI comes at some boundary soon after the write that sends it. */
static void settle(void)
{
    for (u32 round = 0; round < 1000; round++)
        pause();
}

static void on_nmi(struct frame *frame)
{
    (void)frame;
    nmis++;
    if (nmis == 1) {
        apic_write(APIC_ICR_LOW, 0x40400);      /* held back until this one's IRET */
        settle();
        nmi_depth = nmis;
    }
}

static void nmi(void)
{
    apic_enable();
    handlers[2] = on_nmi;
    apic_write(APIC_ICR_LOW, 0x40400);          /* to itself, with interrupts off */
    settle();
    check_equal("nmi inside an nmi", nmi_depth, 1);
    check_equal("nmis in all", nmis, 2);
}

static word dr6(void) { word v; asm volatile("mov %%dr6, %0" : "=r"(v)); return v; }

static volatile u32 watched;

static void debug_registers(void)
{
    asm volatile("mov %0, %%dr0" : : "r"(&watched));
    asm volatile("mov %0, %%dr6" : : "r"(0));
    asm volatile("mov %0, %%dr7" : : "r"(0x000d0602));  /* breakpoint 0: global, write, four bytes */
    TRY("movl $1, watched; nop");
    say("data breakpoint: %s dr6 bit %d\n", last.vector == NO_TRAP ? "no trap" : trap_name(last.vector), (u32)dr6() & 15);
    asm volatile("mov %0, %%dr7" : : "r"(0x400));
    asm volatile("mov %0, %%dr6" : : "r"(0));
    TRY("pushf; orl $0x100, (%%esp); popf; nop; nop");
    say("single step: %s dr6 bs %d\n", trap_name(last.vector), (u32)dr6() >> 14 & 1);
    asm volatile("mov %0, %%dr3" : : "r"(0x12345678));
    word value;
    asm volatile("mov %%dr3, %0" : "=r"(value));
    check_equal("dr3 reads back", value, 0x12345678);
}

static void eflags_id(void)
{
    TRY("pushf; pop %%eax; mov %%eax, %%ebx; xor $0x240000, %%eax; push %%eax; popf; pushf; pop %%eax; xor %%ebx, %%eax;"
        "mov %%eax, real_word; push %%ebx; popf");
    extern u32 real_word;
    check_equal("ac and id can be changed", real_word, 0x240000);
}
u32 real_word;

void test(void)
{
    real_mode();
    a20();
    nmi();
    debug_registers();
    eflags_id();
}
