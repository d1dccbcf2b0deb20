/* Exceptions in long mode: vectors, error codes, CR2, return addresses, stacks, nesting.
 * BITS: 64
 */
#include "kit/kit.h"

#define FREE_DATA_ABSENT (SEL_FREE + 0)
#define FREE_CODE_ABSENT (SEL_FREE + 8)
#define FREE_READ_ONLY (SEL_FREE + 16)

static void divide(void)
{
    TRY("xor %%ecx, %%ecx; mov $1, %%eax; cdq; div %%ecx");
    show("div by zero");
    TRY("mov $1, %%ecx; xor %%eax, %%eax; mov $1, %%edx; div %%ecx");
    show("div overflow");
    TRY("mov $-1, %%rcx; mov $1, %%rdx; shl $63, %%rdx; xchg %%rax, %%rdx; cqo; idiv %%rcx",
        "m"(last));
    show("idiv of the most negative by -1");
}

static void traps_after(void)
{
    TRY("int3; nop");
    show("int3");
    TRY("int $0x80; nop");
    show("int 0x80");
    TRY("int $3; nop");
    show("int 3 in two bytes");
    TRY("ud2");
    show("ud2");
    TRY(".byte 0xce");
    show("into is not in 64-bit mode");
    TRY(".byte 0x0f, 0x0b");
    show("0f 0b");
    TRY(".byte 0xf0, 0x90");
    show("lock nop");
    TRY(".byte 0x06");
    show("push es is not in 64-bit mode");
}

static void general_protection(void)
{
    TRY("mov %0, %%rax; mov (%%rax), %%rcx", "i"(0x1000000000000000));
    show("load from a non-canonical address");
    TRY("mov %0, %%rax; mov %%rcx, (%%rax)", "i"(0x0000800000000000));
    show("store just above the lower half");
    TRY("mov $0xfff8, %%eax; mov %%eax, %%ds");
    show("ds beyond the gdt limit");
    asm volatile("lldt %0" : : "r"((u16)0));
    TRY("mov %0, %%eax; mov %%eax, %%ds", "i"(SEL_CODE | 4));
    show("ds from no ldt");
    TRY("xor %%eax, %%eax; mov %%eax, %%ss");
    say("null ss in ring 0: %s\n", last.vector == NO_TRAP ? "allowed" : trap_name(last.vector));
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(SEL_DATA));
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(SEL_CODE));
    show("ss from a code segment");
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(SEL_USER_DATA));
    show("ss of ring 3 in ring 0");
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(FREE_READ_ONLY));
    show("ss read-only");
    TRY("push %0; push %1; lretq", "i"(0), "i"(0x100000));
    show("far return to a null selector");
    TRY("push %0; push %1; lretq", "i"(SEL_DATA), "i"(0x100000));
    show("far return to a data segment");
    TRY("push %0; push %1; lretq", "i"(FREE_CODE_ABSENT), "i"(0x100000));
    show("far return to an absent segment");
    TRY("mov %0, %%eax; ltr %%ax", "i"(SEL_DATA));
    show("ltr of a data segment");
    TRY("mov %0, %%eax; ltr %%ax", "i"(SEL_TSS));
    show("ltr of a busy tss");
}

static void absent_segments(void)
{
    TRY("mov %0, %%eax; mov %%eax, %%ds", "i"(FREE_DATA_ABSENT));
    show("ds absent");
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(FREE_DATA_ABSENT));
    show("ss absent");
    default_gate(0x70, 0x0e, 0);
    TRY("int $0x70");
    show("gate absent");
    set_gate(0x71, (void (*)(void))0x100000, SEL_CODE, 0x85, 0);
    TRY("int $0x71");
    show("gate of an unknown type");
    set_gate(0x72, (void (*)(void))0x100000, SEL_DATA, GATE_INTERRUPT, 0);
    TRY("int $0x72");
    show("gate to a data segment");
    set_gate(0x73, (void (*)(void))0x100000, SEL_CODE32, GATE_INTERRUPT, 0);
    TRY("int $0x73");
    show("gate to a 32-bit segment");
    set_gate(0x74, (void (*)(void))0x100000, 0, GATE_INTERRUPT, 0);
    TRY("int $0x74");
    show("gate to a null segment");
    load_idt(16 * 0x80 - 1);
    TRY("int $0x90");
    show("vector beyond the idt limit");
    load_idt(sizeof(idt) - 1);
}

static void device_not_available(void)
{
    write_cr0(read_cr0() | 8);
    TRY("fninit");
    show("fninit with ts");
    TRY("clts; fninit; fwait");
    show("fninit after clts");
    write_cr0(read_cr0() | 4);
    TRY("fninit");
    show("fninit with em");
    write_cr0(read_cr0() & ~4ul);
}

