/* Start of a 64-bit program: 4 GiB mapped one to one with 2 MiB pages, interrupts off; then main(). */
#include "multiboot.h"

    .data
    .align 16
    .global gdt
gdt:                                    /* selectors are named in kit.h */
    .quad 0
    .quad 0x00af9a000000ffff            /* 0x08 64-bit code, ring 0 */
    .quad 0x00cf92000000ffff            /* 0x10 data, ring 0 */
    .quad 0x00cffa000000ffff            /* 0x18 32-bit code, ring 3 */
    .quad 0x00cff2000000ffff            /* 0x20 data, ring 3 */
    .quad 0x00affa000000ffff            /* 0x28 64-bit code, ring 3 */
    .quad 0, 0                          /* 0x30 TSS */
    .quad 0x00cf9a000000ffff            /* 0x40 32-bit code, ring 0 */
    .quad 0x00009a000000ffff            /* 0x48 16-bit code, ring 0 */
    .quad 0x000092000000ffff            /* 0x50 16-bit data, ring 0 */
    .fill 21, 8, 0                      /* 0x58 ... for the tests */
gdt_end:
    .global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .text
    .code32
    .global _start
_start:
    cli
    cld
    mov $stack_top, %esp
    mov %ebx, %esi                      /* multiboot information survives the clearing */
    mov $bss_start, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    rep stosb
    mov %esi, multiboot_info

    mov $page_directories, %edi         /* 2,048 large pages: present, writable, user, size */
    mov $0x87, %eax
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $page_directories + 7, %eax
    mov $pdpt, %edi
    mov $4, %ecx
2:  mov %eax, (%edi)
    add $4096, %eax
    add $8, %edi
    loop 2b
    movl $pdpt + 7, pml4
    mov $first, %ebx
    /* falls through */

/* Turn long mode on, load the GDT and go to the 64-bit code at ebx: for the first processor and for started ones. */
long_mode:
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax                      /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx               /* EFER */
    rdmsr
    or $0x100, %eax                     /* LME */
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax                /* PG, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $3f
    .code64
3:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    jmp *%rbx

first:
    mov $stack_top, %esp
    push $0
    popf
    call kit_main
    jmp 5f
started:
    mov $ap_stack_top, %esp
    call ap_entry
5:  cli
    hlt
    jmp 5b

/* One stub of 16 bytes for each vector: make all frames alike, then go to the common part. */
    .align 16
    .global stubs
stubs:
    vector = 0
    .rept 256
    .align 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push $0
    .endif
    push $vector
    jmp common
    vector = vector + 1
    .endr

common:
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call trap
    mov %rbp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq

/* void user_enter(word ip, word sp, word flags): to ring 3; the trap that ends it returns here.
   user_enter32 is the same into compatibility mode. */
    .global user_enter, user_enter32
user_enter32:
    mov $0x1b, %eax
    jmp 6f
user_enter:
    mov $0x2b, %eax
6:  push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, kernel_sp
    mov $0x23, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    push $0x23
    push %rsi
    push %rdx
    push %rax
    push %rdi
    iretq

    .global user_leave
user_leave:
    mov kernel_sp, %rsp
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret

/* What a started processor runs: real mode at 0x8000, then protected mode, then the way of the first one. */
    .global trampoline, trampoline_end
    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl (trampoline_pointer - trampoline + 0x8000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $ap_start
    .align 8
trampoline_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
trampoline_pointer:
    .word trampoline_pointer - trampoline_gdt - 1
    .long trampoline_gdt - trampoline + 0x8000
trampoline_end:
    .code32
ap_start:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $started, %ebx
    jmp long_mode

    .bss
    .align 4096
    .global pml4
pml4: .skip 4096
pdpt: .skip 4096
    .global page_directories
page_directories: .skip 4 * 4096
    .skip 16384
stack_top:
    .skip 16384
ap_stack_top:
    .global kernel_sp
kernel_sp: .skip 8
