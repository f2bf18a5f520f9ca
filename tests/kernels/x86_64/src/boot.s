# From the PVH boot protocol to Rust. The loader enters `boot` in 32-bit protected mode with flat
# segments, paging off and the address of `hvm_start_info` in ebx.

.section .note.Xen, "a", @note
    .long 4, 4, 18                      # bytes of name, bytes of value, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long boot

.section .boot, "ax"
.code32
.global boot
boot:
    # The first 4 GiB, mapped one to one in pages of 2 MiB. The last GiB holds devices: uncached.
    mov dword ptr [pml4], offset pdpt + 3
    mov dword ptr [pdpt], offset page_directories + 0x0003
    mov dword ptr [pdpt + 8], offset page_directories + 0x1003
    mov dword ptr [pdpt + 16], offset page_directories + 0x2003
    mov dword ptr [pdpt + 24], offset page_directories + 0x3003
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 21
    or eax, 0x83                        # present, writable, page size
    cmp ecx, 1536
    jb 2f
    or eax, 0x18                        # write-through, cache disable
2:  mov [page_directories + ecx * 8], eax
    inc ecx
    cmp ecx, 2048
    jb 1b

    mov eax, offset pml4
    mov cr3, eax
    mov eax, 0x620                      # CR4: PAE, and OSFXSR | OSXMMEXCPT, for Rust uses SSE
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER
    rdmsr
    or eax, 0x100                       # LME
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3                 # not CD, NW, TS, EM
    or eax, 0x80000003                  # PG, MP, PE
    mov cr0, eax

    lgdt [boot_gdt_pointer]
    mov esp, offset stack_top
    push 0x08
    mov eax, offset boot_64
    push eax
    retf

.code64
boot_64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset stack_top
    mov edi, ebx
    call kernel_main
    ud2

.section .rodata
.balign 8
boot_gdt:                               # the selectors that `interrupts.rs` keeps
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08: 64-bit code
    .quad 0x00cf93000000ffff            # 0x10: data
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt

.section .bss
.balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
page_directories:
    .skip 4 * 4096
.global stack_bottom
stack_bottom:
    .skip 131072
.global stack_top
stack_top:
