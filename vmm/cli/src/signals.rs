#![expect(unsafe_code, reason = "reads the disposition of signals")]
//! Signals as a readable descriptor. Signals that the parent process ignores stay ignored (nohup,
//! background jobs of a shell without job control).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// The request that a signal makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// SIGTERM: power off.
    Shutdown,
    /// SIGINT, SIGQUIT, SIGHUP: stop now.
    Stop,
    /// SIGUSR1: the disks' sizes may have changed.
    Rescan,
    /// SIGTSTP: restore the terminal and stop.
    Suspend,
    /// SIGCONT: switch the terminal to raw mode again.
    Continue,
}

/// Receives signals; see the module.
pub(crate) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Handles the signals that end the program or make a request.
    ///
    /// # Errors
    /// There are no descriptors, or sigaction fails.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let ending = [SIGTERM, SIGINT, SIGQUIT, SIGHUP];
        let taken = ending
            .into_iter()
            .filter(|signal| !is_ignored(*signal))
            .chain([SIGUSR1]);
        SignalDelivery::with_pipe(read, write, SignalOnly, taken).map(Self)
    }

    /// Handles SIGTSTP and SIGCONT, too, because other programs must not find the terminal in raw
    /// mode.
    ///
    /// # Errors
    /// sigaction fails.
    pub(crate) fn install_job_control(&self) -> io::Result<()> {
        let handle = self.0.handle();
        for signal in [SIGTSTP, SIGCONT] {
            if !is_ignored(signal) {
                handle.add_signal(signal)?;
            }
        }
        Ok(())
    }

    /// Returns the requests since the last call.
    pub(crate) fn pending(&mut self) -> Vec<SignalRequest> {
        let mut requests: Vec<_> = self.0.pending().filter_map(request).collect();
        // The process was already continued after this SIGTSTP: a second SIGCONT may never come.
        if requests.contains(&SignalRequest::Continue) {
            requests.retain(|request| *request != SignalRequest::Suspend);
        }
        requests
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

fn request(signal: i32) -> Option<SignalRequest> {
    Some(match signal {
        SIGTERM => SignalRequest::Shutdown,
        SIGINT | SIGQUIT | SIGHUP => SignalRequest::Stop,
        SIGUSR1 => SignalRequest::Rescan,
        SIGTSTP => SignalRequest::Suspend,
        SIGCONT => SignalRequest::Continue,
        _ => return None,
    })
}

/// Stops the process as SIGTSTP does by default, until it is continued.
pub(crate) fn stop_process() {
    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: a zeroed sigaction is valid to be overwritten, and no action is installed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
