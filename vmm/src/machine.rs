//! A machine from outside: what an embedder, the command line and a control API can do with it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use splitring_devices::balloon::BalloonHandle;
use splitring_devices::blk::BlkHandle;
use splitring_devices::dirty::Dirty;
use splitring_devices::net::NetHandle;
use splitring_devices::scsi::ScsiHandle;
use splitring_devices::threads::ThreadGroup;

use crate::assemble::{Generation, lock};
use crate::attach::PciDevice;
use crate::config::VmConfig;
use crate::console::Console;
use crate::error::{BuildError, Error};
use crate::events::{EventHub, Events};
use crate::host;
use crate::lifecycle::{self, Command, Lifecycle, MachineShared, Message};
use crate::memory::{self, SharedMemory};
use crate::registers::Registers;
use crate::resources::{self, Resources};
use crate::state::{ExitReason, MachineState, ShutdownOutcome};
use crate::vcpu::ExitCounts;

/// A virtual machine. Clones are the same machine; it is stopped when the last one is dropped.
///
/// Every method may be called from any thread. Commands are carried out one after the other, in the order
/// in which they arrive.
#[derive(Clone)]
pub struct Machine(Arc<Owner>);

struct Owner {
    shared: Arc<MachineShared>,
    sender: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Its own threads: vCPUs, workers, those that block for its disks, and that of its life cycle.
    group: ThreadGroup,
    name: Option<String>,
    any_kvm: bool,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.0.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _in_span = self.shared.span.enter();
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.generation().control.end(ExitReason::Stopped);
        // A thread that is gone has ended the machine.
        let _ = self.sender.send(Message::Abandoned);
        let thread = lock(&self.thread).take();
        // A disk or a backend of the embedder's may hold the last handle: a thread of the machine's own
        // cannot wait for its own end, which comes all the same.
        if let Some(thread) = thread.filter(|_| !self.group.is_current()) {
            let _ = thread.join();
        }
    }
}

impl Owner {
    fn generation(&self) -> Arc<Generation> {
        Arc::clone(&lock(&self.shared.current))
    }

    fn ask(&self, command: Command) -> Result<(), Error> {
        Ok(lifecycle::ask(&self.sender, &self.shared, command)?)
    }
}

impl Machine {
    /// Builds the machine that `config` describes from `resources`, which were opened for the same
    /// configuration. Opens nothing.
    ///
    /// # Errors
    /// What is wrong with the configuration, the host or a device, by name. Nothing is left behind.
    pub fn new(config: VmConfig, resources: Resources) -> Result<Self, Error> {
        let name = config.name.clone();
        let _in_span = resources::machine_span(&config).entered();
        crate::kick::ensure_installed()?;
        let any_kvm = resources.any_kvm;
        let group = ThreadGroup::new();
        let _starting = group.enter();
        let (sender, inbox) = channel();
        let lifecycle = Lifecycle::build(
            config,
            resources,
            EventHub::default(),
            sender.clone(),
            inbox,
        )?;
        let shared = lifecycle.shared();
        let thread = lifecycle.spawn()?;
        Ok(Self(Arc::new(Owner {
            shared,
            sender,
            thread: Mutex::new(Some(thread)),
            group,
            name,
            any_kvm,
        })))
    }

    /// Opens everything that `config` names and builds the machine, with its console's output discarded.
    ///
    /// # Errors
    /// As [`Resources::open`] and [`Machine::new`].
    pub fn open(config: VmConfig) -> Result<Self, Error> {
        let resources = Resources::open(&config)?;
        Self::new(config, resources)
    }

    /// Lets the guest run for the first time.
    ///
    /// # Errors
    /// KVM here cannot run stock kernels and [`any_kvm`](crate::ResourceOptions::any_kvm) was not set, no
    /// thread can be had, or the machine was started before.
    pub fn start(&self) -> Result<(), Error> {
        if !self.0.any_kvm {
            host::require_hardware().map_err(BuildError::from)?;
        }
        self.0.ask(Command::Start)
    }

    /// Makes the machine stand still. Blocks until its vCPUs have completed their I/O and stopped, and
    /// its devices have nothing in flight: from then on nothing writes guest memory until
    /// [`Machine::resume`]. A reboot does not undo a pause.
    ///
    /// # Errors
    /// The machine does not run, or requests are still in flight after ten seconds, because the host's
    /// storage hangs; it then goes on running.
    pub fn pause(&self) -> Result<(), Error> {
        self.0.ask(Command::Pause)
    }

    /// Lets a paused machine run again. Network cards ask the guest to announce itself.
    ///
    /// # Errors
    /// The machine is not paused.
    pub fn resume(&self) -> Result<(), Error> {
        self.0.ask(Command::Resume)
    }

