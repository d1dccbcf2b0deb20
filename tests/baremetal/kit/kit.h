/*
 * What every bare-metal test program shares: printing, checks, traps that are caught and described, ring 3.
 *
 * A program defines `void test(void)`, prints lines that are the same on every run, and is done when that returns.
 * Output goes to the debug console at port 0xe9; the end is a write to the exit device at port 0xf4.
 */
#ifndef KIT_H
#define KIT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long word;             /* as wide as a register */
typedef int bool;

#define NULL ((void *)0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Selectors of the kit's GDT. */
#define SEL_CODE 0x08
#define SEL_DATA 0x10
#ifdef __x86_64__
#define SEL_USER_CODE32 0x1b
#define SEL_USER_DATA 0x23
#define SEL_USER_CODE 0x2b
#define SEL_TSS 0x30
#define SEL_CODE32 0x40
#define SEL_CODE16 0x48
#define SEL_DATA16 0x50
#define SEL_FREE 0x58                   /* the first of 21 unused slots */
#define WORD "quad"
#define MOVW "movq"
#else
#define SEL_USER_CODE 0x1b
#define SEL_USER_DATA 0x23
#define SEL_TSS 0x28
#define SEL_CODE16 0x38
#define SEL_DATA16 0x40
#define SEL_FREE 0x48
#define WORD "long"
#define MOVW "movl"
#endif

extern u64 gdt[32];
extern u32 multiboot_info;
extern u8 image_end[];

/* ------------------------------------------------------------------------------------------------- ports and MSRs */
static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory"); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u16 inw(u16 port) { u16 v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }
static inline u32 inl(u16 port) { u32 v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory"); return v; }

static inline u64 rdmsr(u32 index)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 index, u64 value)
{
    asm volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static inline void cpuid(u32 leaf, u32 subleaf, u32 out[4])
{
    asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

#define CONTROL_REGISTER(name)                                                                          \
    static inline word read_##name(void) { word v; asm volatile("mov %%" #name ", %0" : "=r"(v)); return v; } \
    static inline void write_##name(word v) { asm volatile("mov %0, %%" #name : : "r"(v) : "memory"); }
CONTROL_REGISTER(cr0)
CONTROL_REGISTER(cr2)
CONTROL_REGISTER(cr3)
CONTROL_REGISTER(cr4)

static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void sti(void) { asm volatile("sti" : : : "memory"); }
static inline void invlpg(word address) { asm volatile("invlpg (%0)" : : "r"(address) : "memory"); }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }
static inline word flags(void) { word v; asm volatile("pushf; pop %0" : "=r"(v)); return v; }

/* ------------------------------------------------------------------------------------------------- words and memory */
void put_char(char c);
void put(const char *text);
void put_hex(u64 value);
void put_dec(u64 value);
/* %s %d (u32) %x (u32) %X (u64) %w (word, hex) and %c */
void say(const char *format, ...);
void *memset(void *to, int value, word count);
void *memcpy(void *to, const void *from, word count);
int memcmp(const void *a, const void *b, word count);
/* Zeroed pages of 4 KiB that nobody else uses; never freed. */
void *pages(word count);

/* ------------------------------------------------------------------------------------------------- checks and the end */
void check(const char *what, bool holds);
void check_equal(const char *what, u64 got, u64 want);
void finish(void) __attribute__((noreturn));

/* ------------------------------------------------------------------------------------------------- traps */
struct frame {
#ifdef __x86_64__
    word r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
#else
    word gs, fs, es, ds, edi, esi, ebp, esp_here, ebx, edx, ecx, eax;
#endif
    word vector, error, ip, cs, flags, sp, ss;  /* 32-bit: sp and ss only if the trap changed the ring */
};

#define NO_TRAP 0xffffffff
struct trap_record {
    u32 vector;
    word error, ip, cs, flags, sp, ss, cr2, ax;
    word frame;                                 /* where the frame was: tells which stack was used */
};
extern struct trap_record last;                 /* the latest trap that no handler took */
extern volatile word recovery, try_start, try_sp;

typedef void handler(struct frame *frame);
extern handler *handlers[256];                  /* take the trap instead of recording it */

struct gate { u8 bytes[sizeof(word) * 2]; };
extern struct gate idt[256];
#define GATE_INTERRUPT 0x8e
#define GATE_TRAP 0x8f
#define GATE_USER 0x60                          /* or-ed in: DPL 3 */
void set_gate(u32 vector, void (*entry)(void), u16 selector, u8 type, u8 ist);
void default_gate(u32 vector, u8 type, u8 ist);
void load_idt(u16 limit);
extern u8 stubs[];

/* Run `code` in ring 0; if it traps, `last` says how, and control goes on after it with the stack as it was before.
   Operands are constants ("i") or memory; the code may use every register but bp. */
#ifdef __x86_64__
#define TRY_CLOBBERS "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"
#define SP "%%rsp"
#else
#define TRY_CLOBBERS "eax", "ebx", "ecx", "edx", "esi", "edi"
#define SP "%%esp"
#endif
#define TRY(code, ...)                                                                             \
    do {                                                                                           \
        last.vector = NO_TRAP;                                                                     \
        asm volatile(MOVW " " SP ", try_sp\n" MOVW " $2f, try_start\n" MOVW " $1f, recovery\n"   \
                     "2:\n" code "\n1: " MOVW " try_sp, " SP                                      \
                     : : __VA_ARGS__ : "memory", "cc", TRY_CLOBBERS);                              \
        recovery = 0;                                                                              \
    } while (0)

/* Print the latest trap: name, error code, CR2 where it is a page fault, distance of its ip from the TRY's start. */
void show(const char *what);
const char *trap_name(u32 vector);

/* ------------------------------------------------------------------------------------------------- ring 3 and the TSS */
#ifdef __x86_64__
struct __attribute__((packed)) tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, io_map;
    u8 bitmap[8193];
};
#else
struct __attribute__((packed)) tss {
    u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, io_map;
    u8 bitmap[8193];
};
#endif
extern struct tss tss;
extern u8 trap_stack[8192], user_stack[8192], ist_stack[8192];

