/* The engine: one Unicorn instance, the vCPUs that take turns on it, and the calls between its parts. */
#ifndef PYVM_ENGINE_H
#define PYVM_ENGINE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

#define EXPORT __attribute__((visibility("default")))

enum { FOUND_BITS = 15 }; /* of the table in lookup.c */
enum { MAX_VCPUS = 255, MAX_REGIONS = 32, MAX_OVERLAYS = 96, MAX_INVALIDATIONS = 64, CPUID_CACHE = 128 };
enum { MAX_BREAKPOINTS = 1024, MAX_WATCHPOINTS = 28 };

/* Why run() returned. */
enum { EXIT_STOPPED, EXIT_TRIPLE_FAULT, EXIT_FAILED, EXIT_DEBUG };

/* What a vCPU is doing. */
typedef enum { RUNNING, HALTED, WAIT_FOR_SIPI } Activity;

/* How far a debugger lets a vCPU run. */
typedef enum { FREE, ONE_STEP, HELD } Pace;

typedef struct {
    uint8_t image[ENV_STATE_SIZE] __attribute__((aligned(16))); /* registers while another vCPU has the engine */
    Activity activity;
    uint32_t apic_id;
    /* Set by any thread, taken by the vCPU thread. */
    atomic_bool interrupt; /* level of INTR */
    atomic_bool nmi;
    atomic_bool init;
    atomic_int sipi_vector; /* -1: none */
    bool nmi_pending;
    Pace pace;
    struct LapicVectors *vectors; /* of its local APIC; NULL where only the interpreter knows them */
} Vcpu;

/* A run of guest RAM or ROM, or of device registers, as it was mapped into Unicorn. */
typedef struct {
    uint64_t start, end;
    void *memory_region; /* Unicorn's own object for it */
    uint64_t ram_address; /* Unicorn's number for the first byte; RAM only */
    void *host;           /* where its bytes are; RAM only */
    bool is_ram;
} Region;

/* Memory that comes and goes over the regions: the frame buffer of a display, ROM in place of shadow RAM. */
typedef struct {
    Region region;
    bool shown;
} Overlay;

typedef struct {
    uint32_t leaf, subleaf;
    uint32_t eax, ebx, ecx, edx;
} CpuidEntry;

/* Linear addresses whose accesses a debugger wants to hear of. */
typedef struct {
    uint64_t address, length;
    int accesses; /* ACCESS_READ, ACCESS_WRITE */
} Watchpoint;

/* Why a run ended for the debugger. */
typedef enum { DEBUG_BREAKPOINT, DEBUG_STEP, DEBUG_WATCHPOINT } DebugReason;

enum { ACCESS_READ = 1, ACCESS_WRITE = 2 };

/* Bits of watch_hits: the guest's own breakpoints, and above them the debugger's watchpoints. */
enum { WATCH_GUEST_COUNT = 4, WATCH_GUEST_HITS = (1 << WATCH_GUEST_COUNT) - 1 };

/* A run of RAM by Unicorn's numbering, in bytes. */
typedef struct {
    uint64_t start, length;
} Range;

typedef struct {
    PyObject *port_read, *port_write, *mmio_read, *mmio_write;
    PyObject *port_consume; /* takes a port and a count of bytes */
    PyObject *acknowledge, *msr_read, *msr_write, *cr8_read, *cr8_write, *firmware_call;
    PyObject *block_translated, *block_entered, *interrupt_taken; /* see log.c */
} Callbacks;

