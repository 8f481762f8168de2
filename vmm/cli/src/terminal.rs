#![expect(unsafe_code, reason = "signal handlers, signalfd")]
//! The terminal under the guest's console: raw mode, the escape keys, and putting everything back on every way out.
//!
//! Belongs to the binary: the library touches no terminal. Restores on return, panic, termination signals (which arrive as events) and crash signals (in a handler).

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-A, as in QEMU and screen.
const ESCAPE: u8 = 0x01;

/// The keys, as shown by Ctrl-A c.
pub(crate) const KEYS: &str = "\r\n\
Ctrl-A x  stop the virtual machine\r\n\
Ctrl-A s  press its power button\r\n\
Ctrl-A c  this list\r\n\
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n";

/// What was there before raw mode; read by the crash handler too.
static SAVED: OnceLock<Termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode, until dropped. Nothing at all if it is not a terminal.
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches, if standard input and output are a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = SAVED.get_or_init(|| before).clone();
        raw.make_raw();
        // Output keeps its newline translation: our own messages stay readable beside the guest's, whose CR LF it doesn't change.
        raw.output_modes |=
            rustix::termios::OutputModes::OPOST | rustix::termios::OutputModes::ONLCR;
        catch_crashes()?;
        restore_at_panic();
        RAW.store(true, Ordering::SeqCst);
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back, once. Safe to call from a signal handler: one atomic and one ioctl.
fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
    }
}

fn restore_at_panic() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
}

extern "C" fn on_crash(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    restore();
    // SAFETY: both are async-signal-safe; with the default action back the signal ends the process as it would have.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

fn catch_crashes() -> io::Result<()> {
    for signal in [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGABRT,
    ] {
        vmm_sys_util::signal::register_signal_handler(signal, on_crash)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGUSR1 as a readable descriptor. To be made before any other thread starts, so that all of them leave these signals alone.
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals and takes them over.
    pub(crate) fn take() -> io::Result<Self> {
        let signals = [
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGUSR1,
        ];
        let set = vmm_sys_util::signal::create_sigset(&signals)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        // SAFETY: the set is initialised; the results are checked.
        let fd = unsafe {
            if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// The signal that came, if one did.
    pub(crate) fn next(&self) -> Option<i32> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let read = io::Read::read(&mut &self.0, &mut info).ok()?;
        let number = info.first_chunk::<4>().filter(|_| read >= 4)?;
        i32::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What typed bytes ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// For the guest.
    Input(Vec<u8>),
    Stop,
    PowerButton,
    Keys,
}

/// Finds the escape keys in what is typed.
#[derive(Debug, Default)]
pub(crate) struct Keyboard {
    escaped: bool,
}

impl Keyboard {
    /// Splits `bytes` into what is for the guest and what is for us, in order.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut input = Vec::new();
        for &byte in bytes {
            let key = match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (true, b'x' | b'X') => Key::Stop,
                (true, b's' | b'S') => Key::PowerButton,
                (true, b'c' | b'C' | b'?' | b'h') => Key::Keys,
                // Any other key after the escape is the guest's, without it.
                (_, byte) => {
                    input.push(byte);
                    continue;
                }
            };
            if !input.is_empty() {
                keys.push(Key::Input(std::mem::take(&mut input)));
            }
            keys.push(key);
        }
        if !input.is_empty() {
            keys.push(Key::Input(input));
        }
        keys
    }
}

/// Shows the keys, on the terminal only.
pub(crate) fn show_keys() {
    let _ = io::stderr().write_all(KEYS.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_keys_are_found_across_reads() {
        let mut keyboard = Keyboard::default();
        assert_eq!(keyboard.read(b"ls\x01"), [Key::Input(b"ls".to_vec())]);
        assert_eq!(keyboard.read(b"xq"), [Key::Stop, Key::Input(b"q".to_vec())]);
        assert_eq!(
            keyboard.read(b"\x01c\x01\x01\x01s"),
            [Key::Keys, Key::Input(vec![1]), Key::PowerButton]
        );
    }
}
