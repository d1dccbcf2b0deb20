/* Rings 0 and 3 in 32-bit mode: gates, call gates, SYSENTER, segment types and limits, hardware task switches, exceptions.
 * BITS: 32
 */
#include "kit/kit.h"

#define SYSENTER_CS 0x174
#define SYSENTER_ESP 0x175
#define SYSENTER_EIP 0x176
#define SEL_GATE SEL_FREE
#define SEL_SMALL (SEL_FREE + 8)
#define SEL_DOWN (SEL_FREE + 16)
#define SEL_ABSENT (SEL_FREE + 24)
#define SEL_READ_ONLY (SEL_FREE + 32)
#define SEL_CONFORMING (SEL_FREE + 40)
#define SEL_TASK (SEL_FREE + 48)
#define SEL_LDT (SEL_FREE + 56)
#define SEL_EXECUTE_ONLY (SEL_FREE + 64)

struct entry { word cs, ss, esp, flags, argument; } seen;
void sysenter_entry(void), gate_entry(void);

asm(".text\n.global sysenter_entry, gate_entry\n"
    "sysenter_entry:\n"
    "  mov %cs, seen\n"
    "  mov %ss, seen+4\n"
    "  mov %esp, seen+8\n"
    "  pushf; pop seen+12\n"
    "  mov %ecx, %ebx\n"
    "  mov $sysexit_target, %edx\n"
    "  sysexit\n"
    "gate_entry:\n"
    "  mov %cs, seen\n"
    "  mov %ss, seen+4\n"
    "  mov %esp, seen+8\n"
    "  mov 8(%esp), %eax\n"
    "  mov %eax, seen+16\n"
    "  lret $4\n"
    ".previous\n");

USER_CODE(user_int, "mov $0x1234, %eax; int $0x80");
USER_CODE(user_int_kernel_only, "int $0x81");
USER_CODE(user_cli, "cli");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_in, "in $0x61, %al");
USER_CODE(user_in_dx, "mov $0x61, %edx; in %dx, %al; int $0x80");
USER_CODE(user_popf, "push $0x3202; popf; pushf; pop %eax; int $0x80");
USER_CODE(user_sysenter, "mov %esp, %ecx; sysenter");
USER_CODE(sysexit_target, "mov %cs, %eax; int $0x80");
USER_CODE(user_call_gate, "push $0x5a5a; lcall $0x4b, $0; mov %cs, %eax; int $0x80");
USER_CODE(user_kernel_ds, "mov $0x10, %eax; mov %eax, %ds");
USER_CODE(user_kernel_cs, "ljmp $0x08, $0x100000");
USER_CODE(user_conforming, "lcall $0x73, $conforming_body; int $0x80");
USER_CODE(user_verr, "mov $0x10, %ebx; xor %eax, %eax; verr %bx; setz %al; mov $0x23, %ebx; verw %bx; setz %ah; int $0x80");
USER_CODE(user_lar, "mov $0x23, %ebx; lar %ebx, %eax; int $0x80");
USER_CODE(user_lsl, "mov $0x23, %ebx; lsl %ebx, %eax; int $0x80");
USER_CODE(user_arpl, "mov $0x20, %eax; mov $3, %ebx; arpl %bx, %ax; int $0x80");
asm(".text\n.global conforming_body\nconforming_body: mov %cs, %eax\nlret\n.previous\n");

static u64 descriptor(word base, u32 limit, u8 access, u8 upper)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48
           | (u64)upper << 52 | (u64)(base >> 24) << 56;
}

static void gates(void)
{
    word top = (word)trap_stack + sizeof(trap_stack);

    run_user(user_int, 0x202);
    show_user("int 0x80", user_int);
    check_equal("stack from the tss", top - last.frame, 20);
    check_equal("cs", last.cs, SEL_USER_CODE);
    check_equal("ss", (u16)last.ss, SEL_USER_DATA);
    check_equal("sp", last.sp - (word)user_stack, sizeof(user_stack));
    check_equal("if in the frame", last.flags & 0x200, 0x200);
    check_equal("eax", last.ax, 0x1234);
    run_user(user_int_kernel_only, 2);
    show_user("int 0x81, not for ring 3", user_int_kernel_only);
    run_user(user_cli, 2);
    show_user("cli", user_cli);
    run_user(user_hlt, 2);
    show_user("hlt", user_hlt);
    run_user(user_kernel_ds, 2);
    show_user("ds of ring 0", user_kernel_ds);
    run_user(user_kernel_cs, 2);
    show_user("jump to ring 0", user_kernel_cs);
    run_user(user_in, 2);
    show_user("in without permission", user_in);
    tss.bitmap[0x61 / 8] &= (u8) ~(1 << (0x61 % 8));
    run_user(user_in_dx, 2);
    show_user("in, permitted by the bitmap", user_in_dx);
    tss.bitmap[0x61 / 8] = 0xff;
    run_user(user_in_dx, 0x3002);
    show_user("in with iopl 3", user_in_dx);
    run_user(user_popf, 2);
    check_equal("popf cannot set if or iopl", last.ax & 0x3200, 0);
}