typedef struct Engine {
    void *uc;
    void *cpu;
    Env *env;

    int vcpu_count;
    Vcpu *vcpus;
    int current;
    bool loaded; /* the current vCPU's registers are in env, not in its image */
    bool yield;  /* the current vCPU executed PAUSE */

    Region regions[MAX_REGIONS];
    int region_count;
    Overlay overlays[MAX_OVERLAYS];
    int overlay_count;
    void *system_memory; /* what Unicorn's regions are parts of */
    const Region *last_region; /* what was last found, */
    Range last_range;          /* and for which addresses */

    CpuidEntry cpuid[CPUID_CACHE];
    int cpuid_count;

    /* Translated code: a bit for each page of RAM that ever held some since it was last dropped. */
    uint64_t *code_pages;
    uint64_t code_page_count;
    uint64_t *code_parts; /* for each of these pages, which of its parts; the vCPU thread's own */
    uint64_t *plain_at;   /* and where stores to it are plain, see store.c; the vCPU thread's own too */
    uint64_t tlb_flushes;
    void *found[1 << FOUND_BITS]; /* translations that were found, see lookup.c */
    uint32_t found_flushes;
    uint64_t overwritten_page; /* whose code was hit lately by stores at addresses that are not executed, */
    int overwritten_times;     /* and how often */
    uint64_t *dirty_log; /* a bit for each page of guest RAM that was written; NULL where nobody asks */
    uint64_t dirty_pages;
    uintptr_t dirty_host; /* where that RAM is */
    pthread_mutex_t lock;
    Range invalidations[MAX_INVALIDATIONS];
    int invalidation_count;
    atomic_bool invalidations_pending;
    bool invalidate_all;

    /* Stopping and sleeping. */
    atomic_bool stop;
    atomic_bool running;
    pthread_t thread;
    bool sleeping;
    pthread_cond_t wake;
    int exit_reason;
    int error; /* Unicorn's, where exit_reason is EXIT_FAILED */

    /* What Unicorn is at, for when it gives up; see faults.c. */
    bool in_guest;    /* inside its cpu_exec() */
    bool translating; /* inside its tb_gen_code() */
    int block_flags;  /* of the block being translated */
    bool cut;         /* it is to end behind its first instruction */
    bool aborted;

    /* The slice timer, which makes busy vCPUs take turns. */
    pthread_t ticker;
    bool ticker_started, ticker_quit, contended;
    atomic_bool slice_over;
    pthread_cond_t ticker_wake;

    /* Guest clock: ns = CLOCK_MONOTONIC + clock_offset while running. */
    _Atomic int64_t clock_offset;
    uint64_t tsc_hz;

    void *env_temp; /* the code generator's handle of env */
    void *generator; /* its context */
    void *label;    /* where the block under translation leaves on a kick */

    /* What the next reads of one port return, as a device has said ahead; see callbacks.c. */
    struct {
        uint32_t port;
        int size;
        size_t used, length;
        uint8_t data[4096];
    } stream;

    /* Calls of firmware services: where their OUT instructions are, in linear addresses; see firmware.c. */
    uint64_t firmware_start, firmware_end;
    bool firmware_called;   /* the current vCPU has executed one */
    bool in_firmware;       /* its service is running; the vCPU's registers are in its image */

    uint64_t soft_interrupt_eip; /* of the last INT instruction */

    uint32_t watch_hits;       /* data breakpoints and watchpoints that the present instruction matches */
    bool watch_repeated, watch_done;
    int watch_waits; /* how often something came between the two executions */

    struct {
        uint64_t breakpoints[MAX_BREAKPOINTS], installed[MAX_BREAKPOINTS]; /* as wanted, and as Unicorn has them */
        int breakpoint_count, installed_count;
        bool changed; /* the former, since they were last looked at */
        void *hidden; /* the head of Unicorn's list while it is shorter */
        Watchpoint watchpoints[MAX_WATCHPOINTS];
        int watchpoint_count;
        bool step_into_interrupts;
        bool stepping, stepped; /* the current vCPU */
        int vcpu, watchpoint;   /* for which the run ended */
        DebugReason reason;
    } debug; /* see debug.c */

    int log; /* what of guest code is told: LOG_... */
    int delivering; /* 1 + the exception that is being delivered; 0: none */
    bool single_instructions; /* blocks have one each */

    Callbacks callbacks;
    PyThreadState *thread_state;
    PyObject *failure; /* the exception that a callback raised */
    uint64_t counters[8];
} Engine;

/* What is told of guest code. */
enum { LOG_TRANSLATIONS = 1, LOG_BLOCKS = 2, LOG_REGISTERS = 4, LOG_INTERRUPTS = 8, LOG_ALL = 15 };

enum { COUNT_PORT, COUNT_MMIO, COUNT_INTERRUPT, COUNT_SWITCH, COUNT_MSR, COUNT_HALT, COUNT_INVALIDATE, COUNT_KICK };

/* Counters have one writer, the vCPU thread, and are read by any. */
static inline void engine_count(Engine *engine, int what) {
    __atomic_store_n(&engine->counters[what], engine->counters[what] + 1, __ATOMIC_RELAXED);
}

/* The engine whose guest code this thread runs, or NULL. */
extern __thread Engine *current_engine __attribute__((tls_model("initial-exec")));

