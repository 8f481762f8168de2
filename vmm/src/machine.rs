//! A machine's life: built, started, paused, asked to power off, stopped, started over.
//!
//! Knows threads and their order of ending; what the machine is made of is `assemble.rs`'s business.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use splitring_arch::kernel::Unsaved;
use splitring_devices::blk::BlkHandle;
use splitring_devices::net::NetHandle;
use splitring_devices::scsi::ScsiHandle;
use splitring_devices::serial::Output;

use crate::assemble::{self, BuildError, Parts};
use crate::attach::{OwnDisks, Place};
use crate::config::{OnReboot, VmConfig};
use crate::control::{Control, End};
use crate::vcpu::{ExitCounts, Vcpu};

/// Of what can wait.
const LOWEST_PRIORITY: i32 = 19;

/// Where the serial port's output goes: a writer that outlives reboots.
#[derive(Clone)]
pub struct Console(Arc<Mutex<dyn Write + Send>>);

impl Console {
    /// Output goes to `writer`, on the vCPU's thread: a slow writer slows the guest.
    pub fn new(writer: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    /// Output goes nowhere.
    #[must_use]
    pub fn null() -> Self {
        Self::new(std::io::sink())
    }

    pub(crate) fn output(&self) -> Output {
        Box::new(self.clone())
    }

    fn writer(&self) -> MutexGuard<'_, dyn Write + Send + 'static> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.writer().flush()
    }
}

/// A built machine that does not run yet.
pub struct Machine {
    config: VmConfig,
    own: OwnDisks,
    console: Console,
    changed: OwnedFd,
    parts: Parts,
}

impl Machine {
    /// Builds the machine `config` describes: opens everything it needs, so that nothing is left to open later.
    ///
    /// # Errors
    /// What is wrong with the configuration, the host or a file, by name. Nothing is left behind.
    pub fn build(config: VmConfig, console: Console) -> Result<Self, BuildError> {
        Self::build_with(config, OwnDisks::default(), console)
    }

    /// As [`build`](Self::build), with disks that the embedder serves itself. A restart uses them again.
    ///
    /// # Errors
    /// As [`build`](Self::build), or a disk of yours has no place in the configuration.
    pub fn build_with(
        config: VmConfig,
        own: OwnDisks,
        console: Console,
    ) -> Result<Self, BuildError> {
        crate::kick::ensure_installed()?;
        let changed = assemble::changed()?;
        let parts = assemble::assemble(&config, &own, &console, &changed)?;
        Ok(Self {
            config,
            own,
            console,
            changed,
            parts,
        })
    }

