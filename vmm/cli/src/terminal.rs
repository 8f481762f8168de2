//! The terminal under the guest's console: raw mode, and putting everything back on every way out.
//!
//! Belongs to the binary: the library touches no terminal. Restored on return, panic, termination
//! signals (which arrive as events), suspension, and crash signals (`crash.rs`).

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcsetattr};

/// What was there before raw mode; read by the crash handler too.
static SAVED: OnceLock<Termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input in raw mode, until dropped.
pub(crate) struct RawMode(());

impl RawMode {
    /// Switches standard input to raw mode, wherever standard output goes. None if it is not a
    /// terminal. A background job is stopped here until it is in the foreground, as every program
    /// is that sets a terminal's modes.
    ///
    /// # Errors
    /// The terminal's own.
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

    /// Puts the terminal back, for the time the program is stopped.
    pub(crate) fn leave(&self) {
        restore();
    }

    /// Switches to raw mode again: somebody may have changed it meanwhile.
    ///
    /// # Errors
    /// The terminal's own.
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
    // Output keeps its newline translation: our own messages stay readable beside the guest's,
    // whose CR LF it doesn't change.
    raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    RAW.store(true, Ordering::SeqCst);
    // Now: a terminal that takes no output must not hold this up.
    Ok(tcsetattr(stdin(), OptionalActions::Now, &raw)?)
}

/// Puts the terminal back, once. Safe to call from a signal handler: atomics and three system
/// calls.
fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
        && !in_background()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, saved);
    }
}

/// Whether the terminal is another job's, whose modes it has: setting them would stop this process.
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
