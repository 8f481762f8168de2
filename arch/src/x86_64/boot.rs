//! Boot parameters in guest memory: PVH `hvm_start_info` and the Linux zero page, and the command line.
//!
//! It knows both boot protocols' structures (Xen PVH ABI; Linux `Documentation/arch/x86/boot.rst`); it does not know files.

use std::ops::Range;

use vm_memory::GuestMemoryBackend;

use crate::kernel::{Entry, Kernel};
use crate::layout::Layout;

/// Boot parameters that can't be written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The command line has more bytes than the kernel keeps.
    #[error("the command line is {len} bytes long; the kernel keeps {max}")]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// Most bytes.
        max: usize,
    },
}

/// What the kernel is told.
#[derive(Debug, Clone)]
pub struct BootParameters<'a> {
    /// The address map.
    pub layout: &'a Layout,
    /// Guest addresses of the initrd.
    pub initrd: Option<Range<u64>>,
    /// Command line, without the NUL.
    pub command_line: &'a str,
    /// Guest address of the RSDP.
    pub rsdp: u64,
}

impl BootParameters<'_> {
    /// Writes what `kernel`'s entry expects into `memory`: start_info or zero page, memory map, command line, and for the 64-bit entry the
    /// page tables; and the GDT for both.
    pub fn write<M: GuestMemoryBackend>(
        &self,
        kernel: &Kernel,
        memory: &M,
    ) -> Result<(), BootError> {
        let _ = (kernel, memory, Entry::Pvh(0));
        todo!()
    }
}

/// The command line: our defaults, then what the user gave. A user's `console=` replaces the default console.
#[must_use]
pub fn command_line(user: Option<&str>) -> String {
    let _ = user;
    todo!()
}
