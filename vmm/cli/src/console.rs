//! The main thread while a machine runs: keys to the guest, signals and keys for us, until the machine ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use splitring::{ExitReason, Machine};

use crate::terminal::{self, Key, Keyboard, Signals};
use crate::{Failure, footprint};

/// While the guest has no room for input, how often it is asked again.
const RETRY: Duration = Duration::from_millis(10);

/// How long after the start what only the start needed is given back: not while the guest boots, which it would slow down.
const SETTLED: Duration = Duration::from_secs(2);

/// What has been typed and not been taken yet.
struct Input {
    keyboard: Keyboard,
    /// Only a terminal has escape keys: piped input is all the guest's.
    terminal: bool,
    pending: Vec<u8>,
    open: bool,
}

/// Serves the machine until it ends.
pub(crate) fn serve(
    machine: &Machine,
    signals: &Signals,
    terminal: bool,
) -> Result<ExitReason, Failure> {
    let mut input = Input {
        keyboard: Keyboard::default(),
        terminal,
        pending: Vec::new(),
        open: true,
    };
    let stdin = io::stdin();
    let mut settling = Some(Instant::now());
    loop {
        if let Some(end) = machine.try_wait() {
            return Ok(end);
        }
        if settling.is_some_and(|since| since.elapsed() >= SETTLED) {
            footprint::release_startup_code();
            settling = None;
        }
        let listening = input.open && input.pending.is_empty();
        let timeout = if input.pending.is_empty() {
            settling.map(|since| SETTLED.saturating_sub(since.elapsed()))
        } else {
            Some(RETRY)
        };
        let ready = wait(machine, signals, listening.then(|| stdin.as_fd()), timeout)?;
        match signals.next() {
            None => {}
            Some(libc::SIGUSR1) => rescan_disks(machine),
            Some(_) => drop(machine.stop()),
        }
        if ready {
            input.read(machine);
        }
        input.offer(machine);
    }
}

/// The images may have grown: the guest is told.
fn rescan_disks(machine: &Machine) {
    for disk in machine.disks() {
        let id = disk.id().unwrap_or_default();
        match disk.rescan() {
            Some(Ok(capacity)) => tracing::info!("{id}: {capacity} bytes"),
            Some(Err(error)) => tracing::error!("{id}: {error}"),
            None => {}
        }
    }
    for controller in machine.scsi() {
        for unit in controller.units() {
            match controller.resize(&unit.id) {
                Ok(capacity) => tracing::info!("{}: {capacity} bytes", unit.id),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }
}

/// Waits for any of the three, or for as long as is given; says whether standard input is ready.
fn wait(
    machine: &Machine,
    signals: &Signals,
    stdin: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let changed = machine.ended();
    let mut fds = vec![
        PollFd::new(&changed, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    if let Some(stdin) = &stdin {
        fds.push(PollFd::new(stdin, PollFlags::IN));
    }
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.get(2).is_some_and(|fd| !fd.revents().is_empty()))
}

impl Input {
    fn read(&mut self, machine: &Machine) {
        let mut bytes = [0; 256];
        // Not through std's buffer: what waits there would not wake the poll.
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => self.open = false,
            Ok(len) if self.terminal => {
                for key in self.keyboard.read(bytes.get(..len).unwrap_or_default()) {
                    match key {
                        Key::Input(bytes) => self.pending.extend(bytes),
                        Key::Stop => drop(machine.stop()),
                        Key::PowerButton => {
                            if let Err(error) = machine.power_button() {
                                tracing::warn!("{error}");
                            }
                        }
                        Key::Keys => terminal::show_keys(),
                    }
                }
            }
            Ok(len) => self
                .pending
                .extend_from_slice(bytes.get(..len).unwrap_or_default()),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot read standard input any more");
                self.open = false;
            }
        }
    }

    fn offer(&mut self, machine: &Machine) {
        if !self.pending.is_empty() {
            let taken = machine.input(&self.pending);
            self.pending.drain(..taken.min(self.pending.len()));
        }
    }
}
