//! `cargo xtask bench native`: the freestanding guest under Splitring and under QEMU, on the host's
//! own KVM with or without hardware virtualisation, in interleaved pairs on the same files.
//!
//! The guest polls, so this measures the path of a request from the ring to the file and back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::stats::Sample;
use crate::progress::say;
use crate::{tools, vmm};

const DISK_BYTES: usize = 64 << 20;
const REPORT_BYTES: u64 = 1 << 20;
/// Addresses of configuration space and of the free MMIO window in each machine.
const SPLITRING_ADDRESSES: &str = "ecam=0xe0000000 mmio=0xc0000000";
const QEMU_ADDRESSES: &str = "ecam=0xb0000000 mmio=0xc0000000";

/// How to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Number of interleaved pairs
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Length of each timed loop in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    millis: u64,
    /// Another build of Splitring to compare with
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
}

/// Operations per second of each loop.
type Rates = BTreeMap<String, f64>;

pub(crate) fn run(options: &Options, yes: bool) -> Result<()> {
    tools::ensure(&[tools::QEMU], "the comparison", yes)?;
    ensure!(
        fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok(),
        "cannot open /dev/kvm: this comparison runs on the host's own KVM; `splitring check` says what is missing"
    );
    let bench = NativeBench::prepare(options)?;
    let mut ours: BTreeMap<String, Sample> = BTreeMap::new();
    let mut theirs = ours.clone();
    let mut ratios = ours.clone();
    let mut of_base = ours.clone();
    for run in 1..=options.runs {
        say(format!("pair {run} of {}", options.runs));
        let base = options.base.as_deref();
        // Each goes first every second time.
        let (a, b, base) = if run % 2 == 1 {
            let a = bench.splitring(&bench.splitring)?;
            (a, bench.qemu()?, bench.base(base)?)
        } else {
            let base = bench.base(base)?;
            let b = bench.qemu()?;
            (bench.splitring(&bench.splitring)?, b, base)
        };
        for (name, base) in &base {
            let rate = a.get(name).copied().unwrap_or_default();
            of_base.entry(name.clone()).or_default().add(rate / base);
        }
        for (name, rate) in &a {
            let peer = b
                .get(name)
                .copied()
                .with_context(|| format!("QEMU did not run {name}"))?;
            ours.entry(name.clone()).or_default().add(*rate);
            theirs.entry(name.clone()).or_default().add(peer);
            ratios.entry(name.clone()).or_default().add(rate / peer);
        }
    }
    print(&ours, &theirs, &ratios);
    for (name, ratio) in of_base {
        println!("{name:<28} {:>18} of the other build", ratio.to_string());
    }
    Ok(())
}

fn print(
    ours: &BTreeMap<String, Sample>,
    theirs: &BTreeMap<String, Sample>,
    ratios: &BTreeMap<String, Sample>,
) {
    println!(
        "{:<28} {:>28} {:>28} {:>18}",
        "operations per second", "Splitring", "QEMU", "ratio of pairs"
    );
    let mut summary = Vec::new();
    for (name, ratio) in ratios {
        let (a, b) = (&ours[name], &theirs[name]);
        println!(
            "{name:<28} {:>28} {:>28} {:>18}",
            a.to_string(),
            b.to_string(),
            ratio.to_string()
        );
        summary.push(format!("{name} {:.2}", ratio.median()));
    }
    println!("ratios: {}", summary.join(", "));
}

struct NativeBench {
    splitring: PathBuf,
    dir: tempfile::TempDir,
    parameters: String,
    patience: Duration,
}

