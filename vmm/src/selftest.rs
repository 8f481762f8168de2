//! The self-test: boots the embedded freestanding guest, which drives every device through the
//! piecewise path, and reads its report.
//!
//! It leaves no files: disks, kernel and report are memory files of this process. The guest needs
//! none of a stock kernel's environment, so it runs on every KVM.

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

/// Guest memory: the guest's heap and its image.
const MEMORY: Bytes = Bytes::mib(128);
const REPORT_SIZE: u64 = 1 << 20;
const DISK_SIZE: u64 = 64 << 20;
const LOOK: Duration = Duration::from_millis(2);

/// Why the self-test did not complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelftestError {
    /// The host refuses something that every run needs.
    #[error("cannot prepare the self-test: cannot {what}: {error}")]
    Prepare {
        /// The operation.
        what: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
    /// The machine can't be built.
    #[error(transparent)]
    Build(#[from] Error),
    /// The guest ended before the end of its report.
    #[error(
        "the guest crashed: {end}{said}; please report this with the output of `splitring check`"
    )]
    Crashed {
        /// How the machine ended.
        end: ExitReason,
        /// The guest's panic message, if it panicked.
        said: String,
    },
    /// The guest stopped writing its report.
    #[error("the guest hangs: no output for {} s after \"{last}\"; please report this with the output of `splitring check`", .silence.as_secs())]
    Hangs {
        /// The time without output.
        silence: Duration,
        /// The last line of its report.
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

/// Options of the self-test.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SelftestOptions {
    /// Length of each timed loop.
    pub each: Duration,
    /// How long the guest may be silent, in addition to the length of a timed loop, before it
    /// counts as hung.
    pub silence: Duration,
    /// The guest to boot: [`GUEST`], or another one with the same report.
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

/// Runs the self-test and returns the guest's report. Calls `progress` for each line of it. Blocks
/// until the guest has ended.
///
/// # Errors
/// The guest did not complete its report. Failed tests are not errors: they are in the report.
pub fn run(
    options: SelftestOptions,
    mut progress: impl FnMut(&ReportLine),
) -> Result<SelftestReport, SelftestError> {
    let files = Files::new(options.guest)?;
    let (ours, theirs) = peer::pair().map_err(|e| prepare("create a socket pair", e))?;
    let config = Files::config(options);
    let resources = files.resources(theirs)?.any_kvm(true).open(&config)?;
    let machine = Machine::new(config, resources)?;
    machine.start()?;
    let peer = thread::spawn(move || peer::echo(ours));
    let result = follow(&machine, &files, options, &mut progress);
    machine.stop();
    // Dropping the machine closes the card's end of the socket, which ends the peer.
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

/// The memory files of a run.
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

    /// Returns the resources for the machine, with `net` as the network card's end of the
    /// connection.
    fn resources(&self, net: OwnedFd) -> Result<ResourceOptions, SelftestError> {
        let again = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|error| prepare("duplicate a memory file's descriptor", error))
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
        // Waiting for an interrupt needs ring 0, which is fast enough only with hardware
        // virtualisation.
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
        .map_err(|e| prepare("create a memory file", e))?;
    ftruncate(&fd, len).map_err(|e| prepare("resize a memory file", e))?;
    Ok(fd)
}
