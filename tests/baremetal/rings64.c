/* Rings 0 and 3 in long mode: gates, the TSS stack, SYSCALL and SYSRET, privileged instructions, I/O permission.
 * BITS: 64
 */
#include "kit/kit.h"

#define EFER 0xc0000080
#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define SFMASK 0xc0000084
#define FS_BASE 0xc0000100
#define GS_BASE 0xc0000101
#define KERNEL_GS_BASE 0xc0000102

/* What the system call entry saw. */
struct entry { word cs, ss, rcx, r11, flags, rsp, rax; };
struct entry seen;
void syscall_entry(void), syscall_leave(void), syscall_back32(void);
word sysret_to;

asm(".text\n"
    ".global syscall_entry, syscall_leave\n"
    "syscall_entry:\n"
    "  mov %rsp, seen+40\n"
    "  mov $trap_stack+8192, %rsp\n"
    "  mov %cs, seen\n"
    "  mov %ss, seen+8\n"
    "  mov %rcx, seen+16\n"
    "  mov %r11, seen+24\n"
    "  pushf; pop seen+32\n"
    "  mov %rax, seen+48\n"
    "  mov seen+40, %rsp\n"
    "  sysretq\n"
    ".global syscall_entry32\n"
    "syscall_entry32:\n"
    "  mov %rcx, seen+16\n"
    "  mov %cs, seen\n"
    "  mov $0x32323232, %eax\n"
    "  sysretl\n"
    ".previous\n");
void syscall_entry32(void);

USER_CODE(user_int, "mov $0x1234, %eax; int $0x80");
USER_CODE(user_int_kernel_only, "int $0x81");
USER_CODE(user_cli, "cli");
USER_CODE(user_sti, "sti");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_rdmsr, "mov $0xc0000080, %ecx; rdmsr");
USER_CODE(user_wrmsr, "mov $0xc0000080, %ecx; wrmsr");
USER_CODE(user_cr0, "mov %cr0, %rax");
USER_CODE(user_cr3, "mov %rax, %cr3");
USER_CODE(user_lgdt, "lgdt gdt_pointer");
USER_CODE(user_lidt, "lidt gdt_pointer");
USER_CODE(user_ltr, "xor %eax, %eax; ltr %ax");
USER_CODE(user_lmsw, "lmsw %ax");
USER_CODE(user_clts, "clts");
USER_CODE(user_invlpg, "invlpg 0");
USER_CODE(user_wbinvd, "wbinvd");
USER_CODE(user_swapgs, "swapgs");
USER_CODE(user_sysret, "sysretq");
USER_CODE(user_dr, "mov %dr7, %rax");
USER_CODE(user_in, "in $0x61, %al");
USER_CODE(user_in_ok, "mov $0x61, %edx; in %dx, %al; int $0x80");
USER_CODE(user_in_wide, "mov $0x60, %edx; in %dx, %eax");
USER_CODE(user_out_ok, "mov $0x80, %edx; out %al, %dx; int $0x80");
USER_CODE(user_outs, "mov $0x61, %edx; lea (%rsp), %rsi; sub $8, %rsi; outsb");
USER_CODE(user_popf, "push $0x3202; popf; pushf; pop %rax; int $0x80");
USER_CODE(user_kernel_ss, "mov $0x10, %eax; mov %eax, %ss");
USER_CODE(user_kernel_ds, "mov $0x10, %eax; mov %eax, %ds");
USER_CODE(user_far_call, "push $0x08; push $0x100000; lretq");
USER_CODE(user_iret_up, "mov %rsp, %rax; push $0x10; push %rax; push $2; push $0x08; push $0x100000; iretq");
USER_CODE(user_syscall, "mov $0x77, %eax; syscall; mov %rcx, %rbx; int $0x80");
USER_CODE(user_syscall_tf, "syscall; nop; int $0x80");
USER_CODE(user_rdtsc, "rdtsc; int $0x80");
USER_CODE(user_cpuid, "xor %eax, %eax; cpuid; int $0x80");
USER_CODE(user_fs, "mov %fs:8, %rax; int $0x80");
USER_CODE(user_gs, "mov %gs:8, %rax; int $0x80");
USER_CODE(user_sgdt, "sub $16, %rsp; sgdt (%rsp); int $0x80");
USER_CODE(user_int3, "int3; nop");
USER_CODE(user_divide, "xor %ecx, %ecx; div %ecx");