static void sysenter(void)
{
    wrmsr(SYSENTER_CS, SEL_CODE);
    wrmsr(SYSENTER_ESP, (word)trap_stack + sizeof(trap_stack));
    wrmsr(SYSENTER_EIP, (word)sysenter_entry);
    run_user(user_sysenter, 0x202);
    show_user("sysenter and sysexit", sysexit_target);
    check_equal("cs in the kernel", (u16)seen.cs, SEL_CODE);
    check_equal("ss in the kernel", (u16)seen.ss, SEL_DATA);
    check_equal("esp in the kernel", (word)trap_stack + sizeof(trap_stack) - seen.esp, 0);
    check_equal("if in the kernel", seen.flags & 0x200, 0);
    check_equal("cs afterwards", (u16)last.ax, SEL_USER_CODE);
    check_equal("esp afterwards", last.sp - (word)user_stack, sizeof(user_stack));
    wrmsr(SYSENTER_CS, 0);
    run_user(user_sysenter, 2);
    show_user("sysenter with a null cs", user_sysenter);
}

static void call_gates(void)
{
    word top = (word)trap_stack + sizeof(trap_stack);

    gdt[SEL_GATE / 8] = ((word)gate_entry & 0xffff) | (u64)SEL_CODE << 16 | 1ull << 32 | 0xecull << 40
                        | (u64)((word)gate_entry >> 16) << 48;
    run_user(user_call_gate, 2);
    show_user("call gate and return", user_call_gate);
    check_equal("cs inside", (u16)seen.cs, SEL_CODE);
    check_equal("esp inside: four words and an argument", top - seen.esp, 20);
    check_equal("argument copied", seen.argument, 0x5a5a);
    check_equal("cs afterwards", (u16)last.ax, SEL_USER_CODE);
    check_equal("argument released", last.sp - (word)user_stack, sizeof(user_stack));
    gdt[SEL_GATE / 8] &= ~(0x60ull << 40);
    run_user(user_call_gate, 2);
    show_user("call gate for ring 0 only", user_call_gate);
    gdt[SEL_GATE / 8] = (gdt[SEL_GATE / 8] | 0x60ull << 40) & ~(0x80ull << 40);
    run_user(user_call_gate, 2);
    show_user("call gate absent", user_call_gate);
    run_user(user_conforming, 2);
    show_user("call to a conforming segment", user_conforming);
    check_equal("ring inside is the caller's", last.ax & 3, 3);
}

static void segments(void)
{
    gdt[SEL_SMALL / 8] = descriptor(0x100000, 0xff, 0x92, 4);
    gdt[SEL_DOWN / 8] = descriptor(0x100000, 0xff, 0x96, 4);
    gdt[SEL_ABSENT / 8] = descriptor(0, 0xfffff, 0x12, 12);
    gdt[SEL_READ_ONLY / 8] = descriptor(0, 0xfffff, 0x90, 12);
    gdt[SEL_EXECUTE_ONLY / 8] = descriptor(0, 0xfffff, 0x98, 12);

    TRY("mov %0, %%eax; mov %%eax, %%es; movb %%es:0, %%al; mov %%al, seen", "i"(SEL_SMALL));
    show("first byte of a small segment");
    check_equal("it is the image's", (u8)seen.cs, *(u8 *)0x100000);
    TRY("mov %0, %%eax; lsl %%eax, %%ebx; mov %%ebx, seen", "i"(SEL_DOWN));
    check_equal("lsl", seen.cs, 0xff);
    TRY("mov %0, %%eax; mov %%eax, %%es", "i"(SEL_ABSENT));
    show("es absent");
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(SEL_ABSENT));
    show("ss absent");
    TRY("mov %0, %%eax; mov %%eax, %%ss", "i"(SEL_READ_ONLY));
    show("ss read-only");
    TRY("mov %0, %%eax; mov %%eax, %%es", "i"(SEL_EXECUTE_ONLY));
    show("es execute-only");
    TRY("xor %%eax, %%eax; mov %%eax, %%ss");
    show("ss null");
    TRY("mov $0xff0, %%eax; mov %%eax, %%es");
    show("es beyond the table");
    TRY("mov %0, %%eax; mov %%eax, %%cs", "i"(SEL_CODE));
    show("mov to cs");
    TRY("ljmp %0, $0", "i"(SEL_DATA));
    show("jump to a data segment");
    TRY("ljmp $0, $0");
    show("jump to a null selector");
    run_user(user_verr, 2);
    check_equal("verr of ring 0's, verw of ring 3's", last.ax & 0xffff, 0x100);
    run_user(user_lar, 2);
    check_equal("lar", last.ax & 0xf0ff00, 0xc0f300);
    run_user(user_lsl, 2);
    check_equal("lsl", last.ax, 0xffffffff);
    run_user(user_arpl, 2);
    check_equal("arpl", last.ax, 0x23);
}

