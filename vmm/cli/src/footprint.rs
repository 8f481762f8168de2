#![expect(unsafe_code, reason = "madvise on the program's own code")]
//! Giving back what only the start needed.
//!
//! Most of the program's code and constants (argument parsing, configuration, decompressors) is of no use any more once a machine runs, but stays resident: 4.0 MiB
//! instead of 2.6 for a static build. The pages are the file's: dropped ones that are needed after all come back from the page cache, as those do that were never touched.
//! So this adds nothing to what a file overwritten in place does to a running program; the kernel refuses that (ETXTBSY), but not on behalf of another machine that
//! shares the file system.

unsafe extern "C" {
    // Set by the linker: the first byte of the program, and the one behind its code. What lies between is never written to.
    static __executable_start: u8;
    static etext: u8;
}

const PAGE: usize = 4096;

/// Drops the program's code and constants from resident memory.
pub(crate) fn release_startup_code() {
    let start = (&raw const __executable_start)
        .addr()
        .next_multiple_of(PAGE);
    let end = (&raw const etext).addr() / PAGE * PAGE;
    let Some(len) = end.checked_sub(start) else {
        return;
    };
    let start = (&raw const __executable_start).with_addr(start);
    // SAFETY: whole pages between the program's start and the end of its code: a private mapping of the file that nobody writes to (relocated data lies behind it), whose
    // pages the kernel reads again when they are touched. Failure leaves everything as it is.
    unsafe { libc::madvise(start.cast_mut().cast(), len, libc::MADV_DONTNEED) };
}
