//! The main thread while a machine runs: passes input to the guest and handles signals and escape
//! keys, until the machine ends.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stdin;
use splitring::config::{SerialConfig, SerialPolicy, SerialTarget};
use splitring::{Console, ExitReason, Machine};

use crate::exit::Failure;
use crate::keyboard::{KEYS, Key, Keyboard};
use crate::signals::{self, SignalRequest, Signals};
use crate::streams::eprint;
use crate::terminal::RawMode;

/// How long a console's target with policy=drop may take for the remaining output.
const FINAL_OUTPUT_LIMIT: Duration = Duration::from_millis(200);
/// How often signals and keys are checked while a target takes the last output of a machine that
/// ended by itself.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The message if the guest does not read its input.
const INPUT_LOST: &str =
    "\r\nsplitring: the guest does not read its console; input is lost (Ctrl-A x stops it)\r\n";

/// Standard input, connected to the guest's console.
struct ConsoleInput {
    /// Finds escape keys. Only on a terminal: piped input all goes to the guest.
    keyboard: Option<Keyboard>,
    /// Input that was read but not accepted yet. Not on a terminal, which is always read for its
    /// escape keys.
    pending: Vec<u8>,
    open: bool,
    /// The message about lost input was printed.
    warned: bool,
}

/// A running machine, with its signals and its terminal.
pub(crate) struct Session<'a> {
    machine: &'a Machine,
    console: &'a Console,
    signals: Signals,
    input: Option<ConsoleInput>,
    raw: Option<RawMode>,
    shutdown_timeout: Duration,
    /// When a guest that was asked to power off is stopped.
    deadline: Option<Instant>,
    /// The machine is to be stopped now.
    stopped: bool,
    /// The session does not wait for a target that does not accept output.
    drops_output: bool,
}

impl<'a> Session<'a> {
    /// Connects standard input to the console, if `serial` has the terminal as its target.
    ///
    /// # Errors
    /// The terminal can't be switched to raw mode.
    pub(crate) fn new(
        machine: &'a Machine,
        console: &'a Console,
        serial: &SerialConfig,
        signals: Signals,
        shutdown_timeout: Duration,
    ) -> io::Result<Self> {
        let connected = serial.target == SerialTarget::Tty;
        let raw = if connected { RawMode::enter()? } else { None };
        if raw.is_some() {
            signals.install_job_control()?;
        }
        let input = connected.then(|| ConsoleInput {
            keyboard: raw.is_some().then(Keyboard::default),
            pending: Vec::new(),
            open: true,
            warned: false,
        });
        Ok(Self {
            machine,
            console,
            signals,
            input,
            raw,
            shutdown_timeout,
            deadline: None,
            stopped: false,
            drops_output: serial.policy == SerialPolicy::Drop,
        })
    }

    /// Serves the machine until it has ended and its last output is written.
    ///
    /// # Errors
    /// poll fails.
    pub(crate) fn serve(&mut self) -> Result<ExitReason, Failure> {
        let end = loop {
            if let Some(end) = self.machine.try_wait() {
                break end;
            }
            self.wait()?;
            self.handle_events();
        };
        self.finish();
        Ok(end)
    }

    /// Waits for the last output: for all of it, unless the program is stopped or the time is
    /// limited.
    fn finish(&mut self) {
        let until = match self.deadline.take() {
            None if self.drops_output => Some(Instant::now() + FINAL_OUTPUT_LIMIT),
            until => until,
        };
        // The guest has ended and can't be asked to power off.
        self.shutdown_timeout = Duration::ZERO;
        // The stop may have coincided with the guest's own end.
        while !self.stopped && self.console.finish_within(POLL_INTERVAL, POLL_INTERVAL) > 0 {
            self.handle_events();
            self.stopped |= until.is_some_and(|at| at <= Instant::now());
        }
        if self.stopped {
            self.console
                .finish_within(FINAL_OUTPUT_LIMIT, FINAL_OUTPUT_LIMIT);
        }
    }

