# PVH entry (32-bit protected mode, paging off, ebx = start_info) to ring 3
# in long mode. The code at CPL 0 is as short as possible: a KVM without
# hardware virtualisation emulates every instruction of it.

.section .note.Xen, "a"
.align 4
    .long 4, 4, 18              # namesz, descsz, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

.section .text.start, "ax"
.code32
.globl start32
start32:
    cli
    mov edi, offset page_tables
    # PML4[0] -> PDPT; PDPT[0..511] -> 1 GiB pages would need pdpe1gb, so
    # four page directories of 2 MiB pages cover the first 4 GiB.
    lea eax, [edi + 0x1007]
    mov [edi], eax
    lea eax, [edi + 0x2007]
    mov [edi + 0x1000], eax
    add eax, 0x1000
    mov [edi + 0x1008], eax
    add eax, 0x1000
    mov [edi + 0x1010], eax
    add eax, 0x1000
    mov [edi + 0x1018], eax
    # 2 MiB pages: present, writable, user, page size.
    mov eax, 0x87
    lea edi, [edi + 0x2000]
    mov ecx, 2048
fill:
    mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    dec ecx
    jnz fill

    mov eax, cr4
    or eax, 0x620               # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset page_tables
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, cr0
    and eax, 0xfffffff3         # no EM, no TS
    or eax, 0x80000003          # PG, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp 0x08, offset start64

.code64
start64:
    lea rsp, [rip + stack_top]
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    lea rax, [rip + tss]
    lea rdi, [rip + gdt_tss]
    mov [rdi + 2], ax
    shr rax, 16
    mov [rdi + 4], al
    mov [rdi + 7], ah
    mov ax, 0x28
    ltr ax
    lidt [rip + idt_pointer]
    push 0x23                   # user data | 3
    lea rax, [rip + stack_top]
    push rax
    push 0x3002                 # IOPL 3
    push 0x1b                   # user code | 3
    lea rax, [rip + start_user]
    push rax
    iretq

start_user:
    mov edi, ebx
    xor ebp, ebp
    call guest_main
1:  jmp 1b

# Handlers at CPL 0, which `interrupts.rs` enters into the IDT. Ring 3 runs with interrupts disabled:
# they are taken only while it waits.

# A device's interrupt: counts it and signals the end of interrupt to the local APIC.
.globl interrupt_entry
interrupt_entry:
    push rax
    push rcx
    push rdx
    inc qword ptr [rip + interrupt_count]
    mov ecx, 0x80b              # x2APIC EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

# int 0x80: sleeps until the count differs from rdi.
.globl wait_entry
wait_entry:
    cmp [rip + interrupt_count], rdi
    jne 1f
    sti                         # takes effect after the hlt, so that no interrupt is lost before it
    hlt
    cli
1:  iretq

# int 0x81: enables the local APIC, in x2APIC mode.
.globl apic_entry
apic_entry:
    mov ecx, 0x1b               # IA32_APIC_BASE
    rdmsr
    or eax, 0xc00
    wrmsr
    mov ecx, 0x80f              # spurious interrupt vector, APIC on
    mov eax, 0x1ff
    xor edx, edx
    wrmsr
    iretq

.section .data
.align 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 kernel code
    .quad 0x00cf93000000ffff    # 0x10 kernel data
    .quad 0x00affb000000ffff    # 0x18 user code
    .quad 0x00cff3000000ffff    # 0x20 user data
gdt_tss:
    .quad 0x0000890000000067    # 0x28 64-bit TSS, base set at run time
    .quad 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
.align 16
tss:
    .long 0
    .quad kernel_stack_top      # rsp0
    .quad 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
    .word 0, 0x68
idt_pointer:
    .word 0xfff
    .quad idt
.align 8
.globl interrupt_count
interrupt_count:
    .quad 0

.section .bss
.align 4096
page_tables:
    .skip 0x6000
.globl idt
idt:
    .skip 0x1000
    .skip 0x1000
kernel_stack_top:
.align 16
    .skip 0x40000
stack_top:
