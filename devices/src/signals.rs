//! The one signal that a host's files can send: SIGXFSZ, for a write beyond the limit on file sizes
//! (setrlimit(2)).

use vmm_sys_util::signal::block_signal;

/// Blocks SIGXFSZ on the calling thread, whose writes then fail with EFBIG; its default is to kill
/// the process.
///
/// Called on threads of this crate's own only, at their start. The kernel's io_uring threads have
/// it blocked anyway.
pub(crate) fn block_file_size_signal() {
    // It fails only where the signal is blocked already.
    let _ = block_signal(libc::SIGXFSZ);
}
