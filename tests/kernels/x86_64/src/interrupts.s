# One stub of 16 bytes for each of the 256 vectors. Each leaves the same frame: vector, error code
# (zero where the processor pushes none), then what `iretq` takes.

.section .text
.balign 16
.global interrupt_stubs
interrupt_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
        push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
.endr

# The interrupt stack is aligned to 16 bytes, and 16 quadwords lie on it after these pushes. Rust may
# use the SSE registers, so that they are saved as well.
interrupt_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov rdi, rsp
    sub rsp, 512
    fxsave64 [rsp]
    cld
    call interrupt
    fxrstor64 [rsp]
    add rsp, 512
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