    /// Blocks until there is an event to handle, or the deadline.
    fn wait(&self) -> io::Result<()> {
        let ended = self.machine.ended();
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        let room = self.console.input_room();
        let terminal = stdin();
        match &self.input {
            Some(input) if !input.pending.is_empty() => {
                fds.extend(room.as_ref().map(|room| PollFd::new(room, PollFlags::IN)))
            }
            Some(input) if input.open => fds.push(PollFd::new(&terminal, PollFlags::IN)),
            _ => {}
        }
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Handles signals, keys and the deadline, without blocking.
    fn handle_events(&mut self) {
        let mut stop = self.deadline.is_some_and(|at| at <= Instant::now());
        if stop {
            tracing::warn!(
                "the guest has not powered off within {} s and is stopped",
                self.shutdown_timeout.as_secs()
            );
            self.deadline = None;
        }
        for request in self.signals.pending() {
            match request {
                SignalRequest::Stop => stop = true,
                SignalRequest::Shutdown => stop |= self.shut_down(),
                SignalRequest::Rescan => rescan_disks(self.machine),
                SignalRequest::Suspend => self.suspend(),
                SignalRequest::Continue => self.take_terminal(),
            }
        }
        if let Some(input) = &mut self.input {
            stop |= input.serve(self.console, self.machine);
        }
        if stop {
            self.stopped = true;
            self.machine.stop();
        }
    }

    /// Asks the guest to power off. Returns whether to stop it instead.
    fn shut_down(&mut self) -> bool {
        if self.deadline.is_some() || self.shutdown_timeout.is_zero() {
            return true;
        }
        tracing::info!(
            "SIGTERM: asking the guest to power off; it is stopped after {} s, or at once by a second SIGTERM",
            self.shutdown_timeout.as_secs()
        );
        press_power_button(self.machine);
        self.deadline = Some(Instant::now() + self.shutdown_timeout);
        false
    }

    /// Handles SIGTSTP: restores the terminal before the process stops.
    fn suspend(&self) {
        if let Some(raw) = &self.raw {
            raw.leave();
        }
        signals::stop_process();
        self.take_terminal();
    }

    /// Switches the terminal to raw mode again after a stop.
    fn take_terminal(&self) {
        if let Some(raw) = &self.raw
            && let Err(error) = raw.enter_again()
        {
            tracing::warn!(%error, "cannot switch the terminal to raw mode again");
        }
    }
}

impl ConsoleInput {
    /// Passes available input to the guest. Returns whether to stop the machine.
    fn serve(&mut self, console: &Console, machine: &Machine) -> bool {
        if !self.pending.is_empty() {
            let taken = console.input(&self.pending);
            self.pending.drain(..taken.min(self.pending.len()));
        }
        if !self.open || !self.pending.is_empty() || !is_readable() {
            return false;
        }
        let mut bytes = [0; 4096];
        // Not through std's buffer: poll would not report what is buffered there.
        let bytes = match rustix::io::read(stdin(), &mut bytes) {
            Ok(0) => {
                self.open = false;
                return false;
            }
            Ok(len) => bytes.get(..len).unwrap_or_default(),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return false,
            Err(error) => {
                tracing::warn!(%error, "cannot read standard input; the guest gets no more input");
                self.open = false;
                return false;
            }
        };
        match &mut self.keyboard {
            Some(keyboard) => {
                let keys = keyboard.read(bytes);
                self.handle_keys(keys, console, machine)
            }
            None => {
                let taken = console.input(bytes);
                self.pending.extend(bytes.iter().skip(taken));
                false
            }
        }
    }

    fn handle_keys(&mut self, keys: Vec<Key>, console: &Console, machine: &Machine) -> bool {
        let mut stop = false;
        for key in keys {
            match key {
                Key::Input(bytes) => {
                    if console.input(&bytes) < bytes.len() {
                        self.warn_lost_input();
                    }
                }
                Key::Stop => stop = true,
                Key::PowerButton => press_power_button(machine),
                Key::Keys => eprint(KEYS),
            }
        }
        stop
    }

    /// Rings the terminal's bell, and prints a message the first time.
    fn warn_lost_input(&mut self) {
        eprint("\x07");
        if !std::mem::replace(&mut self.warned, true) {
            eprint(INPUT_LOST);
        }
    }
}

fn press_power_button(machine: &Machine) {
    if let Err(error) = machine.power_button() {
        tracing::warn!("{error}");
    }
}

/// Returns whether a read of standard input would not block.
fn is_readable() -> bool {
    let stdin = stdin();
    let now = Timespec::default();
    poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Reads the sizes of the images again and reports changes to the guest.
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