impl NativeBench {
    fn prepare(options: &Options) -> Result<Self> {
        let splitring = vmm::build()?;
        // On a disk and not in memory, so that both use io_uring on files. The page cache holds all
        // of it.
        let dir = tempfile::tempdir_in(vmm::workspace().join("target"))
            .context("cannot make a directory")?;
        for name in ["blk.img", "scsi.img"] {
            fs::write(dir.path().join(name), vec![0x5a; DISK_BYTES])
                .with_context(|| format!("cannot write {name}"))?;
        }
        let image = dir.path().join("guest.elf");
        let status = Command::new(&splitring)
            .arg("selftest")
            .arg("--image")
            .arg(&image)
            .status();
        ensure!(
            status.context("cannot run splitring")?.success(),
            "splitring did not write its guest image"
        );
        let parameters = format!("tsc-khz={} millis={} tests=off", tsc_khz()?, options.millis);
        let patience = Duration::from_secs(60) + Duration::from_millis(options.millis) * 20;
        Ok(Self {
            splitring,
            dir,
            parameters,
            patience,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The other build's, if there is one.
    fn base(&self, build: Option<&Path>) -> Result<Rates> {
        build.map_or_else(|| Ok(Rates::new()), |build| self.splitring(build))
    }

    fn splitring(&self, build: &Path) -> Result<Rates> {
        let mut command = Command::new(build);
        command.args(["run", "--any-kvm", "--serial", "null", "--memory", "128M"]);
        command.arg("--kernel").arg(self.path("guest.elf"));
        command.args([
            "--cmdline",
            &format!("{SPLITRING_ADDRESSES} {}", self.parameters),
        ]);
        for (file, keys) in [
            ("report.img", "serial=report"),
            ("blk.img", "serial=blk"),
            ("scsi.img", "bus=scsi"),
        ] {
            command
                .arg("--disk")
                .arg(format!("path={},{keys}", self.path(file).display()));
        }
        self.measure(command)
    }

    fn qemu(&self) -> Result<Rates> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host,-arch-capabilities",
            "-m",
            "128M",
        ]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(self.path("guest.elf"));
        command.args(["-append", &format!("{QEMU_ADDRESSES} {}", self.parameters)]);
        for (id, file) in [
            ("report", "report.img"),
            ("blk", "blk.img"),
            ("scsi", "scsi.img"),
        ] {
            let path = self.path(file);
            command.args(["-object", &format!("iothread,id=thread-{id}")]);
            command.arg("-drive").arg(format!(
                "if=none,id={id},file={},format=raw,aio=io_uring,cache=writeback",
                path.display()
            ));
        }
        for device in [
            "virtio-blk-pci,drive=report,serial=report,disable-legacy=on,iothread=thread-report",
            "virtio-blk-pci,drive=blk,serial=blk,disable-legacy=on,iothread=thread-blk",
            "virtio-scsi-pci,id=bus,disable-legacy=on,iothread=thread-scsi",
            "scsi-hd,bus=bus.0,drive=scsi",
        ] {
            command.args(["-device", device]);
        }
        self.measure(command)
    }

    /// Runs one machine until it ends, with a triple fault, and reads its report.
    fn measure(&self, mut command: Command) -> Result<Rates> {
        let report = self.path("report.img");
        let file = fs::File::create(&report).context("cannot make the report")?;
        file.set_len(REPORT_BYTES)
            .context("cannot size the report")?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let started = Instant::now();
        while child.try_wait().context("cannot wait")?.is_none() {
            if started.elapsed() > self.patience {
                child.kill().context("cannot end a machine that hangs")?;
                child.wait().context("cannot wait")?;
                bail!("{:?} did not end", command.get_program());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let errors = child
            .wait_with_output()
            .context("cannot read its messages")?
            .stderr;
        read_report(&report).with_context(|| String::from_utf8_lossy(&errors).into_owned())
    }
}

fn read_report(path: &Path) -> Result<Rates> {
    let bytes = fs::read(path).context("cannot read the report")?;
    let text: Vec<u8> = bytes.into_iter().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8(text).context("the report is not text")?;
    ensure!(
        text.lines().any(|line| line == "end"),
        "the guest did not finish; its report:\n{text}"
    );
    text.lines()
        .filter_map(|line| line.strip_prefix("time "))
        .map(rate)
        .collect()
}

fn rate(line: &str) -> Result<(String, f64)> {
    let mut words = line.rsplitn(3, ' ');
    let mut number = || -> Option<f64> { words.next()?.parse().ok() };
    let (nanoseconds, operations) = (number(), number());
    let (Some(nanoseconds), Some(operations), Some(name)) = (nanoseconds, operations, words.next())
    else {
        bail!("malformed line of a timed loop: {line:?}");
    };
    Ok((name.to_owned(), operations * 1e9 / nanoseconds))
}

/// Returns the TSC frequency. Both machines get the same value, so that its accuracy does not
/// affect the ratios.
fn tsc_khz() -> Result<u64> {
    let text = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let mhz = text
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz")?.split(':').nth(1));
    let mhz = mhz.context("/proc/cpuinfo names no frequency")?.trim();
    let (whole, part) = mhz.split_once('.').unwrap_or((mhz, "0"));
    let khz = format!("{whole}{:0<3.3}", part);
    khz.parse()
        .with_context(|| format!("{mhz} is not a frequency"))
}

#[cfg(test)]
mod tests;
