//! Entry points.

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// 32-bit protected mode without paging, `ebx` = `hvm_start_info` (Xen PVH,
    /// `XEN_ELFNOTE_PHYS32_ENTRY`).
    Pvh(u32),
    /// Long mode with identity page tables, `rsi` = zero page (Linux boot protocol, 64-bit entry).
    Linux64(u64),
}
