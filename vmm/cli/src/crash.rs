#![expect(unsafe_code, reason = "handlers of crash signals")]
//! Restores the terminal on a crash. The previous handlers, such as Rust's for a stack overflow,
//! run afterwards, so the process still crashes.

use std::io;
use std::mem::zeroed;
use std::ptr;
use std::sync::OnceLock;

const SIGNALS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];

/// The previous handlers.
static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Restores the terminal; async-signal-safe.
static RESTORE: OnceLock<fn()> = OnceLock::new();

/// Installs the handlers, once. They call `restore`, which must be async-signal-safe.
///
/// # Errors
/// sigaction fails.
pub(crate) fn install_crash_handlers(restore: fn()) -> io::Result<()> {
    RESTORE.get_or_init(|| restore);
    if PREVIOUS.get().is_some() {
        return Ok(());
    }
    // SAFETY: a zeroed sigaction is the default action.
    let mut before: [libc::sigaction; SIGNALS.len()] = unsafe { zeroed() };
    for (signal, action) in SIGNALS.into_iter().zip(&mut before) {
        // SAFETY: only reads the current action, into a local variable.
        check(unsafe { libc::sigaction(signal, ptr::null(), action) })?;
    }
    // Set before any handler is installed, so that a handler finds all of them.
    PREVIOUS.get_or_init(|| before);
    for signal in SIGNALS {
        // SAFETY: the handler is async-signal-safe and has the signature that SA_SIGINFO requires.
        // It runs on the alternate stack of Rust's threads, since the normal stack may have
        // overflowed.
        check(unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_crash as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, ptr::null_mut())
        })?;
    }
    Ok(())
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_crash(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(restore) = RESTORE.get() {
        restore();
    }
    let at = SIGNALS.iter().position(|known| *known == signal);
    let before = PREVIOUS
        .get()
        .zip(at)
        .and_then(|(before, at)| before.get(at));
    // SAFETY: the kernel gave the information. sigaction, signal and raise are async-signal-safe.
    unsafe {
        // si_code > 0: a fault, which recurs when this handler returns. Otherwise a process sent
        // the signal, and it is raised again to end this process as it would have.
        match before {
            Some(before) if (*info).si_code > 0 => {
                libc::sigaction(signal, before, ptr::null_mut());
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests;