/* Functions of libunicorn, resolved when it is loaded. */
typedef struct {
    int (*uc_open)(int, int, void **);
    int (*uc_close)(void *);
    int (*uc_ctl)(void *, int, ...);
    int (*uc_emu_start)(void *, uint64_t, uint64_t, uint64_t, size_t);
    int (*uc_mem_map_ptr)(void *, uint64_t, size_t, uint32_t, void *);
    int (*uc_mmio_map)(void *, uint64_t, size_t, void *, void *, void *, void *);
    int (*uc_mem_protect)(void *, uint64_t, uint64_t, uint32_t);
    int (*uc_mem_unmap)(void *, uint64_t, size_t);
    void *(*memory_map_ptr)(void *, uint64_t, size_t, uint32_t, void *);
    void *(*memory_map_io)(void *, uint64_t, size_t, void *, void *, void *, void *);
    void (*memory_add)(void *, uint64_t, void *);
    void (*memory_remove)(void *, void *);
    void (*memory_set_readonly)(void *, bool);
    uint64_t (*memory_ram_address)(void *);
    int (*uc_hook_add)(void *, void *, int, void *, void *, uint64_t, uint64_t, ...);
    int (*uc_reg_write)(void *, int, const void *);
    const char *(*uc_strerror)(int);
    unsigned (*uc_version)(unsigned *, unsigned *);

    int (*cpu_exec)(void *, void *);
    void (*store_8)(Env *, uint64_t, uint8_t, uint32_t, uintptr_t);
    void (*store_16)(Env *, uint64_t, uint16_t, uint32_t, uintptr_t);
    void (*store_32)(Env *, uint64_t, uint32_t, uint32_t, uintptr_t);
    void (*store_64)(Env *, uint64_t, uint64_t, uint32_t, uintptr_t);
    void *(*tb_lookup)(void *, uintptr_t);
    void *(*tb_htable_lookup)(void *, uint64_t, uint64_t, uint32_t, uint32_t);
    uint64_t (*get_page_addr_code)(Env *, uint64_t);
    void *(*tb_gen_code)(void *, uint64_t, uint64_t, uint32_t, int);
    void (*do_interrupt)(void *);
    void (*hardware_interrupt)(Env *, int, int);
    void (*cpu_loop_exit)(void *);
    void (*cpu_loop_exit_restore)(void *, uintptr_t);
    bool (*cpu_restore_state)(void *, uintptr_t, bool);
    void (*raise_exception_err_ra)(Env *, int, int, uintptr_t);
    void (*raise_interrupt)(Env *, int, int, int, int);
    void *(*find_memory_mapping)(void *, uint64_t);
    uint64_t (*ram_address_of)(void *, void *);
    void (*tb_invalidate_phys_range)(void *, uint64_t, uint64_t);
    void (*tb_flush)(void *);
    int (*breakpoint_insert)(void *, uint64_t, int, void **);
    void (*breakpoint_remove_all)(void *, int);
    void (*tlb_flush)(void *);
    void (*tlb_protect_code)(void *, uint64_t);
    void (*tlb_set_dirty)(void *, uint64_t);
    void (*invalidate_page_fast)(void *, void *, uint64_t, int, uintptr_t);
    void (*store_physical)(void *, uint64_t, uint32_t);
    uint32_t (*compute_flags)(Env *, int);
    void (*update_cr0)(Env *, uint32_t);
    void (*update_dr7)(Env *, uint32_t);
    void (*update_fp_status)(Env *);
    void (*update_mxcsr_status)(Env *);
    uint32_t (*load_u16)(Env *, uint64_t, int, uintptr_t);
    void (*rdmsr)(Env *);
    void (*wrmsr)(Env *);
    uint64_t (*read_crN)(Env *, int);
    void (*write_crN)(Env *, int, uint64_t);

    void (*gen_call)(void *, void *, void *, int, void **);
    void (*gen_exit_tb)(void *, void *, unsigned);
    void *(*temp_new)(void *, int, bool);
    void (*temp_free)(void *, void *);
    void *(*new_label)(void *);
    void (*gen_op1)(void *, int, uintptr_t);
    void (*gen_op3)(void *, int, uintptr_t, uintptr_t, uintptr_t);
    void (*gen_brcondi_i32)(void *, int, void *, int32_t, void *);
    void (*gen_lookup_and_goto_ptr)(void *);
    void *helper_lookup_tb_ptr;

    void *sse_addsd, *sse_addpd, *sse_addss, *sse_addps;
    void *sse_subsd, *sse_subpd, *sse_subss, *sse_subps;
    void *sse_mulsd, *sse_mulpd, *sse_mulss, *sse_mulps;
    void *sse_divsd, *sse_divpd, *sse_divss, *sse_divps;
    void *sse_sqrtsd, *sse_sqrtpd, *sse_sqrtss, *sse_sqrtps;
} Unicorn;

