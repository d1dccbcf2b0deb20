/* The multiboot header of every program (Multiboot Specification 0.6.96, section 3.1). */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002
    .long 0x00000003                    /* page-aligned modules, memory map wanted */
    .long -(0x1badb002 + 0x00000003)