/* Run `code` in ring 3 until it traps; the trap is in `last`. */
void run_user(void (*code)(void), word flags);
void user_enter(word ip, word sp, word flags);
void user_enter32(word ip, word sp, word flags);
void user_leave(void) __attribute__((noreturn));
/* A function whose body is just assembler, for run_user(). */
#define USER_CODE(name, code) void name(void); asm(".text\n.global " #name "\n" #name ":\n" code "\nud2\n.previous")
/* As show(), with the distance of ip from `code` in place of the TRY's. */
void show_user(const char *what, void (*code)(void));

/* ------------------------------------------------------------------------------------------------- interrupt controllers */
void pic_init(u8 master_base, u8 slave_base);   /* all lines masked */
void pic_mask(u16 mask);
void pic_eoi(u32 irq);

#define APIC_BASE 0xfee00000u
#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_TPR 0x80
#define APIC_PPR 0xa0
#define APIC_EOI 0xb0
#define APIC_LDR 0xd0
#define APIC_DFR 0xe0
#define APIC_SVR 0xf0
#define APIC_ISR 0x100
#define APIC_TMR 0x180
#define APIC_IRR 0x200
#define APIC_ESR 0x280
#define APIC_ICR_LOW 0x300
#define APIC_ICR_HIGH 0x310
#define APIC_LVT_TIMER 0x320
#define APIC_LVT_LINT0 0x350
#define APIC_LVT_LINT1 0x360
#define APIC_LVT_ERROR 0x370
#define APIC_INITIAL 0x380
#define APIC_CURRENT 0x390
#define APIC_DIVIDE 0x3e0
static inline u32 apic_read(u32 reg) { return *(volatile u32 *)(word)(APIC_BASE + reg); }
static inline void apic_write(u32 reg, u32 value) { *(volatile u32 *)(word)(APIC_BASE + reg) = value; }
void apic_enable(void);
void apic_ipi(u32 destination, u32 command);

/* Start processor `id` with INIT and SIPI and let it run `code`; it idles when that returns. */
void start_processor(u32 id, void (*code)(void));
#endif
