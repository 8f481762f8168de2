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
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::tcgetattr;

    use crate::terminal::RawMode;

    const OVERFLOW: &str = "SPLITRING_TEST_OVERFLOW";

    #[expect(unconditional_recursion, reason = "the test needs a stack overflow")]
    fn overflow(depth: &mut [u8; 4096]) -> u8 {
        let mut more = *depth;
        more[0] = more[0].wrapping_add(1);
        overflow(&mut more) + std::hint::black_box(more[1])
    }

    #[test]
    fn a_stack_overflow_is_reported_and_gives_the_terminal_back() {
        // This test runs itself as the crashing program.
        if std::env::var_os(OVERFLOW).is_some() {
            let _raw = RawMode::enter().expect("raw mode").expect("a terminal");
            overflow(&mut [0; 4096]);
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("grant");
        unlockpt(&master).expect("unlock");
        let terminal = ioctl_tiocgptpeer(&master, flags).expect("the other end");
        let modes = || format!("{:?}", tcgetattr(&terminal).expect("modes"));
        let before = modes();
        let stdin = terminal.as_fd().try_clone_to_owned().expect("clone");
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--nocapture"])
            .arg("crash::tests::a_stack_overflow_is_reported_and_gives_the_terminal_back")
            .env(OVERFLOW, "1")
            .stdin(Stdio::from(stdin))
            .output()
            .expect("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("has overflowed its stack"), "{said}");
        assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        assert_eq!(modes(), before);
    }
}
