/* Where Unicorn 2.1.4 keeps the state of its x86 processor.
 *
 * None of this is public API.  The offsets hold on LP64 hosts; those inside the processor state are the same on all of
 * them, those inside the surrounding structures are for x86-64 and aarch64 builds of the wheel.  layout_check() compares
 * them with values written through the public API before the first guest instruction runs, so another build of Unicorn
 * ends in one clear error and not in a crash.
 */
#ifndef PYVM_LAYOUT_H
#define PYVM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define SUPPORTED_UNICORN "2.1.4"

typedef struct {
    uint32_t selector;
    uint32_t pad;
    uint64_t base;
    uint32_t limit;
    uint32_t flags; /* second word of the descriptor, as it is in the guest's table */
} Segment;

enum { ES, CS, SS, DS, FS, GS };
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

/* The architectural registers at the start of the processor state. */
typedef struct {
    uint64_t regs[16];
    uint64_t eip;
    uint64_t eflags; /* while guest code runs: without the arithmetic flags and DF, which live in cc_* and df */
    uint64_t cc_dst, cc_src, cc_src2;
    uint32_t cc_op;
    int32_t df;
    uint32_t hflags, hflags2;
    Segment segs[6];
    Segment ldt, tr, gdt, idt;
    uint64_t cr[9];
    int32_t a20_mask;
} Env;

/* Offsets of later members of the processor state. */
enum {
    ENV_EFER = 0x250,
    ENV_FPSTT = 0x25c,
    ENV_FPUS = 0x260,
    ENV_FPUC = 0x262,
    ENV_FPTAGS = 0x264,
    ENV_FPREGS = 0x270,
    ENV_FPOP = 0x2f0,
    ENV_FPIP = 0x2f8,
    ENV_FPDP = 0x300,
    ENV_SSE_STATUS = 0x328,
    ENV_MXCSR = 0x330,
    ENV_XMM_REGS = 0x338, /* 32 registers of 64 bytes; 16 of 16 bytes are in use */
    ENV_SYSENTER_CS = 0x12c0,
    ENV_SYSENTER_ESP = 0x12c8,
    ENV_SYSENTER_EIP = 0x12d0,
    ENV_STAR = 0x12d8,
    ENV_LSTAR = 0x12e8,
    ENV_CSTAR = 0x12f0,
    ENV_FMASK = 0x12f8,
    ENV_KERNELGSBASE = 0x1300,
    ENV_TSC_AUX = 0x1320,
    ENV_XCR0 = 0x1328,
    ENV_MISC_ENABLE = 0x1338,
    ENV_PAT = 0x14a0,
    ENV_PKRU = 0x14b8,
    ENV_ERROR_CODE = 0x1508,
    ENV_EXCEPTION_IS_INT = 0x150c,
    ENV_EXCEPTION_NEXT_EIP = 0x1510,
    ENV_DR = 0x1518,
    ENV_BREAKPOINTS = 0x1558, /* four host pointers: never copied between vCPUs */
    ENV_OLD_EXCEPTION = 0x1578,
    ENV_TSC_OFFSET = 0x1588,
    ENV_V_TPR = 0x15b4,
    ENV_STATE_SIZE = 0x15c0, /* what differs between vCPUs; the rest describes the model */
    ENV_FEATURES = 0x1600,   /* 34 words of 8 bytes */
    ENV_MTRR_FIXED = 0x18b0,
    ENV_MTRR_DEFTYPE = 0x1908,
    ENV_MTRR_VAR = 0x1910,
    ENV_KICK = 0x1990, /* a KVM-only word that TCG never touches: our exit request, see codegen.c */
    ENV_MCG_CAP = 0x19d0,
};

enum { FEATURE_WORDS = 34 };

/* The translation look-aside buffer lies before the processor state.  Each of the MMU modes has a table of entries with a
 * mask, and a few victim entries that were pushed out of it. */
enum {
    TLB_BEFORE_ENV = 0x890,
    TLB_MODES = 3,
    TLB_VICTIMS = 8,
    TLB_DESC = 0x20, /* per mode */
    TLB_DESC_SIZE = 696,
    TLB_DESC_VICTIMS = 0x30,
    TLB_DESC_NUMBERS = 0x2b0, /* pointer to Unicorn's RAM numbers of the pages, less their addresses */
    TLB_NUMBER_BITS = 4,
    TLB_FAST = 0x850, /* per mode: mask and pointer to the table */
    TLB_FAST_SIZE = 16,
    TLB_ENTRY_BITS = 6,
    TLB_ENTRY_HOST = 32, /* what to add to an address for the host's */
    TLB_ENTRY_WRITE = 8, /* offset of the address that a store compares with, and its flags */
    TLB_NOT_PLAIN = 1 << 11 | 1 << 10 | 1 << 9 | 1 << 6,
    TLB_NOTDIRTY = 1 << 10,
};

/* CPUState, the part of the processor object that is the same for all targets. */
enum {
    CPU_EXIT_REQUEST = 0x15,
    CPU_NEXT_BLOCK_FLAGS = 0x18,
    CPU_INTERRUPT_REQUEST = 0x1c,
    CPU_ENV_PTR = 0x128,
    CPU_BREAKPOINTS = 0x8148, /* the head of a list */
    CPU_HALTED = 0x8198,
    CPU_EXCEPTION_INDEX = 0x81a0,
    CPU_UC = 0x81a8,
};

/* TranslationBlock: address and length of the guest code, and the RAM numbers of its one or two pages. */
enum { BLOCK_PC = 0, BLOCK_SIZE = 0x14, BLOCK_PAGES = 0x48 };

/* The low bits of a block's flags: how many instructions it may have at most; 0 where that does not matter. */
enum { BLOCK_COUNT_MASK = 0x7fff, ONE_INSTRUCTION = 1 };

/* CPUBreakpoint: its address, and the next in the list. */
enum { BREAKPOINT_ADDRESS = 0, BREAKPOINT_NEXT = 0x10 };

/* MemoryRegion, what a part of the physical address space is. */
enum { MEMORY_CONTAINER = 0x20, MEMORY_PERMISSIONS = 0x88 };

/* struct uc_struct, the engine. */
enum { UC_CPU = 0x1b8, UC_INVALID_ERROR = 0x590 };

/* The code generator's context. */
enum { TCG_TEMP_COUNT = 0x30, TCG_OP_COUNT = 0x38, TCG_MAX_TEMPS = 512, TCG_ENOUGH_OPS = 4000 };

/* A label of the code generator: its first bit says that the label has been placed. */
enum { LABEL_PRESENT = 1 };

/* Code generator operations, types and conditions. */
enum { OP_SET_LABEL = 1, OP_LD_I32 = 13, TYPE_I32 = 0, COND_LT = 2, EXIT_REQUESTED = 3 };

/* Bits of hflags. */
enum {
    HF_CPL = 3,
    HF_INHIBIT_IRQ = 1 << 3,
    HF_CS32 = 1 << 4,
    HF_SS32 = 1 << 5,
    HF_ADDSEG = 1 << 6,
    HF_PE = 1 << 7,
    HF_LMA = 1 << 14,
    HF_CS64 = 1 << 15,
    HF_OSFXSR = 1 << 22,
    HF_SMAP = 1 << 23,
};
enum { HF2_GIF = 1, HF2_NMI = 1 << 2 };

/* Bits of interrupt_request. */
enum { REQUEST_HARD = 1 << 1, REQUEST_NMI = 1 << 9 };

/* What cpu_exec returns, beside exception numbers. */
enum { EXCP_INTERRUPT = 0x10000, EXCP_HLT = 0x10001, EXCP_DEBUG = 0x10002, EXCP_HALTED = 0x10003 };

enum { CC_OP_EFLAGS = 1, CC_MASK = 0x8d5 };

#define FIELD(base, type, offset) (*(type *)((char *)(base) + (offset)))

#endif
