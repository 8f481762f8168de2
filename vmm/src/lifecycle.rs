//! The owner of a machine's life cycle: one thread that executes commands one after the other,
//! rebuilds the machine after a reboot, and ends it.
//!
//! Every other thread sends commands and reads the status. Concurrent calls therefore have one
//! order, a reboot cannot undo a pause, and no event loop waits for a kernel to be loaded.
//! `assemble` builds the machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use splitring_arch::kernel::Unsaved;
use splitring_devices::net::NetHandle;
use splitring_devices::threads::inherited;
use splitring_devices::worker::{self, Failure, Worker};

use crate::assemble::{self, Generation, lock, thread_name};
use crate::config::{OnReboot, VmConfig};
use crate::console::Console;
use crate::control::VcpuControl;
use crate::error::BuildError;
use crate::events::{Event, EventHub};
use crate::resources::Resources;
use crate::state::{ExitReason, MachineState, Status};
use crate::vcpu::Vcpu;

/// A guest that reboots after less than this has probably failed to boot.
const SHORT_RUN: Duration = Duration::from_secs(1);
/// This many short runs in a row are a reboot loop: from then on each restart is delayed longer.
const QUICK_RESTARTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a pause waits for requests in flight at the host's storage.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a console's target may take for the guest's last output before the end is reported.
const FINAL_OUTPUT_LIMIT: Duration = Duration::from_millis(500);
/// The same for a machine that is stopped by the embedder.
const STOPPED_FINAL_OUTPUT_LIMIT: Duration = Duration::from_millis(100);
/// How long the end of a machine waits until its kernel is in the cache.
const CACHE_LIMIT: Duration = Duration::from_secs(5);
/// The `nice` value of background work, which must not slow the guest down.
const LOWEST_PRIORITY: i32 = 19;

/// A command for the life-cycle thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Start,
    Pause,
    Resume,
    Reset,
    Stop,
}

impl Command {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::Stop => "stop",
        }
    }
}

type CommandResult = Result<(), BuildError>;

/// A message to the life-cycle thread.
pub(crate) enum Message {
    /// A command, and the channel for its result.
    Command(Command, SyncSender<CommandResult>),
    /// The vCPUs have ended; `VcpuControl` has the reason.
    GuestEnded,
    /// A device thread has failed.
    DeviceFailed(String),
    /// The last handle was dropped.
    Abandoned,
}

/// The state that the life-cycle thread shares with the handles.
pub(crate) struct MachineShared {
    pub(crate) status: Status,
    pub(crate) events: EventHub,
    /// The current build; replaced by a restart.
    pub(crate) current: Mutex<Arc<Generation>>,
    /// `stop` was called: long operations end early.
    pub(crate) stopping: AtomicBool,
    pub(crate) console: Console,
    /// The span of the machine's log lines, with its name.
    pub(crate) span: tracing::Span,
    /// Kernel thread ids of the device threads.
    pub(crate) worker_threads: Vec<i32>,
}

/// The life-cycle thread's own state.
pub(crate) struct Lifecycle {
    config: VmConfig,
    resources: Resources,
    workers: Vec<Arc<Worker>>,
    shared: Arc<MachineShared>,
    sender: Sender<Message>,
    inbox: Receiver<Message>,
    /// When the current build started to run.
    started_at: Instant,
    short_runs: u32,
    /// When a delayed restart is due.
    restart_at: Option<Instant>,
    saving: Option<JoinHandle<()>>,
}

impl Lifecycle {
    /// Builds the machine for the first time.
    pub(crate) fn build(
        config: VmConfig,
        mut resources: Resources,
        events: EventHub,
        sender: Sender<Message>,
        inbox: Receiver<Message>,
    ) -> Result<Self, BuildError> {
        let failed = sender.clone();
        let workers = assemble::start_workers(
            &config,
            &(Arc::new(move |failure: Failure| {
                // Without a life-cycle thread the machine has already ended.
                let _ = failed.send(Message::DeviceFailed(failure.to_string()));
            }) as _),
        )?;
        let control = new_control(&config, &resources, false, &sender);
        let sink = events.sink();
        let generation = assemble::assemble(&config, &resources, &workers, &sink, control)?;
        let saving = resources.kernel.take_unsaved().and_then(save);
        resources.kernel.release_memory();
        let shared = Arc::new(MachineShared {
            status: Status::new().map_err(BuildError::Event)?,
            events,
            current: Mutex::new(Arc::new(generation)),
            stopping: AtomicBool::new(false),
            console: resources.console.clone(),
            span: tracing::Span::current(),
            worker_threads: workers.iter().map(|worker| worker.thread_id()).collect(),
        });
        Ok(Self {
            config,
            resources,
            workers,
            shared,
            sender,
            inbox,
            started_at: Instant::now(),
            short_runs: 0,
            restart_at: None,
            saving,
        })
    }