static void gates(void)
{
    word top = (word)trap_stack + sizeof(trap_stack);

    default_gate(0x80, GATE_INTERRUPT | GATE_USER, 0);
    default_gate(3, GATE_INTERRUPT | GATE_USER, 0);
    run_user(user_int, 0x202);
    show_user("int 0x80", user_int);
    check_equal("stack from the tss", top - last.frame, 40);
    check_equal("cs", last.cs, SEL_USER_CODE);
    check_equal("ss", last.ss, SEL_USER_DATA);
    check_equal("sp", last.sp - (word)user_stack, sizeof(user_stack));
    check_equal("if in the frame", last.flags & 0x200, 0x200);
    check_equal("if in the handler", flags() & 0x200, 0);
    check_equal("rax", last.ax, 0x1234);
    run_user(user_int_kernel_only, 2);
    show_user("int 0x81, not for ring 3", user_int_kernel_only);
    run_user(user_int3, 2);
    show_user("int3", user_int3);
    run_user(user_divide, 2);
    show_user("divide error", user_divide);
    check_equal("frame with no error code starts alike", top - last.frame, 40);
    default_gate(0x82, GATE_INTERRUPT | GATE_USER, 1);
    set_gate(0x80, (void (*)(void))(word)(stubs + 16 * 0x80), SEL_CODE, GATE_INTERRUPT | GATE_USER, 1);
    run_user(user_int, 2);
    check_equal("ist stack from ring 3", (word)ist_stack + sizeof(ist_stack) - last.frame, 40);
    default_gate(0x80, GATE_INTERRUPT | GATE_USER, 0);
}

static void privileged(void)
{
    static const struct { const char *name; void (*code)(void); } cases[] = {
        {"cli", user_cli}, {"sti", user_sti}, {"hlt", user_hlt}, {"rdmsr", user_rdmsr}, {"wrmsr", user_wrmsr},
        {"read cr0", user_cr0}, {"write cr3", user_cr3}, {"lgdt", user_lgdt}, {"lidt", user_lidt}, {"ltr", user_ltr},
        {"lmsw", user_lmsw}, {"clts", user_clts}, {"invlpg", user_invlpg}, {"wbinvd", user_wbinvd},
        {"swapgs", user_swapgs}, {"sysret", user_sysret}, {"read dr7", user_dr}, {"in", user_in}, {"outs", user_outs},
        {"ss of ring 0", user_kernel_ss}, {"ds of ring 0", user_kernel_ds}, {"far return to ring 0", user_far_call},
        {"iret to ring 0", user_iret_up}, {"rdtsc", user_rdtsc}, {"cpuid", user_cpuid}, {"sgdt", user_sgdt},
    };
    for (u32 index = 0; index < ARRAY_SIZE(cases); index++) {
        run_user(cases[index].code, 2);
        show_user(cases[index].name, cases[index].code);
    }
    write_cr4(read_cr4() | 4);                  /* TSD */
    run_user(user_rdtsc, 2);
    show_user("rdtsc with tsd", user_rdtsc);
    write_cr4(read_cr4() & ~4ul);
}

