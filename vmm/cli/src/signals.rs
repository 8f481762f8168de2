#![expect(unsafe_code, reason = "reads the disposition of signals")]
//! Signals as a readable descriptor. Those that whoever started the program ignores stay ignored
//! (nohup, background jobs of a shell without job control).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalRequest {
    /// SIGTERM: power off.
    Shutdown,
    /// SIGINT, SIGQUIT, SIGHUP: stop now.
    Stop,
    /// SIGUSR1: the disks' sizes may have changed.
    Rescan,
    /// SIGTSTP: give the terminal back and stand still.
    Suspend,
    /// SIGCONT: the terminal may have been changed meanwhile.
    Continue,
}

/// See the module.
pub(crate) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// Takes over the signals that end the program or ask it for something.
    ///
    /// # Errors
    /// No descriptors, or sigaction's own.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let ending = [SIGTERM, SIGINT, SIGQUIT, SIGHUP];
        let taken = ending
            .into_iter()
            .filter(|signal| !is_ignored(*signal))
            .chain([SIGUSR1]);
        SignalDelivery::with_pipe(read, write, SignalOnly, taken).map(Self)
    }

    /// Takes over SIGTSTP and SIGCONT too: the terminal is in a mode that others must not find it
    /// in.
    ///
    /// # Errors
    /// Sigaction's own.
    pub(crate) fn install_job_control(&self) -> io::Result<()> {
        let handle = self.0.handle();
        for signal in [SIGTSTP, SIGCONT] {
            if !is_ignored(signal) {
                handle.add_signal(signal)?;
            }
        }
        Ok(())
    }

    /// Returns what was asked for since the last call.
    pub(crate) fn pending(&mut self) -> Vec<SignalRequest> {
        let mut requests: Vec<_> = self.0.pending().filter_map(request).collect();
        // Whoever continued it after the stop would not do so again.
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

/// Stops the process as SIGTSTP would have, until somebody continues it.
pub(crate) fn stop_process() {
    let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: an action of zeros is a valid one to be written over, and nothing is installed.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}
