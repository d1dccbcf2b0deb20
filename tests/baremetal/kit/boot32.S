/* Start of a 32-bit program: flat segments, no paging, interrupts off; then main(). */
#include "multiboot.h"

    .data
    .align 16
    .global gdt
gdt:                                    /* selectors are named in kit.h */
    .quad 0
    .quad 0x00cf9a000000ffff            /* 0x08 code, ring 0 */
    .quad 0x00cf92000000ffff            /* 0x10 data, ring 0 */
    .quad 0x00cffa000000ffff            /* 0x18 code, ring 3 */
    .quad 0x00cff2000000ffff            /* 0x20 data, ring 3 */
    .quad 0, 0                          /* 0x28 TSS */
    .quad 0x00009a000000ffff            /* 0x38 16-bit code, ring 0 */
    .quad 0x000092000000ffff            /* 0x40 16-bit data, ring 0 */
    .fill 23, 8, 0                      /* 0x48 ... for the tests */
gdt_end:
    .global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

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
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    push $0
    popf
    call kit_main
2:  cli
    hlt
    jmp 2b

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
    pusha
    push %ds
    push %es
    push %fs
    push %gs
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    cld
    push %esp
    call trap
    add $4, %esp
    pop %gs
    pop %fs
    pop %es
    pop %ds
    popa
    add $8, %esp
    iret

/* void user_enter(word ip, word sp, word flags): to ring 3; the trap that ends it returns here. */
    .global user_enter
user_enter:
    push %ebp
    push %ebx
    push %esi
    push %edi
    mov 20(%esp), %eax
    mov 24(%esp), %ecx
    mov 28(%esp), %edx
    mov %esp, kernel_sp
    mov $0x23, %ebx
    mov %ebx, %ds
    mov %ebx, %es
    push $0x23
    push %ecx
    push %edx
    push $0x1b
    push %eax
    iret

    .global user_leave
user_leave:
    mov kernel_sp, %esp
    pop %edi
    pop %esi
    pop %ebx
    pop %ebp
    ret

/* What a started processor runs: real mode at 0x8000, then flat protected mode, then ap_main() on its own stack. */
    .global trampoline, trampoline_end
    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl (trampoline_gdt - trampoline + 0x8000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x08, $ap_start
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:
    .code32
ap_start:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %eax, %ss
    mov $ap_stack_top, %esp
    call ap_entry
3:  cli
    hlt
    jmp 3b

    .bss
    .align 16
    .skip 16384
stack_top:
    .skip 16384
ap_stack_top:
    .global kernel_sp
kernel_sp: .skip 4
