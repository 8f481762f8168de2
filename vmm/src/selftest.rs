//! `splitring selftest`: boots the embedded freestanding guest, which drives every device through the
//! piecewise path, and reads what it says.
//!
//! Nothing is left behind: disks, kernel and report are memory files of this process. The guest needs
//! no stock kernel's environment, so it runs on every KVM.

mod clock;
mod peer;
mod report;

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use splitring_arch::layout;

use crate::config::{Bus, Bytes, DiskConfig, NetConfig, SerialTarget, VmConfig};
use crate::host::{self, Virtualisation};
use crate::{Error, ErrorKind, ExitReason, Machine, ResourceOptions, Resources};

pub use report::{ReportLine, SelftestReport, Test, TestOutcome, TimedLoop};

/// The former name of [`ReportLine`].
#[deprecated = "renamed to `ReportLine`"]
pub type Line = ReportLine;
/// The former name of [`TimedLoop`].
#[deprecated = "renamed to `TimedLoop`"]
pub type Loop = TimedLoop;
/// The former name of [`SelftestOptions`].
#[deprecated = "renamed to `SelftestOptions`"]
pub type Options = SelftestOptions;
/// The former name of [`TestOutcome`].
#[deprecated = "renamed to `TestOutcome`"]
pub type Outcome = TestOutcome;
/// The former name of [`SelftestReport`].
#[deprecated = "renamed to `SelftestReport`"]
pub type Report = SelftestReport;

/// The guest's ELF image.
pub const GUEST: &[u8] = include_bytes!(env!("SPLITRING_GUEST"));

/// Guest memory: the guest's arena and some.
const MEMORY: Bytes = Bytes::mib(128);
const REPORT_SIZE: u64 = 1 << 20;
const DISK_SIZE: u64 = 64 << 20;
const LOOK: Duration = Duration::from_millis(2);

/// Why the self-test could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelftestError {
    /// The host refuses something every run needs.
    #[error("cannot prepare the self-test: cannot {what}: {error}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// The machine can't be built.
    #[error(transparent)]
    Build(#[from] Error),
    /// The guest ended early.
    #[error(
        "the guest crashed: {end}{said}; please report this with the output of `splitring check`"
    )]
    Crashed {
        /// How the machine ended.
        end: ExitReason,
        /// What the guest said last, if it panicked.
        said: String,
    },
    /// The guest says nothing any more.
    #[error("the guest hangs: nothing from it for {} s after \"{last}\"; please report this with the output of `splitring check`", .silence.as_secs())]
    Hangs {
        /// For how long.
        silence: Duration,
        /// Its last line.
        last: String,
    },
}

impl SelftestError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Prepare { .. } => ErrorKind::Limit,
            Self::Build(error) => error.kind(),
            Self::Crashed { .. } | Self::Hangs { .. } => ErrorKind::Guest,
        }
    }
}

/// What to run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SelftestOptions {
    /// Length of each timed loop.
    pub each: Duration,
    /// How long the guest may say nothing, beyond the length of a timed loop, before it counts as hung.
    pub silence: Duration,
    /// What to boot: [`GUEST`], or what reports as it does.
    pub guest: &'static [u8],
}

impl SelftestOptions {
    splitring_devices::setters! {
        each: Duration;
        silence: Duration;
        guest: &'static [u8];
    }
}

impl Default for SelftestOptions {
    fn default() -> Self {
        Self {
            each: Duration::from_secs(1),
            silence: Duration::from_secs(30),
            guest: GUEST,
        }
    }
}

/// Runs the self-test. `progress` sees each line as it comes.
///
/// # Errors
/// The guest did not get to its end. Tests that fail are in the report.
pub fn run(
    options: SelftestOptions,
    mut progress: impl FnMut(&ReportLine),
) -> Result<SelftestReport, SelftestError> {
    let files = Files::new(options.guest)?;
    let (ours, theirs) = peer::pair().map_err(|e| prepare("make a socket pair", e))?;
    let config = Files::config(options);
    let resources = files.resources(theirs)?.any_kvm(true).open(&config)?;
    let machine = Machine::new(config, resources)?;
    machine.start()?;
    let peer = thread::spawn(move || peer::echo(ours));
    let result = follow(&machine, &files, options, &mut progress);
    machine.stop();
    // The card's end of the socket goes with the machine, which ends the peer.
    drop(machine);
    let _ = peer.join();
    result
}