static void local_table(void)
{
    static u64 ldt[4];

    ldt[1] = descriptor(0, 0xfffff, 0x92, 12);
    gdt[SEL_LDT / 8] = descriptor((word)ldt, sizeof(ldt) - 1, 0x82, 0);
    TRY("mov %0, %%eax; lldt %%ax; mov $0x0c, %%eax; mov %%eax, %%es; mov %%es, %%ebx", "i"(SEL_LDT));
    show("es from the ldt");
    TRY("mov $0x04, %%eax; mov %%eax, %%es");
    show("the ldt's first entry may be used, but is empty");
    TRY("mov $0x24, %%eax; mov %%eax, %%es");
    show("beyond the ldt");
    TRY("mov %0, %%eax; lldt %%ax", "i"(SEL_DATA));
    show("lldt of a data segment");
    asm volatile("mov %0, %%es" : : "r"(SEL_DATA));
}

/* A task of its own by a far jump, and back. */
static struct tss task;
static u8 task_stack[4096] __attribute__((aligned(16)));
static volatile word task_ran;
void task_body(void);

__attribute__((used)) static void in_task(void)
{
    u16 selector;
    asm volatile("str %0" : "=r"(selector));
    check_equal("task register in the task", selector, SEL_TASK);
    check_equal("busy bit", gdt[SEL_TASK / 8] >> 41 & 1, 1);
    check_equal("busy bit of the first task", gdt[SEL_TSS / 8] >> 41 & 1, task_ran == 0 ? 0 : 1);
    check_equal("ts", read_cr0() >> 3 & 1, 1);
    check_equal("nt", flags() >> 14 & 1, task_ran == 0 ? 0 : 1);
    task_ran++;
}

asm(".text\n.global task_body\ntask_body:\n"
    "  mov %eax, seen\n  call in_task\n  ljmp $0x28, $0\n"
    "  mov %eax, seen\n  call in_task\n  iret\n"
    ".previous\n");

static void task_switch(void)
{
    u16 selector;

    task.eip = (word)task_body;
    task.eflags = 2;
    task.esp = (word)task_stack + sizeof(task_stack);
    task.eax = 0xabcd;
    task.es = task.ss = task.ds = task.fs = task.gs = SEL_DATA;
    task.cs = SEL_CODE;
    task.io_map = 0xffff;
    gdt[SEL_TASK / 8] = descriptor((word)&task, 103, 0x89, 0);
    asm volatile("push %%ebp; ljmp %0, $0; pop %%ebp" : : "i"(SEL_TASK) : "eax", "ebx", "ecx", "edx", "esi", "edi", "memory");
    asm volatile("str %0" : "=r"(selector));
    check_equal("back in the first task", selector, SEL_TSS);
    check_equal("the task ran", task_ran, 1);
    check_equal("its eax came from its tss", seen.cs, 0xabcd);
    check_equal("busy bit of the left task", gdt[SEL_TASK / 8] >> 41 & 1, 0);
    asm volatile("clts");
    asm volatile("push %%ebp; lcall %0, $0; pop %%ebp" : : "i"(SEL_TASK) : "eax", "ebx", "ecx", "edx", "esi", "edi", "memory");
    check_equal("called and returned by iret", task_ran, 2);
    check_equal("link", task.link & 0xffff, SEL_TSS);
    check_equal("nt after the return", flags() >> 14 & 1, 0);
    asm volatile("clts");
    TRY("ljmp %0, $0", "i"(SEL_TSS));
    show("jump to the running task");
}

static void exceptions(void)
{
    static u32 bounds[2] = {3, 5};

    TRY("mov $6, %%eax; bound %%eax, %0", "m"(bounds));
    say("bound above: %s\n", trap_name(last.vector));
    TRY("mov $5, %%eax; bound %%eax, %0", "m"(bounds));
    say("bound inside: %s\n", last.vector == NO_TRAP ? "no trap" : trap_name(last.vector));
    TRY("xor %%ecx, %%ecx; div %%ecx");
    show("div by zero");
    TRY("mov $5, %%eax; .byte 0xd4, 0");
    show("aam 0");
    TRY("mov $0x107, %%eax; mov $1, %%bl; idiv %%bl");
    show("idiv overflow");
    TRY(".byte 0x0f, 0xff");
    show("ud0");
    TRY("lock; incl %%eax");
    show("lock on a register");
    default_gate(13, 0x0e, 0);
    TRY("mov $0xff0, %%eax; mov %%eax, %%es");
    show("#GP without a gate");
    default_gate(13, GATE_INTERRUPT, 0);
    /* A task gate for the double fault is how 32-bit kernels survive a bad stack; here the plain gate is enough. */
    default_gate(11, 0x0e, 0);
    TRY("mov %0, %%eax; mov %%eax, %%es", "i"(SEL_ABSENT));
    show("#NP without a gate");
    default_gate(11, GATE_INTERRUPT, 0);
}

void test(void)
{
    default_gate(0x80, GATE_INTERRUPT | GATE_USER, 0);
    gdt[SEL_CONFORMING / 8] = descriptor(0, 0xfffff, 0x9e, 12);
    segments();
    exceptions();
    local_table();
    call_gates();
    sysenter();
    task_switch();
    gates();
}
