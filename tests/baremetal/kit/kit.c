/* See kit.h. */
#include "kit.h"

u32 multiboot_info;
struct trap_record last;
volatile word recovery, try_start, try_sp;
handler *handlers[256];
struct gate idt[256] __attribute__((aligned(16)));
struct tss tss __attribute__((aligned(128)));
u8 trap_stack[8192] __attribute__((aligned(16)));
u8 user_stack[8192] __attribute__((aligned(16)));
u8 ist_stack[8192] __attribute__((aligned(16)));

extern u8 gdt_pointer[], trampoline[], trampoline_end[];
extern void test(void);
static u32 checks, failures;

/* ------------------------------------------------------------------------------------------------- words and memory */
void put_char(char c) { outb(0xe9, (u8)c); }

void put(const char *text)
{
    while (*text)
        put_char(*text++);
}

void put_hex(u64 value)
{
    bool started = 0;

    put("0x");
    for (int shift = 60; shift >= 0; shift -= 4) {
        u32 digit = (u32)(value >> shift) & 15;
        started |= digit != 0 || shift == 0;
        if (started)
            put_char("0123456789abcdef"[digit]);
    }
}

void put_dec(u64 value)
{
    char digits[24];
    int count = 0;

    /* Long division by hand: a 32-bit program has no library for 64-bit operands. */
    do {
        u64 quotient = 0, rest = 0;
        for (int bit = 63; bit >= 0; bit--) {
            rest = rest << 1 | (value >> bit & 1);
            if (rest >= 10) {
                rest -= 10;
                quotient |= 1ull << bit;
            }
        }
        digits[count++] = (char)('0' + rest);
        value = quotient;
    } while (value);
    while (count)
        put_char(digits[--count]);
}

void say(const char *format, ...)
{
    __builtin_va_list arguments;

    __builtin_va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put_char(*format);
            continue;
        }
        switch (*++format) {
        case 's': put(__builtin_va_arg(arguments, const char *)); break;
        case 'c': put_char((char)__builtin_va_arg(arguments, int)); break;
        case 'd': put_dec(__builtin_va_arg(arguments, u32)); break;
        case 'x': put_hex(__builtin_va_arg(arguments, u32)); break;
        case 'X': put_hex(__builtin_va_arg(arguments, u64)); break;
        case 'w': put_hex(__builtin_va_arg(arguments, word)); break;
        default: put_char(*format);
        }
    }
    __builtin_va_end(arguments);
}

void *memset(void *to, int value, word count)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, word count)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    return start;
}

int memcmp(const void *a, const void *b, word count)
{
    const u8 *left = a, *right = b;
    for (; count; count--, left++, right++)
        if (*left != *right)
            return *left - *right;
    return 0;
}

void *pages(word count)
{
    static word next;

    if (!next)
        next = ((word)image_end + 0x1fffff) & ~(word)0x1fffff;
    void *found = (void *)next;
    next += count * 4096;
    return memset(found, 0, count * 4096);
}

/* ------------------------------------------------------------------------------------------------- checks and the end */
void check(const char *what, bool holds)
{
    checks++;
    failures += !holds;
    say("%s %s\n", holds ? "ok  " : "FAIL", what);
}

void check_equal(const char *what, u64 got, u64 want)
{
    checks++;
    failures += got != want;
    if (got == want)
        say("ok   %s = %X\n", what, got);
    else
        say("FAIL %s = %X, not %X\n", what, got, want);
}

void finish(void)
{
    say("end: %d checks, %d failed\n", checks, failures);
    outl(0xf4, failures ? 0x11 : 0x10);         /* exit status 35 or 33 */
    for (;;)
        asm volatile("cli; hlt");
}

/* ------------------------------------------------------------------------------------------------- traps */
const char *trap_name(u32 vector)
{
    static const char *const names[] = {
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#09", "#TS",
        "#NP", "#SS", "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM",
    };
    return vector < ARRAY_SIZE(names) ? names[vector] : "vector";
}

/* An error code that refers to the IDT is shown by kind only: processors and emulators differ in how they scale it. */
static void show_error(void)
{
    if (last.vector >= 10 && last.vector <= 13 && last.error & 2)
        put(" error=idt");
    else
        say(" error=%w", last.error);
}

static void show_from(const char *what, word start)
{
    if (last.vector == NO_TRAP) {
        say("%s: no trap\n", what);
        return;
    }
    say("%s: %s", what, trap_name(last.vector));
    if (last.vector > 19)
        say(" %x", last.vector);
    if (last.vector == 8 || (last.vector >= 10 && last.vector <= 14) || last.vector == 17)
        show_error();
    if (last.vector == 14)
        say(" cr2=%w", last.cr2);
    say(" ip+%d\n", (u32)(last.ip - start));
}

void show(const char *what) { show_from(what, try_start); }

void show_user(const char *what, void (*code)(void)) { show_from(what, (word)code); }

