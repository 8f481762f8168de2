//! The terminal of the guest's console: switches it to raw mode, and restores it on every exit
//! path.
//!
//! Belongs to the command: the library touches no terminal. Restored on return, panic, termination
//! signals (which arrive as events), suspension, and crash signals (`crash.rs`).

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal's previous modes; the crash handler reads them, too.
static SAVED: OnceLock<Termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode, until dropped.
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode, whatever standard output is. Returns `None` if it is
    /// not a terminal. A background job is stopped here until it is in the foreground, like every
    /// program that sets a terminal's modes.
    ///
    /// # Errors
    /// The terminal's modes can't be read or set.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        SAVED.get_or_init(|| before);
        crate::crash::install_crash_handlers(restore)?;
        install_panic_hook();
        set_raw()?;
        Ok(Some(Self(())))
    }

    /// Restores the terminal while the program is stopped.
    pub(crate) fn leave(&self) {
        restore();
    }

    /// Switches to raw mode again, which another program may have changed meanwhile.
    ///
    /// # Errors
    /// The terminal's modes can't be set.
    pub(crate) fn enter_again(&self) -> io::Result<()> {
        set_raw()
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn set_raw() -> io::Result<()> {
    let Some(saved) = SAVED.get() else {
        return Ok(());
    };
    let mut raw = saved.clone();
    raw.make_raw();
    // Output keeps its newline translation, so that our own messages stay readable. It does not
    // change the guest's CR LF.
    raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    RAW.store(true, Ordering::SeqCst);
    // Now, not Drain: a terminal that accepts no output must not block this.
    Ok(tcsetattr(stdin(), OptionalActions::Now, &raw)?)
}

/// Restores the terminal, once. Async-signal-safe: atomics and three system calls.
fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
        && !in_background()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, saved);
    }
}

/// Returns whether another job has the terminal, in its own modes: setting them would stop this
/// process.
fn in_background() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
}

fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        previous(info);
    }));
}
