//! Progress messages: one line for each step that takes more than a second.
//!
//! They go to standard error, so that standard output has the command's own output only.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A step in progress. It reports its duration when it is dropped.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    started: Instant,
    stop: Option<Sender<()>>,
    ticker: Option<JoinHandle<()>>,
}

impl Step {
    /// Starts a step that is described by `what` ("building the root disk").
    pub(crate) fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let (stop, stopped) = channel::<()>();
        let text = what.clone();
        let started = Instant::now();
        let ticker = std::thread::spawn(move || {
            let terminal = std::io::stderr().is_terminal();
            let mut announced = false;
            while stopped.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                if terminal {
                    eprint!("\r  {text} … {} s\x1b[K", started.elapsed().as_secs());
                    // A progress line that can't be printed is no reason to stop.
                    drop(std::io::stderr().flush());
                } else if !announced {
                    eprintln!("  {text} …");
                }
                announced = true;
            }
            if announced && terminal {
                eprint!("\r\x1b[K");
            }
        });
        Self {
            what,
            started,
            stop: Some(stop),
            ticker: Some(ticker),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(ticker) = self.ticker.take() {
            drop(ticker.join());
        }
        let took = self.started.elapsed();
        if took >= Duration::from_secs(1) {
            eprintln!("  {}: {:.1} s", self.what, took.as_secs_f64());
        }
    }
}

/// Prints one progress line.
pub(crate) fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}