extern Unicorn unicorn;

/* unicorn.c */
bool unicorn_load(const char *path);
bool layout_check(Engine *engine);

/* The word that each block tests at its start; negative: leave. */
static inline _Atomic int32_t *kick_word(Engine *engine) {
    return &FIELD(engine->env, _Atomic int32_t, ENV_KICK);
}

/* kick.c */
void engine_kick(Engine *engine);
void engine_kick_self(Engine *engine);
void engine_contended(Engine *engine, bool contended);
void engine_ticker_stop(Engine *engine);

/* sched.c */
void vcpu_unload(Engine *engine);

/* state.c */
void image_reset(Engine *engine, uint8_t *image, bool power_on);
void image_start(uint8_t *image, int sipi_vector);
void image_update_hidden(uint8_t *image);
PyObject *image_get(const uint8_t *image);
bool image_set(uint8_t *image, PyObject *values);

/* memory.c */
bool memory_map_ram(Engine *engine, uint64_t gpa, uint64_t size, void *host, bool writable);
bool memory_map_io(Engine *engine, uint64_t gpa, uint64_t size);
bool memory_unmap(Engine *engine, uint64_t gpa, uint64_t size);
void memory_invalidate(Engine *engine, uint64_t gpa, uint64_t length);
void memory_run_invalidations(Engine *engine);
void memory_drop_code(Engine *engine, Range range);

bool memory_note_ram(Engine *engine, Region *region, uint64_t size);

/* overlay.c */
int overlay_make(Engine *engine, uint64_t gpa, uint64_t size, void *host, bool writable);
bool overlay_show(Engine *engine, int index, uint64_t gpa);
bool overlay_hide(Engine *engine, int index);

/* firmware.c */
void firmware_check(Engine *engine, uint32_t port, uintptr_t caller);
void firmware_serve(Engine *engine);

/* store.c */
void store_note_block(Engine *engine, const void *block);
void store_make_all_slow(Engine *engine);

/* dirty.c */
bool dirty_start(Engine *engine, void *host, uint64_t size);
void dirty_stop(Engine *engine);
uint64_t dirty_take(Engine *engine, uint8_t *target);
void dirty_note(Engine *engine, uintptr_t host, uint64_t length);
void dirty_note_physical(Engine *engine, uint64_t gpa, uint64_t length);

/* callbacks.c */
void callback_keep_failure(Engine *engine);
void callback_settle_stream(Engine *engine);
void callback_firmware(Engine *engine);
uint64_t callback_port_read(Engine *engine, uint32_t port, int size);
void callback_port_write(Engine *engine, uint32_t port, int size, uint32_t value);
uint64_t callback_mmio_read(void *uc, uint64_t offset, unsigned size, void *base);
void callback_mmio_write(void *uc, uint64_t offset, unsigned size, uint64_t value, void *base);
int callback_acknowledge(Engine *engine);
bool callback_msr_read(Engine *engine, uint32_t index, uint64_t *value);
bool callback_msr_write(Engine *engine, uint32_t index, uint64_t value);
uint64_t callback_cr8_read(Engine *engine);
void callback_cr8_write(Engine *engine, uint64_t value);

/* lapic.c */
int lapic_acknowledge(Engine *engine);
bool lapic_ends_by_page(Engine *engine, uint64_t gpa, unsigned size);
bool lapic_ends_by_msr(Engine *engine, uint32_t index, uint64_t value);

/* debug.c */
void debug_before_translation(Engine *engine, int block_flags);
int debug_accesses_watched(const Engine *engine, uint64_t address, uint64_t length);
uint32_t debug_watchpoints_hit(const Engine *engine, uint64_t address, uint64_t length, int access);
bool debug_masks_interrupts(const Engine *engine);
void debug_prepare(Engine *engine);
void debug_count_step(Engine *engine);
bool debug_stops(Engine *engine, int result);

/* log.c */
void log_translation(Engine *engine, const void *block);
void log_block(Engine *engine, uintptr_t caller);
void log_interrupt(Engine *engine, int vector, bool request);
void log_set(Engine *engine, int log, bool single);

/* watch.c */
void watch_deliver(Engine *engine);

/* lookup.c */
void tb_flush_x86_64(void *cpu);

/* interpose.c */
void helper_pause_x86_64(Env *env, int length);
uint64_t full_flags(Env *env);

/* faults.c */
bool faults_redirect(void *library);

/* cpuid.c */
void cpuid_lookup(Engine *engine, Env *env, uint32_t leaf, uint32_t subleaf, uint32_t *out);

#endif