    /// Returns the state shared with the handles.
    pub(crate) fn shared(&self) -> Arc<MachineShared> {
        Arc::clone(&self.shared)
    }

    /// Starts the thread, which ends when the last handle is dropped.
    pub(crate) fn spawn(self) -> Result<JoinHandle<()>, BuildError> {
        let name = thread_name("control", "", self.config.name.as_deref());
        let span = tracing::Span::current();
        thread::Builder::new()
            .name(name)
            .spawn(inherited(move || span.in_scope(|| self.serve())))
            .map_err(|error| BuildError::Thread {
                what: "the machine's control".to_owned(),
                error,
            })
    }

    fn serve(mut self) {
        loop {
            match self.next() {
                Some(Message::Command(command, answer)) => {
                    let result = self.execute(command);
                    // The caller may have given up.
                    let _ = answer.send(result);
                }
                Some(Message::GuestEnded) => self.guest_ended(),
                Some(Message::DeviceFailed(what)) => self.end(ExitReason::Failed(what)),
                None => self.rebuild(),
                Some(Message::Abandoned) => break,
            }
        }
        self.end(ExitReason::Stopped);
        self.generation().release();
    }

    /// Blocks until there is a message, or returns `None` when a delayed restart is due.
    fn next(&self) -> Option<Message> {
        let Some(at) = self.restart_at else {
            return Some(self.inbox.recv().unwrap_or(Message::Abandoned));
        };
        match self
            .inbox
            .recv_timeout(at.saturating_duration_since(Instant::now()))
        {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Message::Abandoned),
        }
    }

    fn generation(&self) -> Arc<Generation> {
        Arc::clone(&lock(&self.shared.current))
    }

    fn execute(&mut self, command: Command) -> CommandResult {
        use MachineState::{Created, Ended, Paused, Running};
        match (command, self.shared.status.state()) {
            (Command::Stop, _) => {
                self.end(ExitReason::Stopped);
                Ok(())
            }
            (_, Ended) => Err(self.ended()),
            (Command::Start, Created) => self.start(),
            (Command::Pause, Running) => self.pause(),
            (Command::Resume, Paused) => self.resume(),
            (Command::Reset, Running | Paused) => {
                self.rebuild();
                match self.shared.status.state() {
                    Ended => Err(self.ended()),
                    _ => Ok(()),
                }
            }
            (_, state) => Err(BuildError::State {
                operation: command.verb(),
                state,
            }),
        }
    }

    fn ended(&self) -> BuildError {
        let reason = self.shared.status.reason();
        BuildError::Ended(reason.unwrap_or(ExitReason::Stopped))
    }

    fn start(&mut self) -> CommandResult {
        let generation = self.generation();
        self.run(&generation)?;
        self.shared.status.set(MachineState::Running);
        if let Some(path) = self.shared.console.pty_path() {
            self.shared.events.send(&Event::ConsolePty(path.into()));
        }
        self.shared.events.send(&Event::Started);
        Ok(())
    }

    /// Starts the vCPU threads.
    fn run(&mut self, generation: &Arc<Generation>) -> CommandResult {
        self.started_at = Instant::now();
        if let Some(serial) = &generation.serial
            && let Err(error) = self.shared.console.attach(Arc::clone(serial))
        {
            let error = BuildError::Event(error);
            self.end(ExitReason::Failed(error.to_string()));
            return Err(error);
        }
        let vcpus = std::mem::take(&mut *lock(&generation.vcpus));
        for vcpu in vcpus {
            let name = self.config.name.as_deref();
            match spawn_vcpu(vcpu, &generation.control, name) {
                Ok(thread) => lock(&generation.threads).push(thread),
                Err(error) => {
                    self.end(ExitReason::Failed(error.to_string()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Pauses the vCPUs first, since one of them may be waiting for a worker; then the devices,
    /// until none has a request in flight.
    fn pause(&mut self) -> CommandResult {
        let generation = self.generation();
        if self.restart_at.is_none() {
            match generation.control.pause() {
                Ok(()) => self.pause_devices(&generation)?,
                Err(reason) if self.restarts_after(&reason) => {
                    // A restart is due: the next build starts paused.
                    self.shared.status.set(MachineState::Paused);
                    self.guest_ended();
                }
                Err(reason) => {
                    self.end(reason);
                    return Err(self.ended());
                }
            }
        }
        if self.shared.status.state() == MachineState::Ended {
            return Err(self.ended());
        }
        self.shared.status.set(MachineState::Paused);
        self.shared.events.send(&Event::Paused);
        Ok(())
    }

    fn pause_devices(&self, generation: &Generation) -> CommandResult {
        worker::pause_all(&self.workers, DRAIN_LIMIT, &self.shared.stopping).map_err(|error| {
            generation.control.resume();
            BuildError::Drain(error)
        })
    }

    fn resume(&mut self) -> CommandResult {
        self.resume_devices();
        let generation = self.generation();
        generation.control.resume();
        for net in generation.devices.handles::<NetHandle>() {
            // The bridge may have aged out the guest's address.
            net.announce();
        }
        self.shared.status.set(MachineState::Running);
        self.shared.events.send(&Event::Resumed);
        Ok(())
    }

    fn resume_devices(&self) {
        for worker in &self.workers {
            // Only a failed worker refuses, and then the machine is already ending.
            if let Err(error) = worker.resume() {
                tracing::warn!(%error, "cannot resume {}", worker.name());
            }
        }
    }

    fn restarts_after(&self, reason: &ExitReason) -> bool {
        *reason == ExitReason::Reboot && self.config.on_reboot == OnReboot::Restart
    }

    /// Handles the end of the vCPUs. The message may arrive after the end was handled.
    fn guest_ended(&mut self) {
        let over = self.shared.status.state() == MachineState::Ended || self.restart_at.is_some();
        let Some(reason) = self.generation().control.reason().filter(|_| !over) else {
            return;
        };
        if !self.restarts_after(&reason) {
            return self.end(reason);
        }
        if self.shared.stopping.load(Ordering::SeqCst) {
            return self.end(ExitReason::Stopped);
        }
        if self.started_at.elapsed() >= SHORT_RUN {
            self.short_runs = 0;
        }
        self.short_runs += 1;
        if self.short_runs < QUICK_RESTARTS {
            return self.rebuild();
        }
        if self.short_runs == QUICK_RESTARTS {
            tracing::warn!(
                "the guest reboots again and again, less than a second after its start; from now on each \
                 restart waits, up to a second"
            );
        }
        let doublings = (self.short_runs - QUICK_RESTARTS).min(16);
        let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
        self.restart_at = Some(Instant::now() + wait);
    }

    /// Rebuilds the machine from the same configuration and resources; it keeps its state (running
    /// or paused).
    fn rebuild(&mut self) {
        let paused = self.shared.status.state() == MachineState::Paused;
        if let Err(error) = self.try_rebuild(paused) {
            let what = format!("cannot rebuild the machine after a reboot: {error}");
            return self.end(ExitReason::Failed(what));
        }
        tracing::info!("rebooted");
        self.shared.status.restarted();
        self.shared.events.send(&Event::Rebooted);
    }

    fn try_rebuild(&mut self, paused: bool) -> CommandResult {
        // A reset may arrive while a restart is delayed.
        self.restart_at = None;
        let old = self.generation();
        // Already ended, unless this is a reset.
        old.control.end(ExitReason::Reboot);
        old.join_vcpus();
        old.release();
        let control = new_control(&self.config, &self.resources, paused, &self.sender);
        let new = assemble::assemble(
            &self.config,
            &self.resources,
            &self.workers,
            &self.shared.events.sink(),
            Arc::clone(&control),
        )?;
        let new = Arc::new(new);
        *lock(&self.shared.current) = Arc::clone(&new);
        drop(old);
        // A `stop` in the meantime applied to the old build.
        if self.shared.stopping.load(Ordering::SeqCst) {
            control.end(ExitReason::Stopped);
        }
        self.run(&new)
    }

    /// Ends the machine: stops the vCPU threads and publishes the reason.
    fn end(&mut self, reason: ExitReason) {
        if self.shared.status.state() == MachineState::Ended {
            return;
        }
        let generation = self.generation();
        // An earlier exit reason of the guest takes precedence, unless it is a reboot that would
        // have restarted the machine.
        let reason = match generation.control.reason() {
            Some(own) if self.restart_at.is_none() && !self.restarts_after(&own) => own,
            _ => reason,
        };
        self.restart_at = None;
        generation.control.end(reason.clone());
        generation.join_vcpus();
        self.resume_devices();
        self.finish_console(&reason);
        self.finish_saving(&reason);
        self.shared.status.end(reason.clone());
        self.shared.events.send(&Event::Ended(reason));
    }

    /// Waits for a limited time until the console's target has taken the guest's last output.
    fn finish_console(&self, reason: &ExitReason) {
        let limit = match reason {
            ExitReason::Stopped => STOPPED_FINAL_OUTPUT_LIMIT,
            _ => FINAL_OUTPUT_LIMIT,
        };
        let left = self.shared.console.finish_within(limit, limit);
        if left > 0 {
            tracing::debug!(
                bytes = left,
                "the console's target has not taken all output yet"
            );
        }
    }

    /// Waits until the kernel is in the cache, so that a machine that runs only for a moment fills
    /// it too. Does not wait if the machine is stopped: the thread continues by itself.
    fn finish_saving(&mut self, reason: &ExitReason) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        let deadline = Instant::now() + CACHE_LIMIT;
        while *reason != ExitReason::Stopped
            && !saving.is_finished()
            && !self.shared.stopping.load(Ordering::SeqCst)
            && Instant::now() < deadline
        {
            thread::sleep(Duration::from_millis(5));
        }
        if saving.is_finished() {
            // The thread logs its own errors.
            let _ = saving.join();
        }
    }
}

fn new_control(
    config: &VmConfig,
    resources: &Resources,
    paused: bool,
    sender: &Sender<Message>,
) -> Arc<VcpuControl> {
    let sender = sender.clone();
    Arc::new(VcpuControl::new(
        config.cpus,
        paused,
        resources.console.clone(),
        move || {
            // Without a life-cycle thread the machine has already ended.
            let _ = sender.send(Message::GuestEnded);
        },
    ))
}

fn spawn_vcpu(
    vcpu: Vcpu,
    control: &Arc<VcpuControl>,
    machine: Option<&str>,
) -> Result<JoinHandle<()>, BuildError> {
    let control = Arc::clone(control);
    // Counted before the thread exists, so that a pause right after the start waits for it.
    control.join();
    let counted = Arc::clone(&control);
    let index = vcpu.index;
    let span = tracing::Span::current();
    thread::Builder::new()
        .name(thread_name("vcpu", index, machine))
        .spawn(inherited(move || {
            control.note_thread(index, true);
            span.in_scope(|| vcpu.run(&control));
            control.note_thread(index, false);
            control.leave();
        }))
        .map_err(|error| {
            counted.leave();
            BuildError::Thread {
                what: format!("vCPU {index}"),
                error,
            }
        })
}

/// Writes the kernel to the cache at the lowest priority, so that the guest is not slowed down.
fn save(unsaved: Unsaved) -> Option<JoinHandle<()>> {
    let span = tracing::Span::current();
    let thread = thread::Builder::new()
        .name("cache".to_owned())
        .spawn(move || {
            // On Linux this is the priority of the calling thread. If it fails, the guest only
            // boots a little later.
            let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
            span.in_scope(|| unsaved.save());
        });
    thread
        .inspect_err(
            |error| tracing::warn!(%error, "cannot start the thread that caches the kernel"),
        )
        .ok()
}

/// Sends a command and blocks until its result.
pub(crate) fn ask(
    sender: &Sender<Message>,
    shared: &MachineShared,
    command: Command,
) -> CommandResult {
    let gone = || {
        let reason = shared.status.reason().unwrap_or(ExitReason::Stopped);
        BuildError::Ended(reason)
    };
    let (answer, answered) = sync_channel(1);
    sender
        .send(Message::Command(command, answer))
        .map_err(|_| gone())?;
    answered.recv().unwrap_or_else(|_| Err(gone()))
}