    /// Builds the machine again from its configuration and resources, whatever the guest is doing, and in
    /// the state it is in: a paused machine stays paused.
    ///
    /// # Errors
    /// The machine was not started, has ended, or cannot be built again and has ended for that reason.
    pub fn reset(&self) -> Result<(), Error> {
        self.0.ask(Command::Reset)
    }

    /// Ends the machine now, as if its power had been cut. Blocks until its vCPUs have ended, and returns
    /// why it ended: something else may have come first.
    pub fn stop(&self) -> ExitReason {
        let _in_span = self.0.shared.span.enter();
        self.0.shared.stopping.store(true, Ordering::SeqCst);
        // At once, whatever the life-cycle thread is doing.
        self.0.generation().control.end(ExitReason::Stopped);
        // Refused only by a machine that has ended.
        let _ = self.0.ask(Command::Stop);
        self.0.shared.status.wait()
    }

    /// Presses the power button, without waiting for what the guest makes of it.
    ///
    /// # Errors
    /// The machine does not run.
    pub fn power_button(&self) -> Result<(), Error> {
        let _in_span = self.0.shared.span.enter();
        self.require_running("press the power button")?;
        let pressed = self.0.generation().power.press_button();
        Ok(pressed.map_err(BuildError::PowerButton)?)
    }

    /// Presses the power button and blocks until the guest has powered off, at most for `timeout`.
    ///
    /// # Errors
    /// The machine does not run. One that has ended is no error: see [`ShutdownOutcome`].
    pub fn shutdown(&self, timeout: Duration) -> Result<ShutdownOutcome, Error> {
        let status = &self.0.shared.status;
        if let Some(reason) = status.reason() {
            return Ok(ShutdownOutcome::AlreadyEnded(reason));
        }
        let restarts = status.restarts();
        self.power_button()?;
        Ok(status.wait_for_shutdown(restarts, timeout))
    }

    /// Injects a non-maskable interrupt into every vCPU.
    ///
    /// # Errors
    /// The machine does not run, or a vCPU does not take it.
    pub fn nmi(&self) -> Result<(), Error> {
        let _in_span = self.0.shared.span.enter();
        self.require_running("inject an NMI")?;
        let control = Arc::clone(&self.0.generation().control);
        for cpu in self.cpus() {
            let injected = control.run_on(cpu, |fd| fd.nmi())?;
            injected.map_err(|error| BuildError::Vcpu {
                cpu,
                problem: format!("KVM refused to inject an NMI: {error}"),
            })?;
        }
        Ok(())
    }

    /// Returns the registers of vCPU `cpu`, read between two instructions.
    ///
    /// # Errors
    /// There is no such vCPU, or the machine is neither running nor paused.
    pub fn registers(&self, cpu: u32) -> Result<Registers, Error> {
        self.require_alive("read registers")?;
        let read = self.0.generation().control.run_on(cpu, |fd| {
            Ok(Registers::new(&fd.get_regs()?, &fd.get_sregs()?))
        })?;
        Ok(read.map_err(|error: kvm_ioctls::Error| BuildError::Vcpu {
            cpu,
            problem: format!("KVM does not give its registers: {error}"),
        })?)
    }

    fn cpus(&self) -> impl Iterator<Item = u32> + use<> {
        (0..).take(self.0.generation().exits.len())
    }

    fn require_alive(&self, operation: &'static str) -> Result<(), BuildError> {
        match self.state() {
            MachineState::Running | MachineState::Paused => Ok(()),
            _ => Err(self.wrong_state(operation)),
        }
    }

    fn require_running(&self, operation: &'static str) -> Result<(), BuildError> {
        match self.state() {
            MachineState::Running => Ok(()),
            _ => Err(self.wrong_state(operation)),
        }
    }

    fn wrong_state(&self, operation: &'static str) -> BuildError {
        match self.0.shared.status.reason() {
            Some(reason) => BuildError::Ended(reason),
            None => BuildError::State {
                operation,
                state: self.state(),
            },
        }
    }

    /// Returns what the machine is doing.
    #[must_use]
    pub fn state(&self) -> MachineState {
        self.0.shared.status.state()
    }

    /// Returns the name in its configuration.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Blocks until the machine ends. A reboot with `on-reboot=restart` is no end.
    #[must_use]
    pub fn wait(&self) -> ExitReason {
        self.0.shared.status.wait()
    }

    /// Returns what [`Machine::wait`] would return if it returned now, and makes the descriptor of
    /// [`Machine::ended`] quiet. Does not block.
    #[must_use]
    pub fn try_wait(&self) -> Option<ExitReason> {
        self.0.shared.status.take_end()
    }