    /// Opens every kernel, initrd and disk that `config` names, as [`Machine::build`] would, and closes them again.
    ///
    /// # Errors
    /// The first that can't be used, by name.
    pub fn try_files(config: &VmConfig) -> Result<(), BuildError> {
        assemble::try_files(config)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(self) -> Result<MachineHandle, BuildError> {
        let running = Running::start(self.parts)?;
        Ok(MachineHandle {
            config: self.config,
            own: self.own,
            console: self.console,
            changed: self.changed,
            running: Mutex::new(Arc::new(running)),
            stopped: AtomicBool::new(false),
        })
    }
}

/// One generation of a running machine: a restart makes another.
struct Running {
    parts: Parts,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Running {
    fn start(mut parts: Parts) -> Result<Self, BuildError> {
        let vcpus = std::mem::take(&mut parts.vcpus);
        let unsaved = parts.unsaved.take();
        let running = Self {
            parts,
            threads: Mutex::new(Vec::new()),
        };
        for vcpu in vcpus {
            let thread = spawn(vcpu, &running.parts.control)?;
            running.threads().push(thread);
        }
        if let Some(unsaved) = unsaved {
            running.threads().extend(save(unsaved));
        }
        Ok(running)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the vCPU threads, and waits until the kernel is saved; afterwards nobody touches the devices but their own workers.
    fn stop(&self) {
        self.parts.control.end(End::Stopped);
        for thread in self.threads().drain(..) {
            // Panics are caught inside and reported as the reason of the end.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        self.parts.release();
    }
}

fn spawn(vcpu: Vcpu, control: &Arc<Control>) -> Result<JoinHandle<()>, BuildError> {
    let control = Arc::clone(control);
    // Counted before the thread is there, so that a pause right after the start waits for it.
    control.join();
    let counted = Arc::clone(&control);
    let index = vcpu.index;
    thread::Builder::new()
        .name(format!("vcpu{index}"))
        .spawn(move || {
            vcpu.run(&control);
            control.leave();
        })
        .map_err(|error| {
            counted.leave();
            BuildError::Thread {
                what: format!("vCPU {index}"),
                error,
            }
        })
}

/// Puts the kernel into the cache, with the processor time that nobody else wants: the guest comes first.
fn save(unsaved: Unsaved) -> Option<JoinHandle<()>> {
    let thread = thread::Builder::new().name("cache".to_owned()).spawn(|| {
        // On Linux the priority of one thread. Without it the guest only boots a little later.
        let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
        unsaved.save();
    });
    thread
        .inspect_err(|error| tracing::warn!(%error, "the kernel is not cached: no thread to do it"))
        .ok()
}

/// A running machine. Dropping it stops it.
pub struct MachineHandle {
    config: VmConfig,
    own: OwnDisks,
    console: Console,
    changed: OwnedFd,
    running: Mutex<Arc<Running>>,
    /// Stopped from outside: a reboot that comes at the same moment starts nothing any more.
    stopped: AtomicBool,
}

impl MachineHandle {
    fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the machine ends. A reboot with `on-reboot = restart` is no end: the machine is built again from its configuration here.
    ///
    /// # Errors
    /// Building it again failed; the machine has ended.
    pub fn wait(&self) -> Result<End, BuildError> {
        loop {
            let running = self.running();
            running.parts.control.wait(None);
            if let Some(end) = self.settle(&running)? {
                return Ok(end);
            }
        }
    }

    /// What `wait` would say, if it would return now. For event loops: call it when [`MachineHandle::changed`] is readable.
    ///
    /// # Errors
    /// As for `wait`.
    pub fn try_wait(&self) -> Result<Option<End>, BuildError> {
        let running = self.running();
        self.settle(&running)
    }

    /// Becomes readable when `try_wait` has something to do; it reads it.
    #[must_use]
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Says why `ended` ended, or starts over if that is what a reboot does here.
    fn settle(&self, ended: &Arc<Running>) -> Result<Option<End>, BuildError> {
        match ended.parts.control.reason() {
            Some(End::Reboot) if self.config.on_reboot == OnReboot::Restart => self.restart(ended),
            reason => Ok(reason),
        }
    }

    fn restart(&self, ended: &Arc<Running>) -> Result<Option<End>, BuildError> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stopped.load(Ordering::SeqCst) {
            return Ok(Some(End::Stopped));
        }
        // Another thread may have been faster.
        if Arc::ptr_eq(&running, ended) {
            ended.stop();
            // The images' locks must be given back before they are taken again.
            ended.parts.release();
            let _ = rustix::io::read(&self.changed, &mut [0; 8]);
            let parts = assemble::assemble(&self.config, &self.own, &self.console, &self.changed)?;
            *running = Arc::new(Running::start(parts)?);
        }
        Ok(None)
    }

    /// Stops the vCPUs between two instructions, and the devices; returns when they stand still. What the host's
    /// disks were already doing they finish.
    pub fn pause(&self) {
        let running = self.running();
        running.parts.control.pause();
        running.parts.pause_devices();
    }

    /// Takes `pause` back. Network cards ask the guest to announce itself.
    pub fn resume(&self) {
        let running = self.running();
        running.parts.resume_devices();
        running.parts.control.resume();
        for net in &running.parts.nets {
            net.announce();
        }
    }

    /// Presses the power button without waiting for what the guest makes of it.
    pub fn press_power_button(&self) {
        if let Err(error) = self.running().parts.power.press_button() {
            tracing::warn!(%error, "cannot press the power button");
        }
    }

    /// Presses the power button and waits at most `timeout` for the end; None if the guest has not powered off by then.
    #[must_use]
    pub fn shutdown(&self, timeout: Duration) -> Option<End> {
        self.press_power_button();
        self.running().parts.control.wait(Some(timeout))
    }

    /// Ends the machine now, as if its power had been cut. Returns when its vCPUs have ended.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.running().stop();
    }

    /// Offers console input; returns how many bytes the guest's port had room for. Nothing is taken without a port.
    #[must_use]
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.running()
            .parts
            .serial
            .as_ref()
            .map_or(bytes.len(), |serial| serial.input(bytes))
    }

    /// The devices on the PCI bus and their slots.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.running().parts.places.clone()
    }

    /// The virtio disks, in the order of the configuration: what they did, and their size to be looked at again. A restart makes new ones.
    #[must_use]
    pub fn disks(&self) -> Vec<BlkHandle> {
        self.running().parts.blk.clone()
    }

    /// The SCSI controllers, by number: their disks can be added, removed and resized while the guest runs. A restart makes new ones.
    #[must_use]
    pub fn scsi(&self) -> Vec<ScsiHandle> {
        self.running().parts.scsi.clone()
    }

    /// The network cards, in the order of the configuration: what they counted, and their link. A restart makes new ones,
    /// with the link up.
    #[must_use]
    pub fn nets(&self) -> Vec<NetHandle> {
        self.running().parts.nets.clone()
    }

    /// Exits to user space since the machine started (or restarted).
    #[must_use]
    pub fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        for exits in &self.running().parts.exits {
            exits.add_to(&mut sum);
        }
        sum
    }
}