void trap(struct frame *frame);
void trap(struct frame *frame)
{
    if (frame->vector < 256 && handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    last.cr2 = read_cr2();
    last.vector = (u32)frame->vector;
    last.error = frame->error;
    last.ip = frame->ip;
    last.cs = frame->cs;
    last.flags = frame->flags;
    last.frame = (word)&frame->ip;
#ifdef __x86_64__
    last.ax = frame->rax;
    last.sp = frame->sp;
    last.ss = frame->ss;
#else
    last.ax = frame->eax;
    last.sp = frame->cs & 3 ? frame->sp : (word)&frame->sp;
    last.ss = frame->cs & 3 ? frame->ss : SEL_DATA;
#endif
    if (frame->cs & 3)
        user_leave();
    if (!recovery) {
        say("unexpected %s (vector %x) error=%w ip=%w cr2=%w\n", trap_name(last.vector), last.vector, last.error,
            last.ip, last.cr2);
        failures++;
        finish();
    }
    frame->ip = recovery;
    frame->flags &= ~(word)0x100;               /* a single step ends here */
    recovery = 0;
}

void set_gate(u32 vector, void (*entry)(void), u16 selector, u8 type, u8 ist)
{
    word address = (word)entry;
    u32 *gate = (u32 *)&idt[vector];

    gate[0] = (u32)selector << 16 | (address & 0xffff);
    gate[1] = (address & 0xffff0000) | (u32)type << 8 | ist;
#ifdef __x86_64__
    gate[2] = (u32)(address >> 32);
    gate[3] = 0;
#endif
}

void default_gate(u32 vector, u8 type, u8 ist)
{
    set_gate(vector, (void (*)(void))(word)(stubs + 16 * vector), SEL_CODE, type, ist);
}

void load_idt(u16 limit)
{
    struct __attribute__((packed)) { u16 limit; word base; } pointer = {limit, (word)idt};
    asm volatile("lidt %0" : : "m"(pointer));
}

static void load_tss(void)
{
    u64 base = (word)&tss;
    u64 limit = sizeof(tss) - 1;

    tss.io_map = (u16)__builtin_offsetof(struct tss, bitmap);
    memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
#ifdef __x86_64__
    tss.rsp[0] = (word)trap_stack + sizeof(trap_stack);
    tss.ist[0] = (word)ist_stack + sizeof(ist_stack);
    gdt[SEL_TSS / 8 + 1] = base >> 32;
#else
    tss.esp0 = (word)trap_stack + sizeof(trap_stack);
    tss.ss0 = SEL_DATA;
#endif
    gdt[SEL_TSS / 8] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ull << 40 | (limit >> 16 & 15) << 48
                       | (base >> 24 & 0xff) << 56;
    asm volatile("ltr %0" : : "r"((u16)SEL_TSS));
}

void kit_main(void);
void kit_main(void)
{
    for (u32 vector = 0; vector < 256; vector++)
        default_gate(vector, GATE_INTERRUPT, 0);
    load_idt(sizeof(idt) - 1);
    load_tss();
    pic_init(0x20, 0x28);
    test();
    finish();
}

void run_user(void (*code)(void), word user_flags)
{
    last.vector = NO_TRAP;
    user_enter((word)code, (word)user_stack + sizeof(user_stack), user_flags);
}

/* ------------------------------------------------------------------------------------------------- interrupt controllers */
void pic_init(u8 master_base, u8 slave_base)
{
    outb(0x20, 0x11);
    outb(0xa0, 0x11);
    outb(0x21, master_base);
    outb(0xa1, slave_base);
    outb(0x21, 0x04);
    outb(0xa1, 0x02);
    outb(0x21, 0x01);
    outb(0xa1, 0x01);
    pic_mask(0xffff);
}

void pic_mask(u16 mask)
{
    outb(0x21, (u8)mask);
    outb(0xa1, (u8)(mask >> 8));
}

void pic_eoi(u32 irq)
{
    if (irq >= 8)
        outb(0xa0, 0x20);
    outb(0x20, 0x20);
}

void apic_enable(void)
{
    apic_write(APIC_SVR, 0x1ff);                /* enabled, spurious vector 0xff */
    apic_write(APIC_TPR, 0);
}

void apic_ipi(u32 destination, u32 command)
{
    apic_write(APIC_ICR_HIGH, destination << 24);
    apic_write(APIC_ICR_LOW, command);
    while (apic_read(APIC_ICR_LOW) & 0x1000)
        pause();
}

static void (*volatile ap_code)(void);

void ap_entry(void);
void ap_entry(void)
{
    load_idt(sizeof(idt) - 1);
    ap_code();
}

void start_processor(u32 id, void (*code)(void))
{
    ap_code = code;
    memcpy((void *)0x8000, trampoline, (word)(trampoline_end - trampoline));
    apic_ipi(id, 0x4500);                       /* INIT, assert */
    for (u64 end = rdtsc() + 20000000; rdtsc() < end;)
        pause();
    apic_ipi(id, 0x4608);                       /* SIPI, page 8 */
}