static void io_permission(void)
{
    run_user(user_in_ok, 2);
    show_user("in without permission", user_in_ok);
    tss.bitmap[0x61 / 8] &= (u8) ~(1 << (0x61 % 8));
    run_user(user_in_ok, 2);
    show_user("in, permitted by the bitmap", user_in_ok);
    run_user(user_in_wide, 2);
    show_user("in of four ports, one permitted", user_in_wide);
    tss.bitmap[0x61 / 8] = 0xff;
    tss.io_map = 0xffff;
    run_user(user_out_ok, 2);
    show_user("no bitmap", user_out_ok);
    tss.io_map = (u16)__builtin_offsetof(struct tss, bitmap);
    run_user(user_out_ok, 0x3002);
    show_user("out with iopl 3", user_out_ok);
    run_user(user_cli, 0x3002);
    say("cli with iopl 3: %s after %d\n", trap_name(last.vector), (u32)(last.ip - (word)user_cli));
    run_user(user_popf, 0x002);
    check_equal("popf cannot set if or iopl", last.ax & 0x3200, 0);
    run_user(user_popf, 0x3002);
    check_equal("popf with iopl 3 sets if", last.ax & 0x3200, 0x3200);
}

static void system_calls(void)
{
    run_user(user_syscall, 2);
    show_user("syscall while sce is off", user_syscall);
    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, (u64)(SEL_USER_CODE32 & ~3) << 48 | (u64)3 << 48 | (u64)SEL_CODE << 32);
    wrmsr(LSTAR, (word)syscall_entry);
    wrmsr(CSTAR, (word)syscall_entry32);
    wrmsr(SFMASK, 0x4700);
    check_equal("star reads back", rdmsr(STAR), 0x001b000800000000);
    check_equal("sfmask reads back", rdmsr(SFMASK), 0x4700);
    run_user(user_syscall, 0x247);
    show_user("syscall and sysret", user_syscall);
    check_equal("cs in the kernel", (u16)seen.cs, SEL_CODE);
    check_equal("ss in the kernel", (u16)seen.ss, SEL_DATA);
    check_equal("rcx is the return address", seen.rcx - (word)user_syscall, 7);
    check_equal("r11 is the flags", seen.r11, 0x247);
    check_equal("if and tf are masked", seen.flags & 0x700, 0);
    check_equal("rsp is untouched", seen.rsp - (word)user_stack, sizeof(user_stack));
    check_equal("rax arrives", seen.rax, 0x77);
    check_equal("cs afterwards", last.cs, SEL_USER_CODE);
    check_equal("ss afterwards", last.ss, SEL_USER_DATA);
    check_equal("flags afterwards", last.flags & 0x247, 0x247);
    check_equal("ring 0 again", flags() & 0x200, 0);
}

/* SYSCALL from compatibility mode goes to CSTAR. */
asm(".text\n.code32\n.global user_compat\nuser_compat:\n"
    "  mov $5, %eax\n  inc %eax\n  .byte 0x0f, 0x05\n  int $0x80\n  ud2\n.code64\n.previous\n");
void user_compat(void);

static void compatibility(void)
{
    last.vector = NO_TRAP;
    seen.rcx = 0;
    user_enter32((word)user_compat, (word)user_stack + sizeof(user_stack), 2);
    show_user("compatibility mode", user_compat);
    check_equal("cs", last.cs, SEL_USER_CODE32);
    check_equal("rcx in the 32-bit entry", seen.rcx - (word)user_compat, 8);
    check_equal("value from the kernel", last.ax, 0x32323232);
}

static void segment_bases(void)
{
    static u64 a[2] = {0, 0x1111}, b[2] = {0, 0x2222};

    wrmsr(FS_BASE, (word)a);
    wrmsr(GS_BASE, (word)a);
    wrmsr(KERNEL_GS_BASE, (word)b);
    run_user(user_fs, 2);
    check_equal("fs base", last.ax, 0x1111);
    run_user(user_gs, 2);
    check_equal("gs base", last.ax, 0x1111);
    asm volatile("swapgs");
    check("gs base after swapgs", rdmsr(GS_BASE) == (word)b);
    check("kernel gs base after swapgs", rdmsr(KERNEL_GS_BASE) == (word)a);
    run_user(user_gs, 2);
    check_equal("gs in ring 3 after swapgs", last.ax, 0x2222);
}

void test(void)
{
    gates();
    privileged();
    io_permission();
    system_calls();
    compatibility();
    segment_bases();
}