static void page_faults(void)
{
    TRY("mov %0, %%rax; mov (%%rax), %%ecx", "i"(0x8000123456));
    show("read of an unmapped page");
    TRY("mov %0, %%rax; mov %%ecx, (%%rax)", "i"(0x8000123456));
    show("write of an unmapped page");
    TRY("mov %0, %%rax; jmp *%%rax", "i"(0x8000123456));
    say("jump to an unmapped page: %s error=%w cr2=%w ip=%w\n", trap_name(last.vector), last.error, last.cr2, last.ip);
}

static void double_faults(void)
{
    /* A #GP whose gate is absent: contributory after contributory. */
    default_gate(13, 0x0e, 0);
    TRY("mov $0xfff8, %%eax; mov %%eax, %%ds");
    show("#GP without a gate");
    default_gate(13, GATE_INTERRUPT, 0);

    /* A page fault whose gate is absent: contributory after page fault. */
    default_gate(14, 0x0e, 0);
    TRY("mov %0, %%rax; mov (%%rax), %%ecx", "i"(0x8000123456));
    show("#PF without a gate");
    default_gate(14, GATE_INTERRUPT, 0);

    /* A breakpoint whose gate is absent is benign first: #NP, not #DF. */
    default_gate(3, 0x0e, 0);
    TRY("int3");
    show("#BP without a gate");
    TRY("int $3");
    show("int 3 without a gate");
    default_gate(3, GATE_INTERRUPT, 0);

    /* #UD is benign: what follows it is delivered as it is. */
    default_gate(6, 0x0e, 0);
    TRY("ud2");
    show("#UD without a gate");
    default_gate(6, GATE_INTERRUPT, 0);

    /* A divide error is contributory. */
    default_gate(0, 0x0e, 0);
    TRY("xor %%ecx, %%ecx; div %%ecx");
    show("#DE without a gate");
    default_gate(0, GATE_INTERRUPT, 0);
    TRY("ud2");
    show("#UD afterwards");

    /* A page fault on the fault's own stack, then the double fault on an IST stack. */
    default_gate(8, GATE_INTERRUPT, 1);
    TRY("mov %0, %%rsp; push %%rax", "i"(0x8000100000));
    say("stack in an unmapped page: %s\n", trap_name(last.vector));
    default_gate(8, GATE_INTERRUPT, 0);
}

static void stacks(void)
{
    word top = (word)ist_stack + sizeof(ist_stack);

    default_gate(0x60, GATE_INTERRUPT, 1);
    TRY("int $0x60");
    check_equal("ist frame below its top", top - last.frame, 40);
    tss.ist[0] = top - 5;
    TRY("int $0x60");
    check_equal("ist stack is aligned", (top - last.frame) & 15, 8);
    tss.ist[0] = top;
    asm volatile("mov %%rsp, %%rbx; sub $3, %%rsp\n" : :);
    TRY("int $0x61");
    asm volatile("mov %%rbx, %%rsp" : : : "memory");
    check_equal("stack without ist is aligned", last.frame & 15, 8);
    check_equal("cs", last.cs, SEL_CODE);
    check_equal("ss", last.ss, SEL_DATA);
}

static word flags_in_handler;

static void note_flags(struct frame *frame)
{
    (void)frame;
    flags_in_handler = flags();
}

static void flag_bits(void)
{
    TRY("push $0x40ad7; popf; int $0x62; push $2; popf");
    say("flags in the frame: %w\n", last.flags & 0x7fed5);
    asm volatile("push $2; popf");

    handlers[0x63] = handlers[0x64] = note_flags;
    default_gate(0x63, GATE_TRAP, 0);
    asm volatile("push $0x4202; popf; int $0x63; push $2; popf" : : : "memory", "cc");
    check_equal("if and nt in a trap gate's handler", flags_in_handler & 0x4200, 0x200);
    asm volatile("push $0x4202; popf; int $0x64; push $2; popf" : : : "memory", "cc");
    check_equal("if and nt in an interrupt gate's handler", flags_in_handler & 0x4200, 0);
}

/* RFLAGS.TF: a #DB after the instruction that follows the one that set it. */
static void single_step(void)
{
    TRY("pushf; orl $0x100, (%%rsp); popf; nop; nop");
    show("single step");
    check_equal("tf in the frame", last.flags >> 8 & 1, 1);
    asm volatile("push $2; popf");
}

void test(void)
{
    gdt[FREE_DATA_ABSENT / 8] = 0x00cf12000000ffff;
    gdt[FREE_CODE_ABSENT / 8] = 0x00af1a000000ffff;
    gdt[FREE_READ_ONLY / 8] = 0x00cf90000000ffff;
    divide();
    traps_after();
    general_protection();
    absent_segments();
    device_not_available();
    page_faults();
    double_faults();
    stacks();
    flag_bits();
    single_step();
}