/// Reads the report until the guest has ended.
fn follow(
    machine: &Machine,
    files: &Files,
    options: SelftestOptions,
    progress: &mut impl FnMut(&ReportLine),
) -> Result<SelftestReport, SelftestError> {
    let silence = options.silence.saturating_add(options.each);
    let mut report = SelftestReport::default();
    let mut reader = report::ReportReader::default();
    let mut heard = Instant::now();
    loop {
        let end = machine.try_wait();
        let exits = machine.exits().total();
        for line in reader.lines(&files.report) {
            progress(&line);
            report.take(line, exits);
            heard = Instant::now();
        }
        if report.ended {
            return Ok(report);
        }
        if let Some(end) = end {
            let said = report.panic.map(|text| format!(", saying \"{text}\""));
            let said = said.unwrap_or_default();
            return Err(SelftestError::Crashed { end, said });
        }
        if heard.elapsed() > silence {
            let last = reader.last;
            return Err(SelftestError::Hangs { silence, last });
        }
        thread::sleep(LOOK);
    }
}

/// The memory files a run needs.
struct Files {
    kernel: OwnedFd,
    report: OwnedFd,
    blk: OwnedFd,
    scsi: OwnedFd,
}

impl Files {
    fn new(guest: &[u8]) -> Result<Self, SelftestError> {
        let files = Self {
            kernel: memory_file(0)?,
            report: memory_file(REPORT_SIZE)?,
            blk: memory_file(DISK_SIZE)?,
            scsi: memory_file(DISK_SIZE)?,
        };
        let mut written = 0;
        while let Some(rest) = guest.get(written..).filter(|rest| !rest.is_empty()) {
            written += rustix::io::write(&files.kernel, rest)
                .map_err(|e| prepare("store the guest", e))?;
        }
        Ok(files)
    }

    /// What is handed over, the card's end of the connection `net` among it.
    fn resources(&self, net: OwnedFd) -> Result<ResourceOptions, SelftestError> {
        let again = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|error| prepare("use a memory file", error))
        };
        Ok(Resources::options()
            .kernel(again(&self.kernel)?)
            .disk_fd("disk0", again(&self.report)?)
            .disk_fd("disk1", again(&self.blk)?)
            .disk_fd("disk2", again(&self.scsi)?)
            .net_fds("net0", vec![net]))
    }

    fn config(options: SelftestOptions) -> VmConfig {
        let khz = clock::tsc_khz();
        let millis = options.each.as_millis();
        // Sleeping until an interrupt takes ring 0, which only hardware runs at speed.
        let interrupts = match host::virtualisation() {
            Virtualisation::Hardware => "on",
            Virtualisation::SoftwareOnly => "off",
        };
        let cmdline = format!(
            "ecam={:#x} mmio={:#x} tsc-khz={khz} millis={millis} interrupts={interrupts}",
            layout::ECAM.start,
            layout::MMIO32.start
        );
        let disk = |name: &str, bus| DiskConfig::new(name).serial(name).bus(bus);
        VmConfig::default()
            .cmdline(cmdline)
            .kernel_cache(false)
            .serial(SerialTarget::Off)
            .rng(false)
            .memory(MEMORY)
            .disk(disk("report", Bus::Virtio))
            .disk(disk("blk", Bus::Virtio))
            .disk(disk("scsi", Bus::Scsi))
            .net(NetConfig::passt())
    }
}

fn prepare(what: &'static str, error: impl Into<std::io::Error>) -> SelftestError {
    let error = error.into();
    SelftestError::Prepare { what, error }
}

fn memory_file(len: u64) -> Result<OwnedFd, SelftestError> {
    let fd = memfd_create("splitring-selftest", MemfdFlags::CLOEXEC)
        .map_err(|e| prepare("make a memory file", e))?;
    ftruncate(&fd, len).map_err(|e| prepare("size a memory file", e))?;
    Ok(fd)
}