    /// Returns a descriptor that is readable when the machine has ended, until [`Machine::try_wait`].
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.0.shared.status.ended()
    }

    /// Returns a reader of everything that happens to the machine from now on.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn events(&self) -> Result<Events, Error> {
        self.0.shared.events.subscribe()
    }

    /// Offers console input; returns how many bytes were accepted, as [`Console::input`] does.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.console().input(bytes)
    }

    /// Returns the console that its serial port is connected to.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.0.shared.console
    }

    /// Returns the kernel's ids of the vCPUs' threads (gettid(2)), in the order of the vCPUs: for pinning them and for
    /// their control groups. Empty unless the machine runs or is paused; a reboot makes new threads.
    #[must_use]
    pub fn vcpu_threads(&self) -> Vec<i32> {
        self.0.generation().control.threads()
    }

    /// Returns the kernel's ids of the threads that serve the devices, as many as the configuration's `workers`. They
    /// are the same over reboots, until the machine ends.
    #[must_use]
    pub fn worker_threads(&self) -> Vec<i32> {
        self.0.shared.worker_threads.clone()
    }

    /// Returns the devices on the PCI bus and their addresses.
    #[must_use]
    pub fn pci_devices(&self) -> Vec<PciDevice> {
        self.0.generation().devices.list()
    }

    /// Returns what [`Machine::pci_devices`] returns.
    #[deprecated = "its name is `pci_devices`"]
    #[must_use]
    pub fn places(&self) -> Vec<PciDevice> {
        self.pci_devices()
    }

    /// Returns the guest's memory, if the configuration has it shared: for processes that read or serve it. A restart
    /// makes it anew. Empty if the memory is not shared.
    ///
    /// # Errors
    /// No descriptor can be had.
    pub fn shared_memory(&self) -> Result<Vec<SharedMemory>, Error> {
        let shared = memory::shared(&self.0.generation().memory.mapping());
        Ok(shared.map_err(BuildError::Event)?)
    }

    /// Adds `bytes` of memory and returns their guest-physical address. The guest is not told. A restart begins with the
    /// configured size.
    ///
    /// # Errors
    /// No multiple of 2 MiB, or no room, or the dirty log is on, or the machine neither runs nor is paused.
    // A seam: what tells the guest decides what the interface becomes.
    #[doc(hidden)]
    pub fn grow_memory(&self, bytes: u64) -> Result<u64, Error> {
        let _in_span = self.0.shared.span.enter();
        self.require_alive("grow its memory")?;
        let grown = self.0.generation().memory.grow(bytes);
        Ok(grown.map_err(BuildError::from)?)
    }

    /// Notes from now on which pages of memory are written, or stops that. A restart stops it.
    ///
    /// # Errors
    /// KVM or a device refuses, or the machine neither runs nor is paused.
    // A seam, as above.
    #[doc(hidden)]
    pub fn log_dirty_memory(&self, on: bool) -> Result<(), Error> {
        let _in_span = self.0.shared.span.enter();
        self.require_alive("log what is written")?;
        Ok(self.0.generation().log_dirty(on)?)
    }

    /// Returns the pages that were written since the last call or since the log was switched on, by region.
    ///
    /// # Errors
    /// The log is off, or the machine neither runs nor is paused.
    // A seam, as above.
    #[doc(hidden)]
    pub fn take_dirty_memory(&self) -> Result<Vec<Dirty>, Error> {
        let _in_span = self.0.shared.span.enter();
        self.require_alive("say what was written")?;
        let taken = self.0.generation().memory.take_dirty();
        Ok(taken.map_err(BuildError::from)?)
    }

    /// Returns the virtio disks, in the order of the configuration: what they did, and their size to be
    /// looked at again. A restart makes new ones.
    #[must_use]
    pub fn disks(&self) -> Vec<BlkHandle> {
        self.0.generation().devices.handles()
    }

    /// Returns the SCSI controllers, by number: their disks can be added, removed and resized while the
    /// guest runs. A restart makes new ones.
    #[must_use]
    pub fn scsi(&self) -> Vec<ScsiHandle> {
        self.0.generation().devices.handles()
    }

    /// Returns the network cards, in the order of the configuration: what they counted, and their link. A
    /// restart makes new ones, with the link up.
    #[must_use]
    pub fn nets(&self) -> Vec<NetHandle> {
        self.0.generation().devices.handles()
    }

    /// Returns the memory balloon, if the configuration has one. A restart makes a new one, of the size in the
    /// configuration.
    #[must_use]
    pub fn balloon(&self) -> Option<BalloonHandle> {
        let balloons = self.0.generation().devices.handles();
        balloons.into_iter().next()
    }

    /// Returns the exits to user space since the machine started (or restarted).
    #[must_use]
    pub fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        for exits in &self.0.generation().exits {
            exits.add_to(&mut sum);
        }
        sum
    }
}
