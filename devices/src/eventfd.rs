//! The one way to create an eventfd.
//!
//! A process that this one starts must not inherit a machine's doorbells and interrupt lines, so every eventfd is
//! close-on-exec; nothing may wait in a read or a write of one, so it is non-blocking. `tests/tests/layering.rs`
//! finds any that is made in another way.
#![expect(
    unsafe_code,
    reason = "lends an eventfd's descriptor to whoever waits for it"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Creates an eventfd with the value 0, close-on-exec and non-blocking. So are its clones.
///
/// # Errors
/// The kernel's answer, `EMFILE` where the limit on open files is reached.
pub fn eventfd() -> io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

/// Lends the descriptor of `event`, which has no such method itself.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open until `event` is dropped, which outlives the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eventfd_and_its_clones_are_close_on_exec_and_never_block() {
        let event = eventfd().unwrap();
        let clone = event.try_clone().unwrap();
        for each in [&event, &clone] {
            let file = std::fs::File::open(format!("/proc/self/fdinfo/{}", each.as_raw_fd()));
            let flags = io::read_to_string(file.unwrap()).unwrap();
            let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0, "{flags:o}");
            assert_ne!(flags & libc::O_NONBLOCK, 0, "{flags:o}");
        }
    }
}
